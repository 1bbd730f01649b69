//! Events, calls and exits in an asynchronous program, with tokio.

use crate::support::{DEADLINE, FIXTURE, alone, is_alive};
use futures_core::Stream;
use pipewright::{
    CallError, Event, EventKind, GroupPolicy, OutputMode, Pass, Supervisor, WaitError, Worker, WorkerSpec,
    pool::{JobOutcome, JobSpec, Jobs},
    status::GroupEndReason,
};
use serde_json::Value;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{runtime, task::JoinSet, time::timeout};

fn on_threads<F: Future>(threads: usize, program: F) -> F::Output {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(threads).enable_time().build().unwrap();
    runtime.block_on(async { timeout(3 * DEADLINE, program).await.expect("the test ends in time") })
}

fn serving() -> WorkerSpec {
    WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}"))
}

fn started() -> (Supervisor, Worker) {
    let supervisor = Supervisor::new().unwrap();
    let worker = supervisor.spawn(serving()).unwrap();
    (supervisor, worker)
}

#[test]
fn p15_calls_are_futures() {
    on_threads(2, async {
        let (supervisor, worker) = started();
        assert_eq!(worker.call_async::<_, i64>("add", &[1, 2]).await.unwrap(), 3);
        let echo = worker.start_call("echo", &["text"]).unwrap().result::<[String; 1]>();
        assert_eq!(echo.await.unwrap(), ["text"]);
        assert!(matches!(worker.call_async::<_, i64>("fail", &[()]).await, Err(CallError::Rpc(_))));
        assert!(matches!(worker.call_async::<_, i64>("echo", &["x"]).await, Err(CallError::InvalidResult(_))));
        assert!(matches!(worker.call_async::<_, i64>("echo", &5).await, Err(CallError::Encode(_))));
        let open = worker.call_async::<_, Value>("until cancelled", &());
        worker.kill().unwrap();
        let Err(CallError::WorkerExited { exit: Some(exit), .. }) = open.await else { panic!("no exit") };
        assert_eq!(exit.signal(), Some(9));
        assert!(matches!(worker.call_async::<_, ()>("ping", &()).await, Err(CallError::WorkerExited { .. })));
        let uncontrolled = supervisor.spawn(WorkerSpec::new("true")).unwrap();
        assert!(matches!(uncontrolled.call_async::<_, ()>("ping", &()).await, Err(CallError::NotConnected)));
    });
}

#[test]
fn p15_dropped_future_cancels_its_call_in_the_worker() {
    on_threads(2, async {
        let (_supervisor, worker) = started();
        let call = worker.call_async::<_, Value>("until cancelled", &());
        timeout(Duration::from_millis(10), call).await.expect_err("it is not answered before it is cancelled");
        // The worker serves one request at a time: this one succeeds only if the first was cancelled.
        assert_eq!(worker.call_async::<_, i64>("add", &[2]).await.unwrap(), 2);
        let never_polled = worker.call_async::<_, Value>("until cancelled", &());
        drop(never_polled);
        assert_eq!(worker.call_async::<_, i64>("add", &[3]).await.unwrap(), 3);
        let call = worker.start_call("until cancelled", &()).unwrap();
        let canceller = call.cancel_handle();
        let waiting = tokio::spawn(call.result::<Value>());
        canceller.cancel();
        assert!(matches!(waiting.await.unwrap(), Err(CallError::Cancelled)));
        assert_eq!(worker.call_async::<_, i64>("add", &[4]).await.unwrap(), 4);
    });
}

#[test]
fn p15_readiness_and_exit_are_awaited() {
    on_threads(2, async {
        let (_supervisor, worker) = started();
        worker.ready().await.unwrap();
        worker.call_async::<_, ()>("ping", &()).await.unwrap();
        let exited = tokio::spawn(worker.exited());
        timeout(Duration::from_millis(10), worker.exited()).await.expect_err("it runs");
        worker.stop();
        assert!(exited.await.unwrap().success());
        assert!(matches!(worker.ready().await, Err(WaitError::Ended { .. })));
        assert!(worker.exited().await.success());
        assert!(worker.wait_timeout(Duration::ZERO).is_some());
    });
}

