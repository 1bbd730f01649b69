//! Handlers of the requests and notifications of workers.

use crate::answers::{connected, passive};
use crate::support::{DEADLINE, Story, Way, alone, becomes_true, peak_memory};
use pipewright::{CallError, EventKind, Pass, Request, RpcError, ServeGuard, Worker, WorkerSpec, events::Warning};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Write},
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

fn serving() -> WorkerSpec {
    Way::Direct.plain("serve").control(Pass::arg("--control={}"))
}

fn started(story: &Story) -> Worker {
    story.supervisor.spawn(serving()).unwrap()
}

/// Answers every request with `answer`.
fn answering(answer: &'static str) -> impl Fn(&Request) -> Result<&'static str, RpcError> {
    move |_| Ok(answer)
}

/// Lets the worker call back, and returns the answer that it got.
fn ask_back(worker: &Worker) -> Result<Value, CallError> {
    worker.call("ask back", &[1], DEADLINE)
}

/// Waits for so long, without an event to wait for.
fn pause(ms: u64) {
    crossbeam_channel::after(Duration::from_millis(ms)).recv().unwrap();
}

#[test]
fn p15_call_with_a_handler_is_answered_after_a_million_notifications() {
    const COUNT: u32 = 1_000_000;
    if !alone("serving::p15_call_with_a_handler_is_answered_after_a_million_notifications", |spec| spec) {
        return;
    }
    let story = Story::new();
    let handled = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: &Worker, request: &Request| {
        // With one thread they come in order.
        assert_eq!(request.params::<[u32; 1]>()?, [count.fetch_add(1, Ordering::Relaxed)]);
        Ok(())
    };
    let _serving = story.supervisor.serve(1, handler).unwrap();
    let worker = started(&story);
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    let before = peak_memory();
    // No event is received.
    assert_eq!(worker.call::<_, u32>("chatter", &[COUNT], 4 * DEADLINE).unwrap(), COUNT);
    assert!(becomes_true(|| handled.load(Ordering::Relaxed) == COUNT), "{handled:?}");
    let grown = peak_memory() - before;
    assert!(grown < 48 << 20, "{grown} bytes with a window of 8 MiB");
}

#[test]
fn p15_call_from_the_receiving_thread_is_answered_if_a_handler_answers_the_worker() {
    let mut story = Story::new();
    let notified = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&notified);
    let handler = move |worker: &Worker, request: &Request| match request.method() {
        "asking" => {
            assert!(request.is_notification());
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Value::Null)
        }
        "back" => Ok(json!([worker.id().to_string(), request.params::<Value>()?])),
        other => Err(RpcError::method_not_found(other)),
    };
    let serving = story.supervisor.serve(1, handler).unwrap();
    let worker = started(&story);
    for _ in 0..10 {
        assert_eq!(ask_back(&worker).unwrap(), json!([worker.id().to_string(), [1]]));
    }
    drop(serving);
    assert_eq!(notified.load(Ordering::Relaxed), 10);
    worker.kill().unwrap();
    let is_talk = |kind: &EventKind| matches!(kind, EventKind::Request(_) | EventKind::Notification(_));
    assert!(story.rest().iter().all(|event| !is_talk(&event.kind)), "handled messages are no events");
}

#[test]
fn p15_handler_of_a_worker_precedes_that_of_the_supervisor() {
    let mut story = Story::new();
    let of_all = story.supervisor.serve(1, |_, request| answering("of all")(request)).unwrap();
    let (one, other) = (started(&story), started(&story));
    let of_one = one.serve(1, answering("of one")).unwrap();
    assert!(becomes_true(|| ask_back(&one).unwrap() == "of one"));
    assert_eq!(ask_back(&other).unwrap(), "of all");
    let later = story.supervisor.serve(1, |_, request| answering("later")(request)).unwrap();
    assert!(becomes_true(|| ask_back(&other).unwrap() == "later"));
    assert_eq!(ask_back(&one).unwrap(), "of one");
    one.restart().wait(DEADLINE).unwrap();
    assert_eq!(ask_back(&one).unwrap(), "of one", "also in its next incarnation");
    drop(of_one);
    assert_eq!(ask_back(&one).unwrap(), "later");
    drop((of_all, later));
    thread::scope(|scope| {
        let call = scope.spawn(|| ask_back(&other));
        let request = story.find(|event| match event.kind {
            EventKind::Request(request) => Some(request),
            _ => None,
        });
        request.reply(&"event").unwrap();
        assert_eq!(call.join().unwrap().unwrap(), "event");
    });
}

