//! Events of many workers: order, whole messages, windows, exits.

use crate::{
    kernel,
    support::{
        DEADLINE, Story, Way, alone, becomes_true, both_ways, guarded, is_alive, open_descriptors, switches, wait_gone,
    },
};
use pipewright::{
    Backoff, Event, EventKind, ExitStatus, Framing, OutputMode, Pass, ProcessGroup, Restart, RestartIntensity,
    RestartPolicy, StdinMode, Supervisor, WorkerId, WorkerSpec,
    events::{FrameErrorKind, OutputStream, Warning},
    limits::ResourceLimit,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

#[derive(Debug, Deserialize)]
struct Numbered {
    n: u64,
}

/// Checks that each worker's numbered messages are complete and in order, and that its exit is its last event.
fn assert_delivered_in_order(events: &[Event], counts: &HashMap<WorkerId, u64>) {
    let mut next: HashMap<WorkerId, u64> = HashMap::new();
    let mut ended: Vec<WorkerId> = Vec::new();
    for event in events {
        assert!(!ended.contains(&event.worker), "{event:?} after the exit");
        match &event.kind {
            EventKind::Message(message) => {
                let next = next.entry(event.worker).or_default();
                assert_eq!(message.json::<Numbered>().unwrap().n, *next, "of {}", event.worker);
                *next += 1;
            }
            EventKind::Exited { .. } => ended.push(event.worker),
            _ => {}
        }
    }
    for (worker, count) in counts {
        assert_eq!(next.get(worker).copied().unwrap_or(0), *count, "messages of {worker}");
        assert!(ended.contains(worker), "{worker} has no exit");
    }
}

fn flood(way: Way, count: u64, size: usize) -> WorkerSpec {
    way.fixture("flood").args(["--count", &count.to_string(), "--size", &size.to_string()])
}

both_ways! {
    fn p01_delivers_everything_written_before_exited(way: Way) {
        let mut story = Story::new();
        let mut counts = HashMap::new();
        for worker in 0..8 {
            // More than a pipe holds, with an immediate exit.
            let count = 3000 + worker;
            let worker = story.supervisor.spawn(flood(way, count, 100)).unwrap();
            counts.insert(worker.id(), count);
        }
        let events = story.rest();
        assert_delivered_in_order(&events, &counts);
        assert!(matches!(events.first().unwrap().kind, EventKind::Started { .. }));
    }

    fn p02_message_truncated_by_exit_is_invalid_frame_with_excerpt(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(way.fixture("partial").args(["--signal", "9"])).unwrap();
        let events = story.rest();
        let faults: Vec<_> = events
            .iter()
            .filter_map(|event| if let EventKind::InvalidFrame(fault) = &event.kind { Some(fault) } else { None })
            .collect();
        assert_eq!(faults.len(), 1, "{events:?}");
        assert_eq!(faults[0].kind, FrameErrorKind::Truncated);
        assert!(!faults[0].excerpt.is_empty());
        assert!(matches!(&events.last().unwrap().kind, EventKind::Exited { exit, .. } if exit.signal() == Some(9)), "{events:?}");
    }

    fn p02_stream_resumes_after_reported_garbage(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(way.fixture("garbage").args(["--count", "50"]).validate_json()).unwrap();
        let events = story.rest();
        let faults = events.iter().filter(|event| matches!(event.kind, EventKind::InvalidFrame(_))).count();
        let messages: Vec<_> =
            events.iter().filter(|event| matches!(event.kind, EventKind::Message(_))).collect();
        assert!(faults >= 50, "{faults} faults");
        assert_eq!(messages.len(), 1, "{messages:?}");
    }

    fn p02_parsing_reports_garbage_without_validation(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(way.fixture("garbage").args(["--count", "5"])).unwrap();
        let error = story.message().json::<Value>().unwrap_err();
        assert!(!error.excerpt().is_empty(), "{error}");
        let good = story.rest().into_iter().rev().find_map(|event| match event.kind {
            EventKind::Message(message) => Some(message.json::<Value>().is_ok()),
            _ => None,
        });
        assert_eq!(good, Some(true), "the last message is valid");
    }

    fn p02_skips_oversized_message(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(way.fixture("huge").args(["--size", "300000"]).max_message_size(200_000)).unwrap();
        let events = story.rest();
        let fault = events
            .iter()
            .find_map(|event| if let EventKind::InvalidFrame(fault) = &event.kind { Some(fault) } else { None })
            .unwrap();
        assert_eq!(fault.kind, FrameErrorKind::TooLong { limit: 200_000 });
        assert!(fault.length > 200_000, "{}", fault.length);
        assert!(fault.excerpt.len() <= 256);
    }

    fn delivers_huge_message_whole(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(way.fixture("huge").args(["--size", "8000000"])).unwrap();
        let message = story.message();
        assert!(message.len() >= 8_000_000);
        drop(message.json::<Value>().unwrap());
        assert!(story.exit().success());
    }

    fn parent_sends_from_many_threads(way: Way) {
        let mut story = Story::new();
        let spec = way.fixture("many-writers").args(["--threads", "8", "--count", "200", "--size", "9000"]).validate_json();
        story.supervisor.spawn(spec).unwrap();
        let events = story.rest();
        let messages = events.iter().filter(|event| matches!(event.kind, EventKind::Message(_))).count();
        let faults: Vec<_> = events.iter().filter(|event| matches!(event.kind, EventKind::InvalidFrame(_))).collect();
        assert_eq!((messages, faults.len()), (1600, 0), "{faults:?}");
    }

    fn reads_messages_from_standard_streams(way: Way) {
        let mut story = Story::new();
        let from_stdout = way.plain("flood").args(["--count", "3", "--size", "10", "--stream", "stdout"]);
        story.supervisor.spawn(from_stdout.messages_on_stdout()).unwrap();
        let from_stderr = way.plain("flood").args(["--count", "3", "--size", "10", "--stream", "stderr"]);
        let second = story.supervisor.spawn(from_stderr.messages_on_stderr()).unwrap();
        let events = story.rest();
        let counts = HashMap::from([(WorkerId::clone(&events[0].worker), 3), (second.id(), 3)]);
        assert_delivered_in_order(&events, &counts);
    }

    fn captures_lines_per_stream_and_keeps_stderr_tail(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("lines").args(["--stdout", "100", "--stderr", "5000"]);
        story.supervisor.spawn(spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines).stderr_tail(1000)).unwrap();
        let (mut out, mut err, mut exit) = (0, 0, None);
        for event in story.rest() {
            match event.kind {
                EventKind::Line { stream: OutputStream::Stdout, .. } => out += 1,
                EventKind::Line { stream: OutputStream::Stderr, .. } => err += 1,
                EventKind::Exited { exit: ended, .. } => exit = Some(ended),
                _ => {}
            }
        }
        assert_eq!((out, err), (100, 5000));
        let exit = exit.unwrap();
        assert!((900..=1000).contains(&exit.stderr_tail.len()), "{}", exit.stderr_tail.len());
        let text = exit.stderr_text();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.ends_with('0') && text.trim_end().ends_with("4999"), "{text}");
        assert!(text.contains("bytes omitted]\n"), "{text}");
    }

    fn exit_has_usage_duration_code_and_stderr(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.fixture("allocate").args(["--mib", "50"])).unwrap();
        let exit = story.exit();
        assert!(exit.success());
        let usage = exit.usage.unwrap();
        assert!(usage.max_rss_bytes > 50 << 20, "{usage:?}");
        assert!(exit.duration > Duration::ZERO);
        assert_eq!(worker.wait(), exit);
        assert_eq!(worker.wait_timeout(Duration::ZERO), Some(exit));
        story.supervisor.spawn(way.plain("exit").args(["--code", "7", "--stderr", "why"]).stderr(OutputMode::Lines)).unwrap();
        let exit = story.exit();
        assert_eq!((exit.code(), &*exit.stderr_text()), (Some(7), "why\n"));
    }

    fn exit_reports_every_fatal_signal(way: Way) {
        let mut story = Story::new();
        for signal in [1, 2, 3, 4, 6, 7, 8, 9, 11, 13, 14, 15] {
            let spec = way.plain("die").args(["--signal", &signal.to_string()]);
            story.supervisor.spawn(spec.rlimit(ResourceLimit::CoreBytes, 0)).unwrap();
            let exit = story.exit();
            assert_eq!(exit.status, ExitStatus::Signal { signal, core_dumped: false });
        }
    }

    fn p04_grandchild_holding_a_pipe_is_reported_as_leak_without_delay(way: Way) {
        for (hold, session) in [("messages", false), ("messages", true), ("stdout", false), ("stderr", true)] {
            let mut story = Story::new();
            let mut spec = way.fixture("grandchild").args(["--hold", hold]);
            if session {
                spec = spec.arg("--session");
            }
            spec = spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines).drain_timeout(Duration::from_millis(50));
            story.supervisor.spawn(spec).unwrap();
            let grandchild = u32::try_from(story.json()["pid"].as_u64().unwrap()).unwrap();
            let exit = story.exit();
            let leaks: Vec<&str> = exit.leaked_streams.iter().map(|leak| &*leak.stream).collect();
            assert_eq!(leaks, [hold], "session: {session}");
            let [survivor] = exit.survivors.as_slice() else { panic!("{exit:?}") };
            assert_eq!(survivor.pid, grandchild);
            assert!(survivor.command.contains("child-fixture"), "{survivor}");
            assert!(survivor.holds.iter().any(|held| **held == *hold), "{survivor}, session: {session}");
            assert!(!is_alive(grandchild), "it is killed before its worker's exit is reported");
        }
    }

    fn worker_runs_on_after_closing_its_pipe(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.fixture("close-early").stdin(StdinMode::Pipe)).unwrap();
        drop(story.message());
        assert_eq!(worker.wait_timeout(Duration::ZERO), None);
        drop(worker.take_stdin());
        let exit = story.exit();
        assert!(exit.success() && exit.leaked_streams.is_empty(), "{exit:?}");
    }

    fn p10_signals_reach_worker_and_no_process_after_exit(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.fixture("ignore-term")).unwrap();
        drop(story.message());
        worker.signal(libc::SIGTERM).unwrap();
        assert_eq!(worker.wait_timeout(Duration::ZERO), None);
        assert_eq!(worker.signal(999).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        worker.kill().unwrap();
        assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
        assert_eq!(worker.signal(libc::SIGTERM).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        worker.kill().unwrap();
    }

    fn p08_kills_worker_that_left_its_group(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.fixture("leave-group")).unwrap();
        drop(story.message());
        worker.kill().unwrap();
        let exit = worker.wait_timeout(DEADLINE).expect("exits");
        assert_eq!(exit.signal(), Some(libc::SIGKILL));
    }

    fn accepts_maximal_durations_and_sizes(way: Way) {
        let endless = Supervisor::builder().grace_period(Duration::MAX).window(usize::MAX).build().unwrap();
        let mut story = Story::of(endless);
        let spec = way.fixture("flood").args(["--count", "100", "--size", "100"]).stderr(OutputMode::Lines);
        story.supervisor.spawn(spec.drain_timeout(Duration::MAX).stderr_tail(usize::MAX).window(usize::MAX)).unwrap();
        let spec = way.plain("lines").args(["--stderr", "100"]).stderr(OutputMode::Lines);
        let second = story.supervisor.spawn(spec.drain_timeout(Duration::MAX).stderr_tail(usize::MAX)).unwrap();
        let messages = story.rest().iter().filter(|event| matches!(event.kind, EventKind::Message(_))).count();
        assert_eq!(messages, 100);
        assert_eq!(second.wait().stderr_text().lines().count(), 100);
    }

    fn p08_drop_stops_all_workers_in_bounded_time(way: Way) {
        let supervisor = Supervisor::builder().grace_period(Duration::from_millis(100)).build().unwrap();
        let polite = supervisor.spawn(way.fixture("hang")).unwrap();
        let stubborn = supervisor.spawn(way.fixture("ignore-term")).unwrap();
        let reader = supervisor.spawn(way.fixture("echo").stdin(StdinMode::Pipe)).unwrap();
        let mut story = Story::of(supervisor);
        story.message();
        story.message();
        let events = story.supervisor.events().clone();
        drop(story);
        assert_eq!(polite.wait().signal(), Some(libc::SIGTERM));
        assert_eq!(stubborn.wait().signal(), Some(libc::SIGKILL));
        drop(reader.wait());
        let exits = events.iter().filter(|event| matches!(event.kind, EventKind::Exited { .. })).count();
        assert_eq!(exits, 3, "a cloned receiver gets all exits, then the channel closes");
        for worker in [polite, stubborn, reader] {
            assert!(!is_alive(worker.pid().unwrap()));
        }
    }

    fn p06_slow_consumer_delays_only_one_worker(way: Way) {
        let mut story = Story::new();
        let flooding = story.supervisor.spawn(flood(way, 20_000, 1000).window(64 << 10)).unwrap();
        // Keeps one message, so that the window never becomes empty, and receives no more of this worker.
        let kept = story.find(|event| match event.kind {
            EventKind::Message(message) if event.worker == flooding.id() => Some(message),
            _ => None,
        });
        let other = story.supervisor.spawn(way.plain("exit").args(["--code", "3"])).unwrap();
        assert_eq!(other.wait_timeout(DEADLINE).expect("the other worker's exit").code(), Some(3));
        assert!(story.supervisor.events().len() < 1000, "{} events wait", story.supervisor.events().len());
        drop(kept);
        let mut received = 1;
        for event in story.rest() {
            received += u64::from(matches!(event.kind, EventKind::Message(_)));
        }
        assert_eq!(received, 20_000);
    }

    fn p06_consumer_keeping_all_messages_is_not_stalled(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(flood(way, 20_000, 200).window(16 << 10)).unwrap();
        let events = story.rest();
        let kept: Vec<Event> =
            events.into_iter().filter(|event| matches!(event.kind, EventKind::Message(_))).collect();
        assert_eq!(kept.len(), 20_000);
    }

    fn p06_exit_does_not_wait_for_consumer(way: Way) {
        let story = Story::new();
        // More than the window, less than window and pipe together: the worker can exit without a consumer.
        let worker = story.supervisor.spawn(flood(way, 60, 1000).window(4096)).unwrap();
        assert!(worker.wait_timeout(DEADLINE).expect("exits").success());
    }

    fn delivers_messages_in_other_framings(way: Way) {
        for (name, framing) in
            [("nul", Framing::Nul), ("length32", Framing::LengthPrefixed), ("content-length", Framing::ContentLength)]
        {
            let mut story = Story::new();
            let worker = story.supervisor.spawn(flood(way, 500, 2000).args(["--framing", name]).framing(framing)).unwrap();
            assert_delivered_in_order(&story.rest(), &HashMap::from([(worker.id(), 500)]));
        }
    }

    fn send_fails_after_parent_closed_the_pipe(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report");
        let spec = way.fixture("send-after-parent").arg("--report").arg(&report).stdin(StdinMode::Pipe);
        let mut process = spec.spawn_unsupervised().unwrap();
        drop(process.take_messages());
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
        let text = std::fs::read_to_string(&report).unwrap();
        assert!(text.contains("parent"), "{text}");
    }
}

