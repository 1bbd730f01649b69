//! A new directory for the sockets of one owner in this process.

use std::{
    env,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
};

use crate::{
    sys::{fd, identity, lock, random, socket, this_process::own_pid},
    text::printable_path,
};

/// Prefix of the directory name. 64 random bits follow as hexadecimal digits.
const PREFIX: &str = "pipewright-";
const DIGITS: usize = 16;
/// Longest path of the parent directory, so that the path of every socket fits into a socket address.
const PARENT_BYTES_MAX: usize =
    socket::PATH_BYTES_MAX - "/".len() - PREFIX.len() - DIGITS - "/".len() - PrivateDirectory::FILE_BYTES_MAX;
/// Number of attempts: another process may remove a new directory as stale before it is locked.
const TRIES: usize = 8;

/// A directory of mode 0700 with a random name. Removed with its content on drop. If the process was killed before that, the next
/// process that creates one in the same parent removes it.
///
/// The directory is locked with flock(2) while its owner or a forked child lives. Unlike a process id, the lock also works across
/// PID namespaces.
#[derive(Debug)]
pub(crate) struct PrivateDirectory {
    path: PathBuf,
    lock: File,
    owner: i32,
}

impl PrivateDirectory {
    /// Longest name of a file in it: the temporary name of a [`Listener`](super::Listener).
    pub(crate) const FILE_BYTES_MAX: usize = ".pw-0123456789abcdef.new".len();

    /// Creates a directory in the first suitable one of `XDG_RUNTIME_DIR`, `TMPDIR`, `/tmp`, `/var/tmp` and `/dev/shm`. A parent
    /// must be an absolute UTF-8 path, short enough for a socket address and protected from other users, and its file system
    /// must support sockets.
    pub(crate) fn new() -> io::Result<Self> {
        let variables =
            ["XDG_RUNTIME_DIR", "TMPDIR"].into_iter().filter_map(env::var_os).filter(|path| !path.is_empty());
        let fixed = ["/tmp", "/var/tmp", "/dev/shm"].into_iter().map(Into::into);
        let mut refusals = Vec::new();
        let mut kind = io::ErrorKind::NotFound;
        for parent in variables.chain(fixed).map(PathBuf::from) {
            match Self::create_in(&parent) {
                Ok(made) => {
                    remove_stale(&parent);
                    return Ok(made);
                }
                Err(error) => {
                    kind = error.kind();
                    refusals.push(format!("in {}: {error}", printable_path(&parent)));
                }
            }
        }
        Err(io::Error::new(kind, format!("cannot create a directory for sockets: {}", refusals.join("; "))))
    }

