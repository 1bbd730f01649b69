//! `/proc/PID/environ`: the environment that a process was started with.

use super::{
    pinned::PinnedProcess,
    stat::{self, Stat},
};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};

/// The most bytes of an environment that are searched: more than the kernel allows a program by default.
const ENVIRONMENT_BYTES: u64 = 4 << 20;
/// Larger than almost every environment, so that one read suffices.
const ONE_READ_BYTES: usize = 256 << 10;

/// Whether the environment of a process contains a token.
#[derive(Debug)]
pub(crate) enum EnvironMatch {
    Match(PinnedProcess),
    /// Unknown for now: the process is in exec, during which it shows no environment and cannot fork, or this process is short of
    /// file descriptors or memory.
    NotYet,
    /// Also for zombies, which have no environment, and for processes of other users, whose environment is not readable.
    NoMatch,
}

/// The result of searching one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvironState<T> {
    Found(T),
    NotFound,
    /// As [`EnvironMatch::NotYet`].
    NotYet,
    /// The environment may not be read.
    Denied,
}

/// Reads environments one after the other into one buffer.
#[derive(Debug)]
pub(crate) struct EnvironReader {
    bytes: Vec<u8>,
    /// A read failed since this process was short of file descriptors or memory.
    pub(crate) had_shortage: bool,
}

impl EnvironReader {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; ONE_READ_BYTES], had_shortage: false }
    }

    /// Searches the environment of a process for a token, and pins the process if it is found.
    pub(crate) fn find_token(&mut self, pid: i32, token: &[u8]) -> EnvironMatch {
        let find = |bytes: &[u8]| memchr::memmem::find(bytes, token).map(|_| ());
        match self.search(pid, find) {
            EnvironState::NotYet => return EnvironMatch::NotYet,
            EnvironState::NotFound | EnvironState::Denied => return EnvironMatch::NoMatch,
            EnvironState::Found(()) => {}
        }
        let pinned = match Stat::of(pid).and_then(|stat| PinnedProcess::open(&stat)) {
            Ok(pinned) => pinned,
            Err(error) if self.note_shortage(&error) => return EnvironMatch::NotYet,
            Err(_) => return EnvironMatch::NoMatch,
        };
        // Searched again: the PID may have been reused before the process was pinned.
        match self.search(pid, find) {
            EnvironState::Found(()) => EnvironMatch::Match(pinned),
            EnvironState::NotYet => EnvironMatch::NotYet,
            EnvironState::NotFound | EnvironState::Denied => EnvironMatch::NoMatch,
        }
    }

    /// Searches the environment of a process.
    pub(crate) fn search<T>(&mut self, pid: i32, find: impl Fn(&[u8]) -> Option<T>) -> EnvironState<T> {
        self.search_in(&stat::directory(pid.unsigned_abs()), find)
    }

    /// Searches the environment in the directory of a process or a thread.
    pub(crate) fn search_in<T>(&mut self, directory: &Path, find: impl Fn(&[u8]) -> Option<T>) -> EnvironState<T> {
        let mut file = match fs::File::open(directory.join("environ")) {
            Ok(file) => file,
            Err(error) if self.note_shortage(&error) => return EnvironState::NotYet,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                return EnvironState::Denied;
            }
            Err(_) => return EnvironState::NotFound,
        };
        // In one read: the file shows the memory that the process had when it was opened, and an exec between two reads would end
        // the file early.
        let read = file.read(&mut self.bytes).unwrap_or(0);
        let bytes = self.bytes.get(..read).unwrap_or_default();
        if read == ONE_READ_BYTES {
            return search_all(file, bytes, find);
        }
        if let Some(found) = find(bytes) {
            return EnvironState::Found(found);
        }
        if read > 0 {
            return EnvironState::NotFound;
        }
        let is_in_exec = match stat::has_environment(directory) {
            Ok(has_environment) => has_environment,
            Err(error) => self.note_shortage(&error),
        };
        if is_in_exec { EnvironState::NotYet } else { EnvironState::NotFound }
    }

    /// Returns whether the error is a shortage of file descriptors or memory, which is temporary, and records it.
    pub(crate) fn note_shortage(&mut self, error: &io::Error) -> bool {
        let is_shortage = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
        self.had_shortage |= is_shortage;
        is_shortage
    }
}

/// Searches an environment that did not fit into one read.
fn search_all<T>(file: fs::File, bytes: &[u8], find: impl Fn(&[u8]) -> Option<T>) -> EnvironState<T> {
    let mut bytes = bytes.to_vec();
    // After an error, what was read before it is searched.
    drop(file.take(ENVIRONMENT_BYTES).read_to_end(&mut bytes));
    match (find(&bytes), bytes.last()) {
        (Some(found), _) => EnvironState::Found(found),
        (None, Some(0)) => EnvironState::NotFound,
        (None, _) => EnvironState::NotYet,
    }
}

/// Whether the environment of a thread of the process contains the text.
pub(crate) fn any_thread_contains(pid: i32, text: &[u8]) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut environments = threads.filter_map(|thread| fs::read(thread.path().join("environ")).ok());
    environments.any(|environment| memchr::memmem::find(&environment, text).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::this_process::own_pid;

    #[test]
    fn absent_token_is_not_found() {
        let found = EnvironReader::new().find_token(own_pid(), b"no such thing in any environment");
        assert!(matches!(found, EnvironMatch::NoMatch), "{found:?}");
    }
}
