//! Finds the program as execvp(3) does: with the child's `PATH`, relative to its working directory.

use super::error::SpawnStep;
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// The search path of execvp(3) if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// How much of a script the kernel reads to find its interpreter (`BINPRM_BUF_SIZE`).
const INTERPRETER_BYTES_MAX: u64 = 256;

/// The files to try for a program, in order. Relative paths start at the child's working directory.
#[derive(Debug)]
pub(super) struct ProgramSearch {
    pub(super) candidates: Vec<CString>,
    /// The search path, if the program name has no slash.
    path: Option<OsString>,
}

impl ProgramSearch {
    /// `path` is the child's own `PATH`.
    pub(super) fn new(program: &OsStr, path: Option<OsString>) -> Self {
        let path = (!program.as_bytes().contains(&b'/')).then(|| path.unwrap_or_else(|| DEFAULT_PATH.into()));
        let files: Vec<PathBuf> = match &path {
            Some(path) => env::split_paths(path).map(|entry| entry.join(program)).collect(),
            None => vec![PathBuf::from(program)],
        };
        // Only a user's own `Command` can contain a NUL byte, and std refuses to spawn it.
        let candidates = files.into_iter().filter_map(|file| CString::new(file.into_os_string().into_vec()).ok());
        Self { candidates: candidates.collect(), path }
    }

    /// Returns the step and the errno to report for an exec that failed with `errno`.
    pub(super) fn diagnose(&self, errno: i32, directory: Option<&Path>) -> (SpawnStep, i32) {
        let files = self.candidates.iter().map(|file| Path::new(OsStr::from_bytes(file.to_bytes())));
        let mut files = files.map(|file| directory.map_or_else(|| file.to_owned(), |directory| directory.join(file)));
        let found = files.find_map(|file| Some((file.metadata().ok()?, file)));
        let path = self.path.as_ref().map(|path| path.to_string_lossy().into());
        match (errno, found) {
            (libc::ENOEXEC, _) => (SpawnStep::Format, errno),
            (libc::ENOENT, Some((_, file))) => (SpawnStep::Interpreter(interpreter(&file)), errno),
            (libc::EACCES, Some((metadata, _))) if metadata.is_dir() => (SpawnStep::Directory, errno),
            (libc::EACCES, Some((metadata, _))) if metadata.mode() & 0o111 == 0 => (SpawnStep::NotExecutable, errno),
            // EACCES for a directory of the search path that cannot be searched: the program was found nowhere.
            (libc::EACCES, None) if path.is_some() => (SpawnStep::Exec(path), libc::ENOENT),
            // The program was found: its arguments are too long.
            (libc::E2BIG, _) => (SpawnStep::Exec(None), errno),
            _ => (SpawnStep::Exec(path), errno),
        }
    }
}

/// The interpreter that a script names in its first line, as the kernel reads it (execve(2)); `None` if the file is not a script.
fn interpreter(file: &Path) -> Option<Box<str>> {
    let mut begin = Vec::new();
    File::open(file).ok()?.take(INTERPRETER_BYTES_MAX).read_to_end(&mut begin).ok()?;
    let line = begin.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = line.trim_ascii_start();
    let name = line.split(|byte| matches!(byte, b' ' | b'\t')).next()?;
    Some(String::from_utf8_lossy(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p16_interpreter_is_named_as_the_kernel_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [
            ("#!/bin/sh -e\nexit\n", Some("/bin/sh")),
            ("#! \t/bin/sh\r\n", Some("/bin/sh\r")),
            ("#!/bin/sh", Some("/bin/sh")),
            ("\x7fELF", None),
            ("", None),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(interpreter(file.path()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn eacces_of_search_directory_is_reported_as_enoent() {
        let search = ProgramSearch::new(OsStr::new("no-such-program"), Some("/no/such/place:/bin".into()));
        let path = SpawnStep::Exec(Some("/no/such/place:/bin".into()));
        assert_eq!(search.diagnose(libc::EACCES, None), (path.clone(), libc::ENOENT));
        assert_eq!(search.diagnose(libc::ENOENT, None), (path, libc::ENOENT));
        let found = ProgramSearch::new(OsStr::new("sh"), Some("/no/such/place:/bin".into()));
        assert_eq!(found.diagnose(libc::EACCES, None).1, libc::EACCES, "an existing file that cannot be executed");
        assert_eq!(found.diagnose(libc::E2BIG, None), (SpawnStep::Exec(None), libc::E2BIG));
        let named = ProgramSearch::new(OsStr::new("/no/such/program"), None);
        assert_eq!(named.diagnose(libc::EACCES, None), (SpawnStep::Exec(None), libc::EACCES));
    }

    #[test]
    fn relative_path_entries_stay_relative() {
        let files = |program: &str, path: Option<&str>| {
            let search = ProgramSearch::new(OsStr::new(program), path.map(OsString::from));
            search.candidates.into_iter().map(|file| file.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(files("tool", Some("bin::/usr/bin")), ["bin/tool", "tool", "/usr/bin/tool"]);
        assert_eq!(files("tool", None), ["/bin/tool", "/usr/bin/tool"]);
        assert_eq!(files("./tool", Some("/bin")), ["./tool"]);
    }
}