#[test]
fn p07_flood_without_consumer_stays_bounded() {
    // 128 MiB, twice the bound.
    if alone("supervisor::p07_flood_without_consumer_stays_bounded", |spec| spec) {
        flood_without_consumer(32 << 10);
    }
}

#[test]
#[ignore = "takes 10 s"]
fn p07_flood_of_one_gib_without_consumer_stays_bounded() {
    if alone("supervisor::p07_flood_of_one_gib_without_consumer_stays_bounded", |spec| spec) {
        flood_without_consumer(256 << 10);
    }
}

/// `count` messages of 4 KiB; the peak of this process's memory stays below 64 MiB.
fn flood_without_consumer(count: u64) {
    const BOUND: u64 = 64 << 20;
    let story = Story::new();
    let flooding = story.supervisor.spawn(flood(Way::Direct, count, 4096)).unwrap();
    // It blocks in a write; meanwhile the events of other workers arrive.
    for code in 0..20 {
        let other = story.supervisor.spawn(Way::Direct.plain("exit").args(["--code", &code.to_string()])).unwrap();
        assert_eq!(other.wait_timeout(DEADLINE).expect("exits").code(), Some(code));
    }
    assert_eq!(flooding.wait_timeout(Duration::ZERO), None, "it is blocked, so it cannot have exited");
    let mut next = 0;
    let exit = loop {
        let event = story.supervisor.events().recv_timeout(DEADLINE).unwrap();
        match event.kind {
            EventKind::Message(message) => {
                assert_eq!(message.json::<Numbered>().unwrap().n, next);
                next += 1;
            }
            EventKind::Exited { exit, .. } if event.worker == flooding.id() => break exit,
            _ => {}
        }
    };
    assert_eq!(next, count);
    assert!(exit.success());
    assert!(kernel::peak_rss_bytes() < BOUND, "peak of {} bytes", kernel::peak_rss_bytes());
}

