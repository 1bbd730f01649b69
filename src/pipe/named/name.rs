//! What a named pipe is called, and where the name lives.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, DirBuilder},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use crate::{
    sys::{identity, lock, socket},
    text::printable_path,
};

/// The longest last part of a name in bytes: a file name holds 255, and the lock file beside the socket takes six more.
const FILE_NAME_BYTES_MAX: usize = 249;

/// The longest path that the kernel takes, without its final NUL (limits.h).
const PATH_BYTES_MAX: usize = 4095;

/// A name that can be listened on or connected to. Making one touches nothing.
///
/// Displayed, it is the path (`@name` for an abstract one): put it into messages, since two programs that do not find each
/// other most often look into different directories.
///
/// ```
/// use pipewright::pipe::named::PipeName;
///
/// let name = PipeName::new("/run/builder/jobs")?;
/// assert_eq!(name.to_string(), "/run/builder/jobs");
/// assert!(PipeName::new("jobs/today").unwrap_err().to_string().contains("'/'"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PipeName {
    kind: NameKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum NameKind {
    /// In our own directory, which is made on demand and checked.
    InPrivateDirectory(PathBuf),
    /// Wherever the user says.
    Path(PathBuf),
    /// In no file system at all.
    Abstract(Vec<u8>),
}

impl PipeName {
    /// An absolute path is used as it is. A plain name lives in the user's own directory: `$XDG_RUNTIME_DIR/pipewright/`, or
    /// `/tmp/pipewright-<uid>/` where the variable is not set to an absolute path. `TMPDIR` has no say: server and clients often
    /// differ in it, and would not find each other. The environment is read here and not again.
    ///
    /// The private directory is made (0700) by whoever needs it first, server or client, and refused unless it is a directory
    /// of this user that nobody else may enter. Root makes none in another user's directory, as
    /// `XDG_RUNTIME_DIR` names it after `su`: that user could not use it.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the name breaks.
    pub fn new(name: impl AsRef<OsStr>) -> Result<Self, NameError> {
        let name = name.as_ref();
        if name.as_bytes().first() == Some(&b'/') {
            return checked_path(PathBuf::from(name)).map(|path| Self { kind: NameKind::Path(path) });
        }
        check_plain(name)?;
        let path = checked_path(private_directory().join(name))?;
        Ok(Self { kind: NameKind::InPrivateDirectory(path) })
    }

    /// The path where .NET's `NamedPipeServerStream` of this name listens on Unix: `$TMPDIR`, or `/tmp` where that is not set or
    /// empty, then `CoreFxPipe_` and the name; an absolute path is itself. A relative `TMPDIR` is meant from the working directory
    /// of this moment. The path has at most 107 bytes, as .NET opens no longer one. .NET only knows byte pipes, and no handshake.
    ///
    /// A .NET server deletes whatever socket has its path before it binds, also that of a living server. So it takes the name of
    /// a [`Listener`](super::Listener) without an error on either side: the listener is not found any more, and does not
    /// remove the other server's socket when it is dropped. A `Listener` never takes the name of a living .NET server.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), except that a name may begin with a `.`; [`NameError::TooLong`] from 108 bytes on.
    pub fn dotnet(name: impl AsRef<OsStr>) -> Result<Self, NameError> {
        let name = name.as_ref();
        let path = if name.as_bytes().first() == Some(&b'/') {
            PathBuf::from(name)
        } else {
            check_file_name(name)?;
            let mut file = OsString::from("CoreFxPipe_");
            file.push(name);
            let directory = std::env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
            PathBuf::from(directory.unwrap_or_else(|| "/tmp".into())).join(file)
        };
        let failed = |source| NameError::Os { path: path.as_path().into(), source };
        let path = if path.is_absolute() { path.clone() } else { std::path::absolute(&path).map_err(failed)? };
        let path = checked_path(path)?;
        match path.as_os_str().len() {
            bytes if bytes > socket::PATH_BYTES_MAX => Err(NameError::TooLong { bytes, limit: socket::PATH_BYTES_MAX }),
            _ => Ok(Self { kind: NameKind::Path(path) }),
        }
    }

