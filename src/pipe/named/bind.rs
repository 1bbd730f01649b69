//! Binds a name to a listening socket, and releases it.
//!
//! A name is taken over only from a server that has exited, and only a socket file is ever replaced.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
};

use super::{
    name::{NameError, NameKind, PipeName},
    peer::Access,
};
use crate::{
    sys::{
        is_shortage, lock,
        poll::ShortageBackoff,
        socket::{self, SocketAddress, SocketType},
        this_process::own_pid,
    },
    text::printable_path,
};

/// Attempts to lock a lock file that disappears because its server is ending.
const LOCK_TRIES: u32 = 100;

/// Error of listening on a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The private directory cannot be used.
    #[error("cannot use the private directory: {0}")]
    Name(#[source] NameError),
    /// Another server has this name, in this or another process, or is starting or stopping.
    #[error("{} is in use by another server", printable_path(path))]
    InUse {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The path exists and is no socket. It was not changed.
    #[error("{} exists and is not a socket", printable_path(path))]
    NotASocket {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The lock file of the name cannot be opened. It may belong to another user if several users can write to the directory;
    /// the name cannot be used until that file is removed.
    #[error("cannot open the lock file {}{}: {source}", printable_path(lock), owned_by(*owner))]
    LockFile {
        /// The lock file, `.NAME.lock` in the directory of the socket.
        lock: Box<Path>,
        /// User id of its owner, if it is known.
        owner: Option<u32>,
        /// Error of the system call.
        source: io::Error,
    },
    /// [`max_instances`](super::ListenerOptions::max_instances) is 0.
    #[error("max_instances must be at least 1")]
    NoInstances,
    /// Other users are admitted, but the name is in the private directory of this user.
    #[error("other users cannot reach {}: its directory is private; use an absolute path", printable_path(path))]
    Unreachable {
        /// Path of the name.
        path: Box<Path>,
    },
    /// A system call failed.
    #[error("cannot listen on {}: {source}", printable_path(path))]
    Os {
        /// Path of the name.
        path: Box<Path>,
        /// Error of the system call.
        source: io::Error,
    },
}

fn owned_by(owner: Option<u32>) -> String {
    owner.map(|uid| format!(" of user {uid}")).unwrap_or_default()
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        let kind = match &error {
            ListenError::InUse { .. } => io::ErrorKind::AddrInUse,
            ListenError::NotASocket { .. } => io::ErrorKind::AlreadyExists,
            ListenError::NoInstances | ListenError::Unreachable { .. } => io::ErrorKind::InvalidInput,
            ListenError::Os { source, .. } | ListenError::LockFile { source, .. } => source.kind(),
            ListenError::Name(_) => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

/// A bound name. Dropping it releases the name.
#[derive(Debug)]
pub(super) struct BoundName {
    /// `None` for an abstract name, which the kernel releases with the socket.
    _lock: Option<NameLock>,
}

#[derive(Debug)]
struct NameLock {
    path: PathBuf,
    /// Device and inode of the socket file.
    file: (u64, u64),
    lock_path: PathBuf,
    /// Locked until this process exits, even by SIGKILL, so that others need not connect to find out whether the server runs.
    _lock: File,
    /// The process that bound the name. A forked child has a copy and must not release the name.
    owner: i32,
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if self.owner != own_pid() {
            return;
        }
        // The lock is still held, so no server of this library can have taken the name since the check.
        if retry_on_shortage(|| fs::symlink_metadata(&self.path))
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file)
        {
            drop(retry_on_shortage(|| fs::remove_file(&self.path)));
        }
        // A process that opened the lock file before this detects that it was removed, and opens it again.
        drop(retry_on_shortage(|| fs::remove_file(&self.lock_path)));
    }
}

/// Retries a call that fails for lack of memory, for calls whose failure would leave a file behind.
fn retry_on_shortage<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut backoff = ShortageBackoff::default();
    loop {
        match call() {
            Err(error) if (is_shortage(&error) || error.kind() == io::ErrorKind::Interrupted) && backoff.wait() => {}
            done => return done,
        }
    }
}

/// Binds a new listening socket to the name.
pub(super) fn bind(
    name: &PipeName,
    kind: SocketType,
    access: Access,
    backlog: u32,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> Result<(OwnedFd, BoundName), ListenError> {
    let failed = |source| ListenError::Os { path: name.text(), source };
    name.prepare_directory().map_err(ListenError::Name)?;
    let socket = socket::new(kind).map_err(failed)?;
    prepare(&socket).map_err(failed)?;
    let path = match name.kind() {
        NameKind::InPrivateDirectory(_) if access != Access::CurrentUser => {
            return Err(ListenError::Unreachable { path: name.text() });
        }
        NameKind::InPrivateDirectory(path) | NameKind::Path(path) => path,
        NameKind::Abstract(text) => {
            let address = SocketAddress::abstract_name(text).map_err(failed)?;
            let bound = socket::bind(socket.as_fd(), &address);
            return match bound.and_then(|()| socket::listen(socket.as_fd(), backlog)) {
                Ok(()) => Ok((socket, BoundName { _lock: None })),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::InUse { path: name.text() }),
                Err(error) => Err(failed(error)),
            };
        }
    };
    let lock_path = beside(path, &[b".", file_name(path), b".lock"]);
    let lock = take_lock(path, &lock_path)?;
    let mut name_lock = NameLock { path: path.clone(), file: (0, 0), lock_path, _lock: lock, owner: own_pid() };
    name_lock.file = bind_and_link(&socket, path, access, backlog)?;
    Ok((socket, BoundName { _lock: Some(name_lock) }))
}

/// Binds the socket to a temporary name, sets its mode, listens, and only then links the real name to it. A client that finds
/// the name therefore finds a listening server with the right mode.
fn bind_and_link(socket: &OwnedFd, path: &Path, access: Access, backlog: u32) -> Result<(u64, u64), ListenError> {
    let failed = |source| ListenError::Os { path: path.into(), source };
    // One temporary name per name, so that servers killed before the link do not leave many files behind.
    let temp = TempName::new(beside(path, &[format!(".pw-{:016x}.new", hash(file_name(path))).as_bytes()]))?;
    // A chmod after bind would leave a moment with the mode of the umask. Before bind, the umask can only remove permissions.
    socket::set_file_mode(socket.as_fd(), 0o600).map_err(failed)?;
    with_address(&temp.0, |address| socket::bind(socket.as_fd(), address)).map_err(failed)?;
    if let Access::Group(gid) = access {
        chown(&temp.0, None, Some(gid)).map_err(failed)?;
    }
    fs::set_permissions(&temp.0, Permissions::from_mode(access.file_mode())).map_err(failed)?;
    socket::listen(socket.as_fd(), backlog).map_err(failed)?;
    let file = fs::symlink_metadata(&temp.0).map_err(failed)?;
    match fs::hard_link(&temp.0, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_dead(path)?;
            match fs::hard_link(&temp.0, path) {
                // A server that does not use the lock file was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(ListenError::InUse { path: path.into() });
                }
                linked => linked.map_err(failed)?,
            }
        }
        linked => linked.map_err(failed)?,
    }
    Ok((file.dev(), file.ino()))
}