#[test]
fn p15_stops_restarts_and_the_end_of_a_group_are_awaited() {
    on_threads(2, async {
        let (supervisor, worker) = started();
        worker.restart().ready().await.unwrap();
        assert_eq!(worker.incarnation(), 2);
        let report = worker.stop().ended().await;
        assert!(report.workers[0].exit.is_some() && report.workers.len() == 1 && report.is_complete, "{report:?}");
        assert!(matches!(worker.restart().ready().await, Err(WaitError::Ended { .. })));

        let group = supervisor.group(GroupPolicy::default()).unwrap();
        let members = [(); 3].map(|()| group.add(WorkerSpec::new("sleep").arg("1000")).unwrap());
        let ended = tokio::spawn(group.ended());
        timeout(Duration::from_millis(10), group.ended()).await.expect_err("it runs");
        group.restart().ready().await.unwrap();
        assert!(!ended.is_finished(), "a restart is no end");
        assert_eq!(group.stop().ended().await.workers.len(), members.len());
        assert_eq!(ended.await.unwrap(), GroupEndReason::Stopped);

        let group = supervisor.group(GroupPolicy::default()).unwrap();
        group.add(WorkerSpec::new("sleep").arg("1000")).unwrap();
        let ended = tokio::spawn(group.ended());
        supervisor.close();
        assert_eq!(supervisor.stop_all().ended().await.unfinished().count(), 0);
        assert_eq!(ended.await.unwrap(), GroupEndReason::Stopped);
    });
}

#[test]
fn p15_ten_thousand_calls_are_open_on_two_threads() {
    const NAME: &str = "async_host::p15_ten_thousand_calls_are_open_on_two_threads";
    const CALLS: usize = 10_000;
    const WORKERS: usize = 16;
    const EACH: usize = CALLS / WORKERS;
    if !alone(NAME, |spec| spec) {
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    on_threads(2, async move {
        let supervisor = Supervisor::new().unwrap();
        let spec = WorkerSpec::new(FIXTURE).arg("hold").control(Pass::arg("--control={}"));
        let workers: Vec<_> = (0..WORKERS).map(|_| supervisor.spawn(spec.clone()).unwrap()).collect();
        let before = threads();
        let (mut kept, mut dropped) = (JoinSet::new(), JoinSet::new());
        for (n, worker) in (0..CALLS).zip(workers.iter().cycle()) {
            let call = worker.call_async::<_, [usize; 1]>("hold", &[n]);
            let calls = if (n / WORKERS).is_multiple_of(2) { &mut kept } else { &mut dropped };
            calls.spawn(async move { (n, call.await) });
        }
        let count = async |worker: &Worker| worker.call_async::<_, (usize, usize)>("count", &()).await.unwrap();
        for worker in &workers {
            assert_eq!(count(worker).await, (EACH, 0));
        }
        assert_eq!(threads(), before, "no call has a thread");
        dropped.shutdown().await;
        for worker in &workers {
            assert_eq!(count(worker).await, (EACH, EACH / 2), "the worker sees the cancellation of each dropped call");
            worker.call_async::<_, ()>("release", &()).await.unwrap();
        }
        let mut ended: Vec<_> = Vec::new();
        while let Some(call) = kept.join_next().await {
            let (n, result) = call.unwrap();
            assert_eq!(result.unwrap(), [n]);
            ended.push(n);
        }
        assert_eq!(ended.len(), CALLS - WORKERS * (EACH / 2));
    });
}

#[test]
fn p15_futures_wait_for_a_worker_that_does_not_read() {
    const CALLS: usize = 300;
    on_threads(2, async {
        let supervisor = Supervisor::new().unwrap();
        let worker = supervisor.spawn(WorkerSpec::new(FIXTURE).arg("hold").control(Pass::arg("--control={}"))).unwrap();
        worker.call_async::<_, (usize, usize)>("count", &()).await.unwrap();
        worker.freeze().unwrap();
        let text = "x".repeat(50_000);
        let call = |n| worker.call_async::<_, (usize, String)>("hold", &(n, &text));
        let mut calls: Vec<_> = (0..CALLS).map(call).collect();
        let queued = || supervisor.status().workers[0].control_queue;
        assert!(queued() > 10_000_000, "{} bytes are queued", queued());
        // The other limit is not affected, and what is sent later stays later.
        let last = worker.start_call("count", &()).unwrap();
        calls.truncate(CALLS - 100);
        assert!(queued() < 10_000_000, "{} bytes are still queued", queued());
        worker.thaw().unwrap();
        let counted = last.result::<(usize, usize)>().await.unwrap();
        assert_eq!(counted, (calls.len(), 0), "a call that was dropped in the queue is not sent");
        worker.call_async::<_, ()>("release", &()).await.unwrap();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), (n, text.clone()));
        }
        assert_eq!(queued(), 0);
    });
}

