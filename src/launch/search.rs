//! Where a program is found, in both ways of starting: as execvp(3) does it in the child, in its working directory and with its `PATH`.

use super::error::SpawnStep;
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// Where execvp(3) looks when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The files to try for a program, in their order. A relative one is meant from the child's working directory.
#[derive(Debug)]
pub(super) struct ProgramSearch {
    pub(super) candidates: Vec<CString>,
    /// The search path, for a name without a slash.
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
        // A zero byte can only come from a user's own `Command`, which std refuses to run.
        let candidates = files.into_iter().filter_map(|file| CString::new(file.into_os_string().into_vec()).ok());
        Self { candidates: candidates.collect(), path }
    }

    /// What failed when the program could not be run, and the error that says so.
    pub(super) fn explain(&self, errno: i32, directory: Option<&Path>) -> (SpawnStep, i32) {
        let is_there = |file: &CString| {
            let file = Path::new(OsStr::from_bytes(file.to_bytes()));
            directory.map_or_else(|| file.exists(), |directory| directory.join(file).exists())
        };
        let path = self.path.as_ref().map(|path| path.to_string_lossy().into());
        match errno {
            libc::ENOEXEC => (SpawnStep::Format, errno),
            libc::ENOENT if self.candidates.iter().any(is_there) => (SpawnStep::Interpreter, errno),
            // A directory of the search path that may not be searched: the program was not found, in the others either.
            libc::EACCES if path.is_some() && !self.candidates.iter().any(is_there) => {
                (SpawnStep::Exec(path), libc::ENOENT)
            }
            // One that was found, and whose arguments are too long, need not be looked for.
            libc::E2BIG => (SpawnStep::Exec(None), errno),
            _ => (SpawnStep::Exec(path), errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_may_not_be_searched_does_not_hide_that_nothing_was_found() {
        let search = ProgramSearch::new(OsStr::new("no-such-program"), Some("/no/such/place:/bin".into()));
        let path = SpawnStep::Exec(Some("/no/such/place:/bin".into()));
        assert_eq!(search.explain(libc::EACCES, None), (path.clone(), libc::ENOENT));
        assert_eq!(search.explain(libc::ENOENT, None), (path, libc::ENOENT));
        let found = ProgramSearch::new(OsStr::new("sh"), Some("/no/such/place:/bin".into()));
        assert_eq!(found.explain(libc::EACCES, None).1, libc::EACCES, "one that is there and may not be run");
        assert_eq!(found.explain(libc::E2BIG, None), (SpawnStep::Exec(None), libc::E2BIG));
        let named = ProgramSearch::new(OsStr::new("/no/such/program"), None);
        assert_eq!(named.explain(libc::EACCES, None), (SpawnStep::Exec(None), libc::EACCES));
    }

    #[test]
    fn relative_entries_stay_relative() {
        let files = |program: &str, path: Option<&str>| {
            let search = ProgramSearch::new(OsStr::new(program), path.map(OsString::from));
            search.candidates.into_iter().map(|file| file.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(files("tool", Some("bin::/usr/bin")), ["bin/tool", "tool", "/usr/bin/tool"]);
        assert_eq!(files("tool", None), ["/bin/tool", "/usr/bin/tool"]);
        assert_eq!(files("./tool", Some("/bin")), ["./tool"]);
    }
}
