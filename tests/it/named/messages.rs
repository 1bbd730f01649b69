//! Whole messages, in message and framed mode.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

use pipewright::pipe::{
    CancelToken, Direction, PipeMode,
    named::{ConnectOptions, ListenerOptions, MessageError, MessageStream, Stream},
};

use crate::kernel;

use super::{A_WHILE, DEADLINE, Pair, Place, pattern, recv, until_cancelled};

const MODES: [PipeMode; 2] = [PipeMode::Message, PipeMode::Framed];

fn read(stream: &MessageStream, size: usize) -> (Vec<u8>, bool) {
    let mut buffer = vec![0; size];
    let count = stream.read_timeout(&mut buffer, DEADLINE).unwrap();
    buffer.truncate(count);
    (buffer, stream.is_message_complete())
}

#[test]
fn s89_messages_keep_their_boundaries() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        for message in [&b"four"[..], b"to", b"more"] {
            client.send_timeout(message, DEADLINE).unwrap();
        }
        for message in [&b"four"[..], b"to", b"more"] {
            assert_eq!(read(&server, 100), (message.to_vec(), true), "{mode}");
        }
    }
}

#[test]
fn s90_message_read_with_buffer_one_byte_short() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        client.send_timeout(b"12345", DEADLINE).unwrap();
        client.send_timeout(b"next", DEADLINE).unwrap();
        assert_eq!(read(&server, 4), (b"1234".to_vec(), false), "{mode}");
        assert_eq!(read(&server, 100), (b"5".to_vec(), true));
        assert_eq!(read(&server, 4), (b"next".to_vec(), true), "exactly as long as the buffer");
    }
}

#[test]
fn s91_message_read_in_three_parts() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        client.send_timeout(b"12345", DEADLINE).unwrap();
        assert_eq!(read(&server, 2), (b"12".to_vec(), false), "{mode}");
        assert_eq!(read(&server, 2), (b"34".to_vec(), false));
        assert_eq!(read(&server, 2), (b"5".to_vec(), true));
        client.send_timeout(b"in part, then whole", DEADLINE).unwrap();
        assert_eq!(read(&server, 2), (b"in".to_vec(), false));
        assert_eq!(recv(&server).unwrap(), b" part, then whole");
    }
}

#[test]
fn s92_messages_from_server_to_client() {
    for mode in MODES {
        for (server, client) in [(Direction::Out, Direction::In), (Direction::InOut, Direction::InOut)] {
            let Pair { server, client, .. } = Pair::with(
                &ListenerOptions::new().mode(mode).direction(server),
                &ConnectOptions::new().mode(mode).direction(client),
            );
            let (server, client) = (server.into_messages().unwrap(), client.into_messages().unwrap());
            server.send_timeout(b"12345", DEADLINE).unwrap();
            assert_eq!(read(&client, 2), (b"12".to_vec(), false), "{mode}");
            assert_eq!(read(&client, 3), (b"345".to_vec(), true));
        }
    }
}

#[test]
fn s93_byte_pipe_has_no_messages() {
    let Pair { server, .. } = Pair::bytes();
    assert_eq!(server.into_messages().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn empty_message_is_not_the_end() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        client.send_timeout(b"", DEADLINE).unwrap();
        client.send_timeout(b"", DEADLINE).unwrap();
        client.send_timeout(b"x", DEADLINE).unwrap();
        client.send_timeout(b"", DEADLINE).unwrap();
        assert_eq!(recv(&server).as_deref(), Some(&b""[..]), "{mode}");
        assert_eq!((read(&server, 10), server.is_at_end()), ((b"".to_vec(), true), false));
        assert_eq!(recv(&server).as_deref(), Some(&b"x"[..]));
        drop(client);
        assert_eq!(recv(&server).as_deref(), Some(&b""[..]), "{mode}");
        assert_eq!(recv(&server), None);
        assert_eq!((read(&server, 10), server.is_at_end()), ((b"".to_vec(), true), true));
        assert_eq!(recv(&server), None);
    }
}

