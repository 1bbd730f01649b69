//! Named pipes through ssh, against an `sshd` on a loopback port with temporary keys and a temporary user.

mod sshd;

use self::sshd::{Sshd, run};
use crate::{
    kernel,
    support::{DEADLINE, example, read_to_end, wait_gone},
};
use pipewright::{
    Exit, OutputMode, StdinMode, WorkerSpec,
    pipe::{
        CancelToken, PipeMode, Timeout,
        named::{
            Access, ConnectOptions, ImpersonationLevel, ListenerOptions, MessageError, NameError, PipeName, Stream,
        },
    },
    tunnel::{Tunnel, TunnelBuilder, TunnelError},
};
use std::{
    fs, io,
    io::{Read, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

#[track_caller]
fn expect(stream: &Stream, wanted: &[u8]) {
    let mut have = Vec::new();
    while have.len() < wanted.len() {
        let mut part = vec![0; wanted.len() - have.len()];
        let bytes = stream.read_timeout(&mut part, DEADLINE).unwrap();
        assert!(bytes > 0, "the end after {have:?}");
        have.extend_from_slice(&part[..bytes]);
    }
    assert_eq!(have, wanted);
}

/// The `TunnelError` inside a stream's error.
#[track_caller]
fn ended(error: &io::Error) -> &Exit {
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error:?}");
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(TunnelError::Ended { exit }) => exit,
        other => panic!("{other:?}"),
    }
}