#[test]
fn p07_small_messages_and_garbage_stay_bounded() {
    if !alone("supervisor::p07_small_messages_and_garbage_stay_bounded", |spec| spec) {
        return;
    }
    let mut story = Story::of(Supervisor::builder().window(8 << 20).build().unwrap());
    for _ in 0..8 {
        let script = "while :; do echo 1; echo '{'; done";
        let spec = WorkerSpec::new("sh").args(["-c", script]).messages_on_stdout().validate_json();
        story.supervisor.spawn(spec).unwrap();
        story.supervisor.spawn(WorkerSpec::new("yes").messages_on_stdout()).unwrap();
    }
    // All windows are used up when the number of queued events no longer grows; each spawn makes the loop run.
    let mut before = 0;
    let mut still = 0;
    while still < 50 {
        let waiting = story.supervisor.events().len();
        // 2: the start and the exit of the worker below.
        still = if waiting <= before + 2 { still + 1 } else { 0 };
        before = waiting;
        let other = story.supervisor.spawn(WorkerSpec::new("true")).unwrap();
        other.wait_timeout(DEADLINE).expect("exits");
    }
    assert!(before > 1000, "{before} events wait");
    assert!(kernel::peak_rss_bytes() < 64 << 20, "peak of {} bytes", kernel::peak_rss_bytes());
    story.told.clear();
}