#[test]
fn empty_message_sent_before_accept_is_not_the_end() {
    let place = Place::new();
    let listener = ListenerOptions::new().mode(PipeMode::Message).listen(&place.name("one")).unwrap();
    let options = ConnectOptions::new().mode(PipeMode::Message);
    let client = options.connect(listener.name(), DEADLINE).unwrap().into_messages().unwrap();
    client.send_timeout(b"", DEADLINE).unwrap();
    drop(client);
    let server = listener.accept_timeout(DEADLINE).unwrap().into_messages().unwrap();
    assert_eq!(recv(&server).as_deref(), Some(&b""[..]));
    assert_eq!(recv(&server), None);
}

#[test]
fn reset_before_queued_messages_loses_none() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        server.send_timeout(b"never read", DEADLINE).unwrap();
        for number in 0..5_u8 {
            client.send_timeout(&[number], DEADLINE).unwrap();
        }
        client.send_timeout(b"", DEADLINE).unwrap();
        drop(client);
        for number in 0..5_u8 {
            assert_eq!(recv(&server).unwrap(), [number], "{mode}");
        }
        assert_eq!(recv(&server).unwrap(), b"");
        assert_eq!(recv(&server), None);
        assert!(matches!(server.send_timeout(b"x", DEADLINE), Err(MessageError::PeerGone)), "{mode}");
    }
}

#[test]
fn longest_message_is_sent_and_longer_one_rejected() {
    for mode in MODES {
        let Pair { server, client, .. } =
            Pair::with(&ListenerOptions::new().mode(mode), &ConnectOptions::new().mode(mode).max_message_size(300_000));
        let (server, client) = (server.into_messages().unwrap(), client.into_messages().unwrap());
        let limit = client.max_message_size().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let error = client.send_timeout(&vec![1; limit + 1], DEADLINE).unwrap_err();
                let MessageError::TooLarge { bytes, limit: reported } = error else { panic!("{error}") };
                assert_eq!((bytes, reported), (limit + 1, limit), "{mode}");
                client.send_timeout(&pattern(limit), DEADLINE).unwrap();
            });
            assert!(recv(&server).unwrap() == pattern(limit), "{mode}: and nothing of the refused one");
        });
    }
}

#[test]
fn max_message_size_can_be_raised() {
    let (server, client) = Pair::messages(PipeMode::Message);
    let before = client.max_message_size().unwrap();
    let buffer = client.as_stream().set_send_buffer_size(1 << 20).unwrap();
    assert_eq!((buffer, client.max_message_size().unwrap()), (2 << 20, (2 << 20) - 32));
    assert!(before < 1 << 20);
    thread::scope(|scope| {
        scope.spawn(|| client.send_timeout(&pattern(1 << 20), DEADLINE).unwrap());
        assert!(recv(&server).unwrap() == pattern(1 << 20));
    });
    // Up to what the kernel allocates in one piece.
    client.as_stream().set_send_buffer_size(64 << 20).unwrap();
    let limit = client.max_message_size().unwrap();
    assert!(limit <= 4 << 20);
    assert!(matches!(client.send_timeout(&vec![0; 8 << 20], DEADLINE), Err(MessageError::TooLarge { .. })));
}

#[test]
fn framed_message_of_16_mib_is_sent() {
    let (server, client) = Pair::messages(PipeMode::Framed);
    let limit = client.max_message_size().unwrap();
    assert_eq!(limit, 16 << 20);
    thread::scope(|scope| {
        scope.spawn(|| client.send_timeout(&pattern(limit), DEADLINE).unwrap());
        assert!(recv(&server).unwrap() == pattern(limit));
    });
}

#[test]
fn oversized_frame_ends_stream_without_allocation() {
    let Pair { server, mut client, .. } = framed_against_plain();
    let server = server.into_messages().unwrap();
    client.write_all(&u32::MAX.to_be_bytes()).unwrap();
    let error = server.recv_timeout(DEADLINE).unwrap_err();
    assert!(matches!(error, MessageError::TooLarge { bytes: 0xffff_ffff, .. }), "{error}");
    assert_eq!(recv(&server), None);
}

/// A framed server with a client in byte mode.
fn framed_against_plain() -> Pair {
    Pair::with(&ListenerOptions::new().mode(PipeMode::Framed), &ConnectOptions::new())
}

