//! Names of named pipes and the private directory.

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

/// Longest last component in bytes: a file name has at most 255, and the lock file adds six.
const FILE_NAME_BYTES_MAX: usize = 249;

/// Longest path, without its NUL byte (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4095;

/// Address of a named pipe. Creating a value does not access the file system.
///
/// `Display` writes the path, or `@name` for an abstract name. Log it: programs that do not find each other usually use
/// different directories.
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
    /// In the private directory, which is created on demand and checked.
    InPrivateDirectory(PathBuf),
    /// An absolute path given by the caller.
    Path(PathBuf),
    /// In the abstract namespace.
    Abstract(Vec<u8>),
}

impl PipeName {
    /// Creates a name from an absolute path or a plain name.
    ///
    /// A plain name is a file in the private directory of the user: `$XDG_RUNTIME_DIR/pipewright/`, or `/tmp/pipewright-<uid>/`
    /// if the variable is not set to an absolute path. `TMPDIR` is ignored, since it often differs between server and client.
    /// The environment is read once, here.
    ///
    /// The server or client that needs the private directory first creates it with mode 0700. An existing directory is rejected
    /// unless it belongs to this user and no other user can enter it. Root does not create one in a directory of another user,
    /// where `XDG_RUNTIME_DIR` may point after `su`, because that user could not use it.
    ///
    /// # Errors
    ///
    /// [`NameError`].
    pub fn new(name: impl AsRef<OsStr>) -> Result<Self, NameError> {
        let name = name.as_ref();
        if name.as_bytes().first() == Some(&b'/') {
            return checked_path(PathBuf::from(name)).map(|path| Self { kind: NameKind::Path(path) });
        }
        check_plain(name)?;
        let path = checked_path(private_directory().join(name))?;
        Ok(Self { kind: NameKind::InPrivateDirectory(path) })
    }

    /// Creates the name that .NET's `NamedPipeServerStream` uses on Unix: `CoreFxPipe_` and the name, in `$TMPDIR`, or in `/tmp` if
    /// that is unset or empty. A relative `TMPDIR` is resolved against the current working directory. An absolute path is used
    /// unchanged. .NET supports byte pipes without a handshake, and paths of at most 107 bytes.
    ///
    /// A .NET server deletes an existing socket of that path before it binds, even one of a running server. It thereby takes the
    /// name of a [`Listener`](super::Listener) without an error on either side: clients no longer reach the listener, which
    /// leaves the socket of the other server alone when it is dropped. A `Listener` never takes the name of a running .NET server.
    ///
    /// # Errors
    ///
    /// Same as [`new`](Self::new), but a name may begin with `.`, and [`NameError::TooLong`] applies from 108 bytes on.
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

    /// Creates a name in the abstract namespace of Linux. It has no file and ends with its server. A process that the server is
    /// spawning at that moment keeps the name until its exec.
    ///
    /// No file mode protects an abstract name: every user of the machine, and every container in the network namespace of the
    /// host, can connect to it or bind it first. The check of the peer ([`Access`](super::Access)) on both sides is the only
    /// protection.
    ///
    /// # Errors
    ///
    /// If the name is empty or longer than 107 bytes.
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

    /// Path of the socket file; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match &self.kind {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => Some(path),
            NameKind::Abstract(_) => None,
        }
    }

    pub(super) fn kind(&self) -> &NameKind {
        &self.kind
    }

    /// The path, for error messages.
    pub(super) fn text(&self) -> Box<Path> {
        match &self.kind {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => path.clone().into_boxed_path(),
            NameKind::Abstract(_) => PathBuf::from(self.to_string()).into_boxed_path(),
        }
    }

    /// Creates and checks the private directory if the name is in it.
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

/// Error of a name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("pipe name is empty")]
    Empty,
    /// The name is `anonymous`, in upper or lower case, which .NET and Windows reserve.
    #[error("pipe name \"anonymous\" is reserved")]
    Reserved,
    /// The name contains a NUL byte.
    #[error("pipe name contains a NUL byte")]
    Nul,
    /// The name is a relative path, which would depend on the working directory.
    #[error("pipe name contains '/': use an absolute path or a plain name")]
    Slash,
    /// The path is `/` or ends in `/`, `/.` or `/..`.
    #[error("{} is a directory, not a pipe", printable_path(path))]
    Directory {
        /// The path.
        path: Box<Path>,
    },
    /// The plain name begins with `.`, as lock files do.
    #[error("pipe name begins with '.', which is reserved for lock files")]
    LeadingDot,
    /// The name of a pipe on another machine begins with `-`. A command could take it for an option.
    #[error("pipe name begins with '-': use an absolute path")]
    LeadingDash,
    /// The name exceeds the limit of a file name or path.
    #[error("pipe name of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLong {
        /// Length of the name.
        bytes: usize,
        /// Largest length.
        limit: usize,
    },
    /// Other users can access the private directory, so its content cannot be trusted.
    #[error("{} cannot hold private pipes: {found}; set XDG_RUNTIME_DIR or use an absolute path", printable_path(path))]
    NotPrivate {
        /// The directory.
        path: Box<Path>,
        /// What was found.
        found: Box<str>,
    },
    /// The private directory cannot be created or opened.
    #[error("cannot create or open directory {}: {source}", printable_path(path))]
    Os {
        /// The directory.
        path: Box<Path>,
        /// Error of the system call.
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
    if name.as_bytes().starts_with(b".") { Err(NameError::LeadingDot) } else { Ok(()) }
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

/// Creates or checks the private directory. In `/tmp` another user may have created a symbolic link or a directory of that name.
fn ensure_private(directory: &Path) -> Result<(), NameError> {
    let failed = |source| NameError::Os { path: directory.into(), source };
    let refused = |found: &str| Err(NameError::NotPrivate { path: directory.into(), found: found.into() });
    let own_uid = identity::effective_uid();
    // Root can write everywhere, and its directory would keep the owner of the parent from creating one.
    let above = directory.parent().filter(|_| own_uid == 0).and_then(|above| fs::metadata(above).ok());
    if let Some(above) = above.filter(|above| above.uid() != own_uid && above.mode() & libc::S_ISVTX == 0) {
        return refused(&format!("it would be in a directory of user {}, and this process runs as root", above.uid()));
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
    if opened.uid() != own_uid {
        return refused(&format!("it belongs to user {}, and this process runs as user {own_uid}", opened.uid()));
    }
    if opened.mode() & 0o077 != 0 {
        return refused(&format!("its mode is {:04o}, must be 0700", opened.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    #[test]
    fn rejects_directory_prepared_by_other_user() {
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
            assert!(refusal(&base.join("theirs")).contains("it belongs to user 65500"));
            let in_theirs = base.join("theirs").join("ours");
            assert!(
                refusal(&in_theirs)
                    .contains("pipes: it would be in a directory of user 65500, and this process runs as root;")
            );
            assert!(!in_theirs.exists());
            fs::set_permissions(base.join("theirs"), Permissions::from_mode(0o1777)).unwrap();
            ensure_private(&in_theirs).unwrap();
        }
        fs::remove_dir_all(&base).unwrap();
    }
}
