//! Waiting until the peer has read everything.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use pipewright::pipe::{CancelToken, PipeMode, named::DrainError};

use super::{A_WHILE, DEADLINE, MODES, Pair, close, read_exactly, read_to_end, until, until_cancelled, write_all};

#[test]
fn s110_wait_drained_returns_after_all_data_is_read() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        server.wait_drained(Duration::ZERO).unwrap();
        write_all(&server, &[0; 1000]);
        assert!(matches!(server.wait_drained(A_WHILE), Err(DrainError::TimedOut)), "{mode}");
        thread::scope(|scope| {
            let drained = scope.spawn(|| server.wait_drained(DEADLINE));
            read_exactly(&client, 999);
            if mode == PipeMode::Byte {
                assert!(matches!(server.wait_drained(A_WHILE), Err(DrainError::TimedOut)), "one byte is unread");
            }
            read_exactly(&client, 1);
            drained.join().unwrap().unwrap();
        });
        let cancel = CancelToken::new().unwrap();
        cancel.cancel();
        write_all(&server, &[0]);
        assert!(matches!(server.wait_drained(until_cancelled(&cancel)), Err(DrainError::Cancelled)));
    }
}

#[test]
fn s110_wait_drained_fails_if_peer_leaves_data_unread() {
    for mode in MODES {
        let Pair { server, client, .. } = Pair::new(mode);
        write_all(&server, b"never read");
        thread::scope(|scope| {
            let drained = scope.spawn(|| server.wait_drained(DEADLINE));
            drop(client);
            assert!(matches!(drained.join().unwrap(), Err(DrainError::PeerGone)), "{mode}");
        });
        // Also when called later, and after the end was read.
        assert_eq!(read_to_end(&server), b"");
        assert!(matches!(server.wait_drained(DEADLINE), Err(DrainError::PeerGone)), "{mode}");
    }
    let Pair { server, client, .. } = Pair::bytes();
    write_all(&server, b"read");
    read_exactly(&client, 4);
    drop(client);
    server.wait_drained(DEADLINE).unwrap();
}

#[test]
fn s110_wait_drained_fails_after_failed_write() {
    for mode in MODES {
        let Pair { mut server, client, .. } = Pair::new(mode);
        write_all(&server, b"never read");
        close(client, &server);
        // The kernel reports the reset once, to this call.
        assert_eq!(server.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe, "{mode}");
        for _ in 0..2 {
            assert!(matches!(server.wait_drained(DEADLINE), Err(DrainError::PeerGone)), "{mode}");
        }
    }
}

#[test]
fn s110_wait_drained_fails_with_unsent_rest_of_frame() {
    let Pair { server, client, .. } = Pair::new(PipeMode::Framed);
    // More than the kernel buffers: the rest stays in this process.
    let long = vec![0; 4 << 20];
    server.write_timeout(&long, Duration::ZERO).unwrap_err();
    let plain = UnixStream::from(client.into_fd().unwrap());
    plain.set_nonblocking(true).unwrap();
    while (&plain).read(&mut [0; 4096]).is_ok() {}
    // The peer has read everything that was sent, and closes.
    drop(plain);
    until("peer has closed", || !server.is_connected());
    for _ in 0..2 {
        assert!(matches!(server.wait_drained(DEADLINE), Err(DrainError::PeerGone)));
    }
}

#[test]
fn disconnect_drained_waits_for_reader() {
    let Pair { server, client, listener, .. } = Pair::bytes();
    write_all(&server, b"important");
    assert!(matches!(server.disconnect_drained(A_WHILE), Err(DrainError::TimedOut)));
    assert_eq!((server.is_connected(), listener.instances()), (true, 1));
    thread::scope(|scope| {
        let disconnected = scope.spawn(|| server.disconnect_drained(DEADLINE));
        assert_eq!(read_exactly(&client, 9), b"important");
        disconnected.join().unwrap().unwrap();
    });
    assert_eq!(read_to_end(&client), b"");
    assert_eq!(listener.instances(), 0);
}
