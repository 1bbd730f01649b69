//! Pseudo-terminals: pty(7).

use super::{fd, retry};
use rustix::{
    fs::{Mode, OFlags},
    pty::OpenptFlags,
    termios::{LocalModes, OptionalActions, OutputModes, Winsize},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The most bytes that a terminal holds for its master: two buffers of the kernel, of 8 KiB and 4 KiB, with their rounding.
pub(crate) const BUFFERED_BYTES_MAX: usize = 64 << 10;

/// The character that ends the input of a program that reads lines: `VEOF`, Ctrl-D.
pub(crate) const END_OF_INPUT: u8 = 4;

/// Rows and columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// Both sides of a pseudo-terminal, close-on-exec, and above the numbers of the standard streams.
#[derive(Debug)]
pub(crate) struct PseudoTerminal {
    /// Nonblocking: all duplicates share the flag, and the event loop reads one of them.
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

impl PseudoTerminal {
    /// Opens a pseudo-terminal that delivers what a program writes unchanged: without echo, without carriage returns before line feeds, and
    /// without the loss of output at Ctrl-C. The input keeps its default modes: lines, Ctrl-C, Ctrl-D.
    pub(crate) fn open(size: Size) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = fd::dup_above(retry(|| Ok(rustix::pty::openpt(flags)?))?, 3)?;
        rustix::pty::unlockpt(&master)?;
        let slave = fd::dup_above(open_slave(master.as_fd(), flags)?, 3)?;
        let mut modes = rustix::termios::tcgetattr(&slave)?;
        modes.local_modes -= LocalModes::ECHO;
        modes.local_modes |= LocalModes::NOFLSH;
        modes.output_modes -= OutputModes::OPOST;
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
        set_size(master.as_fd(), size)?;
        fd::set_nonblocking(master.as_fd())?;
        Ok(Self { master, slave })
    }
}

/// By the master itself, which also works where another file system is mounted on `/dev/pts`; by its name in a sandbox without that call.
fn open_slave(master: BorrowedFd<'_>, flags: OpenptFlags) -> io::Result<OwnedFd> {
    match rustix::pty::ioctl_tiocgptpeer(master, flags) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTTY) => {
            let name = rustix::pty::ptsname(master, Vec::new())?;
            retry(|| Ok(rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?))
        }
        opened => Ok(opened?),
    }
}

/// Sets the size. The foreground process group receives SIGWINCH if it changes.
pub(crate) fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let Size { rows, columns } = size;
    Ok(rustix::termios::tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{deadline::Deadline, sys::poll};
    use std::{fs::File, io::Read, io::Write, time::Duration};

    #[test]
    fn written_bytes_arrive_unchanged() {
        let PseudoTerminal { master, slave } = PseudoTerminal::open(Size { rows: 7, columns: 30 }).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (7, 30));
        assert!(fd::is_close_on_exec(std::os::fd::AsRawFd::as_raw_fd(&slave)).unwrap());
        let (mut master, mut slave) = (File::from(master), File::from(slave));
        let mut buffer = [0; 100];
        assert_eq!(master.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        slave.write_all(b"a\n\tb\r\x04\xff").unwrap();
        let deadline = Deadline::after_now(Duration::from_secs(30));
        poll::wait(master.as_fd(), poll::Interest::Readable, deadline).unwrap();
        let read = master.read(&mut buffer).unwrap();
        assert_eq!(buffer.get(..read), Some(b"a\n\tb\r\x04\xff".as_slice()));
        drop(slave);
        assert_eq!(master.read(&mut buffer).unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}
