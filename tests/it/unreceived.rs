//! Calls to workers whose events are not received.

use crate::support::{DEADLINE, FIXTURE, Story, Way, alone, becomes_true, peak_memory};
use pipewright::{CallError, EventKind, OutputMode, Pass, Supervisor, Worker, WorkerSpec};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

/// A small window, in bytes: a few hundred notifications.
const WINDOW: usize = 64 << 10;
/// More notifications than fit into it.
const MANY: u32 = 2_000;
/// The time without a receipt after which a call fails.
const SILENCE: Duration = Duration::from_millis(100);

fn serving() -> WorkerSpec {
    Way::Direct.plain("serve").control(Pass::arg("--control={}"))
}

/// A worker that is connected, with a small window.
fn connected(story: &mut Story) -> Worker {
    let worker = story.supervisor.spawn(serving().control_window(WINDOW)).unwrap();
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    worker
}

/// Receives progress up to its last number. Panics if an answer was reported as unexpected.
fn receive_progress(story: &mut Story, count: u32) {
    story.find(|event| match event.kind {
        EventKind::Notification(note) => (note.params::<[u32; 1]>().unwrap() == [count - 1]).then_some(()),
        EventKind::InvalidFrame(fault) => panic!("{fault}"),
        _ => None,
    });
}

#[track_caller]
fn unreceived(error: CallError) -> (usize, usize) {
    match error {
        CallError::EventsUnreceived { events, bytes } => (events, bytes),
        error => panic!("{error:?}"),
    }
}

#[test]
fn p15_call_with_a_receiver_on_another_thread_is_answered_after_a_million_notifications() {
    const COUNT: u32 = 1_000_000;
    if !alone(
        "unreceived::p15_call_with_a_receiver_on_another_thread_is_answered_after_a_million_notifications",
        |spec| spec,
    ) {
        return;
    }
    let story = Story::new();
    let worker = story.supervisor.spawn(serving()).unwrap();
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    let before = peak_memory();
    thread::scope(|scope| {
        let events = story.supervisor.events();
        let receiver = scope.spawn(move || {
            let notifications = events.iter().filter(|event| matches!(event.kind, EventKind::Notification(_)));
            notifications.take(COUNT as usize).count()
        });
        assert_eq!(worker.call::<_, u32>("chatter", &[COUNT], 4 * DEADLINE).unwrap(), COUNT);
        assert_eq!(receiver.join().unwrap(), COUNT as usize);
    });
    let grown = peak_memory() - before;
    assert!(grown < 48 << 20, "{grown} bytes with a window of 8 MiB");
}

#[test]
fn p15_call_without_a_receiver_fails_with_the_unreceived_events() {
    const ATTEMPTS: u32 = 3;
    let mut story = Story::new();
    let worker = connected(&mut story);
    for attempt in 0..ATTEMPTS {
        let began = Instant::now();
        let error = worker.call::<_, u32>("chatter", &[MANY], DEADLINE).unwrap_err();
        let took = began.elapsed();
        assert!(took < DEADLINE / 2 && (attempt > 0 || took >= SILENCE), "attempt {attempt} took {took:?}");
        let text = error.to_string();
        assert!(text.contains("are not received") && text.contains("on another thread"), "{text}");
        let (events, bytes) = unreceived(error);
        assert!(bytes >= WINDOW && events > 100, "{events} events, {bytes} bytes");
    }
    // The worker is not disturbed, and its late answers are ignored.
    for _ in 0..ATTEMPTS {
        receive_progress(&mut story, MANY);
    }
    assert_eq!(worker.call::<_, u32>("add", &[1, 2], DEADLINE).unwrap(), 3);
}

#[test]
fn p15_calls_that_fail_for_unreceived_events_are_cancelled() {
    let mut story = Story::new();
    let spec = serving().control_window(WINDOW).args(["--threads", "2"]);
    let worker = story.supervisor.spawn(spec).unwrap();
    // Its answer comes only if it is cancelled.
    let long = worker.start_call("until cancelled", &()).unwrap();
    let error = worker.call::<_, u32>("chatter", &[MANY], DEADLINE).unwrap_err();
    unreceived(error);
    unreceived(long.wait::<Value>(DEADLINE).unwrap_err());
    receive_progress(&mut story, MANY);
    // Both of its threads are free again.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| worker.call::<_, String>("wait", &["x"], DEADLINE));
        worker.call::<_, ()>("release", &["x"], DEADLINE).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "x");
    });
}

#[test]
fn p15_slow_consumer_never_fails_a_call() {
    let story = Story::new();
    let worker = story.supervisor.spawn(serving().control_window(WINDOW)).unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| worker.call::<_, u32>("chatter", &[MANY], DEADLINE));
        let receive = || story.supervisor.events().recv_timeout(DEADLINE).unwrap();
        let is_paused = || story.supervisor.status().workers[0].is_paused;
        assert!(becomes_true(is_paused));
        let began = Instant::now();
        while began.elapsed() < 10 * SILENCE {
            drop(receive());
            let next = Instant::now() + Duration::from_millis(10);
            // An idle wait with a deadline.
            crossbeam_channel::at(next).recv().unwrap();
        }
        assert!(is_paused() && !call.is_finished(), "the window stayed full");
        let is_last = |event: pipewright::Event| match event.kind {
            EventKind::Notification(note) => note.params::<[u32; 1]>().unwrap() == [MANY - 1],
            _ => false,
        };
        while !is_last(receive()) {}
        assert_eq!(call.join().unwrap().unwrap(), MANY);
    });
}

