//! Finds the program as execvp(3) does: with the child's `PATH`, relative to its working directory.

use super::error::SpawnStep;
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// The search path of execvp(3) if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

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
        let is_there = |file: &CString| {
            let file = Path::new(OsStr::from_bytes(file.to_bytes()));
            directory.map_or_else(|| file.exists(), |directory| directory.join(file).exists())
        };
        let path = self.path.as_ref().map(|path| path.to_string_lossy().into());
        match errno {
            libc::ENOEXEC => (SpawnStep::Format, errno),
            libc::ENOENT if self.candidates.iter().any(is_there) => (SpawnStep::Interpreter, errno),
            // EACCES for a directory of the search path that cannot be searched: the program was found nowhere.
            libc::EACCES if path.is_some() && !self.candidates.iter().any(is_there) => {
                (SpawnStep::Exec(path), libc::ENOENT)
            }
            // The program was found: its arguments are too long.
            libc::E2BIG => (SpawnStep::Exec(None), errno),
            _ => (SpawnStep::Exec(path), errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
