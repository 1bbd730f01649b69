//! Several clients, and the states of a stream.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use pipewright::pipe::{
    Direction, PipeMode,
    named::{AcceptError, Access, ConnectOptions, DrainError, Listener, ListenerOptions, PeerError, connect},
};

use crate::kernel;

use super::{A_WHILE, DEADLINE, Pair, Place, byte, close, meet, put, until, with_handshake};

#[test]
fn s50_one_instance_serves_clients_in_turn() {
    for count in [1, 3] {
        let place = Place::new();
        let listener = ListenerOptions::new().max_instances(1).listen(&place.name("one")).unwrap();
        let clients: Vec<_> = (0..count).map(|_| connect(listener.name(), DEADLINE).unwrap()).collect();
        for (number, mut client) in (0..).zip(clients) {
            let server = listener.accept_timeout(DEADLINE).unwrap();
            assert!(matches!(listener.accept_timeout(Duration::ZERO), Err(AcceptError::TimedOut)));
            put(&server, number);
            assert_eq!(byte(&client), number);
            put(&client, number + 1);
            assert_eq!(byte(&server), number + 1);
            server.disconnect().unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }
}

#[test]
fn s51_instances_serve_clients_concurrently() {
    for (instances, clients) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
        let place = Place::new();
        let listener = ListenerOptions::new().max_instances(instances).listen(&place.name("one")).unwrap();
        thread::scope(|scope| {
            for _ in 0..instances {
                scope.spawn(|| {
                    for server in listener.incoming() {
                        let server = server.unwrap();
                        let got = byte(&server);
                        put(&server, got);
                    }
                });
            }
            let clients: Vec<_> = (0..clients)
                .map(|number| {
                    let name = listener.name();
                    scope.spawn(move || {
                        let client = connect(name, DEADLINE).unwrap();
                        put(&client, number);
                        assert_eq!(byte(&client), number);
                    })
                })
                .collect();
            for client in clients {
                client.join().unwrap();
            }
            listener.shutdown();
        });
        assert_eq!(listener.stats().accepted, u64::from(clients));
        assert_eq!(listener.instances(), 0);
    }
}

#[test]
fn s56_instances_are_unlimited_by_default() {
    let place = Place::new();
    for access in [Access::CurrentUser, Access::Anyone] {
        let listener = ListenerOptions::new().access(access).listen(&place.name("one")).unwrap();
        let pairs: Vec<_> = (0..5).map(|_| meet(&listener, &ConnectOptions::new().allowed_server(access))).collect();
        assert_eq!(listener.instances(), 5);
        drop(pairs);
        assert_eq!(listener.instances(), 0);
    }
}

#[test]
fn s57_client_goes_to_waiting_thread_after_other_times_out() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    thread::scope(|scope| {
        let patient = scope.spawn(|| listener.accept_timeout(DEADLINE));
        assert!(matches!(listener.accept_timeout(A_WHILE), Err(AcceptError::TimedOut)));
        let _client = connect(listener.name(), DEADLINE).unwrap();
        patient.join().unwrap().unwrap();
    });
}

#[test]
fn s58_instances_are_counted() {
    let place = Place::new();
    let listener = ListenerOptions::new().max_instances(3).listen(&place.name("one")).unwrap();
    let (server, _client) = meet(&listener, &ConnectOptions::new());
    let copy = server.clone();
    assert_eq!(listener.instances(), 1, "a clone is the same instance");
    drop(server);
    assert_eq!(listener.instances(), 1);
    copy.disconnect().unwrap();
    assert_eq!(listener.instances(), 0, "disconnected");
}

#[test]
fn shutdown_ends_all_accepts_and_rejects_clients() {
    let place = Place::new();
    let (listening, connecting) = with_handshake();
    for options in [ListenerOptions::new(), listening.max_instances(1)] {
        let listener = options.listen(&place.name("one")).unwrap();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| listener.accept_timeout(DEADLINE))).collect();
            listener.shutdown();
            for one in waiting {
                assert!(matches!(one.join().unwrap(), Err(AcceptError::ShutDown)));
            }
        });
        assert!(listener.incoming().next().is_none());
        assert!(matches!(listener.accept_timeout(DEADLINE), Err(AcceptError::ShutDown)));
        connecting.clone().no_wait().connect(listener.name(), DEADLINE).unwrap_err();
    }
}