#[test]
fn p11_reports_exits_in_host_that_ignores_sigchld() {
    if !alone("supervisor::p11_reports_exits_in_host_that_ignores_sigchld", |spec| spec) {
        return;
    }
    kernel::ignore_signal(libc::SIGCHLD);
    for way in [Way::Direct, Way::Command] {
        let mut story = Story::new();
        for code in 0..5 {
            story.supervisor.spawn(way.plain("exit").args(["--code", &code.to_string()])).unwrap();
            let exit = story.exit();
            // The kernel keeps the status of a child it reaped itself since Linux 6.15; before that it is lost.
            assert!(exit.status == ExitStatus::Code(code) || exit.status == ExitStatus::Unknown, "{exit:?}");
        }
        WorkerSpec::new("/no/such/program").spawn_unsupervised().unwrap_err();
    }
}

#[test]
fn p11_drop_in_forked_host_keeps_workers() {
    if !alone("supervisor::p11_drop_in_forked_host_keeps_workers", |spec| spec) {
        return;
    }
    let story = Story::new();
    let worker = story.supervisor.spawn(Way::Direct.fixture("echo").stdin(StdinMode::Pipe)).unwrap();
    let mut stdin = worker.take_stdin().unwrap();
    let mut supervisor = Some(story.supervisor);
    let forked = kernel::fork(|| {
        drop(supervisor.take());
        0
    });
    assert_eq!(kernel::wait(forked), 0, "dropping in the fork returns");
    let mut story = Story::of(supervisor.unwrap());
    stdin.write_all(b"still here\n").unwrap();
    assert_eq!(story.json(), "still here");
    drop(stdin);
    assert!(story.exit().success());
}

