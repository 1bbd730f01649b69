//! A write that never raises SIGPIPE. std ignores the signal in a Rust program, but a host in another language, a program with
//! `#[unix_sigpipe = "sig_dfl"]`, or one that resets the action keeps the default, which terminates the process.

use super::signals::SignalSet;
use rustix::io::ReadWriteFlags;
use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering},
};

/// `RWF_NOSIGNAL` of `linux/fs.h`, since Linux 6.18.
const NO_SIGNAL: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x100);
/// The offset for pipes and sockets: -1 in both halves.
const NO_POSITION: u64 = u64::MAX;

/// False once the kernel has rejected [`NO_SIGNAL`].
static KERNEL_CAN: AtomicBool = AtomicBool::new(true);

/// As write(2), for a pipe or a socket. Fails with `EPIPE` if there is no reader, without raising a signal.
pub(crate) fn write(end: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    if KERNEL_CAN.load(Ordering::Relaxed) {
        match write_without_signal(end, bytes) {
            // The kernel does not know the flag or the call; an old sandbox returns EPERM. If the answer was about something else, every
            // write costs two more cheap calls from now on.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM | libc::EINVAL)
                ) =>
            {
                KERNEL_CAN.store(false, Ordering::Relaxed);
            }
            done => return done,
        }
    }
    write_with_signal_blocked(end, bytes)
}

fn write_without_signal(end: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::pwritev2(end, &[IoSlice::new(bytes)], NO_POSITION, NO_SIGNAL)?)
}

/// A failed write sends the signal to the calling thread: it stays pending, since it is blocked, and is consumed here unless it was
/// pending before.
fn write_with_signal_blocked(end: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let pipe_signal = SignalSet::only(libc::SIGPIPE);
    let before = pipe_signal.block();
    // A signal that was not blocked cannot have been pending.
    let was_pending = before.contains(libc::SIGPIPE) && SignalSet::pending().contains(libc::SIGPIPE);
    let written = rustix::io::write(end, bytes).map_err(io::Error::from);
    if !was_pending && written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // Nothing is pending if a sandbox wrote in place of this process.
        pipe_signal.take_pending();
    }
    before.set_as_mask();
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    /// The writing ends of a pipe and of a socket whose peers are closed.
    fn broken() -> [OwnedFd; 2] {
        let (reader, writer) = os_pipe::pipe().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop((reader, other));
        [writer.into(), one.into()]
    }

    /// A blocked signal becomes pending even if its action is to be ignored, so a test can observe it.
    fn with_sigpipe_blocked(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                SignalSet::only(libc::SIGPIPE).block();
                test();
            });
        });
    }

    fn raise_sigpipe() {
        // SAFETY: pthread_self(3) takes nothing.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: pthread_kill(3) takes two numbers; the thread is this one.
        assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGPIPE) }, 0);
    }

    #[test]
    fn p11_broken_pipe_is_an_error_without_signal() {
        with_sigpipe_blocked(|| {
            for end in &broken() {
                for write in [write, write_with_signal_blocked] {
                    assert_eq!(write(end.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                    assert!(!SignalSet::pending().contains(libc::SIGPIPE));
                }
            }
        });
    }

    #[test]
    fn p11_pending_signal_of_host_stays_pending() {
        with_sigpipe_blocked(|| {
            raise_sigpipe();
            for end in &broken() {
                for write in [write, write_with_signal_blocked] {
                    assert_eq!(write(end.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                    assert!(SignalSet::pending().contains(libc::SIGPIPE));
                }
            }
        });
    }

    #[test]
    fn p11_write_restores_signal_mask() {
        let before = SignalSet::empty().block();
        let (mut reader, writer) = os_pipe::pipe().unwrap();
        assert_eq!(write_with_signal_blocked(writer.as_fd(), b"ab").unwrap(), 2);
        assert_eq!(write(writer.as_fd(), b"cd").unwrap(), 2);
        drop(writer);
        let mut read = String::new();
        io::Read::read_to_string(&mut reader, &mut read).unwrap();
        assert_eq!(read, "abcd");
        let after = SignalSet::empty().block();
        assert_eq!(before.contains(libc::SIGPIPE), after.contains(libc::SIGPIPE));
    }

    #[test]
    fn kernel_with_nosignal_flag_needs_one_call() {
        let (_reader, writer) = os_pipe::pipe().unwrap();
        match write_without_signal(writer.as_fd(), b"x") {
            Ok(written) => assert_eq!(written, 1),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }
}
