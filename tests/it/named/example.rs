//! The example `named_pipe`, chat and file server, on one machine. (Through a tunnel: `tunnel`.)

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
    A_WHILE, DEADLINE, Place,
    identity::{OTHER_USER, skipped},
    is_root, line, reachable, read_to_end as read_stream, text, until,
};

/// A process of the example, killed when the test ends.
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
        assert_eq!(server.stderr_line(), format!("listening on {}", name.display()));
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
    fn stderr_line(&self) -> String {
        line(&self.stderr)
    }

    /// Exit code and remaining standard error.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let exit = self.process.wait_timeout(DEADLINE).unwrap().cloned().expect("process exits");
        (exit.code(), String::from_utf8(read_to_end(&self.stderr)).unwrap())
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
    }
}

/// Options of a client in this process.
fn client_options(mode: PipeMode, level: ImpersonationLevel) -> ConnectOptions {
    ConnectOptions::new().mode(mode).handshake(level)
}

/// A client in this process. Its `connect` returns after it was accepted, so it is notified of every later client.
fn observer(place: &Place, mode: PipeMode) -> MessageStream {
    let options = client_options(mode, ImpersonationLevel::Identification);
    options.connect(&place.name("pipe"), DEADLINE).unwrap().into_messages().unwrap()
}

#[track_caller]
fn receive(observer: &MessageStream) -> String {
    String::from_utf8(super::recv(observer).expect("client is connected")).unwrap()
}

#[test]
fn chat_sends_lines_to_all_other_clients() {
    for (flags, mode) in [(&[][..], PipeMode::Framed), (&["--messages"], PipeMode::Message)] {
        let place = Place::new();
        let _server = Running::serve(&place, flags);
        let observer = observer(&place, mode);
        let first = Running::connect(&place, flags);
        assert!(receive(&observer).ends_with("/1 joined"));
        first.say("any clients here?");
        assert!(receive(&observer).ends_with("/1: any clients here?"));
        let second = Running::connect(&place, flags);
        let both_receive = |words: &str| {
            let heard = [receive(&observer), first.line()];
            assert!(heard.iter().all(|heard| heard.ends_with(words)), "{words}: {heard:?}");
        };
        both_receive("/2 joined");
        second.say("hello");
        both_receive("/2: hello");
        first.say("welcome");
        assert!(receive(&observer).ends_with("/1: welcome"));
        assert!(second.line().ends_with("/1: welcome"), "not what was sent before it joined, nor its own lines");
    }
}

#[test]
fn chat_survives_invalid_slow_and_killed_clients() {
    let place = Place::new();
    let server = Running::serve(&place, &[]);
    let observer = observer(&place, PipeMode::Framed);
    let talker = Running::connect(&place, &[]);
    assert!(receive(&observer).ends_with("/1 joined"));
    // Accepted, and all lookups of user names are done.
    talker.say("quiet");
    assert!(receive(&observer).ends_with("/1: quiet"));
    let before = server.descriptors();
    let both_receive = |words: &str| {
        let heard = [receive(&observer), talker.line()];
        assert!(heard.iter().all(|heard| heard.ends_with(words)), "{words}: {heard:?}");
    };
    // An anonymous client.
    let (name, known) = (place.name("pipe"), client_options(PipeMode::Framed, ImpersonationLevel::Identification));
    let unknown = client_options(PipeMode::Framed, ImpersonationLevel::Anonymous).connect(&name, DEADLINE).unwrap();
    assert_eq!(server.stderr_line(), "client 2 rejected: client is anonymous");
    assert_eq!(read_stream(&unknown), b"");
    // A client that sends an invalid frame.
    let broken = UnixStream::from(known.connect(&name, DEADLINE).unwrap().into_fd().unwrap());
    both_receive("/3 joined");
    (&broken).write_all(&[0xff; 8]).unwrap();
    both_receive("/3 left");
    // A client that does not read until its pipe is full.
    let silent = known.connect(&name, DEADLINE).unwrap();
    both_receive("/4 joined");
    thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut left = false;
            loop {
                let words = receive(&observer);
                left |= words.ends_with("/4 left");
                if words.ends_with("/1: enough") {
                    return left;
                }
            }
        });
        while silent.is_connected() {
            talker.say(&"x".repeat(30_000));
        }
        assert!(talker.line().ends_with("/4 left"));
        talker.say("enough");
        assert!(heard.join().unwrap());
    });
    // A client that is killed.
    let killed = Running::connect(&place, &[]);
    both_receive("/5 joined");
    killed.process.kill().unwrap();
    both_receive("/5 left");
    // Their streams are closed, and the next client is accepted.
    until("the server has closed their streams", || server.descriptors() == before);
    let _next = Running::connect(&place, &[]);
    both_receive("/6 joined");
}

