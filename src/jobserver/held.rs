//! The tokens that this process holds, in a pipe: the guard inherits it, and returns what is in it when this process has ended.
//!
//! A pipe, since the kernel moves a token from one pipe to another in one step (splice(2)): a process that is killed while it takes one has
//! it in the one or in the other.

use crate::sys::{fd, fifo, retry, splice, write};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

/// The pipe with the held tokens. Each takes a page of its capacity.
#[derive(Debug)]
pub(super) struct HeldTokens {
    reader: File,
    writer: File,
    count: usize,
    limit: usize,
}

impl HeldTokens {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = fifo::pipe()?;
        fd::set_nonblocking(reader.as_fd())?;
        fd::set_nonblocking(writer.as_fd())?;
        let limit = fifo::capacity(reader.as_fd())? / fifo::page_bytes();
        Ok(Self { reader, writer, count: 0, limit })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The end from which the guard takes the tokens of a process that has ended.
    pub(super) fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Whether there is room for another token, after the pipe was enlarged if necessary.
    pub(super) fn has_room(&mut self) -> bool {
        while self.count >= self.limit {
            let wanted = fifo::page_bytes().saturating_mul(2 * self.limit);
            let enlarged = (wanted <= fifo::LARGEST_BYTES).then(|| fifo::set_capacity(self.writer.as_fd(), wanted));
            match enlarged {
                Some(Ok(capacity)) if capacity / fifo::page_bytes() > self.limit => {
                    self.limit = capacity / fifo::page_bytes();
                }
                _ => return false,
            }
        }
        true
    }

    /// Takes a token from `source`; false if there is none. Call it if there [is room](Self::has_room).
    pub(super) fn take_from(&mut self, source: BorrowedFd<'_>) -> io::Result<bool> {
        let is_taken = splice::move_byte(source, self.writer.as_fd())?;
        self.count += usize::from(is_taken);
        Ok(is_taken)
    }

    /// Returns one of the tokens to `target`. All of them are equal to this process, so it is any of them, unchanged.
    pub(super) fn return_to(&mut self, target: BorrowedFd<'_>) -> io::Result<()> {
        let mut token = [0; 1];
        // Not spliced: a spliced token would take a page of the jobserver's pipe, where thousands of written ones take one together.
        if retry(|| Ok(rustix::io::read(&self.reader, &mut token)?))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let returned = retry(|| write::write(target, &token));
        match returned {
            Ok(_) => self.count = self.count.saturating_sub(1),
            // It is still held, and the guard may return it.
            Err(_) => drop(write::write(self.writer.as_fd(), &token)),
        }
        returned.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn tokens_come_back_unchanged() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let mut held = HeldTokens::new().unwrap();
        let all: Vec<u8> = (0..200).collect();
        writer.write_all(&all).unwrap();
        for _ in &all {
            assert!(held.has_room());
            assert!(held.take_from(reader.as_fd()).unwrap());
        }
        assert!(!held.take_from(reader.as_fd()).unwrap(), "all are taken");
        for _ in &all {
            held.return_to(writer.as_fd()).unwrap();
        }
        let mut back = vec![0; all.len()];
        reader.read_exact(&mut back).unwrap();
        back.sort_unstable();
        assert_eq!(back, all);
        assert_eq!(held.count, 0);
    }

    #[test]
    fn full_record_is_no_token() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut held = HeldTokens::new().unwrap();
        writer.write_all(&[b'+'; 4096]).unwrap();
        let mut taken = 0;
        while held.has_room() {
            assert!(held.take_from(reader.as_fd()).unwrap(), "token {taken}");
            taken += 1;
        }
        assert_eq!((taken, held.limit()), (fifo::LARGEST_BYTES / fifo::page_bytes(), taken));
        held.return_to(writer.as_fd()).unwrap();
        assert!(held.has_room());
    }
}