#[test]
fn p01_delivers_grandchild_message_behind_full_window_within_drain_timeout() {
    // Its window is used up and nothing is received, so its stream is paused when it exits.
    let script =
        r#"(read go <&4; echo '"last words"' >&3) & i=0; while [ $i -lt 50 ]; do echo $i >&3; i=$((i+1)); done"#;
    let mut story = Story::new();
    let spec = WorkerSpec::new("sh").args(["-c", script]).messages(Pass::fd(3)).input_pipe("go", Pass::fd(4));
    let worker = story.supervisor.spawn(spec.window(64).drain_timeout(Duration::from_secs(1))).unwrap();
    wait_gone(worker.pid().unwrap());
    worker.take_writer("go").unwrap().write_all(b"now\n").unwrap();
    let exit = worker.wait_timeout(DEADLINE).expect("exits");
    assert_eq!(exit.leaked_streams, [], "the end of the stream could be read");
    let mut texts = Vec::new();
    for event in story.rest() {
        if let EventKind::Message(message) = event.kind {
            texts.push(message.as_str().unwrap().to_owned());
        }
    }
    assert_eq!(texts.len(), 51);
    assert_eq!(texts.last().unwrap(), "\"last words\"");
}

#[test]
fn exit_waits_for_tracer_of_worker() {
    if !alone("supervisor::exit_waits_for_tracer_of_worker", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let worker = story.supervisor.spawn(Way::Direct.fixture("hang")).unwrap();
    drop(story.message());
    let (mut said, says) = std::io::pipe().unwrap();
    let (answered, mut answer) = std::io::pipe().unwrap();
    let tracer = kernel::fork(|| kernel::trace(worker.pid().unwrap(), says.as_raw_fd(), answered.as_raw_fd()));
    said.read_exact(&mut [0]).unwrap();
    worker.kill().unwrap();
    // Until the tracer detaches, only the tracer sees the exit: no event may arrive.
    let early = story.supervisor.events().recv_timeout(Duration::from_millis(100));
    assert!(early.is_err(), "{early:?}");
    answer.write_all(b".").unwrap();
    assert_eq!(kernel::wait(tracer), 0);
    assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{}/stat", worker.pid().unwrap())).map(drop).map_err(|e| e.kind()),
        Err(ErrorKind::NotFound)
    );
}

