//! Transfer of bytes, and the end of blocked calls.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use pipewright::{
    Pass, WorkerSpec,
    pipe::{
        CancelToken, Cancelled, Direction, PipeMode, Timeout,
        named::{ConnectOptions, Listener, ListenerOptions, Stream, connect},
    },
};

use crate::support::FIXTURE;

use super::{
    A_WHILE, DEADLINE, MODES, Pair, Place, Program, close, pattern, read_exactly, read_to_end, text, until,
    until_cancelled, write_all,
};

#[test]
fn s69_s70_s76_bytes_arrive_complete_and_in_order() {
    for mode in MODES {
        for size in [0, 1, 42, 1024, 4095, 4096, 10 << 10, 1 << 20, 10 << 20] {
            let Pair { server, mut client, .. } = Pair::new(mode);
            let data = pattern(size);
            thread::scope(|scope| {
                scope.spawn(|| {
                    client.flush().unwrap();
                    // Messages have a limit; bytes have none.
                    for piece in data.chunks(if mode == PipeMode::Message { 100_000 } else { usize::MAX }) {
                        write_all(&client, piece);
                    }
                    drop(client);
                });
                assert!(read_to_end(&server) == data, "{mode}, {size} bytes");
            });
        }
    }
}

#[test]
fn s71_read_returns_no_more_than_was_written() {
    let Pair { server, client, .. } = Pair::bytes();
    let mut buffer = [0; 1024];
    let (mut written, mut read) = (Vec::new(), Vec::new());
    for round in 0..5_u8 {
        let message: Vec<u8> = pattern(512).iter().map(|byte| byte ^ round).collect();
        write_all(&client, &message);
        written.extend(message);
        let count = server.read_timeout(&mut buffer, DEADLINE).unwrap();
        read.extend_from_slice(&buffer[..count]);
        assert!(written.starts_with(&read), "after {round} more");
    }
    read.extend(read_exactly(&server, written.len() - read.len()));
    assert!(read == written);
    assert_eq!(server.read_timeout(&mut buffer, Duration::ZERO).unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn s72_s73_empty_reads_and_writes_have_no_effect() {
    for mode in MODES {
        let Pair { mut server, mut client, .. } = Pair::new(mode);
        assert_eq!(server.read(&mut []).unwrap(), 0);
        assert_eq!(server.read(&mut []).unwrap(), 0);
        for piece in ["", "hello", "", "world", ""] {
            assert_eq!(client.write(piece.as_bytes()).unwrap(), piece.len());
        }
        drop(client);
        assert_eq!(server.read(&mut []).unwrap(), 0);
        assert_eq!(read_to_end(&server), b"helloworld", "{mode}");
    }
}

#[test]
fn s77_twenty_pairs_work_concurrently() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let data = pattern(10 << 10);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let client = connect(listener.name(), DEADLINE).unwrap();
                write_all(&client, &data);
            });
            scope.spawn(|| assert!(read_to_end(&listener.accept_timeout(DEADLINE).unwrap()) == data));
        }
    });
}

#[test]
fn s78_concurrent_directions_do_not_mix() {
    // Far more than both buffers hold, in pieces whose size divides neither a message nor a buffer.
    const BYTES: usize = 4 << 20;
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        let down = pattern(BYTES);
        let up: Vec<u8> = down.iter().map(|byte| byte ^ 0xff).collect();
        let pump = |stream: &Stream, data: &[u8]| data.chunks(3000).for_each(|piece| write_all(stream, piece));
        thread::scope(|scope| {
            scope.spawn(|| pump(&server, &down));
            scope.spawn(|| pump(&client, &up));
            scope.spawn(|| assert!(read_exactly(&server, BYTES) == up, "{mode}"));
            assert!(read_exactly(&client, BYTES) == down, "{mode}");
        });
    }
}

