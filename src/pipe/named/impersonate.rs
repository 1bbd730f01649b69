//! Running code with the rights of a client.

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

/// Error of [`run_as_client`]. The closure was not called.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImpersonateError {
    /// The client does not allow impersonation.
    #[error("client allows {allowed:?}, not Impersonation")]
    NotAllowed {
        /// Level that the client allows.
        allowed: ImpersonationLevel,
    },
    /// The identity of the client is unknown.
    #[error("unknown client: {0}")]
    Peer(#[source] PeerError),
    /// An id of the client is not mapped in this user namespace, so it cannot be told from other unmapped ids.
    #[error("client id {id} is the overflow id of unmapped ids")]
    Unmapped {
        /// The overflow id.
        id: NonZero<u32>,
    },
    /// Changing to the ids of the client needs `CAP_SETUID` and `CAP_SETGID`.
    #[error("no privilege to act as user {uid}: needs CAP_SETUID and CAP_SETGID")]
    NotPermitted {
        /// User id of the client.
        uid: u32,
    },
    /// A system call failed, or no thread could be started.
    #[error("cannot change to the ids of the client: {0}")]
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
    /// Calls [`run_as_client`] for the client of this stream.
    ///
    /// # Errors
    ///
    /// [`ImpersonateError`]. The closure was not called.
    #[doc(alias = "RunAsClient")]
    pub fn run_as_client<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, ImpersonateError> {
        run_as_client(self, call)
    }
}

/// Runs a closure with the rights of the peer of `stream` and returns its result. A panic of the closure continues in the
/// caller.
///
/// The closure runs on a new thread. That thread changes permanently to the ids of the client (supplementary groups; real,
/// effective and saved group and user id), drops all capabilities, and exits afterwards. Other threads are unaffected. If the
/// client has the ids of the caller, no privilege is needed.
///
/// A client that connected with a handshake must allow [`ImpersonationLevel::Impersonation`]. A client without a handshake
/// allows everything.
///
/// # Limits
///
/// The ids decide which files can be opened, so a client cannot make a server open files that the client itself could not. It
/// is **not a sandbox**:
///
/// * The closure can access the memory and open file descriptors of the process. Do not run hostile *code* in it.
/// * Resource limits, namespaces, keyrings and security labels remain those of the server.
/// * The ids are those of the connecting process at the time of the connection.
/// * Threads and programs started by the closure keep the ids of the client. Do not use it to start a thread pool.
/// * While it runs, no other thread may call glibc's `setuid` and related functions: glibc repeats them in every thread and
///   aborts the process if one of them fails.
/// * While it runs, the process writes no core dump, and its own user cannot trace it or read its `/proc` files. Otherwise the
///   client could trace the thread and take over the server. This ends with the last running call.
///
/// # Errors
///
/// [`ImpersonateError`]. The closure was not called.
#[doc(alias = "RunAsClient")]
pub fn run_as_client<T: Send>(stream: &Stream, call: impl FnOnce() -> T + Send) -> Result<T, ImpersonateError> {
    if let Some(allowed) = stream.impersonation_level().filter(|level| *level != ImpersonationLevel::Impersonation) {
        return Err(ImpersonateError::NotAllowed { allowed });
    }
    let peer = stream.peer().map_err(ImpersonateError::Peer)?;
    refuse_unmapped(&peer)?;
    let ids = ThreadIds::new(peer.uid(), peer.gid(), peer.groups().to_vec());
    // Must be in effect before the ids change and until the thread is gone.
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
    wait_for_thread_end(thread_id.into_inner());
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

/// A joined thread may still exist for a moment, with the ids of the client and access to this memory.
fn wait_for_thread_end(id: i32) {
    // 0: no thread was started.
    while id != 0 && !identity::thread_has_ended(id) {
        thread::yield_now();
    }
}
