//! Filters the host's environment variables that a child inherits.
//!
//! A child has fds 0, 1, 2 and those that its spec passes. A variable that names another fd is wrong there: the number is closed or
//! has another purpose. A `make` that takes a worker's message pipe for its jobserver writes tokens into it, and a Node program
//! that takes it for its IPC channel aborts. Such variables are removed, unless the spec or the user's own `Command` sets them.
//! `docs/protocol.md`, "Variables that are removed", lists them.

use crate::wire::make_flags::{MAKE_FLAGS, without_jobserver};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// Prefix of the variables that a supervisor sets for one worker; they name an fd or an address.
const PREFIX: &str = "PIPEWRIGHT_";

/// The exception to [`PREFIX`]: the token of the process tree, which descendants inherit.
const TREE: &str = "PIPEWRIGHT_TREE";

/// Lists the variables without [`PREFIX`] that name a handle of this child, separated by `:`, so that a supervisor inside the child
/// removes them for its own workers.
pub(super) const HANDLES: &str = "PIPEWRIGHT_HANDLES";

const SEPARATOR: char = ':';

/// Variables that name fds, or belong to a protocol over an fd or with this process only.
const NAMES: [&str; 18] = [
    // Node's child_process.fork and cluster.fork.
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    // systemd's sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), and the descriptor store.
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "FDSTORE",
    // Listening sockets passed by Upstart, Perl's Server::Starter, gunicorn, unicorn.
    "UPSTART_FDS",
    "SERVER_STARTER_PORT",
    "GUNICORN_FD",
    "UNICORN_FD",
    // Connections to a Wayland compositor and to an MPI process manager.
    "WAYLAND_SOCKET",
    "PMI_FD",
    // The fd of bash's trace.
    "BASH_XTRACEFD",
];

/// Prefixes of numbered variables: einhorn, puma, s6-fdholder.
const FAMILIES: [&str; 4] = ["EINHORN_FD", "EINHORN_SOCK_FD", "PUMA_INHERIT_", "S6_FD"];

/// Git writes traces to an fd if a variable with this prefix is a single digit above 2.
const GIT_TRACE: &str = "GIT_TRACE";

/// What to do with one variable of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvDisposition {
    Keep,
    Replace(OsString),
    Remove,
}

/// Decides about a variable of the host that the child does not set. `handles` is the value of the host's own [`HANDLES`].
pub(super) fn disposition(name: &OsStr, value: &OsStr, handles: Option<&OsStr>) -> EnvDisposition {
    let (bytes, value) = (name.as_bytes(), value.as_bytes());
    let begins = |prefix: &str| bytes.starts_with(prefix.as_bytes());
    let is_listed = || {
        let listed = handles.map(OsStr::as_bytes).unwrap_or_default();
        listed.split(|&byte| byte == SEPARATOR as u8).any(|other| other == bytes)
    };
    if MAKE_FLAGS.iter().any(|flags| name == *flags) {
        return match without_jobserver(value) {
            None => EnvDisposition::Keep,
            Some(rest) if rest.is_empty() => EnvDisposition::Remove,
            Some(rest) => EnvDisposition::Replace(OsString::from_vec(rest)),
        };
    }
    let is_removed = (begins(PREFIX) && name != TREE)
        || NAMES.iter().any(|removed| name == *removed)
        || FAMILIES.iter().any(|family| begins(family))
        || (begins(GIT_TRACE) && matches!(value, [b'3'..=b'9']))
        || is_listed();
    if is_removed { EnvDisposition::Remove } else { EnvDisposition::Keep }
}

/// Returns the value of [`HANDLES`] for a child with handles in these variables; `None` if all have [`PREFIX`].
pub(super) fn handles(names: &[&OsStr]) -> Option<OsString> {
    let names = names.iter().map(|name| name.as_bytes());
    let others: Vec<&[u8]> = names.filter(|name| !name.starts_with(PREFIX.as_bytes())).collect();
    (!others.is_empty()).then(|| OsString::from_vec(others.join(&(SEPARATOR as u8))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> EnvDisposition {
        disposition(OsStr::new(name), OsStr::new(value), Some(OsStr::new("MY_FD:OTHER")))
    }

    #[test]
    fn p03_removes_variables_that_name_fds() {
        let ours = ["PIPEWRIGHT_MESSAGES", "PIPEWRIGHT_CONTROL", "PIPEWRIGHT_CONTROL_KEY", HANDLES, "MY_FD", "OTHER"];
        let numbered = ["EINHORN_FD_0", "EINHORN_FD_COUNT", "EINHORN_SOCK_FD", "PUMA_INHERIT_0", "S6_FD#", "S6_FD_0"];
        for name in ours.into_iter().chain(NAMES).chain(numbered) {
            assert_eq!(of(name, "3"), EnvDisposition::Remove, "{name}");
        }
        for name in
            ["PIPEWRIGHT_TREE", "PATH", "MY", "MY_FD2", "NODE_OPTIONS", "LISTEN_ADDRESS", "GIT_DIR", "MAKELEVEL"]
        {
            assert_eq!(of(name, "3"), EnvDisposition::Keep, "{name}");
        }
        assert_eq!(disposition(OsStr::new("MY_FD"), OsStr::new("3"), None), EnvDisposition::Keep);
    }

    #[test]
    fn p03_removes_git_trace_to_fd() {
        for (value, expected) in [
            ("3", EnvDisposition::Remove),
            ("9", EnvDisposition::Remove),
            ("2", EnvDisposition::Keep),
            ("1", EnvDisposition::Keep),
        ] {
            assert_eq!(of("GIT_TRACE", value), expected);
            assert_eq!(of("GIT_TRACE2_EVENT", value), expected);
        }
        assert_eq!(of("GIT_TRACE", "/tmp/3"), EnvDisposition::Keep);
    }

    #[test]
    fn p03_removes_jobserver_of_every_variable() {
        for name in MAKE_FLAGS {
            assert_eq!(of(name, "k --jobserver-auth=3,4"), EnvDisposition::Replace("k".into()), "{name}");
            assert_eq!(of(name, "-j --jobserver-auth=3,4"), EnvDisposition::Remove, "{name}");
            assert_eq!(of(name, "-j"), EnvDisposition::Keep, "{name}");
        }
    }

    #[test]
    fn handles_lists_names_without_prefix() {
        assert_eq!(handles(&["PIPEWRIGHT_MESSAGES"].map(OsStr::new)), None);
        assert_eq!(handles(&["A", "PIPEWRIGHT_CONTROL", "B"].map(OsStr::new)), Some("A:B".into()));
    }
}