#[test]
fn s79_alternating_writes_and_reads_work() {
    let token = CancelToken::new().unwrap();
    for mode in MODES {
        for (count, write, read) in [(5000, 1, 1), (500, 21, 18), (500, 18, 21), (5, 128_000, 64_000)] {
            for wait in [Timeout::after(DEADLINE), until_cancelled(&token)] {
                let Pair { server, client, .. } = Pair::new(mode);
                let data = pattern(count * write);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        for mut piece in data.chunks(write) {
                            while !piece.is_empty() {
                                piece = &piece[client.write_timeout(piece, wait).unwrap()..];
                            }
                        }
                        drop(client);
                    });
                    let (mut all, mut buffer) = (Vec::new(), vec![0; read]);
                    loop {
                        match server.read_timeout(&mut buffer, wait).unwrap() {
                            0 => break,
                            got => all.extend_from_slice(&buffer[..got]),
                        }
                    }
                    assert!(all == data, "{mode}: {} of {} bytes", all.len(), data.len());
                });
            }
        }
    }
}

#[test]
fn s80_flush_never_blocks() {
    let Pair { mut server, client, .. } = Pair::bytes();
    while server.write_timeout(&[0; 4096], Duration::ZERO).is_ok() {}
    server.flush().unwrap();
    drop(client);
}

#[test]
fn s81_end_follows_data_and_persists() {
    for mode in MODES {
        let Pair { mut server, mut client, .. } = Pair::new(mode);
        client.write_all(b"rest").unwrap();
        drop(client);
        assert_eq!(read_exactly(&server, 4), b"rest");
        for _ in 0..3 {
            assert_eq!(server.read(&mut [0]).unwrap(), 0, "{mode}");
        }
    }
}

#[test]
fn s81_end_follows_data_if_peer_left_data_unread() {
    for mode in MODES {
        let Pair { mut server, mut client, .. } = Pair::new(mode);
        server.write_all(b"never read").unwrap();
        client.write_all(b"one").unwrap();
        client.write_all(b"two").unwrap();
        drop(client);
        assert_eq!(read_to_end(&server), b"onetwo", "{mode}: a reset loses nothing");
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        assert_eq!(server.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}");
    }
}

#[test]
fn s82_pending_read_ends_when_writer_closes() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        thread::scope(|scope| {
            let reader = scope.spawn(|| server.read_timeout(&mut [0], DEADLINE));
            drop(client);
            assert_eq!(reader.join().unwrap().unwrap(), 0);
        });
    }
}

#[test]
fn s83_writes_fail_after_reader_closed() {
    for mode in MODES {
        let Pair { mut server, client, .. } = Pair::new(mode);
        close(client, &server);
        assert_eq!(server.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}");
        assert_eq!(server.flush().unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}");
    }
}

#[test]
fn p16_flush_succeeds_if_closed_reader_read_all() {
    for mode in MODES {
        let Pair { server, mut client, .. } = Pair::new(mode);
        client.write_all(b"served").unwrap();
        assert_eq!(read_exactly(&server, 6), b"served");
        close(server, &client);
        client.flush().unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(client.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}");
        assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}: a write has failed");
    }
}

#[test]
fn p15_write_all_timeout_reports_bytes_written() {
    let data = pattern(4 << 20);
    let Pair { server, client, .. } = Pair::bytes();
    let error = client.write_all_timeout(&data, Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let written = error.written();
    assert!((1..data.len()).contains(&written), "{written}");
    let cancel = CancelToken::new().unwrap();
    cancel.cancel();
    let error = client.write_all_timeout(&data[written..], until_cancelled(&cancel)).unwrap_err();
    assert!(error.is_cancelled() && error.written() == 0, "{error:?}");
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all_timeout(&data[written..], DEADLINE).unwrap();
            drop(client);
        });
        assert!(read_to_end(&server) == data);
    });
}