#[test]
fn shutdown_during_accept_returns_shut_down() {
    let place = Place::new();
    for _ in 0..200 {
        let listener = Listener::bind(&place.name("one")).unwrap();
        thread::scope(|scope| {
            // Without waiting, the threads are nearly always between two checks.
            let busy: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            match listener.accept_timeout(Duration::ZERO) {
                                Err(AcceptError::TimedOut) => {}
                                other => return other,
                            }
                        }
                    })
                })
                .collect();
            until("a thread is accepting", || connect(listener.name(), DEADLINE).is_ok());
            listener.shutdown();
            for one in busy {
                let ended = one.join().unwrap();
                assert!(matches!(ended, Ok(_) | Err(AcceptError::ShutDown)), "{ended:?}");
            }
        });
    }
}

#[test]
fn polling_loop_is_notified_of_every_client() {
    const HELLO: &[u8] = b"pipewrt\0\x01\x00\x03\x01\0\0\0\0";
    let place = Place::new();
    let (listening, _) = with_handshake();
    let listener = listening.listen(&place.name("one")).unwrap();
    let readable = |timeout| kernel::poll_readable(&listener, timeout);
    let no_client = || matches!(listener.accept_timeout(Duration::ZERO), Err(AcceptError::TimedOut));
    assert!(!readable(Duration::ZERO));
    // A client that connects and sends the handshake slowly.
    let mut slow = UnixStream::connect(place.path("one")).unwrap();
    assert!(readable(DEADLINE) && no_client() && !readable(Duration::ZERO));
    slow.write_all(&HELLO[..5]).unwrap();
    assert!(readable(DEADLINE) && no_client() && !readable(Duration::ZERO));
    slow.write_all(&HELLO[5..]).unwrap();
    assert!(readable(DEADLINE));
    let _server = listener.accept_timeout(Duration::ZERO).unwrap();
    slow.write_all(b"for the server").unwrap();
    assert!(!readable(Duration::ZERO), "the client is accepted");
    // A client that disconnects during the handshake.
    let leaving = UnixStream::connect(place.path("one")).unwrap();
    assert!(readable(DEADLINE) && no_client() && !readable(Duration::ZERO));
    drop(leaving);
    assert!(readable(DEADLINE) && no_client() && !readable(Duration::ZERO));
    assert_eq!(listener.stats().vanished, 1);
    listener.shutdown();
    assert!(readable(DEADLINE));

    let listener = Listener::bind(&place.name("plain")).unwrap();
    let readable = |timeout| kernel::poll_readable(&listener, timeout);
    assert!(!readable(Duration::ZERO));
    let _client = connect(listener.name(), DEADLINE).unwrap();
    assert!(readable(DEADLINE));
    let _server = listener.accept_timeout(Duration::ZERO).unwrap();
    assert!(!readable(Duration::ZERO));
}

#[test]
fn disconnected_clients_do_not_end_accept() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("plain")).unwrap();
    for _ in 0..5 {
        drop(connect(listener.name(), DEADLINE).unwrap());
    }
    let talker = connect(listener.name(), DEADLINE).unwrap();
    put(&talker, 9);
    drop(talker);
    for _ in 0..5 {
        assert_eq!(listener.accept_timeout(DEADLINE).unwrap().read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(byte(&listener.accept_timeout(DEADLINE).unwrap()), 9, "data sent before it disconnected");

    let (listening, connecting) = with_handshake();
    let listener = listening.listen(&place.name("shaking")).unwrap();
    for _ in 0..5 {
        drop(UnixStream::connect(place.path("shaking")).unwrap());
        let mut stranger = UnixStream::connect(place.path("shaking")).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }
    meet(&listener, &connecting);
    let counts = listener.stats();
    assert_eq!((counts.accepted, counts.refused, counts.vanished), (1, 5, 5));
}

#[test]
fn s61_calls_fail_after_disconnect() {
    let Pair { mut server, listener, client, _place } = Pair::bytes();
    server.disconnect().unwrap();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(server.disconnect()), ErrorKind::NotConnected);
    assert_eq!(kind(server.read(&mut [0]).map(drop)), ErrorKind::NotConnected);
    assert_eq!(kind(server.write(&[0]).map(drop)), ErrorKind::NotConnected);
    assert_eq!(kind(server.flush()), ErrorKind::NotConnected);
    assert!(matches!(server.peer(), Err(PeerError::Disconnected)));
    assert!(matches!(server.wait_drained(DEADLINE), Err(DrainError::Os(_))));
    assert!(!server.is_connected() && !client.is_connected());
    // The next client can connect.
    meet(&listener, &ConnectOptions::new());
}

