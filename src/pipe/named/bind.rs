//! A name is taken, taken over from the dead, and given back: never from the living, and never a file that is not ours.

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

/// How often a lock file may vanish under us, because its server ends just now, before we give up.
const LOCK_TRIES: u32 = 100;

/// Why a name cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The directory of the private names cannot be used.
    #[error("the directory of private pipes cannot be used: {0}")]
    Name(#[source] NameError),
    /// A server of that name lives, here or in another process; or one is just starting or ending.
    #[error("{} is in use: another server listens there", printable_path(path))]
    InUse {
        /// Where.
        path: Box<Path>,
    },
    /// Something else has that path. It is left as it is.
    #[error("{} exists and is not a socket", printable_path(path))]
    NotASocket {
        /// Where.
        path: Box<Path>,
    },
    /// The lock file beside the socket, which says whether a server lives, cannot be opened. Another user may have made it, where
    /// several may write to the directory: then the name cannot be taken before that file is removed.
    #[error("cannot open the lock file {}{}: {source}", printable_path(lock), owned_by(*owner))]
    LockFile {
        /// The lock file: `.NAME.lock` beside the socket.
        lock: Box<Path>,
        /// The user it belongs to; `None` where it is not there or cannot be looked at.
        owner: Option<u32>,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A limit of no instances at all.
    #[error("max_instances must be at least 1")]
    NoInstances,
    /// Others shall come in, but the name lives in a directory that only we may enter.
    #[error("others cannot reach {}: its directory is private; give an absolute path", printable_path(path))]
    Unreachable {
        /// Where.
        path: Box<Path>,
    },
    /// The system refused.
    #[error("cannot listen on {}: {source}", printable_path(path))]
    Os {
        /// Where.
        path: Box<Path>,
        /// What it said.
        source: io::Error,
    },
}

fn owned_by(owner: Option<u32>) -> String {
    owner.map(|uid| format!(", which belongs to user {uid}")).unwrap_or_default()
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

/// A name that is ours. Dropping it gives the name back.
#[derive(Debug)]
pub(super) struct BoundName {
    /// None for an abstract name.
    _lock: Option<NameLock>,
}

#[derive(Debug)]
struct NameLock {
    path: PathBuf,
    /// Device and inode of our socket's file.
    file: (u64, u64),
    lock_path: PathBuf,
    /// Locked as long as we live, whatever kills us: nobody needs to ask a living server whether it lives.
    _lock: File,
    /// The process that took the name. A fork of it has a copy, whose drop must not take the name away.
    owner: i32,
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if self.owner != own_pid() {
            return;
        }
        // The lock is still name_lock, so nobody of ours can have taken the name since we look.
        if retry_on_shortage(|| fs::symlink_metadata(&self.path))
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file)
        {
            drop(retry_on_shortage(|| fs::remove_file(&self.path)));
        }
        // Whoever opened the lock file before this finds that it is not the one with that name any more, and opens again.
        drop(retry_on_shortage(|| fs::remove_file(&self.lock_path)));
    }
}

/// Tries again what the kernel may refuse for want of memory, and what leaves a file behind where it fails.
fn retry_on_shortage<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut backoff = ShortageBackoff::default();
    loop {
        match call() {
            Err(error) if (is_shortage(&error) || error.kind() == io::ErrorKind::Interrupted) && backoff.wait() => {}
            done => return done,
        }
    }
}

/// Puts a listening socket under the name.
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

/// Binds and opens up a temp name, and only then links the real one to it: who finds the real name finds a server that
/// listens, with the mode it shall have.
fn bind_and_link(socket: &OwnedFd, path: &Path, access: Access, backlog: u32) -> Result<(u64, u64), ListenError> {
    let failed = |source| ListenError::Os { path: path.into(), source };
    // One temp name for each name, so that a server killed between here and the link leaves no heap of them behind.
    let temp = TempName::new(beside(path, &[format!(".pw-{:016x}.new", hash(file_name(path))).as_bytes()]))?;
    // chmod after bind would leave a moment with the umask's mode; chmod before it can only take rights away.
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
                // A server that knows nothing of our locks was quicker.
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

/// The name a socket is bound under before it is published; removed on drop.
struct TempName(PathBuf);

impl TempName {
    /// Under the lock, what is left there belongs to a server that was killed at a bad moment.
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
        let ours = file.metadata().map_err(failed)?;
        // Its server may have ended, and removed it, between the two calls: then the lock is on a file that nobody finds.
        match fs::symlink_metadata(lock_path) {
            Ok(found) if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(ListenError::InUse { path: path.into() })
}

/// Removes the file of a socket whose server is dead. Only the kernel's "refused" proves that.
fn remove_dead(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Os { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(ListenError::NotASocket { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    // The probe is of a type that no server of ours has. The kernel finds out whether any socket is bound to the file, then that
    // the types differ (EPROTOTYPE), and only then whether the socket listens. So the server never sees the probe, and one that has
    // bound its socket and does not listen yet counts as alive.
    let probe = OwnedFd::from(UnixDatagram::unbound().map_err(failed)?);
    match connect_path(&probe, path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ListenError::InUse { path: path.into() }),
    }
}

/// Connects to a path of any length: one that does not fit into an address is opened first, and connected to through `/proc`.
pub(super) fn connect_path(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    if let Ok(address) = SocketAddress::path(path) {
        return socket::connect(socket.as_fd(), &address);
    }
    let file = lock::open_path(path)?;
    socket::connect(socket.as_fd(), &SocketAddress::path(&through_proc(&file))?)
}

/// Calls with the address of a new file: if the path does not fit, through its directory and `/proc`.
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

/// FNV-1a: short, and the same in every version and process, which `std`'s hasher does not promise.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