#[test]
fn p15_write_all_timeout_of_message_is_all_or_nothing() {
    for mode in [PipeMode::Message, PipeMode::Framed] {
        let Pair { server, client, .. } = Pair::new(mode);
        let message = pattern(100_000);
        let mut sent = 0;
        let error = loop {
            match client.write_all_timeout(&message, Duration::ZERO) {
                Ok(()) => sent += message.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{mode}");
        assert!([0, message.len()].contains(&error.written()), "{mode}: {error}");
        let rest = &message[error.written()..];
        thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all_timeout(rest, DEADLINE).unwrap();
                client.into_messages().unwrap().flush(DEADLINE).unwrap();
            });
            assert_eq!(read_to_end(&server).len(), sent + message.len(), "{mode}");
        });
    }
}

#[test]
fn s84_pending_write_fails_when_reader_closes() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                loop {
                    if let Err(error) = server.write_timeout(&vec![0; 50_000], DEADLINE) {
                        return error.kind();
                    }
                }
            });
            until("the pipe is full", || server.write_timeout(&vec![0; 50_000], Duration::ZERO).is_err());
            drop(client);
            assert_eq!(writer.join().unwrap(), ErrorKind::BrokenPipe, "{mode}");
        });
    }
}

#[test]
fn s85_clone_and_stream_from_fd_work_like_the_original() {
    let Pair { server, client, .. } = Pair::bytes();
    let copy = server.clone();
    write_all(&client, b"ab");
    assert_eq!(read_exactly(&copy, 1), b"a");
    drop(server);
    let again = Stream::from_fd(copy.into_fd().unwrap(), PipeMode::Byte).unwrap();
    assert_eq!(read_exactly(&again, 1), b"b");
    write_all(&again, b"c");
    assert_eq!(read_exactly(&client, 1), b"c");
}

fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.downcast_ref::<Cancelled>().is_some())
}

#[test]
fn s86_cancelled_call_has_no_effect() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        let cancel = CancelToken::new().unwrap();
        cancel.cancel();
        write_all(&client, b"x");
        assert!(is_cancelled(&server.read_timeout(&mut [0], until_cancelled(&cancel)).unwrap_err()));
        assert!(is_cancelled(&client.write_timeout(b"y", until_cancelled(&cancel)).unwrap_err()), "{mode}");
        drop(client);
        assert_eq!(read_to_end(&server), b"x", "{mode}");
    }
}

#[test]
fn s87_pending_read_can_be_cancelled_without_data_loss() {
    for mode in MODES {
        for pause in [Duration::ZERO, A_WHILE] {
            let Pair { server, client, .. } = Pair::new(mode);
            let cancel = CancelToken::new().unwrap();
            thread::scope(|scope| {
                let reader = scope.spawn(|| server.read_timeout(&mut [0; 8], until_cancelled(&cancel)));
                // There is no data: this only waits.
                client.read_timeout(&mut [0], pause).unwrap_err();
                cancel.cancel();
                assert!(is_cancelled(&reader.join().unwrap().unwrap_err()));
            });
            write_all(&client, b"after");
            assert_eq!(read_exactly(&server, 5), b"after", "{mode}");
        }
    }
}

#[test]
fn s88_pending_write_can_be_cancelled() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        let cancel = CancelToken::new().unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                loop {
                    if let Err(error) = server.write_timeout(&vec![0; 50_000], until_cancelled(&cancel)) {
                        return error;
                    }
                }
            });
            until("the pipe is full", || server.write_timeout(&vec![0; 50_000], Duration::ZERO).is_err());
            cancel.cancel();
            let error = writer.join().unwrap();
            // If part of a frame was sent, the error reports that instead.
            assert!(
                is_cancelled(&error) || (mode == PipeMode::Framed && error.kind() == ErrorKind::TimedOut),
                "{error}"
            );
        });
        assert!(client.is_connected());
    }
}