#[test]
fn p15_messages_of_workers_that_exit_at_once_are_handled() {
    const WORKERS: usize = 50;
    let mut story = Story::new();
    let (told, handled) = mpsc::channel();
    let handler = move |worker: &Worker, request: &Request| {
        told.send((worker.id(), request.params::<[u32; 1]>()?)).unwrap();
        Ok(())
    };
    let _serving = story.supervisor.serve(3, handler).unwrap();
    for _ in 0..WORKERS {
        story.supervisor.spawn(Way::Direct.plain("tell-and-go").control(Pass::arg("--control={}"))).unwrap();
    }
    for _ in 0..WORKERS {
        handled.recv_timeout(DEADLINE).unwrap();
    }
    let rest = story.rest();
    assert!(!rest.iter().any(|event| matches!(event.kind, EventKind::Notification(_))));
}

#[test]
fn p16_errors_and_panics_of_a_handler_reach_the_worker() {
    let story = Story::new();
    let handler = |_: &Worker, request: &Request| match request.params::<[String; 1]>()?[0].as_str() {
        "panic" => std::panic::resume_unwind(Box::new("as asked")),
        "no file" => Ok(json!(std::fs::read("/nonexistent/file")?)),
        "own" => Err(RpcError::new(7, "as asked")),
        "own error" => Err(io::Error::other("out of paper"))?,
        _ => Ok(Value::Null),
    };
    let _serving = story.supervisor.serve(1, handler).unwrap();
    let worker = started(&story);
    let refused = |params: Value| match worker.call::<_, Value>("ask back", &params, DEADLINE).unwrap_err() {
        // What the worker got, as the text of its own error.
        CallError::Rpc(error) => error.message,
        error => panic!("{error:?}"),
    };
    assert_eq!(refused(json!(["panic"])), "remote error -32603: the method panicked");
    assert_eq!(refused(json!(["no file"])), "remote error -32603: No such file or directory (os error 2)");
    assert_eq!(refused(json!(["own"])), "remote error 7: as asked");
    assert_eq!(refused(json!(["own error"])), "remote error -32603: out of paper");
    let invalid = refused(json!([1]));
    assert!(invalid.starts_with("remote error -32602:") && invalid.contains("expected a string"), "{invalid}");
    assert_eq!(worker.call::<_, Value>("ask back", &["x"], DEADLINE).unwrap(), Value::Null);
}

#[test]
fn p16_failed_handlers_of_notifications_are_reported_within_bounds() {
    const COUNT: u64 = 1000;
    let mut story = Story::new();
    let handler = |_: &Worker, request: &Request| match (request.method(), request.params::<[u32; 1]>()?[0]) {
        ("progress", 0) => Err(RpcError::new(7, "out of\npaper")),
        ("progress", 1) => std::panic::resume_unwind(Box::new("as asked")),
        ("progress", _) => Err(io::Error::other("out of ink"))?,
        _ => Ok(()),
    };
    let _serving = story.supervisor.serve(1, handler).unwrap();
    let worker = started(&story);
    // No event is received, and the worker is not paused for its failures.
    assert_eq!(worker.call::<_, u64>("chatter", &[COUNT], DEADLINE).unwrap(), COUNT);
    // Handled after all of them.
    ask_back(&worker).unwrap();
    let mut failure = || {
        story.find(|event| match event.kind {
            EventKind::Warning(warning) => match *warning {
                Warning::NotificationFailed(failure) => Some(failure),
                other => panic!("{other}"),
            },
            _ => None,
        })
    };
    let first = failure();
    let text = format!("handler of notification `progress` of worker {} failed: error 7: out of\\npaper", worker.id());
    assert_eq!((first.to_string(), first.worker, &*first.method), (text, worker.id(), "progress"));
    let others = [(); 7].map(|()| failure().error.message);
    assert_eq!(others[..2], ["the handler panicked", "out of ink"]);
    drop(first);
    worker.call::<_, u64>("chatter", &[1], DEADLINE).unwrap();
    assert_eq!(failure().unreported, COUNT - 8);
}