#[test]
fn s62_client_reads_end_and_cannot_write_after_server_disconnects() {
    let Pair { mut server, mut client, .. } = Pair::bytes();
    server.write_all(b"last").unwrap();
    server.disconnect().unwrap();
    assert_eq!(super::read_exactly(&client, 4), b"last");
    for _ in 0..3 {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(client.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn s64_server_detects_disconnected_client() {
    let Pair { server, client, listener, _place } = Pair::bytes();
    assert!(server.is_connected());
    close(client, &server);
    assert_eq!(server.peer().unwrap().pid(), Some(std::process::id()), "the identity is still known");
    meet(&listener, &ConnectOptions::new());
}

#[test]
fn is_connected_is_false_with_data_left_to_read() {
    for mode in [PipeMode::Byte, PipeMode::Message, PipeMode::Framed] {
        let Pair { server, mut client, .. } = Pair::new(mode);
        client.write_all(b"unread").unwrap();
        close(client, &server);
        assert_eq!(super::read_to_end(&server), b"unread");
    }
}

#[test]
fn peer_that_only_shut_down_writing_is_connected() {
    let Pair { server, client, .. } = Pair::bytes();
    let plain = UnixStream::from(client.into_fd().unwrap());
    plain.shutdown(Shutdown::Write).unwrap();
    assert!(server.is_connected());
    assert_eq!(super::read_to_end(&server), b"");
    super::write_all(&server, b"still");
    assert_eq!(super::read_exactly(&super::Stream::from_fd(plain.into(), PipeMode::Byte).unwrap(), 5), b"still");
}

#[test]
fn s67_ends_have_one_direction() {
    let listening = ListenerOptions::new().direction(Direction::Out);
    let connecting = ConnectOptions::new().direction(Direction::In);
    let Pair { mut server, mut client, .. } = Pair::with(&listening, &connecting);
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(server.read(&mut [0]).map(drop)), ErrorKind::Unsupported);
    assert_eq!(kind(server.read(&mut []).map(drop)), ErrorKind::Unsupported);
    assert_eq!(kind(client.write(&[0]).map(drop)), ErrorKind::Unsupported);
    assert_eq!(kind(client.flush()), ErrorKind::Unsupported);
    assert!(
        matches!(client.wait_drained(DEADLINE), Err(DrainError::Os(error)) if error.kind() == ErrorKind::Unsupported)
    );
    put(&server, 3);
    assert_eq!(byte(&client), 3);
    assert!(server.is_connected() && client.is_connected());
    close(server, &client);
}

#[test]
fn s67_peer_detects_missing_direction_without_handshake() {
    let Pair { client, server, .. } =
        Pair::with(&ListenerOptions::new().direction(Direction::In), &ConnectOptions::new());
    assert_eq!(client.read_timeout(&mut [0], DEADLINE).unwrap(), 0, "no data can arrive");
    put(&client, 1);
    drop(server);
    let Pair { mut client, server, .. } =
        Pair::with(&ListenerOptions::new().direction(Direction::Out), &ConnectOptions::new());
    assert_eq!(client.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe, "no reader exists");
    drop(server);
}

#[test]
fn disconnect_ends_pending_reads_and_writes() {
    for mode in [PipeMode::Byte, PipeMode::Message, PipeMode::Framed] {
        let Pair { server, client, .. } = Pair::new(mode);
        thread::scope(|scope| {
            let reader = scope.spawn(|| (&server).read(&mut [0]));
            let writer = scope.spawn(|| {
                loop {
                    if let Err(error) = (&server).write(&[0; 4096]) {
                        return error.kind();
                    }
                }
            });
            // The writer blocks once the pipe is full.
            until("the pipe is full", || server.write_timeout(&[0], Duration::ZERO).is_err());
            server.disconnect().unwrap();
            assert_eq!(reader.join().unwrap().unwrap_or(0), 0);
            let kind = writer.join().unwrap();
            assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::NotConnected), "{kind}");
        });
        drop(client);
    }
}

#[test]
fn dropped_half_ends_its_direction_only() {
    let Pair { server, mut client, .. } = Pair::bytes();
    let (mut reader, mut writer) = server.split();
    writer.write_all(b"all").unwrap();
    drop(writer);
    assert_eq!(super::read_to_end(&client), b"all");
    client.write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    reader.read_exact(&mut answer).unwrap();
    drop(reader);
    assert_eq!(client.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn accept_without_free_fds_neither_spins_nor_loses_clients() {
    // In its own process, to which the limit applies.
    let place = Place::new();
    let mut server = super::Program::fixture(&["named-starved", super::text(&place.path("one"))]);
    assert_eq!(server.line(), "listening");
    let client = connect(&place.name("one"), DEADLINE).unwrap();
    assert_eq!(server.line(), "starved", "no client was accepted in half a second, without CPU time");
    let start = Instant::now();
    writeln!(server.child.stdin.as_mut().unwrap()).unwrap();
    assert_eq!(byte(&client), 1, "accepted after {:?}", start.elapsed());
}
