//! A write that never raises SIGPIPE, whatever the disposition of the host is: std ignores the signal in a Rust program, but a
//! host in another language, a program with `#[unix_sigpipe = "sig_dfl"]`, or one that resets it keeps the default, which is to die.

use super::signals::SignalSet;
use rustix::io::ReadWriteFlags;
use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering},
};

/// `RWF_NOSIGNAL` of `linux/fs.h`, since Linux 6.18.
const NO_SIGNAL: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x100);
/// The position of a pipe or a socket: -1 in both halves.
const NO_POSITION: u64 = u64::MAX;

/// False once the kernel has said that it does not know [`NO_SIGNAL`].
static KERNEL_CAN: AtomicBool = AtomicBool::new(true);

/// As write(2), for a pipe or a socket. Where every reader is gone it fails with `EPIPE`, and no signal is raised.
pub(crate) fn write(end: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    if KERNEL_CAN.load(Ordering::Relaxed) {
        match write_without_signal(end, bytes) {
            // Unknown flag, unknown call (an old sandbox says EPERM too): a fact about this kernel, and it costs two cheap calls
            // a write if it was not.
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

/// The signal of a failed write is sent to the thread that wrote: it waits, blocked, and is taken away, unless one was there before.
fn write_with_signal_blocked(end: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let pipe_signal = SignalSet::only(libc::SIGPIPE);
    let before = pipe_signal.block();
    // Where it was not blocked, none can have been pending.
    let was_pending = before.contains(libc::SIGPIPE) && SignalSet::pending().contains(libc::SIGPIPE);
    let written = rustix::io::write(end, bytes).map_err(io::Error::from);
    if !was_pending && written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // None where a sandbox wrote in place of this process.
        pipe_signal.take_pending();
    }
    before.set_as_mask();
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    /// The writing ends of a pipe and of a socket whose other sides are closed.
    fn broken() -> [OwnedFd; 2] {
        let (reader, writer) = os_pipe::pipe().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop((reader, other));
        [writer.into(), one.into()]
    }

    /// A signal that is blocked stays pending even where its disposition is to ignore it, so that it shows here.
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
    fn p11_a_broken_pipe_is_an_error_and_no_signal() {
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
    fn p11_a_signal_of_the_hosts_stays_pending() {
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
    fn p11_the_signal_mask_is_what_it_was() {
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
    fn a_kernel_that_knows_the_flag_needs_one_call() {
        let (_reader, writer) = os_pipe::pipe().unwrap();
        match write_without_signal(writer.as_fd(), b"x") {
            Ok(written) => assert_eq!(written, 1),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }
}