#[test]
fn p15_call_from_the_receiving_thread_fails_if_the_worker_calls_back() {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(serving()).unwrap();
    for _ in 0..2 {
        // One call reads its answer itself, the other is read by the event loop.
        let (events, _) = unreceived(worker.call::<_, Value>("ask back", &[1], 5 * SILENCE).unwrap_err());
        assert!(events >= 2, "a notification and a request");
    }
    let pending = worker.start_call("add", &[1, 2]).unwrap();
    unreceived(pending.wait::<u32>(5 * SILENCE).unwrap_err());
    for _ in 0..2 {
        let request = story.find(|event| match event.kind {
            EventKind::Request(request) => Some(request),
            _ => None,
        });
        request.reply(&7).unwrap();
    }
    assert_eq!(worker.call::<_, u32>("add", &[1, 2], DEADLINE).unwrap(), 3);
    let late = worker.call::<_, Value>("until cancelled", &(), 2 * SILENCE).unwrap_err();
    assert!(matches!(late, CallError::TimedOut), "nothing is unreceived: {late:?}");
}

#[test]
fn p15_call_fails_if_events_of_all_workers_fill_the_window_of_the_supervisor() {
    let mut story = Story::of(Supervisor::builder().window(256 << 10).build().unwrap());
    let worker = story.supervisor.spawn(serving()).unwrap();
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    let flood = WorkerSpec::new(FIXTURE)
        .args(["flood", "--count", "1000", "--size", "1000"])
        .messages(Pass::arg("--messages={}"));
    story.supervisor.spawn(flood).unwrap();
    let is_paused = || story.supervisor.status().workers.iter().any(|status| status.is_paused);
    assert!(becomes_true(is_paused));
    let (_, bytes) = unreceived(worker.call::<_, u32>("chatter", &[MANY], DEADLINE).unwrap_err());
    assert!(bytes < 256 << 10, "a share of the window");
    receive_progress(&mut story, MANY);
    assert_eq!(worker.call::<_, u32>("add", &[1, 2], DEADLINE).unwrap(), 3);
}

#[test]
fn p15_call_fails_if_the_worker_waits_for_an_answer_already() {
    let story = Story::new();
    let spec = Way::Direct.plain("ask").control(Pass::arg("--control={}")).stdout(OutputMode::Lines);
    let worker = story.supervisor.spawn(spec).unwrap();
    // It has started, has connected, and has sent three requests.
    assert!(becomes_true(|| story.supervisor.status().events_waiting == 5), "{:#?}", story.supervisor.status());
    let (events, _) = unreceived(worker.call::<_, Value>("x", &(), 5 * SILENCE).unwrap_err());
    assert_eq!(events, 5);
}

/// A worker with a small window for messages.
fn pouring(story: &Story) -> Worker {
    let spec = serving().messages(Pass::arg("--messages={}")).args(["--threads", "3"]).window(WINDOW);
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    worker
}

/// More messages than fit into its window and its pipe.
const MESSAGES: u32 = 50_000;

#[test]
fn p15_call_fails_at_its_timeout_if_messages_of_the_worker_are_not_received() {
    let mut story = Story::new();
    let worker = pouring(&story);
    for _ in 0..2 {
        let began = Instant::now();
        // The first call reads its answer itself; the window is full already when the second one begins.
        let (events, bytes) = unreceived(worker.call::<_, u32>("pour", &[MESSAGES], 5 * SILENCE).unwrap_err());
        assert!(bytes >= WINDOW && events > 100, "{events} events, {bytes} bytes");
        assert!(began.elapsed() >= 5 * SILENCE, "the worker could have answered until then");
    }
    let sum = worker.call::<_, u32>("add", &[1, 2], DEADLINE);
    assert_eq!(sum.unwrap(), 3, "its other threads need not wait");
    for _ in 0..2 {
        story.find(|event| match event.kind {
            EventKind::Message(message) => (message.json::<[u32; 1]>().unwrap() == [MESSAGES - 1]).then_some(()),
            _ => None,
        });
    }
    assert_eq!(worker.call::<_, u32>("add", &[1, 2], DEADLINE).unwrap(), 3);
}

#[test]
fn p15_slow_consumer_of_messages_does_not_change_the_error_of_a_timeout() {
    let story = Story::new();
    let worker = pouring(&story);
    thread::scope(|scope| {
        let call = scope.spawn(|| worker.call::<_, u32>("pour", &[MESSAGES], 10 * SILENCE));
        while !call.is_finished() {
            drop(story.supervisor.events().recv_timeout(DEADLINE).unwrap());
            crossbeam_channel::after(Duration::from_millis(10)).recv().unwrap();
        }
        let error = call.join().unwrap().unwrap_err();
        assert!(matches!(error, CallError::TimedOut), "{error:?}");
    });
}