#[test]
fn p06_slow_handler_delays_neither_answers_nor_requests_of_other_workers() {
    const COUNT: u32 = 400;
    let story = Story::new();
    let handled = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: &Worker, request: &Request| {
        if request.method() == "progress" {
            pause(5);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok("yes")
    };
    let _serving = story.supervisor.serve(1, handler).unwrap();
    let (chatty, other) = (started(&story), started(&story));
    assert_eq!(chatty.call::<_, u32>("chatter", &[COUNT], DEADLINE).unwrap(), COUNT, "the window has room");
    for n in 0..10 {
        assert_eq!(ask_back(&other).unwrap(), "yes");
        assert_eq!(other.call::<_, u32>("add", &[n, 1], DEADLINE).unwrap(), n + 1);
        assert_eq!(chatty.call::<_, u32>("add", &[n, 1], DEADLINE).unwrap(), n + 1);
    }
    let meanwhile = handled.load(Ordering::Relaxed);
    assert!(meanwhile < COUNT, "all were handled before: nothing shown");
    assert!(becomes_true(|| handled.load(Ordering::Relaxed) == COUNT));
}

#[test]
fn p07_worker_is_paused_while_its_handler_is_blocked() {
    const COUNT: u32 = 2000;
    let story = Story::new();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let handled = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: &Worker, _: &Request| {
        // Fails once the sender is dropped.
        _ = released.lock().unwrap().recv();
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let _serving = story.supervisor.serve(2, handler).unwrap();
    let (worker, other) = (story.supervisor.spawn(serving().control_window(64 << 10)).unwrap(), started(&story));
    thread::scope(|scope| {
        let call = scope.spawn(|| worker.call::<_, u32>("chatter", &[COUNT], DEADLINE));
        let is_paused = || story.supervisor.status().workers.iter().any(|status| status.is_paused);
        assert!(becomes_true(is_paused), "{:?}", story.supervisor.status());
        let error = worker.call::<_, u32>("add", &[1], Duration::from_millis(500)).unwrap_err();
        assert!(matches!(error, CallError::EventsUnreceived { events: 100.., .. }), "{error:?}");
        assert!(!call.is_finished() && handled.load(Ordering::Relaxed) == 0, "a handler may take its time");
        assert_eq!(other.call::<_, u32>("add", &[1, 2], DEADLINE).unwrap(), 3);
        drop(release);
        assert_eq!(call.join().unwrap().unwrap(), COUNT);
    });
    assert!(becomes_true(|| handled.load(Ordering::Relaxed) == COUNT));
}

#[test]
fn p15_handler_that_calls_its_worker_needs_another_thread_for_its_calls() {
    let story = Story::new();
    let handler = |worker: &Worker, request: &Request| match request.params::<[u32; 1]>()? {
        [0] => Ok(json!([])),
        [n] if request.is_notification() => Ok(json!(n)),
        // The worker calls back again before it answers this.
        [n] => Ok(json!([worker.call::<_, Value>("ask back", &[n - 1], DEADLINE)?])),
    };
    let _serving = story.supervisor.serve(3, handler).unwrap();
    let worker = story.supervisor.spawn(serving().args(["--threads", "3"])).unwrap();
    assert_eq!(worker.call::<_, Value>("ask back", &[2], DEADLINE).unwrap(), json!([[[]]]));
}

#[test]
fn p15_drop_of_the_guard_waits_for_running_handlers_and_answers_waiting_requests() {
    let mut story = Story::new();
    let (begun, begins) = mpsc::channel();
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let handler = move |_: &Worker, request: &Request| {
        if !request.is_notification() {
            begun.send(()).unwrap();
            pause(300);
            done.store(true, Ordering::SeqCst);
        }
        Ok("done")
    };
    let serving = story.supervisor.serve(1, handler).unwrap();
    let first = started(&story);
    let (_second, mut socket) = connected(&mut story, passive());
    let handled = first.start_call("ask back", &[1]).unwrap();
    begins.recv_timeout(DEADLINE).unwrap();
    // The supervisor itself answers the second request, so the first one has arrived then, and waits for the thread.
    for (id, method) in [(1, "back"), (2, "ping")] {
        writeln!(socket, "{}", json!({"jsonrpc": "2.0", "id": id, "method": method})).unwrap();
    }
    let mut answers = BufReader::new(socket).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert_eq!(answers.next().unwrap()["id"], 2);
    assert!(!is_done.load(Ordering::SeqCst), "the handler has ended too early to show anything");
    drop(serving);
    assert!(is_done.load(Ordering::SeqCst), "a handler still ran");
    assert_eq!(handled.wait::<String>(DEADLINE).unwrap(), "done");
    let answer = answers.next().unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!(-32603)), "{answer}");
}

#[test]
fn p15_guard_dropped_by_its_own_handler_ends_after_it() {
    let story = Story::new();
    let slot = Arc::new(Mutex::new(None::<ServeGuard>));
    let own = Arc::clone(&slot);
    let handler = move |_: &Worker, request: &Request| {
        if !request.is_notification() {
            drop(own.lock().unwrap().take());
        }
        Ok("last")
    };
    *slot.lock().unwrap() = Some(story.supervisor.serve(1, handler).unwrap());
    let worker = started(&story);
    assert_eq!(ask_back(&worker).unwrap(), "last");
    // The thread has dropped the handler.
    assert!(becomes_true(|| Arc::strong_count(&slot) == 1));
}

#[test]
fn p15_handlers_end_with_their_supervisor() {
    let story = Story::new();
    let value = Arc::new(());
    let held = Arc::clone(&value);
    let handler = move |_: &Worker, _: &Request| Ok(Arc::strong_count(&held));
    let serving = story.supervisor.serve(4, handler).unwrap();
    let worker = started(&story);
    assert_eq!(ask_back(&worker).unwrap(), 2);
    let _leaked = mem::ManuallyDrop::new(serving);
    drop(story);
    assert!(becomes_true(|| Arc::strong_count(&value) == 1), "a thread still holds the handler");
}
