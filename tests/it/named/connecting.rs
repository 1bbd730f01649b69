//! Connecting, waiting for servers, timeouts and cancellation.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    thread,
    time::{Duration, Instant},
};

use pipewright::pipe::{
    CancelToken, Direction, PipeMode, Timeout,
    named::{AcceptError, ConnectError, ConnectOptions, ListenError, Listener, ListenerOptions, Stream, connect},
};

use crate::kernel;

use super::{
    A_WHILE, DEADLINE, Pair, Place, byte, meet, plain, put, stale_socket, until, until_cancelled, with_handshake,
};

#[test]
fn s24_listen_rejects_zero_instances() {
    let place = Place::new();
    let error = ListenerOptions::new().max_instances(0).listen(&place.name("one")).unwrap_err();
    assert!(matches!(error, ListenError::NoInstances), "{error}");
    for limit in [1, 254, 255, u32::MAX - 1] {
        ListenerOptions::new().max_instances(limit).listen(&place.name("one")).unwrap();
    }
}

#[test]
fn s25_s36_from_fd_rejects_unconnected_descriptors() {
    let place = Place::new();
    let kind = |socket: OwnedFd, mode| Stream::from_fd(socket, mode).unwrap_err().kind();
    let file = File::create(place.path("file")).unwrap();
    assert_eq!(kind(file.into(), PipeMode::Byte), io::ErrorKind::InvalidInput);
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    assert_eq!(kind(datagram.into(), PipeMode::Byte), io::ErrorKind::InvalidInput);
    let (stream, _other) = UnixStream::pair().unwrap();
    assert_eq!(kind(stream.into(), PipeMode::Message), io::ErrorKind::InvalidInput);
    let listener = UnixListener::bind(place.path("listener")).unwrap();
    assert_eq!(kind(listener.into(), PipeMode::Byte), io::ErrorKind::NotConnected);
}

#[test]
fn s38_connect_without_server_times_out() {
    let place = Place::new();
    let token = CancelToken::new().unwrap();
    for timeout in [60, 91, 92].map(Duration::from_millis) {
        for wait in [Timeout::after(timeout), Timeout::after(timeout).or_cancelled(&token)] {
            let start = Instant::now();
            let error = connect(&place.name("missing"), wait).unwrap_err();
            assert!(matches!(error, ConnectError::NoServer { .. }), "{error}");
            assert!(start.elapsed() >= timeout, "{:?} of {timeout:?}", start.elapsed());
        }
    }
    let start = Instant::now();
    let error = ConnectOptions::new().no_wait().connect(&place.name("missing"), DEADLINE).unwrap_err();
    assert!(matches!(error, ConnectError::NoServer { .. }), "{error}");
    assert!(start.elapsed() < DEADLINE, "returns at once");
    assert!(error.to_string().contains("/missing"), "{error}");
}

#[test]
fn s38_connect_to_stale_socket_times_out() {
    let place = Place::new();
    stale_socket(&place.path("dead"));
    let error = connect(&place.name("dead"), A_WHILE).unwrap_err();
    assert!(matches!(error, ConnectError::NoServer { .. }), "{error}");
}

#[test]
fn s39_s43_connect_can_be_cancelled() {
    let place = Place::new();
    let cancel = CancelToken::new().unwrap();
    let busy = Listener::bind(&place.name("busy")).unwrap();
    thread::scope(|scope| {
        let pending = scope.spawn(|| connect(&place.name("missing"), until_cancelled(&cancel)));
        let shaken = scope.spawn(|| with_handshake().1.connect(busy.name(), until_cancelled(&cancel)));
        // Once it is accepted, the second client is certainly in the backlog.
        let _backlog = busy.accept_timeout(DEADLINE).unwrap();
        cancel.cancel();
        assert!(matches!(pending.join().unwrap(), Err(ConnectError::Cancelled)));
        assert!(matches!(shaken.join().unwrap(), Err(ConnectError::Cancelled)));
    });
    let _server = Listener::bind(&place.name("there")).unwrap();
    let error = connect(&place.name("there"), until_cancelled(&cancel)).unwrap_err();
    assert!(matches!(error, ConnectError::Cancelled), "already cancelled, though a server is there: {error}");
}

