//! The chat and the file server, as their users run them on one machine. (Through a tunnel: `tunnel`.)

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    thread,
};

use pipewright::{
    OutputMode, Process, StdinMode, WorkerSpec,
    pipe::{
        PipeMode,
        anonymous::{PipeReader, PipeWriter},
        named::{ConnectError, ConnectOptions, ImpersonationLevel, MessageStream},
    },
};

use crate::support::{example, read_to_end};

use super::{
    A_WHILE, PATIENCE, Place,
    identity::{STRANGER, skipped},
    is_root, line, reachable, read_to_end as read_stream, text, until,
};

/// The example at work; killed when the test ends.
struct Running {
    process: Process,
    stdin: PipeWriter,
    stdout: PipeReader,
    stderr: PipeReader,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        Self::of(WorkerSpec::new(example("named_pipe")).args(arguments))
    }

    fn of(spec: WorkerSpec) -> Self {
        let spec = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        let mut process = spec.spawn_unsupervised().unwrap();
        let stdin = process.take_stdin().unwrap();
        let (stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        Self { process, stdin, stdout, stderr }
    }

    fn serve(place: &Place, flags: &[&str]) -> Self {
        let name = place.path("pipe");
        let server = Self::start(&[&["serve", text(&name)], flags].concat());
        assert_eq!(server.complaint(), format!("listening on {}", name.display()));
        server
    }

    fn connect(place: &Place, flags: &[&str]) -> Self {
        Self::start(&[&["connect", text(&place.path("pipe"))], flags].concat())
    }

    fn say(&self, line: &str) {
        writeln!(&self.stdin, "{line}").unwrap();
    }

    #[track_caller]
    fn line(&self) -> String {
        line(&self.stdout)
    }

    #[track_caller]
    fn complaint(&self) -> String {
        line(&self.stderr)
    }

    /// Its exit code and what it said on standard error.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let exit = self.process.wait_timeout(PATIENCE).unwrap().cloned().expect("it ends");
        (exit.code(), String::from_utf8(read_to_end(&self.stderr)).unwrap())
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
    }
}

/// The library's own client.
fn guest(mode: PipeMode, level: ImpersonationLevel) -> ConnectOptions {
    ConnectOptions::new().mode(mode).handshake(level)
}

/// A guest in this process: it is in for certain when it is connected, so that whoever comes next is told to it.
fn witness(place: &Place, mode: PipeMode) -> MessageStream {
    let guest = guest(mode, ImpersonationLevel::Identification);
    guest.connect(&place.name("pipe"), PATIENCE).unwrap().into_messages().unwrap()
}

#[track_caller]
fn hear(witness: &MessageStream) -> String {
    String::from_utf8(super::recv(witness).expect("it is put out")).unwrap()
}

#[test]
fn chat_sends_lines_to_all_other_clients() {
    for (flags, mode) in [(&[][..], PipeMode::Framed), (&["--messages"], PipeMode::Message)] {
        let place = Place::new();
        let _server = Running::serve(&place, flags);
        let witness = witness(&place, mode);
        let first = Running::connect(&place, flags);
        assert!(hear(&witness).ends_with("/1 came in"));
        first.say("is anybody here?");
        assert!(hear(&witness).ends_with("/1: is anybody here?"));
        let second = Running::connect(&place, flags);
        let both_hear = |words: &str| {
            let heard = [hear(&witness), first.line()];
            assert!(heard.iter().all(|heard| heard.ends_with(words)), "{words}: {heard:?}");
        };
        both_hear("/2 came in");
        second.say("hello");
        both_hear("/2: hello");
        first.say("welcome");
        assert!(hear(&witness).ends_with("/1: welcome"));
        assert!(second.line().ends_with("/1: welcome"), "and not what was said before it came, or its own words");
    }
}

#[test]
fn chat_survives_invalid_slow_and_killed_clients() {
    let place = Place::new();
    let server = Running::serve(&place, &[]);
    let witness = witness(&place, PipeMode::Framed);
    let talker = Running::connect(&place, &[]);
    assert!(hear(&witness).ends_with("/1 came in"));
    // Now it is in, and nothing is looked up any more.
    talker.say("quiet");
    assert!(hear(&witness).ends_with("/1: quiet"));
    let before = server.descriptors();
    let both_hear = |words: &str| {
        let heard = [hear(&witness), talker.line()];
        assert!(heard.iter().all(|heard| heard.ends_with(words)), "{words}: {heard:?}");
    };
    // One who will not say who it is.
    let (name, known) = (place.name("pipe"), guest(PipeMode::Framed, ImpersonationLevel::Identification));
    let unknown = guest(PipeMode::Framed, ImpersonationLevel::Anonymous).connect(&name, PATIENCE).unwrap();
    assert_eq!(server.complaint(), "guest 2 did not get in: client is anonymous");
    assert_eq!(read_stream(&unknown), b"");
    // One who breaks the frame.
    let broken = UnixStream::from(known.connect(&name, PATIENCE).unwrap().into_fd().unwrap());
    both_hear("/3 came in");
    (&broken).write_all(&[0xff; 8]).unwrap();
    both_hear("/3 has left");
    // One who does not listen, and is spoken to until nothing fits into its pipe any more.
    let silent = known.connect(&name, PATIENCE).unwrap();
    both_hear("/4 came in");
    thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut left = false;
            loop {
                let words = hear(&witness);
                left |= words.ends_with("/4 has left");
                if words.ends_with("/1: enough") {
                    return left;
                }
            }
        });
        while silent.is_connected() {
            talker.say(&"x".repeat(30_000));
        }
        assert!(talker.line().ends_with("/4 has left"));
        talker.say("enough");
        assert!(heard.join().unwrap());
    });
    // One who is killed.
    let killed = Running::connect(&place, &[]);
    both_hear("/5 came in");
    killed.process.kill().unwrap();
    both_hear("/5 has left");
    // Nothing of them is left, and the next one gets in.
    until("the server has closed their streams", || server.descriptors() == before);
    let _next = Running::connect(&place, &[]);
    both_hear("/6 came in");
}