#[test]
fn frame_in_single_bytes_is_received_and_truncated_one_reported() {
    let Pair { server, mut client, .. } = framed_against_plain();
    let server = server.into_messages().unwrap();
    for byte in *b"\0\0\0\x03abc\0\0\0\x05de" {
        assert!(matches!(server.recv_timeout(Duration::ZERO), Ok(Some(_)) | Err(MessageError::TimedOut)) || byte == 0);
        client.write_all(&[byte]).unwrap();
        if byte == b'c' {
            assert_eq!(recv(&server).unwrap(), b"abc");
        }
    }
    drop(client);
    let error = server.recv_timeout(DEADLINE).unwrap_err();
    assert!(matches!(error, MessageError::Truncated { missing: 3 }), "{error}");
    assert_eq!(io::Error::from(error).kind(), ErrorKind::UnexpectedEof);
    assert_eq!(recv(&server), None);
}

#[test]
fn messages_of_concurrent_writers_do_not_mix() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        thread::scope(|scope| {
            for writer in 1..=8_u8 {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..50 {
                        client.send_timeout(&vec![writer; 1 + round * 997], DEADLINE).unwrap();
                    }
                });
            }
            let mut counts = [0; 9];
            for _ in 0..8 * 50 {
                let message = recv(&server).unwrap();
                assert!(message.iter().all(|byte| *byte == message[0]), "{mode}: mixed");
                assert_eq!(message.len(), 1 + counts[usize::from(message[0])] * 997, "{mode}: order");
                counts[usize::from(message[0])] += 1;
            }
        });
    }
}

#[test]
fn concurrent_readers_share_messages() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        let (server, seen) = (&server, std::sync::Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(message) = recv(server) {
                        seen.lock().unwrap().push(u32::from_be_bytes(message[..4].try_into().unwrap()));
                    }
                });
            }
            for number in 0..500_u32 {
                client.send_timeout(&number.to_be_bytes().repeat(100), DEADLINE).unwrap();
            }
            drop(client);
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>(), "{mode}");
    }
}

#[test]
fn streams_sharing_a_socket_never_mix_up_messages() {
    const ROUNDS: usize = 20_000;
    let Pair { server, client, .. } = Pair::new(PipeMode::Message);
    // It does not share the lock of the first stream, like a reader in another process.
    let copy = Stream::from_fd(server.as_fd().try_clone_to_owned().unwrap(), PipeMode::Message).unwrap();
    let client = client.into_messages().unwrap();
    let wrong = |message: &[u8]| message.len() != usize::from(message[0]) || message.iter().any(|b| *b != message[0]);
    thread::scope(|scope| {
        let readers = [server, copy].map(|stream| {
            let stream = stream.into_messages().unwrap();
            scope.spawn(move || {
                let mut count = 0;
                loop {
                    match stream.recv_timeout(DEADLINE) {
                        Ok(None) => return count,
                        Ok(Some(message)) => assert!(!wrong(&message), "{message:?}"),
                        // The other reader took the peeked message, and the next one is longer.
                        Err(MessageError::Os(error)) => assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}"),
                        Err(error) => panic!("{error}"),
                    }
                    count += 1;
                }
            })
        });
        for round in 0..ROUNDS {
            client.send_timeout(if round % 2 == 0 { &[1] } else { &[200; 200] }, DEADLINE).unwrap();
        }
        drop(client);
        let all: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert_eq!(all, ROUNDS, "each message is reported once");
    });
}

#[test]
fn messages_time_out_and_can_be_cancelled() {
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        assert!(matches!(server.recv_timeout(A_WHILE), Err(MessageError::TimedOut)));
        let cancel = CancelToken::new().unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| server.recv_timeout(until_cancelled(&cancel)));
            cancel.cancel();
            assert!(matches!(reader.join().unwrap(), Err(MessageError::Cancelled)));
        });
        assert!(matches!(client.send_timeout(b"x", until_cancelled(&cancel)), Err(MessageError::Cancelled)));
        client.send_timeout(b"y", DEADLINE).unwrap();
        assert_eq!(recv(&server).unwrap(), b"y", "{mode}: nothing was sent, and nothing lost");
    }
}