#[test]
fn p06_reads_worker_when_epoll_registration_fails() {
    const COUNT: u64 = 3000;
    if !alone("supervisor::p06_reads_worker_when_epoll_registration_fails", |spec| spec) {
        return;
    }
    let mut story = Story::of(guarded());
    kernel::refuse(libc::SYS_epoll_ctl, Some((1, libc::EPOLL_CTL_ADD.unsigned_abs())), libc::ENOSPC);
    let hanging = story.supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
    story.find(|event| {
        matches!(&event.kind, EventKind::Warning(warning) if matches!(**warning, Warning::WatchFailed { .. }))
            .then_some(())
    });
    let talking = story.supervisor.spawn(flood(Way::Direct, COUNT, 100)).unwrap();
    story.supervisor.close();
    hanging.kill().unwrap();
    assert_eq!(hanging.wait_timeout(DEADLINE).expect("exits").signal(), Some(libc::SIGKILL));
    assert!(talking.wait_timeout(DEADLINE).expect("exits").success());
    let events = story.rest();
    assert_delivered_in_order(&events, &[(talking.id(), COUNT), (hanging.id(), 0)].into());
}

#[test]
fn handles_of_exited_workers_hold_no_descriptors() {
    if !alone("supervisor::handles_of_exited_workers_hold_no_descriptors", |spec| spec) {
        return;
    }
    let supervisor = guarded();
    let before = open_descriptors();
    let workers: Vec<_> = (0..50)
        .map(|_| {
            let spec = WorkerSpec::new("true").messages(Pass::arg("{}")).stderr(OutputMode::Lines);
            supervisor.spawn(spec.stdin(StdinMode::Pipe).input_pipe("more", Pass::arg("{}"))).unwrap()
        })
        .collect();
    for worker in &workers {
        assert!(worker.wait_timeout(DEADLINE).is_some());
    }
    assert_eq!(open_descriptors(), before);
}

#[test]
fn p07_many_workers_together_stay_within_supervisor_window() {
    const WORKERS: usize = 40;
    const WINDOW: usize = 1 << 20;
    let mut story = Story::of(Supervisor::builder().window(WINDOW).build().unwrap());
    let workers: Vec<_> =
        (0..WORKERS).map(|_| story.supervisor.spawn(flood(Way::Direct, 4000, 1).window(WINDOW)).unwrap()).collect();
    // Lifecycle events are delivered, so after these exits the loop has run several times.
    for _ in 0..20 {
        let other = story.supervisor.spawn(Way::Direct.plain("exit")).unwrap();
        assert!(other.wait_timeout(DEADLINE).is_some());
    }
    // Each message counts 64 bytes; the last read is not cut.
    let waiting = story.supervisor.events().len();
    assert!(waiting * 64 < WINDOW + (64 << 10) * 8, "{waiting} events wait");
    let events = story.rest();
    assert_delivered_in_order(&events, &workers.iter().map(|worker| (worker.id(), 4000)).collect());
}

#[test]
fn consumer_panic_stops_all_workers() {
    let mut worker = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut story = Story::new();
        worker = Some(story.supervisor.spawn(Way::Direct.fixture("hang")).unwrap());
        drop(story.message());
        panic!("on purpose");
    }));
    outcome.unwrap_err();
    let worker = worker.unwrap();
    assert!(worker.wait_timeout(DEADLINE).is_some());
    assert!(!is_alive(worker.pid().unwrap()));
}