/// Temporary name of a socket until its real name is linked. Removed on drop.
struct TempName(PathBuf);

impl TempName {
    /// Called with the lock held: an existing socket belongs to a server that was killed before it linked its name.
    fn new(path: PathBuf) -> Result<Self, ListenError> {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => match fs::remove_file(&path) {
                Ok(()) => Ok(Self(path)),
                Err(source) => Err(ListenError::Os { path: path.into(), source }),
            },
            Ok(_) => Err(ListenError::NotASocket { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(path)),
            Err(source) => Err(ListenError::Os { path: path.into(), source }),
        }
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        drop(retry_on_shortage(|| fs::remove_file(&self.0)));
    }
}

fn take_lock(path: &Path, lock_path: &Path) -> Result<File, ListenError> {
    let failed = |source| ListenError::Os { path: path.into(), source };
    for _ in 0..LOCK_TRIES {
        let file = lock::open_lock_file(lock_path).map_err(|source| ListenError::LockFile {
            lock: lock_path.into(),
            owner: fs::symlink_metadata(lock_path).ok().map(|found| found.uid()),
            source,
        })?;
        if !retry_on_shortage(|| lock::try_lock(&file)).map_err(failed)? {
            break;
        }
        let locked = file.metadata().map_err(failed)?;
        // Its server may have removed the file between the two calls: then the lock is on an unlinked file.
        match fs::symlink_metadata(lock_path) {
            Ok(found) if (found.dev(), found.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(ListenError::InUse { path: path.into() })
}

/// Removes a socket file whose server has exited. Only ECONNREFUSED proves that.
fn remove_dead(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Os { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(ListenError::NotASocket { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    // The probe is a datagram socket, a type that no server of this library uses. The kernel checks first whether a socket is bound
    // to the file, then whether the types match (EPROTOTYPE), then whether it listens. So the server never sees the probe, and a
    // server that has bound its socket but does not listen yet counts as running.
    let probe = OwnedFd::from(UnixDatagram::unbound().map_err(failed)?);
    match connect_path(&probe, path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ListenError::InUse { path: path.into() }),
    }
}

/// Connects to a path of any length. One that does not fit into a socket address is opened and reached through `/proc`.
pub(super) fn connect_path(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    if let Ok(address) = SocketAddress::path(path) {
        return socket::connect(socket.as_fd(), &address);
    }
    let file = lock::open_path(path)?;
    socket::connect(socket.as_fd(), &SocketAddress::path(&through_proc(&file))?)
}

/// Calls `call` with the address of a new file. If the path is too long, the address goes through the directory in `/proc`.
fn with_address(path: &Path, call: impl FnOnce(&SocketAddress) -> io::Result<()>) -> io::Result<()> {
    if let Ok(address) = SocketAddress::path(path) {
        return call(&address);
    }
    let directory = lock::open_path(path.parent().unwrap_or(Path::new("/")))?;
    call(&SocketAddress::path(&through_proc(&directory).join(path.file_name().unwrap_or_default()))?)
}

fn through_proc(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn file_name(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_bytes()
}

fn beside(path: &Path, parts: &[&[u8]]) -> PathBuf {
    path.with_file_name(OsStr::from_bytes(&parts.concat()))
}

/// FNV-1a: unlike the hasher of `std`, stable across versions and processes.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
