//! A fresh directory for the sockets of one owner in this process.

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

/// What the name of each such directory begins with; 64 random bits follow, in hexadecimal digits.
const PREFIX: &str = "pipewright-";
const DIGITS: usize = 16;
/// The longest path of the directory above. Sockets below it have paths that every language can put into an address.
const PARENT_BYTES_MAX: usize =
    socket::PATH_BYTES_MAX - "/".len() - PREFIX.len() - DIGITS - "/".len() - PrivateDirectory::FILE_BYTES_MAX;
/// How many names are tried: a directory that another process is about to sweep is left to it.
const TRIES: usize = 8;

/// A directory of mode 0700 with a random name. Dropping it removes it with all that is in it; where that did not happen, since
/// the process was killed, the next process that makes one in the same place does it.
///
/// The directory is locked, by flock(2), as long as its owner or a fork of it lives. That holds across namespaces of processes,
/// where a process id says nothing.
#[derive(Debug)]
pub(crate) struct PrivateDirectory {
    path: PathBuf,
    lock: File,
    owner: i32,
}

impl PrivateDirectory {
    /// The longest name of a file in it: the one that a [`Listener`](super::Listener) has before it is published.
    pub(crate) const FILE_BYTES_MAX: usize = ".pw-0123456789abcdef.new".len();

    /// Tries `XDG_RUNTIME_DIR`, `TMPDIR`, `/tmp`, `/var/tmp` and `/dev/shm` in this order. A place is passed over where it is not
    /// an absolute path in UTF-8, too long for the address of a socket, not safe from other users, or refuses directories or
    /// sockets.
    pub(crate) fn new() -> io::Result<Self> {
        let variables =
            ["XDG_RUNTIME_DIR", "TMPDIR"].into_iter().filter_map(env::var_os).filter(|path| !path.is_empty());
        let fixed = ["/tmp", "/var/tmp", "/dev/shm"].into_iter().map(Into::into);
        let mut refusals = Vec::new();
        let mut kind = io::ErrorKind::NotFound;
        for parent in variables.chain(fixed).map(PathBuf::from) {
            match Self::below(&parent) {
                Ok(made) => {
                    sweep(&parent);
                    return Ok(made);
                }
                Err(error) => {
                    kind = error.kind();
                    refusals.push(format!("in {}: {error}", printable_path(&parent)));
                }
            }
        }
        Err(io::Error::new(kind, format!("no directory for sockets can be made: {}", refusals.join("; "))))
    }

    fn below(parent: &Path) -> io::Result<Self> {
        check_parent(parent)?;
        for _ in 0..TRIES {
            let path = parent.join(format!("{PREFIX}{:0DIGITS$x}", u64::from_ne_bytes(random::bytes()?)));
            // It fails if anything is there.
            DirBuilder::new().mode(0o700).create(&path)?;
            let made = Self::take(path)?;
            if let Some(made) = made {
                return Ok(made);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Locks a directory that was made just now. Nothing where another process has swept it away before that.
    fn take(path: PathBuf) -> io::Result<Option<Self>> {
        // The umask may have taken our own rights away.
        match fs::set_permissions(&path, Permissions::from_mode(0o700)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            done => done?,
        }
        let Some(lock) = lock_directory(&path)? else { return Ok(None) };
        let made = Self { path, lock, owner: own_pid() };
        // Not every file system has sockets.
        let probe = made.path.join("probe");
        drop(UnixDatagram::bind(&probe)?);
        fs::remove_file(probe)?;
        Ok(Some(made))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there: the directory above it may have been removed, as a user's runtime directory is at the logout.
    pub(crate) fn exists(&self) -> bool {
        is_at(&self.lock, &self.path)
    }

    /// Lets other users reach files in it whose names they know. They can neither list it nor write to it.
    pub(crate) fn allow_traversal(&self) -> io::Result<()> {
        self.lock.set_permissions(Permissions::from_mode(0o711))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // A fork of the owner has a copy.
        if self.owner == own_pid() && self.exists() {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// Whether another user could put something else in the place of what we make there, or keep us from using it.
fn check_parent(parent: &Path) -> io::Result<()> {
    let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned()));
    if !parent.is_absolute() {
        return refused("not an absolute path");
    }
    if parent.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return refused("its path cannot be told to workers");
    }
    if parent.as_os_str().len() > PARENT_BYTES_MAX {
        return refused("its path is too long for the address of a socket");
    }
    let found = fs::metadata(parent)?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let is_ours_alone = found.uid() == identity::effective_uid() && found.mode() & 0o022 == 0;
    if !is_ours_alone && found.mode() & libc::S_ISVTX == 0 {
        return refused("other users could replace what is in it");
    }
    Ok(())
}

/// Removes the directories of owners that are dead.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if !digits.is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            continue;
        }
        let path = entry.path();
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| found.uid() == identity::effective_uid());
        // The owner of a living one has it locked.
        if is_ours && let Ok(Some(_lock)) = lock_directory(&path) {
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// Nothing where another process has locked it, or has removed it meanwhile.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let opened = match lock::open_to_lock(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => File::from(fd::dup_above(OwnedFd::from(opened?), 3)?),
    };
    Ok((lock::try_lock(&opened)? && is_at(&opened, path)).then_some(opened))
}

fn is_at(file: &File, path: &Path) -> bool {
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
        let made = PrivateDirectory::below(&base).unwrap();
        assert_eq!(fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o700);
        fs::write(made.path().join("file"), "").unwrap();
        drop(made);
        assert_eq!(names(&base), 0);
        fs::remove_dir(base).unwrap();
    }

    #[test]
    fn p09_directories_of_the_dead_are_swept_and_those_of_the_living_stay() {
        let base = base("sweep");
        let living = PrivateDirectory::below(&base).unwrap();
        let dead = PrivateDirectory::below(&base).unwrap();
        fs::write(dead.path().join("socket"), "").unwrap();
        let mut dead = std::mem::ManuallyDrop::new(dead);
        // As when its process is killed: the lock goes, and nothing else.
        dead.lock = File::open("/dev/null").unwrap();
        for other in ["pipewright-1000", "pipewright-0123456789abcdeg", "pipewright-0123456789abcdef0"] {
            fs::create_dir(base.join(other)).unwrap();
        }
        sweep(&base);
        assert!(living.exists() && !dead.path().exists());
        assert_eq!(names(&base), 4);
        drop(living);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn p12_places_where_others_could_interfere_are_refused() {
        let base = base("refused");
        let refusal = |parent: &Path| PrivateDirectory::below(parent).unwrap_err().to_string();
        let mode = |mode| fs::set_permissions(&base, Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        assert!(refusal(&base).contains("could replace"));
        mode(0o770);
        assert!(refusal(&base).contains("could replace"));
        mode(0o1777);
        drop(PrivateDirectory::below(&base).unwrap());
        mode(0o700);
        let long = |bytes: usize| base.join("x".repeat(bytes - 1 - base.as_os_str().len()));
        fs::create_dir(long(PARENT_BYTES_MAX)).unwrap();
        drop(PrivateDirectory::below(&long(PARENT_BYTES_MAX)).unwrap());
        assert!(refusal(&long(PARENT_BYTES_MAX + 1)).contains("too long"));
        assert!(refusal(Path::new("relative")).contains("absolute"));
        fs::remove_dir_all(base).unwrap();
    }
}