/// Number of voluntary context switches of the calling thread.
fn thread_sleeps() -> u32 {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn s40_waiting_for_server_uses_no_cpu() {
    // The allocator of musl has one lock for all threads: waits for it count as sleeps too.
    if !crate::support::alone("named::connecting::s40_waiting_for_server_uses_no_cpu", |spec| spec) {
        return;
    }
    let place = Place::new();
    // A missing name, a missing directory, and a stale socket file.
    stale_socket(&place.path("dead"));
    // Each on its own thread, since the figures are per thread.
    let waits = &|name: &str, looks: u32| {
        let (time, sleeps) = (kernel::thread_time(), thread_sleeps());
        connect(&place.name(name), Duration::from_secs(1)).unwrap_err();
        let (time, sleeps) = (kernel::thread_time().checked_sub(time).unwrap(), thread_sleeps() - sleeps);
        assert!(time < Duration::from_millis(20), "{time:?} of CPU for 1 s of waiting for {name}");
        assert!(sleeps <= looks, "looked {sleeps} times in 1 s for {name}");
    };
    thread::scope(|scope| {
        for (name, looks) in [("missing", 3), ("no/such/directory", 3), ("dead", 14)] {
            scope.spawn(move || waits(name, looks));
        }
    });
}

#[test]
fn connect_waits_for_server_to_appear() {
    let place = Place::new();
    for name in ["late", "late/in/a/directory"] {
        let name = place.name(name);
        let listener = thread::scope(|scope| {
            let client = scope.spawn(|| connect(&name, DEADLINE).map(drop));
            assert!(!client.is_finished());
            fs::create_dir_all(name.path().unwrap().parent().unwrap()).unwrap();
            let listener = Listener::bind(&name).unwrap();
            client.join().unwrap().unwrap();
            listener
        });
        drop(listener);
    }
}

#[test]
fn connect_waits_for_server_to_restart() {
    let place = Place::new();
    stale_socket(&place.path("one"));
    thread::scope(|scope| {
        let client = scope.spawn(|| connect(&place.name("one"), DEADLINE).map(|_| Instant::now()));
        // Long enough for the client to reach its longest pause.
        connect(&place.name("one"), Duration::from_millis(1100)).unwrap_err();
        let start = Instant::now();
        let listener = Listener::bind(&place.name("one")).unwrap();
        let connected = client.join().unwrap().unwrap();
        assert!(connected.duration_since(start) < Duration::from_millis(500), "it was woken");
        drop(listener);
    });
}

#[test]
fn connect_waits_for_bound_server_to_listen() {
    let place = Place::new();
    stale_socket(&place.path("one"));
    thread::scope(|scope| {
        let client = scope.spawn(|| connect(&place.name("one"), DEADLINE).map(|_| Instant::now()));
        connect(&place.name("one"), Duration::from_millis(1100)).unwrap_err();
        fs::remove_file(place.path("one")).unwrap();
        let bound = kernel::bind_only(&place.path("one"));
        connect(&place.name("one"), A_WHILE).unwrap_err();
        let start = Instant::now();
        kernel::listen(&bound);
        let connected = client.join().unwrap().unwrap();
        assert!(connected.duration_since(start) < Duration::from_millis(500), "retried often after the file changed");
    });
}

#[test]
fn s42_second_client_of_busy_server_times_out() {
    let place = Place::new();
    let (options, client) = with_handshake();
    let listener = options.max_instances(1).listen(&place.name("one")).unwrap();
    let (first, _client) = meet(&listener, &client);
    thread::scope(|scope| {
        let second = scope.spawn(|| client.connect(listener.name(), A_WHILE));
        assert!(matches!(listener.accept_timeout(A_WHILE), Err(AcceptError::TimedOut)));
        let error = second.join().unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::Busy { .. }), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    });
    drop(first);
    meet(&listener, &client);
    assert_eq!(listener.stats().accepted, 2);
    assert_eq!(listener.stats().vanished, 1, "the client that timed out");
}

#[test]
fn s42_connect_times_out_with_full_backlog() {
    let place = Place::new();
    let listener = ListenerOptions::new().backlog(1).listen(&place.name("one")).unwrap();
    // listen(n) admits n + 1.
    let _waiting = [connect(listener.name(), DEADLINE).unwrap(), connect(listener.name(), DEADLINE).unwrap()];
    let start = Instant::now();
    let error = connect(listener.name(), A_WHILE).unwrap_err();
    assert!(matches!(error, ConnectError::Busy { .. }), "{error}");
    assert!(start.elapsed() >= A_WHILE);
    let cancel = CancelToken::new().unwrap();
    thread::scope(|scope| {
        let cancelled = scope.spawn(|| connect(listener.name(), until_cancelled(&cancel)));
        let patient = scope.spawn(|| connect(listener.name(), DEADLINE));
        cancel.cancel();
        assert!(matches!(cancelled.join().unwrap(), Err(ConnectError::Cancelled)));
        drop(listener.accept_timeout(DEADLINE).unwrap());
        patient.join().unwrap().unwrap();
    });
}

