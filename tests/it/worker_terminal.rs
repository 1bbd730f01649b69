//! Workers with a pseudo-terminal of their own.

use crate::{
    output::{assert_same, bytes_of, numbers},
    support::{
        DEADLINE, Story, Way, alone, becomes_true, both_ways, carriers, is_alive, one_message, open_descriptors,
        wait_all_gone,
    },
};
use pipewright::{
    EventKind, ExitStatus, Framing, OutputMode, Pass, ProcessGroup, Readiness, Restart, SpecError, StdinMode,
    StdioProtocol, StopPolicy, StopStep, SurvivorPolicy, TerminalSize, Worker, WorkerSpec, events::OutputStream,
};
use std::{
    collections::HashMap,
    io::{Read, Write},
    time::Duration,
};

/// Exits with 1 unless all three streams are one terminal, which is the controlling terminal of a session of its own, in the foreground.
const CHECK: &str = r#"
[ -t 0 ] && [ -t 1 ] && [ -t 2 ] || exit 1
[ "$(readlink /proc/$$/fd/0)" = "$(readlink /proc/$$/fd/2)" ] || exit 2
(exec 3<>/dev/tty) || exit 3
read -r pid name state parent group session terminal foreground rest </proc/$$/stat
[ $group = $$ ] && [ $session = $$ ] && [ $foreground = $$ ] && [ $terminal != 0 ] || exit 4
"#;

fn shell(way: Way, script: impl Into<std::ffi::OsString>) -> WorkerSpec {
    way.program("sh").arg("-c").arg(script)
}

/// A worker whose three streams are the terminal.
fn on_terminal(spec: WorkerSpec) -> WorkerSpec {
    spec.stdin(StdinMode::Pty).stdout(OutputMode::Pty).stderr(OutputMode::Pty)
}

/// Receives output until it ends with `end`, and returns it.
#[track_caller]
fn output_until(story: &mut Story, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let piece = story.find(|event| match event.kind {
            EventKind::Output { stream: OutputStream::Stdout, bytes } => Some(bytes),
            EventKind::Exited { exit, .. } => panic!("{exit} after {text:?}"),
            _ => None,
        });
        text.push_str(std::str::from_utf8(piece.as_bytes()).unwrap());
    }
    text
}

fn type_in(worker: &Worker, keys: &str) {
    worker.take_stdin().expect("is not taken").write_all(keys.as_bytes()).unwrap();
}