/// The directory of a tunnel's sockets, from the arguments of its ssh.
fn private_directory(tunnel: &Tunnel) -> PathBuf {
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", tunnel.pid())).unwrap();
    let control = arguments.split('\0').skip_while(|argument| *argument != "-S").nth(1).unwrap();
    Path::new(control).parent().unwrap().to_owned()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_carries_bytes_and_identifies_client_to_server() {
    let sshd = Sshd::start();
    let tunnel = sshd.tunnel();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new());
    fs::write(sshd.path("theirs"), "the user's").unwrap();
    chown(sshd.path("theirs"), Some(sshd.user.uid), None).unwrap();
    fs::write(sshd.path("roots"), "root's").unwrap();
    for file in ["theirs", "roots"] {
        fs::set_permissions(sshd.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }

    let client = tunnel.connect(&path, DEADLINE).unwrap();
    (&client).write_all(b"hello").unwrap();
    let server = listener.accept_timeout(DEADLINE).unwrap();
    expect(&server, b"hello");
    let peer = server.peer().unwrap();
    assert_eq!(peer.uid(), sshd.user.uid);
    assert_eq!(peer.user_name().unwrap().as_deref(), Some(&*sshd.user.name));
    assert_eq!(server.run_as_client(|| fs::read(sshd.path("theirs"))).unwrap().unwrap(), b"the user's");
    let refused = server.run_as_client(|| fs::read(sshd.path("roots"))).unwrap().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);

    // The server closes its end: the client sees the end of the stream, not an error of the tunnel.
    (&server).write_all(b"bye").unwrap();
    drop(server);
    expect(&client, b"bye");
    assert_eq!(client.read_timeout(&mut [0; 8], DEADLINE).unwrap(), 0);
    assert!(tunnel.exit().is_none());
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_carries_many_concurrent_connections() {
    const CLIENTS: usize = 12;
    let sshd = Sshd::start();
    let tunnel = sshd.tunnel();
    let (path, listener) = sshd.server("a: 100%d ${HOME} [pipe]", &ListenerOptions::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            let streams: Vec<_> = (0..CLIENTS).map(|_| listener.accept_timeout(DEADLINE).unwrap()).collect();
            for stream in &streams {
                let mut number = [0; 2];
                let mut stream = stream;
                stream.read_exact(&mut number).unwrap();
                stream.write_all(&number.repeat(100_000)).unwrap();
            }
        });
        for number in 10..10 + CLIENTS {
            let (tunnel, path) = (&tunnel, &path);
            scope.spawn(move || {
                let stream = tunnel.connect(path, DEADLINE).unwrap();
                let text = number.to_string();
                (&stream).write_all(text.as_bytes()).unwrap();
                expect(&stream, &text.as_bytes().repeat(100_000));
                assert_eq!(stream.read_timeout(&mut [0; 1], DEADLINE).unwrap(), 0);
            });
        }
    });
    let left = files(&private_directory(&tunnel));
    assert_eq!(left.len(), 1, "only the control socket: {left:?}");
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_carries_framed_messages_and_handshake() {
    let sshd = Sshd::start();
    let tunnel = sshd.tunnel();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new().mode(PipeMode::Framed).handshake());
    let long = vec![b'x'; 3 << 20];
    thread::scope(|scope| {
        scope.spawn(|| {
            let server = listener.accept_timeout(DEADLINE).unwrap();
            assert_eq!(server.impersonation_level(), Some(ImpersonationLevel::Impersonation));
            let server = server.into_messages().unwrap();
            while let Some(message) = server.recv_timeout(DEADLINE).unwrap() {
                server.send_timeout(&message, DEADLINE).unwrap();
            }
        });
        let options = ConnectOptions::new().mode(PipeMode::Framed).handshake(ImpersonationLevel::Impersonation);
        let client = tunnel.connect_with(&options, &path, DEADLINE).unwrap().into_messages().unwrap();
        for message in [&b""[..], b"short", &long] {
            client.send_timeout(message, DEADLINE).unwrap();
            assert_eq!(client.recv_timeout(DEADLINE).unwrap().as_deref(), Some(message));
        }
    });
    let messages = ConnectOptions::new().mode(PipeMode::Message);
    assert!(matches!(tunnel.connect_with(&messages, &path, DEADLINE), Err(TunnelError::Connect(_))));
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_resolves_plain_names_on_remote_machine() {
    let sshd = Sshd::start();
    let tunnel = sshd.tunnel();
    let directory = PathBuf::from(format!("/tmp/pipewright-{}", sshd.user.uid));
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(sshd.user.uid), None).unwrap();
    let name = PipeName::new(directory.join("jobs")).unwrap();
    let listener = ListenerOptions::new().access(Access::Anyone).listen(&name).unwrap();
    let client = tunnel.connect("jobs", DEADLINE).unwrap();
    (&client).write_all(b"x").unwrap();
    expect(&listener.accept_timeout(DEADLINE).unwrap(), b"x");
    assert!(matches!(tunnel.connect("a/b", DEADLINE), Err(TunnelError::InvalidName(NameError::Slash))));
    for option in ["-jobs", "-oProxyCommand=x"] {
        assert!(
            matches!(tunnel.connect(option, DEADLINE), Err(TunnelError::InvalidName(NameError::LeadingDash))),
            "{option}"
        );
    }
    assert!(matches!(tunnel.connect(format!("/{}", "x".repeat(107)), DEADLINE), Err(TunnelError::InvalidName(_))));
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_reports_missing_server_with_stderr_of_ssh() {
    let sshd = Sshd::start();
    let tunnel = sshd.tunnel();
    fs::write(sshd.path("no-socket"), "").unwrap();
    for round in 0..20 {
        let missing = sshd.path(if round % 2 == 0 { "missing" } else { "no-socket" });
        let shaking = ConnectOptions::new().handshake(ImpersonationLevel::Identification);
        let options = if round % 3 == 0 { shaking } else { ConnectOptions::new() };
        match tunnel.connect_with(&options, &missing, DEADLINE) {
            Err(TunnelError::Unreachable { path, stderr }) => {
                assert_eq!(*path, *missing);
                assert!(stderr.contains("open failed"), "{stderr}");
            }
            other => panic!("{other:?}"),
        }
    }
    let (path, _listener) = sshd.server("here", &ListenerOptions::new());
    drop(tunnel.connect(path, DEADLINE).unwrap());
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_streams_fail_with_exit_and_stderr_of_ssh() {
    let sshd = Sshd::start();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new());
    let (framed_path, framed_listener) = sshd.server("framed", &ListenerOptions::new().mode(PipeMode::Framed));
    for killed in [true, false] {
        let tunnel = sshd.tunnel();
        let streams: Vec<_> = (0..3).map(|_| tunnel.connect(&path, DEADLINE).unwrap()).collect();
        let framed = ConnectOptions::new().mode(PipeMode::Framed);
        let framed = tunnel.connect_with(&framed, &framed_path, DEADLINE).unwrap().into_messages().unwrap();
        let servers: Vec<_> = streams.iter().map(|_| listener.accept_timeout(DEADLINE).unwrap()).collect();
        let server = framed_listener.accept_timeout(DEADLINE).unwrap();
        thread::scope(|scope| {
            let readers: Vec<_> = streams
                .iter()
                .map(|stream| scope.spawn(|| stream.read_timeout(&mut [0; 8], DEADLINE).unwrap_err()))
                .collect();
            if killed {
                assert_eq!(kernel::kill(tunnel.pid(), libc::SIGKILL), 0);
            } else {
                sshd.user.end_processes();
            }
            for reader in readers {
                let error = reader.join().unwrap();
                let exit = ended(&error);
                if killed {
                    assert_eq!(exit.signal(), Some(libc::SIGKILL), "{exit:?}");
                } else {
                    assert_eq!(exit.code(), Some(255), "{exit:?}");
                    let words = exit.stderr_text();
                    assert!(words.contains("closed") || words.contains("reset"), "{words:?}");
                    assert!(error.to_string().contains("ssh terminated (exit code 255): "), "{error}");
                }
            }
        });
        let failed = io::Error::from(framed.recv_timeout(DEADLINE).unwrap_err());
        let source = std::error::Error::source(failed.get_ref().unwrap()).unwrap();
        ended(source.downcast_ref().unwrap());
        ended(&streams[0].write_timeout(b"x", DEADLINE).unwrap_err());
        assert!(matches!(tunnel.connect(&path, DEADLINE), Err(TunnelError::Ended { .. })));
        assert!(tunnel.exit().is_some());
        drop((servers, server));
    }
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_refuses_unknown_hosts_and_password_logins() {
    let sshd = Sshd::start();
    let words = |builder: &TunnelBuilder| match builder.open() {
        Err(TunnelError::Ended { exit }) => exit.stderr_text().into_owned(),
        other => panic!("{other:?}"),
    };
    fs::rename(sshd.path("known_hosts"), sshd.path("kept")).unwrap();
    // The tunnel's own options override the configuration.
    let config = fs::read_to_string(sshd.path("ssh_config")).unwrap() + "StrictHostKeyChecking no\nLogLevel QUIET\n";
    fs::write(sshd.path("ssh_config"), config).unwrap();
    assert!(words(&sshd.builder()).contains("Host key verification failed"));
    assert!(!sshd.path("known_hosts").exists());
    fs::rename(sshd.path("kept"), sshd.path("known_hosts")).unwrap();

    fs::write(sshd.path("authorized_keys"), "").unwrap();
    assert!(words(&sshd.builder()).contains("Permission denied"));
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_drop_removes_sockets_and_processes() {
    let sshd = Sshd::start();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new());
    let tunnel = sshd.tunnel();
    let (pid, directory) = (tunnel.pid(), private_directory(&tunnel));
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o700);
    let stream = tunnel.connect(path, DEADLINE).unwrap();
    let server = listener.accept_timeout(DEADLINE).unwrap();
    drop(tunnel);
    assert!(!directory.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "reaped");
    let control = directory.to_str().unwrap();
    let left = run(Command::new("ps").args(["-eo", "args"]));
    assert!(!left.contains(control), "{left}");
    ended(&stream.read_timeout(&mut [0; 8], DEADLINE).unwrap_err());
    assert_eq!(server.read_timeout(&mut [0; 8], DEADLINE).unwrap(), 0);
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_connect_times_out_while_ssh_is_stopped() {
    let sshd = Sshd::start();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new());
    let tunnel = sshd.tunnel();
    let pid = tunnel.pid();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();
    for _ in 0..3 {
        assert_eq!(kernel::kill(pid, libc::SIGSTOP), 0);
        let start = Instant::now();
        let failed = tunnel.connect(&path, Duration::from_millis(50));
        assert!(matches!(failed, Err(TunnelError::TimedOut { .. })), "{failed:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}, and it had 50 ms", start.elapsed());
        // After it continues, the next call closes the forwardings that timed out.
        assert_eq!(kernel::kill(pid, libc::SIGCONT), 0);
        let client = tunnel.connect(&path, DEADLINE).unwrap();
        drop((client, listener.accept_timeout(DEADLINE).unwrap()));
        let start = Instant::now();
        while descriptors() > before {
            assert!(start.elapsed() < DEADLINE, "{before} descriptors, and now {}", descriptors());
            thread::yield_now();
        }
        assert_eq!(files(&private_directory(&tunnel)).len(), 1, "only the control socket");
    }
    assert_eq!(kernel::kill(pid, libc::SIGSTOP), 0);
    drop(tunnel);
    wait_gone(pid);
}