#[test]
fn reads_and_writes_time_out() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        let start = Instant::now();
        assert_eq!(server.read_timeout(&mut [0], A_WHILE).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= A_WHILE);
        while client.write_timeout(&[0; 4096], Duration::ZERO).is_ok() {}
        let start = Instant::now();
        assert_eq!(client.write_timeout(&[0; 4096], A_WHILE).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= A_WHILE);
    }
}

#[test]
fn s107_child_inherits_connected_end_by_number() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        let end = client.into_fd().unwrap();
        let spec = WorkerSpec::new(FIXTURE).args(["named-inherited", &mode.to_string()]);
        let mut child = spec.inherit_fd(end, Pass::arg("{}")).spawn_unsupervised().unwrap();
        // The spec, with the copy of the end in this process, was dropped by that call.
        write_all(&server, b"ready");
        assert_eq!(read_exactly(&server, 5), b"READY", "{mode}");
        assert_eq!(read_to_end(&server), b"", "the end follows, since this process has no copy of the peer end");
        assert!(child.wait_timeout(DEADLINE).unwrap().expect("its end").success());
    }
}

#[test]
fn s108_ping_pong_across_processes() {
    let place = Place::new();
    let listen = |name, direction| ListenerOptions::new().direction(direction).listen(&place.name(name)).unwrap();
    let (there, back) = (listen("there", Direction::Out), listen("back", Direction::In));
    let _child = Program::fixture(&["named-ping-pong", text(&place.path("there")), text(&place.path("back"))]);
    let writer = there.accept_timeout(DEADLINE).unwrap();
    let reader = back.accept_timeout(DEADLINE).unwrap();
    for number in 0..10 {
        write_all(&writer, format!("{number}\n").as_bytes());
        assert_eq!(read_exactly(&reader, 7), format!("pong {number}\n").as_bytes());
    }
    drop(writer);
    assert_eq!(read_to_end(&reader), b"");
}

#[test]
fn s109_send_buffer_size_is_reported_as_set_by_kernel() {
    let Pair { server, client, .. } =
        Pair::with(&ListenerOptions::new().send_buffer_size(50_000), &ConnectOptions::new().send_buffer_size(60_000));
    assert_eq!(server.send_buffer_size().unwrap(), 100_000, "the kernel doubles it");
    assert_eq!(client.send_buffer_size().unwrap(), 120_000);
    assert_eq!(client.set_send_buffer_size(10_000).unwrap(), 20_000);
    // The size takes effect.
    let mut sent = 0;
    while let Ok(count) = client.write_timeout(&[0; 1000], Duration::ZERO) {
        sent += count;
    }
    assert!((5_000..20_000).contains(&sent), "{sent}");
}

#[test]
fn fds_are_passed_if_both_sides_use_them() {
    let Pair { server, client, .. } = Pair::bytes();
    let (near, far) = UnixStream::pair().unwrap();
    client.write_with_fds(b"here", &[far.as_fd(), far.as_fd()], DEADLINE).unwrap();
    drop(far);
    let mut buffer = [0; 10];
    let (count, descriptors) = server.read_with_fds(&mut buffer, DEADLINE).unwrap();
    assert_eq!((&buffer[..count], descriptors.len()), (&b"here"[..], 2));
    let mut passed = UnixStream::from(descriptors.into_iter().next().unwrap());
    passed.write_all(b"through").unwrap();
    drop(passed);
    let mut text = String::new();
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    (&near).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    let error = client.write_with_fds(b"", &[near.as_fd()], DEADLINE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = client.write_with_fds(b"x", &vec![near.as_fd(); 254], DEADLINE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn unrequested_fds_are_closed() {
    let Pair { server, client, .. } = Pair::bytes();
    let (near, far) = UnixStream::pair().unwrap();
    client.write_with_fds(b"x", &[far.as_fd()], DEADLINE).unwrap();
    drop(far);
    assert_eq!(read_exactly(&server, 1), b"x");
    // Only the message held another copy of the far end.
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!((&near).read(&mut [0]).unwrap(), 0);
}
