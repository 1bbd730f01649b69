//! Who is at the other end of a named pipe, and who may be.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::sys::{identity, socket};

/// Who may be at the other end. The socket file's mode says it to the kernel, and each side checks it again by what the kernel
/// knows of the other one.
#[doc(alias = "CurrentUserOnly")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Processes of our own effective user id, and nobody else: not even root, as in .NET. File mode 0600.
    #[default]
    CurrentUser,
    /// Also those that have this group id, as their group or as a supplementary one. File mode 0660, and that group. A server
    /// must be in the group, or root, to give its file to it.
    Group(u32),
    /// Everybody who can reach the file. File mode 0666.
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

    /// Whether whoever is at the other end of the socket may be there.
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

/// What a client lets a server do with the client's identity. A promise that this library keeps, not a wall: the kernel tells
/// every server the ids of its clients, and a root server needs nobody's permission.
#[doc(alias = "TokenImpersonationLevel")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ImpersonationLevel {
    /// The server may not ask who the client is.
    Anonymous,
    /// The server may know who the client is. What a client of ours allows unless it says otherwise.
    #[default]
    Identification,
    /// The server may act with the client's rights.
    Impersonation,
}

/// Who is at the other end: a client as it was when it connected, a server as it was when it began to listen.
///
/// A socket that was passed on to another process keeps the ids of the process that connected it.
pub struct Peer {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    pid: Option<u32>,
    pidfd: Option<OwnedFd>,
}

shown_as!(Peer, |peer| { uid: peer.uid, gid: peer.gid, groups: peer.groups, pid: peer.pid });

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

    /// Its effective user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group id.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Its supplementary groups, as the kernel had them; no database is asked.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Its process id; `None` for a process outside our PID namespace. The number may belong to another process by now:
    /// [`pidfd`](Self::pidfd) never does.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// A handle on that very process, readable once it has ended. `None` where the kernel is older than 6.5, or where the
    /// process has been reaped.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Looks up the name of the user; `None` for an id without one. This may ask a network service, and wait for it.
    ///
    /// # Errors
    ///
    /// When the user database cannot be read.
    #[doc(alias = "GetImpersonationUserName")]
    pub fn user_name(&self) -> io::Result<Option<String>> {
        identity::user_name(self.uid)
    }
}

/// Why [`Stream::peer`](super::Stream::peer) does not tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The client said so when it connected.
    #[error("the client wants to stay anonymous")]
    Anonymous,
    /// [`disconnect`](super::Stream::disconnect) was called here.
    #[error("the stream was disconnected on this side")]
    Disconnected,
    /// The system did not tell.
    #[error("cannot ask the kernel who the other side is: {0}")]
    Os(#[from] io::Error),
}