#[test]
fn s44_connect_rejects_incompatible_direction() {
    use Direction::{In, InOut, Out};
    for (server, client, fits) in [
        (Out, Out, false),
        (In, In, false),
        (In, InOut, false),
        (Out, InOut, false),
        (In, Out, true),
        (Out, In, true),
        (InOut, In, true),
        (InOut, Out, true),
    ] {
        let place = Place::new();
        let (listening, connecting) = with_handshake();
        let listener = listening.direction(server).listen(&place.name("one")).unwrap();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| listener.accept_timeout(DEADLINE));
            let connected = connecting.direction(client).connect(listener.name(), DEADLINE);
            if fits {
                connected.unwrap();
            } else {
                let error = connected.unwrap_err();
                let ConnectError::WrongDirection { client: of_client, server: of_server } = error else {
                    panic!("{error}")
                };
                assert_eq!((of_client, of_server), (client, server));
                assert_eq!((listener.stats().refused, listener.stats().accepted), (1, 0));
                listener.shutdown();
            }
            assert_eq!(accepted.join().unwrap().is_ok(), fits, "{server} {client}");
        });
    }
}

#[test]
fn connect_rejects_other_mode() {
    let place = Place::new();
    let name = place.name("one");
    // Message and byte mode: also detected without a handshake, by the type of the socket.
    let listener = ListenerOptions::new().mode(PipeMode::Message).listen(&name).unwrap();
    let error = connect(&name, DEADLINE).unwrap_err();
    assert!(matches!(error, ConnectError::WrongMode { client: PipeMode::Byte, server: None }), "{error}");
    drop(listener);
    let (listening, connecting) = with_handshake();
    let listener = listening.mode(PipeMode::Framed).listen(&name).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| listener.accept_timeout(DEADLINE));
        let error = connecting.connect(&name, DEADLINE).unwrap_err();
        assert!(matches!(error, ConnectError::WrongMode { server: Some(PipeMode::Framed), .. }), "{error}");
        listener.shutdown();
    });
}

#[test]
fn connect_rejects_other_version() {
    use std::io::{Read, Write};
    let place = Place::new();
    let (listening, connecting) = with_handshake();
    let listener = listening.listen(&place.name("ours")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| listener.accept_timeout(DEADLINE));
        let mut other = plain(&place.path("ours"));
        other.write_all(b"pipewrt\0\x09\x00\x03\x01\0\0\0\0").unwrap();
        let mut answer = Vec::new();
        other.read_to_end(&mut answer).unwrap();
        assert_eq!(&answer[..10], b"pipewrt\0\x01\x01", "reply of version 1: wrong version");
        listener.shutdown();
    });
    // A server with another version of the handshake, and one with another protocol.
    for (says, version) in [(b"pipewrt\0\x09\x01\x00\x03\0\0\0\0", Some(9)), (b"220 mail ready\r\n", None)] {
        let foreign = UnixListener::bind(place.path("foreign")).unwrap();
        thread::scope(|scope| {
            let client = scope.spawn(|| connecting.connect(&place.name("foreign"), DEADLINE));
            let (mut accepted, _) = foreign.accept().unwrap();
            accepted.write_all(says).unwrap();
            match (client.join().unwrap(), version) {
                (Err(ConnectError::WrongVersion { client: 1, server }), Some(version)) => assert_eq!(server, version),
                (Err(ConnectError::NoHandshake { .. }), None) => {}
                (other, _) => panic!("{other:?}"),
            }
        });
        fs::remove_file(place.path("foreign")).unwrap();
    }
}