#[test]
fn several_consumers_share_events() {
    let supervisor = Supervisor::new().unwrap();
    for _ in 0..4 {
        supervisor.spawn(flood(Way::Direct, 1000, 50)).unwrap();
    }
    supervisor.close();
    let received: usize = thread::scope(|scope| {
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let events = supervisor.events().clone();
                scope.spawn(move || events.iter().filter(|event| matches!(event.kind, EventKind::Message(_))).count())
            })
            .collect();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum()
    });
    assert_eq!(received, 4000);
}

#[test]
fn events_work_in_select() {
    let supervisor = Supervisor::new().unwrap();
    supervisor.spawn(Way::Direct.plain("exit")).unwrap();
    let deadline = crossbeam_channel::after(DEADLINE);
    loop {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => {
                if matches!(event.unwrap().kind, EventKind::Exited { .. }) {
                    break;
                }
            }
            recv(deadline) -> _ => panic!("no exit"),
        }
    }
}

#[test]
fn closed_supervisor_refuses_spawns_and_closes_channel() {
    let supervisor = Supervisor::new().unwrap();
    supervisor.spawn(Way::Direct.plain("exit")).unwrap();
    supervisor.close();
    assert!(matches!(supervisor.spawn(WorkerSpec::new("true")), Err(pipewright::SpawnError::SupervisorGone)));
    assert_eq!(supervisor.events().iter().count(), 2, "started, exited, closed");
}

#[test]
fn p09_concurrent_spawn_close_and_drop_lose_no_worker() {
    const THREADS: usize = 4;
    for round in 0..20 {
        let supervisor = Arc::new(Supervisor::new().unwrap());
        let events = supervisor.events().clone();
        let start = Arc::new(Barrier::new(THREADS + 1));
        let spawners: Vec<_> = (0..THREADS)
            .map(|_| {
                let (supervisor, start) = (Arc::clone(&supervisor), Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    let mut workers = Vec::new();
                    // Until it is closed; the last thread drops the supervisor.
                    while let Ok(worker) = supervisor.spawn(WorkerSpec::new("true")) {
                        workers.push(worker);
                    }
                    workers
                })
            })
            .collect();
        start.wait();
        for _ in 0..round {
            drop(events.recv_timeout(DEADLINE).unwrap());
        }
        supervisor.close();
        drop(supervisor);
        let workers: Vec<_> = spawners.into_iter().flat_map(|spawner| spawner.join().unwrap()).collect();
        let rest = events.iter().count();
        assert_eq!(round + rest, 2 * workers.len(), "each started and exited");
        for worker in &workers {
            assert!(worker.wait_timeout(Duration::ZERO).is_some());
        }
    }
}

#[test]
fn thousand_workers_leave_nothing_behind() {
    if !alone("supervisor::thousand_workers_leave_nothing_behind", |spec| spec) {
        return;
    }
    let before = open_descriptors();
    {
        let supervisor = Arc::new(Supervisor::new().unwrap());
        for _ in 0..100 {
            for _ in 0..10 {
                let spec =
                    WorkerSpec::new("true").messages(Pass::arg("{}")).stdin(StdinMode::Pipe).stderr(OutputMode::Lines);
                supervisor.spawn(spec).unwrap();
            }
            let exits = supervisor.events().iter().filter(|event| matches!(event.kind, EventKind::Exited { .. }));
            assert_eq!(exits.take(10).count(), 10);
        }
    }
    assert_eq!(open_descriptors(), before);
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads <= 3, "{threads} threads; the test harness has two");
    let children = std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    assert_eq!(children, "");
}

#[test]
fn p14_idle_workers_cause_no_wakeups() {
    if !alone("supervisor::p14_idle_workers_cause_no_wakeups", |spec| spec) {
        return;
    }
    const WORKERS: usize = 300;
    let mut story = Story::new();
    for _ in 0..WORKERS {
        story.supervisor.spawn(Way::Direct.fixture("hang")).unwrap();
    }
    for _ in 0..WORKERS {
        story.message();
    }
    while story.supervisor.events().try_recv().is_ok() {}
    assert!(switches() > 0, "the threads are found by their names");
    // Counts wake-ups in a period without events. The first period may still contain clean-up work of received events.
    let is_still = |_| {
        let before = switches();
        assert!(story.supervisor.events().recv_timeout(Duration::from_millis(200)).is_err());
        switches() == before
    };
    assert!((0..10).any(is_still), "the threads wake up without an event");
}