    /// A name in Linux' abstract namespace: no file, nothing to clean up, gone with its server. A process that another thread of the
    /// server starts at that moment keeps the name until its exec.
    ///
    /// Any user of the machine, and any container with the host's network, can reach and squat it: no file mode protects it.
    /// Both sides check who the other one is ([`Access`](super::Access)), and that is all there is.
    ///
    /// # Errors
    ///
    /// When it is empty or longer than 107 bytes.
    pub fn abstract_name(name: impl AsRef<OsStr>) -> Result<Self, NameError> {
        let name = name.as_ref().as_bytes();
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() >= socket::PATH_BYTES_MAX {
            return Err(NameError::TooLong { bytes: name.len(), limit: socket::PATH_BYTES_MAX - 1 });
        }
        Ok(Self { kind: NameKind::Abstract(name.to_vec()) })
    }

    /// Where the socket's file is; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match &self.kind {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => Some(path),
            NameKind::Abstract(_) => None,
        }
    }

    pub(super) fn kind(&self) -> &NameKind {
        &self.kind
    }

    /// The path, for error texts.
    pub(super) fn text(&self) -> Box<Path> {
        match &self.kind {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => path.clone().into_boxed_path(),
            NameKind::Abstract(_) => PathBuf::from(self.to_string()).into_boxed_path(),
        }
    }

    /// Makes the private directory if the name lives there, and checks it.
    pub(super) fn prepare_directory(&self) -> Result<(), NameError> {
        match &self.kind {
            NameKind::InPrivateDirectory(path) => path.parent().map_or(Ok(()), ensure_private),
            NameKind::Path(_) | NameKind::Abstract(_) => Ok(()),
        }
    }
}

impl fmt::Display for PipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => path.display().fmt(f),
            NameKind::Abstract(name) => write!(f, "@{}", OsString::from_vec(name.clone()).display()),
        }
    }
}

/// Why a name cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No text at all.
    #[error("the name of a pipe must not be empty")]
    Empty,
    /// .NET and Windows reserve it, in any spelling.
    #[error("the name \"anonymous\" is reserved")]
    Reserved,
    /// No path can hold it.
    #[error("the name has a NUL byte in it")]
    Nul,
    /// Only absolute paths have directories; a relative one would depend on where the program was started.
    #[error("the name has a '/' in it; give an absolute path, or a plain name")]
    Slash,
    /// `/`, or a path that ends in `/`, `/.` or `/..`: a directory, not a name.
    #[error("{} is the path of a directory, not of a pipe", printable_path(path))]
    Directory {
        /// The path.
        path: Box<Path>,
    },
    /// A plain name only; such names belong to the files that a server keeps beside its socket.
    #[error("the name begins with a '.'; such names are kept for lock files")]
    Hidden,
    /// Only of a pipe on another machine: no part of a command there or here shall take it for an option.
    #[error("the name begins with a '-', as options do; give an absolute path")]
    Dash,
    /// Longer than a file name or a path can be.
    #[error("the name has {bytes} bytes, {limit} at most")]
    TooLong {
        /// As many.
        bytes: usize,
        /// And so many are allowed.
        limit: usize,
    },
    /// The directory of the private names is not ours alone. Nothing in it can be trusted.
    #[error(
        "{} cannot hold private pipes: {found}; set XDG_RUNTIME_DIR, or give an absolute path",
        printable_path(path)
    )]
    NotPrivate {
        /// The directory.
        path: Box<Path>,
        /// What is wrong with it.
        found: Box<str>,
    },
    /// The directory of the private names cannot be made or looked at.
    #[error("cannot make or open the directory {}: {source}", printable_path(path))]
    Os {
        /// The directory.
        path: Box<Path>,
        /// What the system says.
        source: io::Error,
    },
}