#[test]
fn s45_accept_can_be_cancelled() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let mut cancel = CancelToken::new().unwrap();
    for pause in [Duration::ZERO, A_WHILE] {
        cancel = CancelToken::new().unwrap();
        thread::scope(|scope| {
            // One of them holds the accept lock, the others wait for it.
            let waiting = [(); 3].map(|()| scope.spawn(|| listener.accept_timeout(until_cancelled(&cancel))));
            // No server exists: this only waits.
            connect(&place.name("missing"), pause).unwrap_err();
            cancel.cancel();
            for one in waiting {
                assert!(matches!(one.join().unwrap(), Err(AcceptError::Cancelled)));
            }
        });
    }
    let _client = connect(listener.name(), DEADLINE).unwrap();
    assert!(
        matches!(listener.accept_timeout(until_cancelled(&cancel)), Err(AcceptError::Cancelled)),
        "though a client waits"
    );
    listener.accept_timeout(DEADLINE).unwrap();
}

#[test]
fn accept_times_out() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let start = Instant::now();
    assert!(matches!(listener.accept_timeout(A_WHILE), Err(AcceptError::TimedOut)));
    assert!(start.elapsed() >= A_WHILE);
    let cancel = CancelToken::new().unwrap();
    let either = Timeout::after(Duration::ZERO).or_cancelled(&cancel);
    assert!(matches!(listener.accept_timeout(either), Err(AcceptError::TimedOut)));
}

#[test]
fn s47_client_connects_before_accept() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let client = connect(listener.name(), DEADLINE).unwrap();
    put(&client, 7);
    let server = listener.accept_timeout(DEADLINE).unwrap();
    assert_eq!(byte(&server), 7);
}

#[test]
fn s47_client_with_handshake_waits_for_accept() {
    let place = Place::new();
    let (listening, connecting) = with_handshake();
    let listener = listening.listen(&place.name("one")).unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| connecting.connect(listener.name(), DEADLINE));
        assert!(matches!(connecting.connect(listener.name(), A_WHILE), Err(ConnectError::Busy { .. })));
        assert!(!client.is_finished(), "connected means accepted");
        listener.accept_timeout(DEADLINE).unwrap();
        client.join().unwrap().unwrap();
    });
}

#[test]
fn s48_client_and_server_start_in_either_order() {
    for mode in [PipeMode::Byte, PipeMode::Message, PipeMode::Framed] {
        for (server, client) in [(ListenerOptions::new(), ConnectOptions::new()), with_handshake()] {
            let Pair { server, client, .. } = Pair::with(&server.mode(mode), &client.mode(mode));
            put(&client, 1);
            assert_eq!(byte(&server), 1);
            put(&server, 2);
            assert_eq!(byte(&client), 2);
        }
    }
}

#[test]
fn s49_connect_needs_no_accept() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let clients: Vec<_> = (0..20).map(|_| connect(listener.name(), DEADLINE).unwrap()).collect();
    assert!(clients.iter().all(Stream::is_connected));
    drop(listener);
    until("turned away when the listener went", || clients.iter().all(|client| !client.is_connected()));
}

#[test]
fn connect_in_handshake_survives_server_restart() {
    let place = Place::new();
    let (listening, connecting) = with_handshake();
    let old = listening.listen(&place.name("one")).unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| connecting.connect(&place.name("one"), DEADLINE));
        // The client is in the backlog of the old server when that ends.
        let plain = UnixStream::connect(place.path("one")).unwrap();
        drop(old);
        drop(plain);
        let new = listening.listen(&place.name("one")).unwrap();
        new.accept_timeout(DEADLINE).unwrap();
        client.join().unwrap().unwrap();
    });
}

#[test]
fn silent_client_does_not_delay_others() {
    let place = Place::new();
    let (listening, connecting) = with_handshake();
    let listener = listening.listen(&place.name("one")).unwrap();
    let _silent: Vec<_> = (0..10).map(|_| UnixStream::connect(place.path("one")).unwrap()).collect();
    let _torn: Vec<_> = (0..10)
        .map(|_| {
            let mut torn = UnixStream::connect(place.path("one")).unwrap();
            io::Write::write_all(&mut torn, b"pipew").unwrap();
            torn
        })
        .collect();
    let start = Instant::now();
    meet(&listener, &connecting);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(listener.stats().accepted, 1);
}

#[test]
fn connect_without_permission_is_denied() {
    if super::is_root() {
        eprintln!("skipped: root may use every file");
        return;
    }
    let place = Place::new();
    let _listener = Listener::bind(&place.name("one")).unwrap();
    fs::set_permissions(place.path("one"), fs::Permissions::from_mode(0o000)).unwrap();
    assert!(matches!(connect(&place.name("one"), DEADLINE), Err(ConnectError::Denied { .. })));
}