#[test]
fn kill_includes_process_group_and_session() {
    for group in [ProcessGroup::New, ProcessGroup::NewSession] {
        let mut story = Story::new();
        let script = "sh -c 'echo $$ >&3; exec sleep 1000' & wait";
        let worker = story
            .supervisor
            .spawn(WorkerSpec::new("sh").args(["-c", script]).messages(Pass::fd(3)).process_group(group))
            .unwrap();
        let grandchild = story.message().json::<u32>().unwrap();
        worker.kill().unwrap();
        assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
        wait_gone(grandchild);
    }
}

#[test]
fn worker_has_a_name() {
    let supervisor = Supervisor::new().unwrap();
    let worker = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    assert_eq!(worker.name(), "true");
    let later = supervisor.spawn(WorkerSpec::new("true").name("the honest one")).unwrap();
    assert_eq!(later.name(), "the honest one");
    assert!(later.id() > worker.id() && later.id().to_string().starts_with('#'), "{} {}", worker.id(), later.id());
}

#[test]
fn finds_worker_of_every_event() {
    const WORKERS: usize = 200;
    let supervisor = Supervisor::new().unwrap();
    let (mut last_events, mut names) = (Vec::new(), HashMap::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..WORKERS {
                let spec = WorkerSpec::new("sh").args(["-c", "echo a; echo b >&3; exit 1"]).messages(Pass::fd(3));
                let spec = spec.stdout(OutputMode::Lines).name(format!("number {number}"));
                let once = RestartIntensity::new(1, DEADLINE);
                let again =
                    RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
                drop(supervisor.spawn(spec.restart(again.intensity(once))).unwrap());
            }
            supervisor.close();
        });
        for event in supervisor.events() {
            let worker = supervisor.worker(event.worker).unwrap_or_else(|| panic!("no worker of {event:?}"));
            let name = names.entry(event.worker).or_insert_with(|| worker.name().to_owned());
            assert_eq!(worker.name(), name.as_str());
            if event.kind.is_final() {
                last_events.push(event);
            }
        }
    });
    assert_eq!(last_events.len(), WORKERS);
    for event in last_events {
        let id = event.worker;
        assert!(supervisor.worker(id).unwrap().wait_timeout(DEADLINE).is_some());
        drop(event);
        assert!(becomes_true(|| supervisor.worker(id).is_none()), "{id}");
    }
}

#[test]
fn p06_opening_a_fifo_delays_no_other_spawn() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    let supervisor = Supervisor::new().unwrap();
    thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let spec = Way::Direct.plain("exit").args(["--stdout", "through the fifo"]);
            supervisor.spawn(spec.stdout(OutputMode::File(fifo.clone()))).unwrap()
        });
        // Spawned from a thread other than the main thread, like the one above, which waits for a reader.
        let other = supervisor.spawn(Way::Direct.plain("exit")).unwrap();
        assert!(other.wait_timeout(DEADLINE).expect("exits").success());
        assert_eq!(std::fs::read_to_string(&fifo).unwrap(), "through the fifo\n");
        assert!(opening.join().unwrap().wait_timeout(DEADLINE).expect("exits").success());
    });
}

#[test]
fn p16_failed_setup_of_supervisor_names_the_step() {
    let poor = |spec: WorkerSpec| spec.rlimit(ResourceLimit::OpenFiles, 8);
    if !alone("supervisor::p16_failed_setup_of_supervisor_names_the_step", poor) {
        return;
    }
    let error = Supervisor::new().map(drop).unwrap_err();
    assert!(error.to_string().starts_with("failed to set up a supervisor: creating an eventfd: "), "{error}");
}

#[test]
fn default_name_is_file_name_of_program() {
    let supervisor = Supervisor::new().unwrap();
    assert_eq!(supervisor.spawn(WorkerSpec::new("/bin/true")).unwrap().name(), "true");
    assert_eq!(supervisor.spawn(WorkerSpec::new("true").name("first")).unwrap().name(), "first");
}