impl From<NameError> for io::Error {
    fn from(error: NameError) -> Self {
        let kind = match &error {
            NameError::NotPrivate { .. } => io::ErrorKind::PermissionDenied,
            NameError::Os { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

fn check_plain(name: &OsStr) -> Result<(), NameError> {
    check_file_name(name)?;
    if name.as_bytes().starts_with(b".") { Err(NameError::Hidden) } else { Ok(()) }
}

fn check_file_name(name: &OsStr) -> Result<(), NameError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.contains(&b'/') {
        return Err(NameError::Slash);
    }
    if bytes.eq_ignore_ascii_case(b"anonymous") {
        return Err(NameError::Reserved);
    }
    Ok(())
}

fn checked_path(path: PathBuf) -> Result<PathBuf, NameError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(NameError::Nul);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(NameError::TooLong { bytes: bytes.len(), limit: PATH_BYTES_MAX });
    }
    let last = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match last {
        b"" | b"." | b".." => Err(NameError::Directory { path: path.into() }),
        _ if last.len() > FILE_NAME_BYTES_MAX => {
            Err(NameError::TooLong { bytes: last.len(), limit: FILE_NAME_BYTES_MAX })
        }
        _ => Ok(path),
    }
}

fn private_directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_absolute() => runtime.join("pipewright"),
        _ => directory_in_tmp(),
    }
}

fn directory_in_tmp() -> PathBuf {
    PathBuf::from(format!("/tmp/pipewright-{}", identity::effective_uid()))
}

/// In `/tmp` anybody may have been there first: with a link to a place of theirs, or with a directory that they may write to.
fn ensure_private(directory: &Path) -> Result<(), NameError> {
    let failed = |source| NameError::Os { path: directory.into(), source };
    let refused = |found: &str| Err(NameError::NotPrivate { path: directory.into(), found: found.into() });
    let us = identity::effective_uid();
    // Root may write everywhere: what it makes there would keep its owner from making his own.
    let above = directory.parent().filter(|_| us == 0).and_then(|above| fs::metadata(above).ok());
    if let Some(above) = above.filter(|above| above.uid() != us && above.mode() & libc::S_ISVTX == 0) {
        return refused(&format!("it would be in a directory of the user {}, and we are root", above.uid()));
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(failed(source)),
    }
    let opened = match lock::open_directory(directory) {
        Ok(opened) => opened.metadata().map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let is_link = fs::symlink_metadata(directory).is_ok_and(|found| found.is_symlink());
            return refused(if is_link { "it is a symbolic link" } else { "it is not a directory" });
        }
        Err(source) => return Err(failed(source)),
    };
    if opened.uid() != us {
        return refused(&format!("it belongs to the user {}, and we are {us}", opened.uid()));
    }
    if opened.mode() & 0o077 != 0 {
        return refused(&format!("its mode is {:04o}, others can enter; 0700 is wanted", opened.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    #[test]
    fn a_directory_that_others_prepared_is_refused() {
        let base = std::env::temp_dir().join(format!("pipewright-name-test-{}", std::process::id()));
        fs::create_dir(&base).unwrap();
        let refusal = |directory: &Path| ensure_private(directory).unwrap_err().to_string();

        ensure_private(&base.join("fresh")).unwrap();
        assert_eq!(fs::metadata(base.join("fresh")).unwrap().mode() & 0o7777, 0o700);
        ensure_private(&base.join("fresh")).unwrap();

        std::os::unix::fs::symlink(base.join("fresh"), base.join("link")).unwrap();
        assert!(refusal(&base.join("link")).contains("pipes: it is a symbolic link;"));
        fs::write(base.join("file"), "").unwrap();
        assert!(refusal(&base.join("file")).contains("pipes: it is not a directory;"));
        DirBuilder::new().mode(0o750).create(base.join("open")).unwrap();
        assert!(refusal(&base.join("open")).contains("its mode is 0750"));
        if identity::effective_uid() == 0 {
            DirBuilder::new().mode(0o700).create(base.join("theirs")).unwrap();
            std::os::unix::fs::chown(base.join("theirs"), Some(65_500), None).unwrap();
            assert!(refusal(&base.join("theirs")).contains("it belongs to the user 65500"));
            let in_theirs = base.join("theirs").join("ours");
            assert!(
                refusal(&in_theirs).contains("pipes: it would be in a directory of the user 65500, and we are root;")
            );
            assert!(!in_theirs.exists());
            fs::set_permissions(base.join("theirs"), Permissions::from_mode(0o1777)).unwrap();
            ensure_private(&in_theirs).unwrap();
        }
        fs::remove_dir_all(&base).unwrap();
    }
}