both_ways! {
    fn p02_terminal_delivers_what_the_program_writes(way: Way) {
        let mut story = Story::new();
        let script = format!("{CHECK} printf 'a\\nb\\r\\tc'; echo error >&2; echo tty >/dev/tty; exit 7");
        story.supervisor.spawn(on_terminal(shell(way, script))).unwrap();
        let events = story.rest();
        assert_same(&bytes_of(&events, OutputStream::Stdout), b"a\nb\r\tcerror\ntty\n");
        let Some(EventKind::Exited { exit, .. }) = events.last().map(|event| &event.kind) else {
            panic!("{:?}", events.last())
        };
        assert_eq!((exit.code(), &*exit.stderr_text()), (Some(7), "a\nb\\r\tcerror\ntty\n"), "{events:?}");
        assert_eq!(exit.leaked_streams, []);
    }

    fn p03_worker_on_a_terminal_has_no_other_descriptor(way: Way) {
        let inspected = one_message(on_terminal(way.fixture("inspect")).stderr(OutputMode::Pty));
        let numbers: Vec<_> = inspected["fds"].as_array().unwrap().iter().map(|fd| fd["fd"].as_i64().unwrap()).collect();
        assert_eq!(numbers.len(), 4, "{inspected}");
    }

    fn terminal_input_is_what_a_person_types(way: Way) {
        // Without echo; Ctrl-D ends the input, Ctrl-C is SIGINT, and the end that was not taken ends by Ctrl-D.
        for (keys, expected, status) in [
            ("one\ntwo\n\x04", "one\ntwo\n", ExitStatus::Code(0)),
            ("one\n\x03", "one\n", ExitStatus::Signal { signal: libc::SIGINT, core_dumped: false }),
        ] {
            let mut story = Story::new();
            let worker = story.supervisor.spawn(on_terminal(way.program("cat"))).unwrap();
            let mut stdin = worker.take_stdin().unwrap();
            assert!(worker.take_stdin().is_none());
            let (lines, last) = keys.split_at(keys.len() - 1);
            stdin.write_all(lines.as_bytes()).unwrap();
            assert_eq!(output_until(&mut story, expected), expected);
            stdin.write_all(last.as_bytes()).unwrap();
            assert_eq!(story.exit().status, status);
        }
    }

    fn terminal_has_the_size_of_its_spec_until_it_is_resized(way: Way) {
        let mut story = Story::new();
        let script = "trap 'stty size' WINCH; stty size; while :; do sleep 1000 & wait; done";
        let default = story.supervisor.spawn(on_terminal(shell(way, script))).unwrap();
        assert_eq!(output_until(&mut story, "\n"), "24 80\n");
        default.resize(TerminalSize { rows: 40, columns: 132 }).unwrap();
        assert_eq!(output_until(&mut story, "\n"), "40 132\n");
        default.stop();
        story.exit();
        assert_eq!(default.resize(TerminalSize::default()).unwrap_err().raw_os_error(), Some(libc::ESRCH));

        let restarted = on_terminal(shell(way, "stty size; exec sleep 1000")).restart(Restart::Always);
        let restarted = story.supervisor.spawn(restarted).unwrap();
        assert_eq!(output_until(&mut story, "\n"), "24 80\n");
        for columns in [100, 120] {
            restarted.resize(TerminalSize { rows: 40, columns }).unwrap();
            restarted.restart();
            story.exit();
            assert_eq!(output_until(&mut story, "\n"), format!("40 {columns}\n"), "the first that it reads");
        }
        restarted.stop();
        story.exit();

        let large = on_terminal(shell(way, script)).terminal_size(TerminalSize { rows: 1, columns: 500 });
        story.supervisor.spawn(large).unwrap();
        assert_eq!(output_until(&mut story, "\n"), "1 500\n");
        let other = story.supervisor.spawn(way.program("sleep").arg("1000")).unwrap();
        assert_eq!(other.resize(TerminalSize::default()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    fn terminal_type_is_set_unless_the_environment_has_one(way: Way) {
        let term_of = |spec: WorkerSpec| {
            let output = spec.spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let spec = shell(way, "printf %s \"$TERM\"").stdout(OutputMode::Pty);
        let path = std::env::var_os("PATH").unwrap();
        assert_eq!(term_of(spec.clone().env_clear().env("PATH", &path)), "xterm");
        assert_eq!(term_of(spec.clone().env("TERM", "vt100")), "vt100");
        // The shell itself sets none.
        assert_eq!(term_of(spec.clone().env_remove("TERM")), "");
        let inherited = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
        assert_eq!(term_of(spec), inherited);
    }

    fn p01_terminal_output_before_sudden_death_is_delivered(way: Way) {
        for stderr in [OutputMode::Pty, OutputMode::ToStdout] {
            let mut story = Story::new();
            let spec = shell(way, "seq 1 30000; echo last >&2; kill -KILL $$").stdout(OutputMode::Pty).stderr(stderr);
            story.supervisor.spawn(spec).unwrap();
            let events = story.rest();
            assert_same(&bytes_of(&events, OutputStream::Stdout), &[numbers(30_000), b"last\n".to_vec()].concat());
            let Some(EventKind::Exited { exit, .. }) = events.last().map(|event| &event.kind) else {
                panic!("{:?}", events.last())
            };
            assert_eq!(exit.signal(), Some(libc::SIGKILL));
        }
    }

    fn p07_flood_on_a_terminal_waits_for_slow_consumer(way: Way) {
        const WINDOW: usize = 16 << 10;
        let mut story = Story::new();
        let spec = way.program("seq").args(["1", "100000"]).stdout(OutputMode::Pty).window(WINDOW);
        let flooding = story.supervisor.spawn(spec).unwrap();
        let status = || story.supervisor.status().workers.into_iter().find(|status| status.worker == flooding.id());
        assert!(becomes_true(|| status().unwrap().is_paused), "{:?}", status());
        let used = status().unwrap().window_used;
        assert!(used < 2 * WINDOW, "{used} bytes");
        let other = story.supervisor.spawn(way.program("sh").args(["-c", "exit 3"])).unwrap();
        assert_eq!(other.wait_timeout(DEADLINE).expect("exits").code(), Some(3));
        assert_same(&bytes_of(&story.rest(), OutputStream::Stdout), &numbers(100_000));
    }

    fn p13_every_incarnation_has_a_new_terminal(way: Way) {
        let mut story = Story::new();
        let script = format!("{CHECK} printf 'typed '; read -r line; echo \"$line\"; exit 9");
        let worker = story.supervisor.spawn(on_terminal(shell(way, script)).restart(Restart::Always)).unwrap();
        for number in 1..=5 {
            assert_eq!(output_until(&mut story, "typed "), "typed ", "incarnation {number}");
            type_in(&worker, &format!("line {number}\n"));
            assert_eq!(output_until(&mut story, "\n"), format!("line {number}\n"));
            assert_eq!(story.exit().code(), Some(9));
        }
        worker.stop();
    }

    fn p08_stop_ends_the_input_and_kills_the_tree(way: Way) {
        let mut story = Story::new();
        let polite = story.supervisor.spawn(on_terminal(way.program("cat"))).unwrap();
        polite.stop();
        assert!(story.exit().success(), "Ctrl-D is the end of the input");

        // An interactive shell ignores SIGTERM, its jobs have process groups of their own.
        let mark = format!("terminal-{}-{way:?}", std::process::id());
        let spec = way.program("sh").arg("-i").env("PS1", "> ").env_remove("ENV").env("PIPEWRIGHT_TEST_TERMINAL", &mark);
        let policy = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_millis(50));
        let stubborn = story.supervisor.spawn(on_terminal(spec).stop(policy)).unwrap();
        let mut stdin = stubborn.take_stdin().unwrap();
        stdin.write_all(b"sleep 1000 & sleep 1000\n").unwrap();
        assert!(becomes_true(|| carriers("PIPEWRIGHT_TEST_TERMINAL", &mark).len() == 3));
        stubborn.stop();
        assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
        wait_all_gone(|| carriers("PIPEWRIGHT_TEST_TERMINAL", &mark));
    }

    fn closing_terminal_streams_does_not_hang_up(way: Way) {
        let mut story = Story::new();
        let script = "trap 'exit 7' USR1; exec </dev/null >/dev/null 2>&1; echo '\"closed\"' >/proc/self/fd/$1; sleep 1000 & wait";
        let spec = on_terminal(shell(way, script).arg("sh").messages(Pass::arg("{}")));
        let worker = story.supervisor.spawn(spec).unwrap();
        story.message();
        worker.signal(libc::SIGUSR1).unwrap();
        assert_eq!(story.exit().code(), Some(7));
    }

    fn p04_terminal_that_a_descendant_holds_is_hung_up(way: Way) {
        let mut story = Story::new();
        let mark = format!("held-{}-{way:?}", std::process::id());
        // The kernel sends SIGHUP to the first, in the foreground group, when the session leader exits. The second, in another session,
        // reads the terminal until our side is closed.
        let script = "trap 'exit 0' USR1; sleep 1000 & setsid sh -c 'trap \"\" HUP; echo begun; read -r line <&1' & wait";
        let spec = on_terminal(shell(way, script)).env("PIPEWRIGHT_TEST_TERMINAL", &mark);
        let spec = spec.survivors(SurvivorPolicy::Ignore).drain_timeout(Duration::from_millis(50));
        let worker = story.supervisor.spawn(spec).unwrap();
        assert_eq!(output_until(&mut story, "begun\n"), "begun\n");
        worker.signal(libc::SIGUSR1).unwrap();
        let exit = story.exit();
        assert!(exit.success(), "{exit}");
        assert_eq!(exit.leaked_streams.iter().map(|leaked| &*leaked.stream).collect::<Vec<_>>(), ["stdout"]);
        wait_all_gone(|| carriers("PIPEWRIGHT_TEST_TERMINAL", &mark));
    }

    fn lines_of_a_terminal_make_a_worker_ready(way: Way) {
        let mut story = Story::new();
        let script = "[ -t 1 ] || exit 1; echo starting; echo listening; echo last >&2; exec cat";
        let spec = shell(way, script).stdin(StdinMode::Pty).stdout(OutputMode::PtyLines).stderr(OutputMode::PtyLines);
        let worker = story.supervisor.spawn(spec.ready(Readiness::log_line("^listening$").timeout(DEADLINE))).unwrap();
        let (mut lines, mut is_ready) = (Vec::new(), false);
        while lines.len() < 3 || !is_ready {
            match story.next().kind {
                EventKind::Line { stream: OutputStream::Stdout, line } => lines.push(line.text().into_owned()),
                EventKind::Ready { .. } => is_ready = true,
                EventKind::Exited { exit, .. } => panic!("{exit} after {lines:?}"),
                _ => {}
            }
        }
        assert_eq!(lines, ["starting", "listening", "last"]);
        worker.stop();
        assert!(story.exit().success());
    }

    fn terminal_may_be_one_stream_only(way: Way) {
        let mut story = Story::new();
        let script = "[ -t 2 ] && ! [ -t 0 ] && ! [ -t 1 ] || exit 1; echo out; printf err >&2; printf tty >/dev/tty";
        story.supervisor.spawn(shell(way, script).stdout(OutputMode::Lines).stderr(OutputMode::Pty)).unwrap();
        let events = story.rest();
        assert_same(&bytes_of(&events, OutputStream::Stderr), b"errtty");
        let lines = events.iter().filter(|event| matches!(event.kind, EventKind::Line { .. })).count();
        let Some(EventKind::Exited { exit, .. }) = events.last().map(|event| &event.kind) else {
            panic!("{:?}", events.last())
        };
        assert_eq!((lines, &*exit.stderr_tail), (1, b"errtty".as_slice()));
    }

    fn terminal_becomes_one_for_a_person(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(on_terminal(shell(way, "stty echo opost; echo ready; exec cat"))).unwrap();
        assert_eq!(output_until(&mut story, "\n"), "ready\r\n");
        type_in(&worker, "x\n");
        assert_eq!(output_until(&mut story, "x\r\nx\r\n"), "x\r\nx\r\n");
    }

    fn process_without_supervisor_has_a_terminal(way: Way) {
        let spec = on_terminal(shell(way, format!("{CHECK} stty size; read -r line; echo \"got $line\"")));
        let mut process = spec.spawn_unsupervised().unwrap();
        let (mut stdin, mut stdout) = (process.take_stdin().unwrap(), process.take_stdout().unwrap());
        assert!(process.take_stderr().is_none());
        let mut size = [0; 6];
        stdout.read_exact(&mut size).unwrap();
        assert_eq!(&size, b"24 80\n");
        process.resize(TerminalSize { rows: 3, columns: 4 }).unwrap();
        stdin.write_all(b"it\n").unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "got it\n", "the end is no error");
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());

        // Input that was not taken ends, and nothing is lost at the exit.
        let output = on_terminal(shell(way, "cat; seq 1 30000")).spawn_unsupervised().unwrap();
        let output = output.wait_with_output(DEADLINE).unwrap();
        assert_same(&output.stdout, &numbers(30_000));
        assert!(output.exit.success() && output.exit.leaked_streams.is_empty(), "{:?}", output.exit);
    }

    fn p03_forty_terminals_at_once_leave_no_descriptor(way: Way) {
        let test = match way {
            Way::Direct => "worker_terminal::direct::p03_forty_terminals_at_once_leave_no_descriptor",
            Way::Command => "worker_terminal::command::p03_forty_terminals_at_once_leave_no_descriptor",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        let mut story = Story::new();
        let first = story.supervisor.spawn(way.program("true")).unwrap();
        first.wait_timeout(DEADLINE).expect("exits");
        let before = open_descriptors();
        let script = format!("{CHECK} read -r line; seq 1 $line");
        let workers: Vec<_> =
            (0..40).map(|_| story.supervisor.spawn(on_terminal(shell(way, &script))).unwrap()).collect();
        for (worker, number) in workers.iter().zip(100..) {
            type_in(worker, &format!("{number}\n"));
        }
        let mut outputs: HashMap<_, Vec<u8>> = HashMap::new();
        let mut left = 40;
        while left > 0 {
            let event = story.next();
            match event.kind {
                EventKind::Output { bytes, .. } => outputs.entry(event.worker).or_default().extend(bytes.as_bytes()),
                EventKind::Exited { exit, .. } if event.worker != first.id() => {
                    assert!(exit.success(), "{exit}");
                    left -= 1;
                }
                _ => {}
            }
        }
        for (worker, number) in workers.iter().zip(100..) {
            assert_same(&outputs[&worker.id()], &numbers(number));
            assert!(!is_alive(worker.pid().unwrap()));
        }
        // While the handles exist.
        assert!(becomes_true(|| open_descriptors().len() == before.len()), "{before:?}, now {:?}", open_descriptors());
    }
}

#[test]
fn p16_terminal_conflicts_are_typed() {
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        other => panic!("{other}"),
    };
    let spec = || WorkerSpec::new("true");
    let size = TerminalSize { rows: 1, columns: 1 };
    assert_eq!(conflict(spec().stdin(StdinMode::Pty)), ["stdin", "stdout"]);
    assert_eq!(conflict(spec().stdout(OutputMode::Pty).stderr(OutputMode::PtyLines)), ["stdout", "stderr"]);
    assert_eq!(conflict(spec().terminal_size(size).stdout(OutputMode::Lines)), ["terminal_size", "stdout"]);
    let inherited = spec().process_group(ProcessGroup::Inherit).stderr(OutputMode::Pty);
    assert_eq!(conflict(inherited), ["process_group", "OutputMode::Pty"]);
    assert_eq!(conflict(spec().messages_on_stdout().stdout(OutputMode::Pty)), ["messages_on_stdout", "stdout"]);
    let stdio = spec().control_on_stdio(StdioProtocol::new(Framing::Lines)).stdin(StdinMode::Pty);
    assert_eq!(conflict(stdio.stderr(OutputMode::Pty)), ["control_on_stdio", "stdin"]);
    let ready = spec().stdout(OutputMode::Pty).ready(Readiness::log_line("x"));
    assert_eq!(conflict(ready), ["ready", "stdout"]);
    let allowed = spec().process_group(ProcessGroup::NewSession).stderr(OutputMode::PtyLines).terminal_size(size);
    assert_eq!(allowed.validate(), Ok(()));
}