#[test]
fn p02_events_are_a_stream_that_ends_with_the_channel() {
    const LINES: u32 = 5000;
    on_threads(2, async {
        let supervisor = Supervisor::new().unwrap();
        let mut events = supervisor.event_stream();
        let spec = WorkerSpec::new("seq").arg(LINES.to_string()).stdout(OutputMode::Lines);
        // A small window: the worker is paused many times, until its lines are dropped.
        supervisor.spawn(spec.window(4096)).unwrap();
        supervisor.close();
        let (mut expected, mut exits) = (1..=LINES, 0);
        while let Some(event) = timeout(DEADLINE, events.next()).await.expect("an event in time") {
            match event.kind {
                EventKind::Line { line, .. } => assert_eq!(line.text(), expected.next().unwrap().to_string()),
                EventKind::Exited { .. } => exits += 1,
                _ => {}
            }
        }
        assert_eq!((expected.next(), exits), (None, 1));
        assert!(events.next().await.is_none(), "it stays ended");
    });
}

#[test]
fn p02_several_streams_and_a_receiver_share_the_events() {
    const NUMBERS: u32 = 3000;
    on_threads(2, async {
        let supervisor = Supervisor::new().unwrap();
        let streams = [(); 4].map(|()| supervisor.event_stream());
        let thread = {
            let receiver = supervisor.events().clone();
            std::thread::spawn(move || receiver.iter().filter_map(number).collect::<Vec<_>>())
        };
        let mut tasks = JoinSet::new();
        for mut stream in streams {
            tasks.spawn(async move {
                let mut numbers = Vec::new();
                while let Some(event) = stream.next().await {
                    numbers.extend(number(event));
                }
                numbers
            });
        }
        // A stream that was polled and is dropped takes no event and no wake-up with it.
        let mut dropped = supervisor.event_stream();
        poll_fn(|context| Poll::Ready(Pin::new(&mut dropped).poll_next(context).is_pending())).await;
        drop(dropped);
        let spec = WorkerSpec::new("seq").arg(NUMBERS.to_string()).stdout(OutputMode::Lines);
        supervisor.spawn(spec).unwrap();
        supervisor.close();
        let mut numbers: Vec<u32> = tasks.join_all().await.concat();
        numbers.extend(thread.join().unwrap());
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(1..=NUMBERS), "{} numbers", numbers.len());
    });
}

fn number(event: Event) -> Option<u32> {
    match event.kind {
        EventKind::Line { line, .. } => Some(line.text().parse().unwrap()),
        _ => None,
    }
}

#[test]
fn p15_streams_end_with_a_dropped_supervisor() {
    on_threads(2, async {
        let (supervisor, worker) = started();
        let pid = worker.pid().unwrap();
        let mut events = supervisor.event_stream();
        let task = tokio::spawn(async move { while events.next().await.is_some() {} });
        let open = tokio::spawn(worker.call_async::<_, Value>("until cancelled", &()));
        // The drop blocks until the worker has ended.
        tokio::task::spawn_blocking(|| drop(supervisor)).await.unwrap();
        task.await.unwrap();
        assert!(matches!(open.await.unwrap(), Err(CallError::WorkerExited { .. })));
        assert!(!is_alive(pid));
        worker.exited().await;
    });
}

#[test]
fn p06_hot_stream_yields_to_other_tasks() {
    let supervisor = Supervisor::new().unwrap();
    let spec = WorkerSpec::new("seq").arg("1000").stdout(OutputMode::Lines);
    supervisor.spawn(spec).unwrap().wait_timeout(DEADLINE).expect("exits");
    // All events are in the channel.
    let woken = Arc::new(Woken::default());
    let (mut events, mut turns, mut received) = (supervisor.event_stream(), 0, 0);
    while received < 1000 {
        match Pin::new(&mut events).poll_next(&mut Context::from_waker(&Waker::from(Arc::clone(&woken)))) {
            Poll::Ready(event) => received += usize::from(event.is_some()),
            Poll::Pending => {
                turns += 1;
                assert_eq!(woken.0.load(Ordering::Relaxed), turns, "a task that yields is polled again");
            }
        }
    }
    assert!((5..=20).contains(&turns), "{turns} turns");
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn p15_ends_of_jobs_are_futures() {
    on_threads(2, async {
        let supervisor = Supervisor::new().unwrap();
        let jobs = Jobs::new(&supervisor, 1);
        let first = jobs.submit(WorkerSpec::new("true")).unwrap();
        let second = jobs.submit(JobSpec::new(WorkerSpec::new("false")).after(&first)).unwrap();
        let third = jobs.submit(JobSpec::new(WorkerSpec::new("true")).after(&second)).unwrap();
        let outcome = third.ended().await;
        assert!(matches!(outcome, JobOutcome::DependencyFailed { on } if on == second.id()), "{outcome}");
        assert!(first.ended().await.success() && !second.ended().await.success());
    });
}
