//! A stream socket of somebody who sends bytes and is not to send descriptors: none of his is ever closed by whoever reads.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    deferred_close::DeferredClose,
    socket::{self, RecvMode},
};

/// asm-generic/socket.h; not in `libc` for every target.
const SO_PASSRIGHTS: i32 = 83;

/// What of it is closed can wait as long as the sender likes (docs/gotchas.md, "Closing can block"), and what nobody takes the
/// kernel closes in the read, or with the socket. So nobody reads that far.
#[derive(Debug)]
pub(crate) enum FdFreeStream {
    /// The kernel lets nobody send them.
    Refusing(OwnedFd),
    /// They are looked for before each read.
    Looking(DeferredClose),
}

impl FdFreeStream {
    /// Of a connected socket that nobody has read from.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        if refuses_descriptors(socket.as_fd()) {
            return Ok(Self::Refusing(socket));
        }
        receive_urgent_inline(socket.as_fd())?;
        Ok(Self::Looking(DeferredClose::new(socket)))
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        match self {
            Self::Refusing(socket) => socket,
            Self::Looking(socket) => socket.into_descriptor(),
        }
    }

    /// As [`socket::receive`]; `InvalidData`, again and again, where descriptors come along.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Refusing(socket) => socket::receive(socket.as_fd(), buffer),
            Self::Looking(_) => self.look_and_receive(buffer, RecvMode::Nonblocking),
        }
    }

    /// As [`socket::receive_waiting`]; `InvalidData` as above.
    pub(crate) fn receive_waiting(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Refusing(socket) => socket::receive_waiting(socket.as_fd(), buffer),
            Self::Looking(_) => self.look_and_receive(buffer, RecvMode::Blocking),
        }
    }

    /// Takes no more than was looked at: what has come meanwhile may have descriptors.
    fn look_and_receive(&self, buffer: &mut [u8], wait: RecvMode) -> io::Result<usize> {
        let Some(seen) = socket::look(self.as_fd(), buffer, wait)? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors came along"));
        };
        match buffer.get_mut(..seen) {
            Some(seen @ [_, ..]) => socket::receive(self.as_fd(), seen),
            _ => Ok(0),
        }
    }
}

impl AsFd for FdFreeStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Refusing(socket) => socket.as_fd(),
            Self::Looking(socket) => socket.as_fd(),
        }
    }
}

/// Nobody can send descriptors any more to those that a listener accepts: it fails at the sender. Needs Linux 6.16. What has
/// come before is there.
pub(crate) fn refuse_descriptors(listener: BorrowedFd<'_>) -> io::Result<()> {
    socket::set_option(listener, SO_PASSRIGHTS, &0_i32)
}

/// Whether that was asked of its listener, and the kernel does it.
fn refuses_descriptors(socket: BorrowedFd<'_>) -> bool {
    let mut passes = 1_i32;
    socket::get_option(socket, SO_PASSRIGHTS, &mut passes).is_ok() && passes == 0
}

/// A byte that was sent with `MSG_OOB` is read in its turn. Else a read passes it over, and closes the descriptors that came
/// along, whether or not it has room for them.
fn receive_urgent_inline(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_oobinline(socket, true)?)
}
