//! Captured output: one stream for both outputs, bytes as they were written.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, alone, becomes_true, both_ways, carriers, open_descriptors, wait_all_gone},
};
use pipewright::{
    Event, EventKind, Framing, OutputError, OutputMode, SpecError, StdinMode, StdioProtocol, Supervisor, WorkerSpec,
    events::OutputStream,
};
use std::{fs, io::Write, thread, time::Duration};

/// Writes to both streams in turn, without buffering.
const ALTERNATING: &str = "i=0; while [ $i -lt 300 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done";
/// Exits with 0 if both outputs are the same open file.
const SAME_FILE: &str = r#"[ "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" ]"#;

/// What `seq 1 N` prints: bytes whose loss, repetition or exchange shows.
pub(crate) fn numbers(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], expected: &[u8]) {
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert!(found == expected, "{} of {} bytes, equal up to {differs:?}", found.len(), expected.len());
}

/// The bytes of one stream in these events.
pub(crate) fn bytes_of(events: &[Event], wanted: OutputStream) -> Vec<u8> {
    let pieces = events.iter().filter_map(|event| match &event.kind {
        EventKind::Output { stream, bytes } if *stream == wanted => Some(bytes.as_bytes()),
        _ => None,
    });
    pieces.collect::<Vec<_>>().concat()
}

fn alternating_lines() -> Vec<String> {
    (0..300).flat_map(|number| [format!("out{number}"), format!("err{number}")]).collect()
}