#[test]
fn frame_sent_in_part_is_finished_later() {
    let (server, client) = Pair::messages(PipeMode::Framed);
    let long = pattern(5 << 20);
    let error = client.send_timeout(&long, A_WHILE).unwrap_err();
    assert!(matches!(error, MessageError::Unfinished), "{error}");
    // The rest is still unsent, so nothing of the next message is sent.
    assert!(matches!(client.send_timeout(b"next", A_WHILE), Err(MessageError::TimedOut)));
    assert!(matches!(client.flush(A_WHILE), Err(MessageError::Unfinished)));
    thread::scope(|scope| {
        let server = &server;
        let reader = scope.spawn(move || (recv(server), recv(server)));
        client.flush(DEADLINE).unwrap();
        client.send_timeout(b"next", DEADLINE).unwrap();
        let (first, second) = reader.join().unwrap();
        assert!(first.unwrap() == long);
        assert_eq!(second.unwrap(), b"next");
    });
}

#[test]
fn message_pipe_can_be_read_as_bytes() {
    for mode in MODES {
        let Pair { server, mut client, .. } = Pair::new(mode);
        client.write_all(b"one").unwrap();
        client.write_all(b"two").unwrap();
        assert_eq!(super::read_exactly(&server, 2), b"on");
        assert_eq!(super::read_exactly(&server, 4), b"etwo", "{mode}");
        let error = client.write(&vec![0; 32 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn fds_are_passed_with_their_message() {
    let (server, client) = Pair::messages(PipeMode::Message);
    let (near, far) = UnixStream::pair().unwrap();
    client.send_with_fds(b"uninvited", &[far.as_fd()], DEADLINE).unwrap();
    client.send_with_fds(b"", &[far.as_fd()], DEADLINE).unwrap();
    client.send_timeout(b"none", DEADLINE).unwrap();
    drop(far);
    assert_eq!(recv(&server).unwrap(), b"uninvited");
    let message = server.recv_with_fds(DEADLINE).unwrap().unwrap();
    assert_eq!((message.bytes.len(), message.fds.len()), (0, 1), "also with an empty message");
    assert_eq!(server.recv_with_fds(DEADLINE).unwrap().unwrap().fds.len(), 0);
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    drop(message);
    assert_eq!((&near).read(&mut [0]).unwrap(), 0, "the unrequested copy was closed");

    let (_server, client) = Pair::messages(PipeMode::Framed);
    let error = client.send_with_fds(b"x", &[near.as_fd()], DEADLINE).unwrap_err();
    assert!(matches!(&error, MessageError::Os(inner) if inner.kind() == ErrorKind::Unsupported), "{error}");
}

#[test]
fn messages_work_over_socketpair() {
    let (one, other) = UnixStream::pair().unwrap();
    let one = Stream::from_fd(one.into(), PipeMode::Framed).unwrap().into_messages().unwrap();
    let other = Stream::from_fd(other.into(), PipeMode::Framed).unwrap().into_messages().unwrap();
    one.send(b"hello").unwrap();
    assert_eq!(recv(&other).unwrap(), b"hello");
}

#[test]
fn waiting_for_space_or_message_does_not_spin() {
    const WAITED: Duration = Duration::from_millis(200);
    const USED_MAX: Duration = Duration::from_millis(20);
    for mode in MODES {
        let (server, client) = Pair::messages(mode);
        let before = kernel::thread_time();
        assert!(matches!(server.recv_timeout(WAITED), Err(MessageError::TimedOut)));
        let used = kernel::thread_time().checked_sub(before).unwrap();
        assert!(used < USED_MAX, "{mode}: {used:?} of CPU for {WAITED:?} of waiting for a message");
        let mut sent = 0;
        while client.send_timeout(&[7; 1000], Duration::ZERO).is_ok() {
            sent += 1;
        }
        let before = kernel::thread_time();
        let error = client.send_timeout(&[7; 1000], WAITED).unwrap_err();
        assert!(matches!(error, MessageError::TimedOut), "{error}");
        let used = kernel::thread_time().checked_sub(before).unwrap();
        assert!(used < USED_MAX, "{mode}: {used:?} of CPU for {WAITED:?} of waiting for room");
        thread::scope(|scope| {
            scope.spawn(|| client.send_timeout(b"last", DEADLINE).unwrap());
            // In framed mode a message may have been sent in part, and is finished before the next one.
            let all: Vec<_> = std::iter::from_fn(|| recv(&server).filter(|message| message != b"last")).collect();
            assert!(all.iter().all(|message| *message == [7; 1000]), "{mode}");
            assert!((sent..=sent + 1).contains(&all.len()), "{mode}: {sent}, {}", all.len());
        });
    }
}