    fn create_in(parent: &Path) -> io::Result<Self> {
        check_parent(parent)?;
        for _ in 0..TRIES {
            let path = parent.join(format!("{PREFIX}{:0DIGITS$x}", u64::from_ne_bytes(random::bytes()?)));
            // Fails if the path exists.
            DirBuilder::new().mode(0o700).create(&path)?;
            let made = Self::lock_new(path)?;
            if let Some(made) = made {
                return Ok(made);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Locks a new directory. Returns `None` if another process has removed it as stale.
    fn lock_new(path: PathBuf) -> io::Result<Option<Self>> {
        // The umask may have removed permissions of the owner.
        match fs::set_permissions(&path, Permissions::from_mode(0o700)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            done => done?,
        }
        let Some(lock) = lock_directory(&path)? else { return Ok(None) };
        let made = Self { path, lock, owner: own_pid() };
        // Not every file system supports sockets.
        let probe = made.path.join("probe");
        drop(UnixDatagram::bind(&probe)?);
        fs::remove_file(probe)?;
        Ok(Some(made))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the directory still exists: a user's runtime directory is removed at logout, for example.
    pub(crate) fn exists(&self) -> bool {
        is_same_file(&self.lock, &self.path)
    }

    /// Allows other users to reach files in it by name. They can neither list the directory nor write to it.
    pub(crate) fn allow_traversal(&self) -> io::Result<()> {
        self.lock.set_permissions(Permissions::from_mode(0o711))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // A forked child has a copy.
        if self.owner == own_pid() && self.exists() {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// Checks that no other user can replace what this process creates in `parent`, and that its path is usable.
fn check_parent(parent: &Path) -> io::Result<()> {
    let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned()));
    if !parent.is_absolute() {
        return refused("path is not absolute");
    }
    if parent.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return refused("path is not printable UTF-8");
    }
    if parent.as_os_str().len() > PARENT_BYTES_MAX {
        return refused("path is too long for a socket address");
    }
    let found = fs::metadata(parent)?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let is_ours_alone = found.uid() == identity::effective_uid() && found.mode() & 0o022 == 0;
    if !is_ours_alone && found.mode() & libc::S_ISVTX == 0 {
        return refused("other users could replace its content");
    }
    Ok(())
}

/// Removes stale directories, whose owners have exited.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if !digits.is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            continue;
        }
        let path = entry.path();
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| found.uid() == identity::effective_uid());
        // A running owner holds the lock.
        if is_ours && let Ok(Some(_lock)) = lock_directory(&path) {
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// Returns `None` if another process holds the lock or has removed the directory.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let opened = match lock::open_to_lock(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => File::from(fd::dup_above(OwnedFd::from(opened?), 3)?),
    };
    Ok((lock::try_lock(&opened)? && is_same_file(&opened, path)).then_some(opened))
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let found = fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()));
    found.is_some() && file.metadata().ok().map(|file| (file.dev(), file.ino())) == found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str) -> PathBuf {
        let base = env::temp_dir().join(format!("pw-{name}-{}", std::process::id()));
        fs::create_dir(&base).unwrap();
        fs::set_permissions(&base, Permissions::from_mode(0o700)).unwrap();
        base
    }

    fn names(base: &Path) -> usize {
        fs::read_dir(base).unwrap().count()
    }

    #[test]
    fn p12_directory_is_private_and_goes_with_its_owner() {
        let base = base("private");
        let made = PrivateDirectory::create_in(&base).unwrap();
        assert_eq!(fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o700);
        fs::write(made.path().join("file"), "").unwrap();
        drop(made);
        assert_eq!(names(&base), 0);
        fs::remove_dir(base).unwrap();
    }

    #[test]
    fn p09_removes_stale_directories_and_keeps_locked_ones() {
        let base = base("sweep");
        let living = PrivateDirectory::create_in(&base).unwrap();
        let dead = PrivateDirectory::create_in(&base).unwrap();
        fs::write(dead.path().join("socket"), "").unwrap();
        let mut dead = std::mem::ManuallyDrop::new(dead);
        // As when its process is killed: the lock goes, and nothing else.
        dead.lock = File::open("/dev/null").unwrap();
        for other in ["pipewright-1000", "pipewright-0123456789abcdeg", "pipewright-0123456789abcdef0"] {
            fs::create_dir(base.join(other)).unwrap();
        }
        remove_stale(&base);
        assert!(living.exists() && !dead.path().exists());
        assert_eq!(names(&base), 4);
        drop(living);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn p12_rejects_parents_writable_by_other_users() {
        let base = base("refused");
        let refusal = |parent: &Path| PrivateDirectory::create_in(parent).unwrap_err().to_string();
        let mode = |mode| fs::set_permissions(&base, Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        assert!(refusal(&base).contains("could replace"));
        mode(0o770);
        assert!(refusal(&base).contains("could replace"));
        mode(0o1777);
        drop(PrivateDirectory::create_in(&base).unwrap());
        mode(0o700);
        let long = |bytes: usize| base.join("x".repeat(bytes - 1 - base.as_os_str().len()));
        fs::create_dir(long(PARENT_BYTES_MAX)).unwrap();
        drop(PrivateDirectory::create_in(&long(PARENT_BYTES_MAX)).unwrap());
        assert!(refusal(&long(PARENT_BYTES_MAX + 1)).contains("too long"));
        assert!(refusal(Path::new("relative")).contains("absolute"));
        fs::remove_dir_all(base).unwrap();
    }
}