#[test]
fn chat_limits_number_of_clients() {
    let place = Place::new();
    let _server = Running::serve(&place, &["--max", "2"]);
    let observer = observer(&place, PipeMode::Framed);
    let first = Running::connect(&place, &[]);
    assert!(receive(&observer).ends_with("/1 joined"));
    let one_too_many = client_options(PipeMode::Framed, ImpersonationLevel::Identification);
    let refused = one_too_many.connect(&place.name("pipe"), A_WHILE);
    assert!(matches!(refused, Err(ConnectError::Busy { .. })), "{refused:?}");
    let next = Running::connect(&place, &[]);
    first.process.kill().unwrap();
    next.say("at last");
    let words = ["/1 left", "/2 joined", "/2: at last"].map(|words| (words, receive(&observer)));
    assert!(words.iter().all(|(wanted, found)| found.ends_with(wanted)), "{words:?}");
}

#[test]
fn message_mode_needs_flag_on_both_sides() {
    let place = Place::new();
    let _server = Running::serve(&place, &["--messages"]);
    let (code, said) = Running::connect(&place, &[]).end();
    assert_eq!((code, &*said), (Some(1), "named_pipe: client uses framed mode, server uses another mode\n"));
    let observer = observer(&place, PipeMode::Message);
    let talker = Running::connect(&place, &["--messages"]);
    assert!(receive(&observer).ends_with("/1 joined"));
    // Too long for a message: reported to the sender only.
    talker.say(&"x".repeat(1 << 20));
    assert!(talker.stderr_line().starts_with("named_pipe: message of 1048576 bytes exceeds "));
    talker.say("short");
    assert!(receive(&observer).ends_with("/1: short"));
    // Too long with the name of the sender in front: not delivered, and all clients stay connected.
    talker.say(&"x".repeat(observer.max_message_size().unwrap()));
    talker.say("still here");
    assert!(receive(&observer).ends_with("/1: still here"));
}

#[test]
fn file_server_sends_file_or_reason() {
    for (flags, mode) in [(&[][..], PipeMode::Framed), (&["--messages"], PipeMode::Message)] {
        let place = Place::new();
        let file = place.path("file");
        let _server = Running::serve(&place, &[&["--as-client", text(&file)], flags].concat());
        let options = client_options(mode, ImpersonationLevel::Impersonation);
        let ask = || options.connect(&place.name("pipe"), DEADLINE).unwrap().into_messages().unwrap();
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
            assert!(got.contains(": 5242880 bytes exceed the limit of a message, "), "{got}");
        }
        // A client that leaves without its reply does not end the server.
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
        let client =
            client.args([format!("--reuid={OTHER_USER}"), format!("--regid={OTHER_USER}")]).arg("--clear-groups");
        Running::of(
            client.arg(reachable(&example("named_pipe"), &place.0)).args(["connect", text(&place.path("pipe"))]),
        )
        .line()
    };
    for (owner, readable) in [(0, false), (OTHER_USER, true)] {
        chown(&file, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let got = ask();
        assert_eq!(got == "secret", readable, "{got}");
        assert_eq!(got.contains("Permission denied"), !readable, "{got}");
    }
}