both_ways! {
    fn p01_stderr_to_stdout_keeps_the_order_of_both(way: Way) {
        let mut story = Story::new();
        let spec = way.program("sh").args(["-c", ALTERNATING]).stdout(OutputMode::Lines).stderr(OutputMode::ToStdout);
        story.supervisor.spawn(spec).unwrap();
        let (mut lines, mut tail) = (Vec::new(), String::new());
        for event in story.rest() {
            match event.kind {
                EventKind::Line { stream, line } => {
                    assert_eq!(stream, OutputStream::Stdout);
                    lines.push(line.text().into_owned());
                }
                EventKind::Exited { exit, .. } => tail = exit.stderr_text().into_owned(),
                _ => {}
            }
        }
        assert_eq!(lines, alternating_lines());
        assert_eq!(tail, lines.join("\n") + "\n", "the end of both is kept for the exit");
    }

    fn stderr_to_stdout_follows_every_mode_of_stdout(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let spec = way.program("sh").args(["-c", ALTERNATING]).stdout(OutputMode::File(path.clone()));
        let mut process = spec.stderr(OutputMode::ToStdout).spawn_unsupervised().unwrap();
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), alternating_lines());

        let file = fs::File::create(&path).unwrap();
        for stdout in [OutputMode::from(file), OutputMode::Null, OutputMode::Lines] {
            let shown = format!("{stdout:?}");
            let script = format!("{ALTERNATING}; {SAME_FILE}");
            let supervisor = Supervisor::new().unwrap();
            let spec = way.program("sh").args(["-c", &script]).stdout(stdout).stderr(OutputMode::ToStdout);
            let worker = supervisor.spawn(spec).unwrap();
            assert!(worker.wait_timeout(DEADLINE).unwrap().success(), "{shown}");
        }
        // Both share the position in the file.
        assert_eq!(fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), alternating_lines());
    }

    fn p02_bytes_arrive_as_they_were_written(way: Way) {
        let mut story = Story::new();
        let spec = way.program("sh").args(["-c", "cat; printf 'no \\0 line \\377 feed\\r' >&2"]).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec.stdout(OutputMode::Bytes).stderr(OutputMode::Bytes)).unwrap();
        let mut stdin = worker.take_stdin().unwrap();
        // Parts of lines arrive before the line ends.
        for part in ["Password: ", "\r10 %", "\r\n", "\n\n"] {
            stdin.write_all(part.as_bytes()).unwrap();
            let piece = story.find(|event| match event.kind {
                EventKind::Output { stream: OutputStream::Stdout, bytes } => Some(bytes),
                _ => None,
            });
            assert_eq!(piece.as_bytes(), part.as_bytes());
        }
        let random: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = random.clone();
        let writer = thread::spawn(move || stdin.write_all(&random).unwrap());
        let events = story.rest();
        writer.join().unwrap();
        assert_same(&bytes_of(&events, OutputStream::Stdout), &expected);
        assert_same(&bytes_of(&events, OutputStream::Stderr), b"no \0 line \xff feed\r");
        let Some(EventKind::Exited { exit, .. }) = events.last().map(|event| &event.kind) else { panic!("{:?}", events.last()) };
        assert_eq!(&*exit.stderr_tail, b"no \0 line \xff feed\r");
    }

    fn p01_bytes_before_sudden_death_are_delivered(way: Way) {
        for stderr in [OutputMode::Bytes, OutputMode::ToStdout] {
            let mut story = Story::new();
            let spec = way.program("sh").args(["-c", "seq 1 200000; echo last >&2; kill -KILL $$"]);
            story.supervisor.spawn(spec.stdout(OutputMode::Bytes).stderr(stderr)).unwrap();
            let events = story.rest();
            let found = [OutputStream::Stdout, OutputStream::Stderr].map(|stream| bytes_of(&events, stream)).concat();
            assert_same(&found, &[numbers(200_000), b"last\n".to_vec()].concat());
            let Some(EventKind::Exited { exit, .. }) = events.last().map(|event| &event.kind) else { panic!("{:?}", events.last()) };
            assert_eq!(exit.signal(), Some(libc::SIGKILL));
        }
    }

    fn p07_flood_of_bytes_waits_for_slow_consumer(way: Way) {
        const WINDOW: usize = 64 << 10;
        /// A read of the loop may exceed the window once.
        const READ_MAX: usize = 256 << 10;
        let story = Story::new();
        let spec = way.program("seq").args(["1", "1000000"]).stdout(OutputMode::Bytes).window(WINDOW);
        let flooding = story.supervisor.spawn(spec).unwrap();
        // `None` once the worker has ended.
        let status = || story.supervisor.status().workers.into_iter().find(|status| status.worker == flooding.id());
        assert!(becomes_true(|| status().unwrap().is_paused), "{:?}", status());
        let used = status().unwrap().window_used;
        assert!((WINDOW..WINDOW + READ_MAX + 4096).contains(&used), "{used} bytes");
        // Nothing more is read, and another worker is not delayed.
        let other = story.supervisor.spawn(way.program("sh").args(["-c", "exit 3"])).unwrap();
        assert_eq!(other.wait_timeout(DEADLINE).expect("exits").code(), Some(3));
        assert_eq!(status().unwrap().window_used, used);
        story.supervisor.close();
        let mut found = Vec::new();
        for event in story.supervisor.events() {
            if let EventKind::Output { bytes, .. } = event.kind {
                found.extend_from_slice(bytes.as_bytes());
                let most = WINDOW + READ_MAX + 4096;
                let status = status();
                assert!(status.as_ref().is_none_or(|status| status.window_used < most), "{status:?}");
            }
        }
        assert_same(&found, &numbers(1_000_000));
    }

    fn p15_wait_with_output_reads_both_streams_at_once(way: Way) {
        // Each fills its pipe while the other is empty; the input ends.
        let script = "cat; seq 1 200000 >&2; seq 1 200000; seq 1 200000 >&2; exit 3";
        let spec = way.program("sh").args(["-c", script]).stdin(StdinMode::Pipe);
        let spec = spec.stdout(OutputMode::Bytes).stderr(OutputMode::Lines);
        let output = spec.spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
        assert_eq!((output.exit.code(), output.stdout_omitted, output.stderr_omitted), (Some(3), 0, 0));
        assert_same(&output.stdout, &numbers(200_000));
        assert_same(&output.stderr, &numbers(200_000).repeat(2));
        let output = spec.stderr(OutputMode::ToStdout).spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
        assert_same(&output.stdout, &numbers(200_000).repeat(3));
        assert_same(&output.stderr, b"");
    }

    fn p15_wait_with_output_kills_at_its_timeout(way: Way) {
        let script = "sleep 1000 & echo begun; echo why >&2; sleep 1000";
        let spec = way.program("sh").args(["-c", script]).stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
        let mark = format!("output-{}-{way:?}", std::process::id());
        let process = spec.env("PIPEWRIGHT_TEST_OUTPUT", &mark).spawn_unsupervised().unwrap();
        assert!(becomes_true(|| carriers("PIPEWRIGHT_TEST_OUTPUT", &mark).len() == 3));
        let error = process.wait_with_output(Duration::from_millis(50)).unwrap_err();
        let program = if way == Way::Direct { "sh" } else { "user's Command" };
        let text = format!("{program} did not exit within 50ms and was killed; its last line: why");
        assert_eq!(error.to_string(), text);
        let OutputError::TimedOut { output, .. } = error else { panic!("{error}") };
        assert_eq!((&*output.stdout, &*output.stderr), (b"begun\n".as_slice(), b"why\n".as_slice()));
        assert_eq!(output.exit.signal(), Some(libc::SIGKILL));
        wait_all_gone(|| carriers("PIPEWRIGHT_TEST_OUTPUT", &mark));
    }

    fn p07_wait_with_output_keeps_first_and_last_bytes_of_a_flood(way: Way) {
        let spec = way.program("seq").args(["1", "200000"]).stdout(OutputMode::Bytes);
        let output = spec.spawn_unsupervised().unwrap().max_output(10_000).wait_with_output(DEADLINE).unwrap();
        assert!(output.exit.success() && output.stdout.len() <= 10_000, "{} bytes", output.stdout.len());
        let text = String::from_utf8(output.stdout).unwrap();
        let omission = format!("\n[{} bytes omitted]\n", output.stdout_omitted);
        let (head, tail) = text.split_once(&omission).unwrap_or_else(|| panic!("{text}"));
        let all = numbers(200_000);
        assert!(all.starts_with(head.as_bytes()) && all.ends_with(tail.as_bytes()), "{text}");
        assert_eq!(head.len() as u64 + output.stdout_omitted + tail.len() as u64, all.len() as u64);

        let spec = way.program("yes").stdout(OutputMode::Bytes);
        let process = spec.spawn_unsupervised().unwrap().max_output(10_000);
        let error = process.wait_with_output(Duration::from_millis(200)).unwrap_err();
        let OutputError::TimedOut { output, .. } = error else { panic!("{error}") };
        assert!(output.stdout.len() <= 10_000 && output.stdout_omitted > 0, "{}", output.stdout_omitted);
    }

    fn p04_wait_with_output_does_not_wait_for_a_descendant(way: Way) {
        let script = "setsid sleep 1000 & setsid yes & echo done";
        let mark = format!("drain-{}-{way:?}", std::process::id());
        let spec = way.program("sh").args(["-c", script]).env("PIPEWRIGHT_TEST_OUTPUT", &mark);
        let spec = spec.stdout(OutputMode::Bytes).stderr(OutputMode::Bytes).drain_timeout(Duration::from_millis(50));
        let output = spec.spawn_unsupervised().unwrap().max_output(1000).wait_with_output(DEADLINE).unwrap();
        let leaked: Vec<_> = output.exit.leaked_streams.iter().map(|leaked| &*leaked.stream).collect();
        for pid in carriers("PIPEWRIGHT_TEST_OUTPUT", &mark) {
            kernel::kill(pid, libc::SIGKILL);
        }
        wait_all_gone(|| carriers("PIPEWRIGHT_TEST_OUTPUT", &mark));
        assert!(output.exit.success() && leaked == ["stdout", "stderr"], "{output:?}");
    }

    fn p03_wait_with_output_leaves_no_descriptor(way: Way) {
        let test = match way {
            Way::Direct => "output::direct::p03_wait_with_output_leaves_no_descriptor",
            Way::Command => "output::command::p03_wait_with_output_leaves_no_descriptor",
        };
        if alone(test, |spec| spec) {
            let spec = way.program("echo").arg("x").stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
            let run = || spec.spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
            run();
            let before = open_descriptors().len();
            for _ in 0..50 {
                assert_eq!(run().stdout, b"x\n");
            }
            assert_eq!(open_descriptors().len(), before);
        }
    }

    fn stderr_to_stdout_follows_inherited_stdout(way: Way) {
        let test = match way {
            Way::Direct => "output::direct::stderr_to_stdout_follows_inherited_stdout",
            Way::Command => "output::command::stderr_to_stdout_follows_inherited_stdout",
        };
        if alone(test, |spec| spec) {
            let spec = way.program("sh").args(["-c", SAME_FILE]);
            let exit_of = |spec: WorkerSpec| spec.spawn_unsupervised().unwrap().wait().unwrap().code();
            assert_eq!(exit_of(spec.clone()), Some(1), "the test has two streams");
            assert_eq!(exit_of(spec.stderr(OutputMode::ToStdout)), Some(0));
        }
    }
}

#[test]
fn p16_stderr_to_stdout_conflicts_are_typed() {
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        other => panic!("{other}"),
    };
    let spec = || WorkerSpec::new("true");
    assert_eq!(conflict(spec().stdout(OutputMode::ToStdout)), ["stdout", "OutputMode::ToStdout"]);
    let either = [
        spec().messages_on_stdout().stderr(OutputMode::ToStdout),
        spec().stderr(OutputMode::ToStdout).messages_on_stdout(),
    ];
    assert_eq!(either.map(conflict), [["messages_on_stdout", "stderr"]; 2]);
    let stdio = spec().control_on_stdio(StdioProtocol::new(Framing::Lines)).stderr(OutputMode::ToStdout);
    assert_eq!(conflict(stdio), ["control_on_stdio", "stderr"]);
    assert_eq!(conflict(spec().messages_on_stderr().stderr(OutputMode::ToStdout)), ["messages_on_stderr", "stderr"]);
}
