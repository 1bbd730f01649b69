//! splice(2) between two pipes.

use super::retry;
use rustix::pipe::SpliceFlags;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

/// Moves one byte from a pipe to another; false if the first is empty or the second has no room. The byte is in one of the two at any time,
/// also when this process is killed.
///
/// Never blocks, whatever the flags of the two descriptions, which other processes may share. The byte takes a whole page of the second
/// pipe's capacity. The caller holds the other ends of both, so that there is neither an end of file nor a SIGPIPE.
pub(crate) fn move_byte(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let moved = retry(|| Ok(rustix::pipe::splice(from.as_fd(), None, to.as_fd(), None, 1, SpliceFlags::NONBLOCK)?));
    match moved {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd;
    use std::io::{Read, Write};

    #[test]
    fn byte_moves_without_blocking() {
        let (mut from, mut source) = io::pipe().unwrap();
        let (mut target, mut to) = io::pipe().unwrap();
        assert!(!move_byte(from.as_fd(), to.as_fd()).unwrap(), "an empty pipe whose reads block");
        source.write_all(b"ab").unwrap();
        assert!(move_byte(from.as_fd(), to.as_fd()).unwrap());
        let mut bytes = [0; 1];
        target.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, *b"a");
        fd::set_nonblocking(to.as_fd()).unwrap();
        while to.write(&[0; 4096]).is_ok() {}
        fd::set_blocking(to.as_fd()).unwrap();
        assert!(!move_byte(from.as_fd(), to.as_fd()).unwrap(), "a full pipe whose writes block");
        from.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, *b"b", "it stays where it was");
        drop((source, target));
        let (_target, to) = io::pipe().unwrap();
        assert_eq!(move_byte(from.as_fd(), to.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
