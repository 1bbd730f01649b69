//! Acting with a client's rights.

use std::{
    io,
    num::NonZero,
    panic,
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use super::{
    peer::{ImpersonationLevel, Peer, PeerError},
    stream::Stream,
};
use crate::sys::identity::{self, ThreadIds, Undumpable};

/// Why a closure did not run with the client's rights. It was not called at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImpersonateError {
    /// The client does not allow it.
    #[error("the client allows {allowed:?}, and not Impersonation")]
    NotAllowed {
        /// What it allows.
        allowed: ImpersonationLevel,
    },
    /// Nobody knows who the client is.
    #[error("cannot tell who the client is: {0}")]
    Peer(#[source] PeerError),
    /// One of the client's ids has no number in our user namespace, so that it looks like the ids of others.
    #[error("the client's id {id} stands for all ids that are not mapped here")]
    Unmapped {
        /// The overflow id.
        id: NonZero<u32>,
    },
    /// Taking other ids needs `CAP_SETUID` and `CAP_SETGID`.
    #[error("no privilege to act as user {uid}; CAP_SETUID and CAP_SETGID are needed")]
    NotPermitted {
        /// Who the client is.
        uid: u32,
    },
    /// The kernel failed, or no thread could be started.
    #[error("cannot take the client's ids: {0}")]
    Os(#[from] io::Error),
}

impl From<ImpersonateError> for io::Error {
    fn from(error: ImpersonateError) -> Self {
        let kind = match &error {
            ImpersonateError::Os(source) => source.kind(),
            ImpersonateError::Peer(_) => io::ErrorKind::Other,
            _ => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

impl Stream {
    /// [`run_as_client`] for the client of this stream.
    ///
    /// # Errors
    ///
    /// [`ImpersonateError`]; the closure was not called.
    #[doc(alias = "RunAsClient")]
    pub fn run_as_client<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, ImpersonateError> {
        run_as_client(self, call)
    }
}

/// Runs a closure with the rights of whoever is at the other end of the stream, and returns what it returns. A panic in it goes
/// on here.
///
/// The closure runs on a fresh thread that takes all of the client's ids for good (its groups, and real, effective and saved
/// group and user id), drops every capability, and ends. There is no way back in that thread, and no other thread ever changes.
/// If the client's ids are the caller's, no privilege is needed.
///
/// A client that connected with a handshake must allow it
/// ([`ImpersonationLevel::Impersonation`]); a plain one has said nothing, and is not asked.
///
/// # What it is not
///
/// It decides which files may be opened, so that a client cannot make a server open what it could not open itself. It is
/// **not a sandbox**:
///
/// * Memory, open descriptors and everything else of the process stay reachable, so hostile *code* must not run in there.
/// * Resource limits, namespaces, keyrings and security labels stay the server's.
/// * The ids are those of the moment at which the client connected, and of the process that connected.
/// * Threads and programs that the closure starts keep the client's ids. Do not start work for others in there (thread pools).
/// * While it runs, nobody may call glibc's `setuid` and its sisters elsewhere in the process: glibc makes every thread repeat
///   them, and aborts the process when one cannot.
/// * While it runs, the process writes no core dump and cannot be traced or looked at through `/proc` by its own user: or the
///   client could trace the thread, and so own the server. That ends with the last such call.
///
/// # Errors
///
/// [`ImpersonateError`]; the closure was not called.
#[doc(alias = "RunAsClient")]
pub fn run_as_client<T: Send>(stream: &Stream, call: impl FnOnce() -> T + Send) -> Result<T, ImpersonateError> {
    if let Some(allowed) = stream.impersonation_level().filter(|level| *level != ImpersonationLevel::Impersonation) {
        return Err(ImpersonateError::NotAllowed { allowed });
    }
    let peer = stream.peer().map_err(ImpersonateError::Peer)?;
    refuse_unmapped(&peer)?;
    let ids = ThreadIds::new(peer.uid(), peer.gid(), peer.groups().to_vec());
    // Before the ids change, and until the thread is no more.
    let undumpable = if identity::are(&ids)? { None } else { Some(Undumpable::enter()?) };
    let thread_id = AtomicI32::new(0);
    let outcome = thread::scope(|scope| {
        let run = || {
            thread_id.store(identity::thread_id(), Ordering::Release);
            identity::become_for_good(&ids).map(|()| call())
        };
        let thread = thread::Builder::new().name("run-as-client".into()).spawn_scoped(scope, run)?;
        Ok::<_, io::Error>(thread.join())
    });
    await_end(thread_id.into_inner());
    drop(undumpable);
    match outcome? {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(ImpersonateError::NotPermitted { uid: peer.uid() })
        }
        Ok(Err(error)) => Err(error.into()),
        Err(payload) => panic::resume_unwind(payload),
    }
}

fn refuse_unmapped(peer: &Peer) -> Result<(), ImpersonateError> {
    let (uid, gid) = identity::overflow_ids();
    let unmapped = uid.filter(|uid| peer.uid() == *uid);
    let unmapped = unmapped.or(gid.filter(|gid| peer.gid() == *gid || peer.groups().contains(gid)));
    match unmapped.and_then(NonZero::new) {
        Some(id) => Err(ImpersonateError::Unmapped { id }),
        None => Ok(()),
    }
}

/// A thread that was joined has told so in its last moment, in which it still has the client's ids and our memory.
fn await_end(id: i32) {
    // 0: there was none.
    while id != 0 && !identity::thread_has_ended(id) {
        thread::yield_now();
    }
}