#[test]
#[ignore = "needs root and sshd"]
fn tunnel_stream_deadlines_hold_while_ssh_is_stopped() {
    let sshd = Sshd::start();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new());
    let (framed_path, framed_listener) = sshd.server("framed", &ListenerOptions::new().mode(PipeMode::Framed));
    let tunnel = sshd.tunnel();
    let framed = ConnectOptions::new().mode(PipeMode::Framed);
    let streams = [(); 2].map(|()| tunnel.connect(&path, DEADLINE).unwrap());
    let cut = tunnel.connect_with(&framed, &framed_path, DEADLINE).unwrap();
    for _ in &streams {
        drop(listener.accept_timeout(DEADLINE).unwrap());
    }
    let server = framed_listener.accept_timeout(DEADLINE).unwrap();
    drop(UnixStream::from(server.into_fd().unwrap()).write_all(b"\0\0\0\x05ab"));
    // The ends of the streams have arrived. From now on ssh does not answer.
    for stream in streams.iter().chain([&cut]) {
        assert!(kernel::poll_end(stream, DEADLINE));
    }
    assert_eq!(kernel::kill(tunnel.pid(), libc::SIGSTOP), 0);
    let (cut, cancel) = (cut.into_messages().unwrap(), CancelToken::new().unwrap());
    cancel.cancel();
    for wait in [Timeout::after(Duration::ZERO), Timeout::after(Duration::from_millis(20))] {
        assert_eq!(streams[0].read_timeout(&mut [0; 8], wait).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(matches!(cut.recv_timeout(wait), Err(MessageError::TimedOut)));
    }
    thread::scope(|scope| {
        let waiting = scope.spawn(|| streams[1].read_timeout(&mut [0; 8], DEADLINE));
        assert!(matches!(cut.recv_timeout(&cancel), Err(MessageError::Cancelled)));
        assert_eq!(kernel::kill(tunnel.pid(), libc::SIGCONT), 0);
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
    // A call without a timeout reports the end, too.
    let start = Instant::now();
    while let Err(error) = streams[0].read_timeout(&mut [0; 8], Duration::ZERO) {
        assert!(error.kind() == io::ErrorKind::TimedOut && start.elapsed() < DEADLINE, "{error}");
    }
    assert!(matches!(cut.recv_timeout(DEADLINE), Err(MessageError::Truncated { missing: 3 })));
    // After ssh has exited, the read still reports the peer's end; a write fails.
    drop(tunnel);
    assert_eq!(streams[0].read_timeout(&mut [0; 8], DEADLINE).unwrap(), 0);
    ended(&streams[0].write_timeout(b"x", DEADLINE).unwrap_err());
}

/// The example, which `cargo test` builds beside the tests.
#[test]
#[ignore = "needs root and sshd"]
fn tunnel_example_connects_to_remote_machine() {
    let sshd = Sshd::start();
    let (path, listener) = sshd.server("pipe", &ListenerOptions::new().mode(PipeMode::Framed).handshake());
    fs::write(sshd.path("theirs"), "the user's").unwrap();
    chown(sshd.path("theirs"), Some(sshd.user.uid), None).unwrap();
    fs::set_permissions(sshd.path("theirs"), fs::Permissions::from_mode(0o600)).unwrap();
    // The keys are in no configuration that ssh finds by itself.
    fs::create_dir(sshd.path("bin")).unwrap();
    let place = sshd.place.path().display();
    let script = format!("#!/bin/sh\nexec /usr/bin/ssh -F {place}/ssh_config -i {place}/user_key \"$@\"\n");
    fs::write(sshd.path("bin/ssh"), script).unwrap();
    fs::set_permissions(sshd.path("bin/ssh"), fs::Permissions::from_mode(0o755)).unwrap();

    let address = format!("ssh://{}@127.0.0.1:{}/{}", sshd.user.name, sshd.port, path.display());
    let path = format!("{}:{}", sshd.path("bin").display(), std::env::var("PATH").unwrap());
    let spec = WorkerSpec::new(example("named_pipe")).args(["connect", &address]).env("PATH", path);
    let spec = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).stderr(OutputMode::Lines);
    for killed in [false, true] {
        let mut process = spec.spawn_unsupervised().unwrap();
        // Held open: the end of its input would make the example exit.
        let stdin = process.take_stdin().unwrap();
        let (stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        let client = listener.accept_timeout(DEADLINE).unwrap();
        assert_eq!(client.peer().unwrap().uid(), sshd.user.uid);
        let text = client.run_as_client(|| fs::read(sshd.path("theirs"))).unwrap().unwrap();
        let client = client.into_messages().unwrap();
        client.send_timeout(&text, DEADLINE).unwrap();
        let mut line = [0; 11];
        (&stdout).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"the user's\n");
        if killed {
            sshd.user.end_processes();
        }
        drop(client);
        let exit = process.wait_timeout(DEADLINE).unwrap().cloned().expect("it ends");
        let output = String::from_utf8(read_to_end(&stderr)).unwrap();
        assert_eq!(exit.code(), Some(i32::from(killed)), "{output}");
        assert_eq!(output.contains("ssh terminated (exit code 255)"), killed, "{output}");
        drop(stdin);
    }
}

#[test]
fn tunnel_refuses_options_as_destination_before_spawn() {
    for destination in ["-oProxyCommand=touch /tmp/x", "user@-x", "", "$(id)@host"] {
        match Tunnel::ssh(destination) {
            Err(TunnelError::InvalidDestination { .. }) => {}
            other => panic!("{destination:?}: {other:?}"),
        }
    }
}