#[test]
fn chat_limits_number_of_clients() {
    let place = Place::new();
    let _server = Running::serve(&place, &["--max", "2"]);
    let witness = witness(&place, PipeMode::Framed);
    let first = Running::connect(&place, &[]);
    assert!(hear(&witness).ends_with("/1 came in"));
    let one_too_many = guest(PipeMode::Framed, ImpersonationLevel::Identification);
    let refused = one_too_many.connect(&place.name("pipe"), A_WHILE);
    assert!(matches!(refused, Err(ConnectError::Busy { .. })), "{refused:?}");
    let next = Running::connect(&place, &[]);
    first.process.kill().unwrap();
    next.say("at last");
    let words = ["/1 has left", "/2 came in", "/2: at last"].map(|words| (words, hear(&witness)));
    assert!(words.iter().all(|(wanted, found)| found.ends_with(wanted)), "{words:?}");
}

#[test]
fn message_mode_needs_flag_on_both_sides() {
    let place = Place::new();
    let _server = Running::serve(&place, &["--messages"]);
    let (code, said) = Running::connect(&place, &[]).end();
    assert_eq!((code, &*said), (Some(1), "named_pipe: client uses framed mode, server uses another mode\n"));
    let witness = witness(&place, PipeMode::Message);
    let talker = Running::connect(&place, &["--messages"]);
    assert!(hear(&witness).ends_with("/1 came in"));
    // Too long for a message of the kernel's: only its speaker is told.
    talker.say(&"x".repeat(1 << 20));
    assert!(talker.complaint().starts_with("named_pipe: message of 1048576 bytes exceeds "));
    talker.say("short");
    assert!(hear(&witness).ends_with("/1: short"));
    // With the speaker's name before it, it is too long for the others: they stay.
    talker.say(&"x".repeat(witness.max_message_size().unwrap()));
    talker.say("still here");
    assert!(hear(&witness).ends_with("/1: still here"));
}

#[test]
fn file_server_sends_file_or_reason() {
    for (flags, mode) in [(&[][..], PipeMode::Framed), (&["--messages"], PipeMode::Message)] {
        let place = Place::new();
        let file = place.path("file");
        let _server = Running::serve(&place, &[&["--as-client", text(&file)], flags].concat());
        let options = guest(mode, ImpersonationLevel::Impersonation);
        let ask = || options.connect(&place.name("pipe"), PATIENCE).unwrap().into_messages().unwrap();
        let answer = || super::recv(&ask()).unwrap();
        assert!(String::from_utf8(answer()).unwrap().contains("No such file"));
        fs::write(&file, "short").unwrap();
        let client = Running::connect(&place, flags);
        assert_eq!(client.line(), "short");
        assert_eq!(client.end().0, Some(0));
        let long = super::pattern(5 << 20);
        fs::write(&file, &long).unwrap();
        let got = answer();
        if mode == PipeMode::Framed {
            assert!(got == long);
        } else {
            let got = String::from_utf8(got).unwrap();
            assert!(got.contains(": 5242880 bytes, and a message of this pipe has "), "{got}");
        }
        // One that goes without its answer is not the last one.
        drop(ask());
        fs::write(&file, "still here").unwrap();
        assert_eq!(answer(), b"still here");
    }
}

#[test]
fn file_server_obeys_permissions_of_client() {
    if skipped() {
        return;
    }
    assert!(is_root());
    let place = Place::new();
    let file = place.path("file");
    let _server = Running::serve(&place, &["--as-client", text(&file)]);
    fs::write(&file, "secret").unwrap();
    let ask = || {
        let client = WorkerSpec::new("setpriv");
        let client = client.args([format!("--reuid={STRANGER}"), format!("--regid={STRANGER}")]).arg("--clear-groups");
        Running::of(
            client.arg(reachable(&example("named_pipe"), &place.0)).args(["connect", text(&place.path("pipe"))]),
        )
        .line()
    };
    for (owner, readable) in [(0, false), (STRANGER, true)] {
        chown(&file, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let got = ask();
        assert_eq!(got == "secret", readable, "{got}");
        assert_eq!(got.contains("Permission denied"), !readable, "{got}");
    }
}
