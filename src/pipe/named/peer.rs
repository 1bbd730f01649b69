//! Identity of the peer of a named pipe, and access rules.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::sys::{identity, socket};

/// Which users may be at the other end. The kernel enforces it by the mode of the socket file; each side also checks the
/// credentials of its peer.
#[doc(alias = "CurrentUserOnly")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Only processes with the effective user id of this process. Not even root, as in .NET. File mode 0600.
    #[default]
    CurrentUser,
    /// Also processes with this group id, as effective or supplementary group. File mode 0660 and this group. A server must be a
    /// member of the group or root to change the group of its file.
    Group(u32),
    /// Every process that can reach the file. File mode 0666.
    Anyone,
}

impl Access {
    pub(super) const fn file_mode(self) -> u32 {
        match self {
            Self::CurrentUser => 0o600,
            Self::Group(_) => 0o660,
            Self::Anyone => 0o666,
        }
    }

    /// Returns whether the peer of `socket` is allowed.
    pub(super) fn allows(self, socket: BorrowedFd<'_>, our_uid: u32) -> io::Result<bool> {
        if self == Self::Anyone {
            return Ok(true);
        }
        let other = socket::peer_credentials(socket)?;
        Ok(match self {
            Self::Anyone => true,
            Self::CurrentUser => other.uid == our_uid,
            Self::Group(gid) => other.uid == our_uid || other.gid == gid || socket::peer_groups(socket)?.contains(&gid),
        })
    }
}

/// What a client allows a server to do with the client's identity. Servers that use this library honour it. It is no security
/// boundary: the kernel tells every server the ids of its clients, and a server with root privileges needs no permission.
#[doc(alias = "TokenImpersonationLevel")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ImpersonationLevel {
    /// The server may not query the identity of the client.
    Anonymous,
    /// The server may query the identity of the client. The default.
    #[default]
    Identification,
    /// The server may act with the client's rights.
    Impersonation,
}

/// Credentials of the peer: of a client when it connected, of a server when it started to listen.
///
/// A socket that was passed to another process keeps the credentials of the process that connected it.
pub struct Peer {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    pid: Option<u32>,
    pidfd: Option<OwnedFd>,
}

impl_debug!(Peer, |peer| { uid: peer.uid, gid: peer.gid, groups: peer.groups, pid: peer.pid });

impl Peer {
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let ids = socket::peer_credentials(socket)?;
        Ok(Self {
            uid: ids.uid,
            gid: ids.gid,
            groups: socket::peer_groups(socket)?,
            pid: u32::try_from(ids.pid).ok().filter(|pid| *pid != 0),
            pidfd: socket::peer_pidfd(socket)?,
        })
    }

    /// Effective user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Effective group id.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Supplementary group ids, as recorded by the kernel. The group database is not consulted.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Process id; `None` for a process outside this PID namespace. The kernel can reuse the number after the process has
    /// exited; [`pidfd`](Self::pidfd) always refers to the same process.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// A pidfd of the process, readable once it has exited. `None` before Linux 6.5, or if the process has been reaped.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Looks up the user name; `None` for an id without one. May block on a network directory service.
    ///
    /// # Errors
    ///
    /// If the user database cannot be read.
    #[doc(alias = "GetImpersonationUserName")]
    pub fn user_name(&self) -> io::Result<Option<String>> {
        identity::user_name(self.uid)
    }
}

/// Error of [`Stream::peer`](super::Stream::peer).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The client connected with [`ImpersonationLevel::Anonymous`].
    #[error("client is anonymous")]
    Anonymous,
    /// [`disconnect`](super::Stream::disconnect) was called on this side.
    #[error("stream was disconnected on this side")]
    Disconnected,
    /// A system call failed.
    #[error("cannot read credentials of the peer: {0}")]
    Os(#[from] io::Error),
}
