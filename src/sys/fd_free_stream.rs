//! A stream socket whose reader never receives, and so never closes, file descriptors of the peer.

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

/// Closing a descriptor of the peer can block for as long as the peer likes (docs/gotchas.md, "Closing can block"), and the kernel
/// closes descriptors that are not received: in the read, or with the socket. So no read goes that far.
#[derive(Debug)]
pub(crate) enum FdFreeStream {
    /// The kernel refuses descriptors at the sender.
    Refusing(OwnedFd),
    /// Each read first peeks for descriptors.
    Looking(DeferredClose),
}

impl FdFreeStream {
    /// `socket` must be connected, and nothing may have been read from it.
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

    /// As [`socket::receive`]; fails with `InvalidData`, repeatedly, at descriptors.
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

    /// Reads no more than was peeked: data that arrived since then can carry descriptors.
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

/// Refuses descriptors on the sockets that a listener accepts: sending them fails. Needs Linux 6.16. Has no effect on what was sent
/// before.
pub(crate) fn refuse_descriptors(listener: BorrowedFd<'_>) -> io::Result<()> {
    socket::set_option(listener, SO_PASSRIGHTS, &0_i32)
}

/// Whether the listener requested that, and the kernel supports it.
fn refuses_descriptors(socket: BorrowedFd<'_>) -> bool {
    let mut passes = 1_i32;
    socket::get_option(socket, SO_PASSRIGHTS, &mut passes).is_ok() && passes == 0
}

/// Delivers a byte sent with `MSG_OOB` in sequence. A read would otherwise skip it and close the descriptors sent with it, whether or
/// not there is room for them.
fn receive_urgent_inline(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_oobinline(socket, true)?)
}
