//! Filters the host's environment variables that a child inherits.
//!
//! A child has fds 0, 1, 2 and those that its spec passes. A variable that names another fd is wrong there: the number is closed or
//! has another purpose. A `make` that takes a worker's message pipe for its jobserver writes tokens into it, and a Node program
//! that takes it for its IPC channel aborts. Such variables are removed, unless the spec or the user's own `Command` sets them.
//! `docs/protocol.md`, "Variables that are removed", lists them.

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

/// Variables with options of `make` and compatible programs, which may name a jobserver.
const MAKE_FLAGS: [&str; 4] = ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS", "GNUMAKEFLAGS"];

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

/// Removes the options that name a jobserver; `None` if there are none. Everything else stays unchanged, including blanks.
///
/// `-jN` stays: a `make` that reads it has N slots of its own. A bare `-j`, which older versions of `make` and cargo add next to the
/// jobserver, is removed: alone it would mean an unlimited number of jobs. After `--`, words define variables.
fn without_jobserver(flags: &[u8]) -> Option<Vec<u8>> {
    let pieces = pieces(flags);
    let end = pieces.iter().position(|piece| word(piece) == b"--").unwrap_or(pieces.len());
    let (options, definitions) = pieces.split_at_checked(end)?;
    if !options.iter().any(|piece| is_jobserver(word(piece))) {
        return None;
    }
    let is_number = |piece: &&[u8]| word(piece).first().is_some_and(u8::is_ascii_digit);
    let kept = options.iter().enumerate().filter(|(at, piece)| {
        let is_bare = matches!(word(piece), b"-j" | b"--jobs") && !options.get(at + 1).is_some_and(&is_number);
        !is_bare && !is_jobserver(word(piece))
    });
    let rest: Vec<u8> = kept.map(|(_, piece)| *piece).chain(definitions.iter().copied()).flatten().copied().collect();
    Some(if rest.iter().all(|&byte| is_blank(byte)) { Vec::new() } else { rest })
}

fn is_jobserver(word: &[u8]) -> bool {
    [&b"--jobserver-auth="[..], b"--jobserver-fds="].iter().any(|option| word.starts_with(option))
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Splits the text into words, each with its preceding blanks; the last piece may be blanks only. A backslash escapes the next byte,
/// as `make` writes a blank inside a word.
fn pieces(text: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut length = rest.iter().take_while(|byte| is_blank(**byte)).count();
        while let Some(&byte) = rest.get(length).filter(|byte| !is_blank(**byte)) {
            length += if byte == b'\\' { 2 } else { 1 };
        }
        let (piece, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        pieces.push(piece);
        rest = others;
    }
    pieces
}

fn word(piece: &[u8]) -> &[u8] {
    let blanks = piece.iter().take_while(|byte| is_blank(**byte)).count();
    piece.get(blanks..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(name: &str, value: &str) -> EnvDisposition {
        disposition(OsStr::new(name), OsStr::new(value), Some(OsStr::new("MY_FD:OTHER")))
    }

    fn flags(value: &str) -> Option<String> {
        without_jobserver(value.as_bytes()).map(|rest| String::from_utf8(rest).unwrap())
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
    fn p03_removes_jobserver_and_keeps_other_flags() {
        for (given, expected) in [
            (" -j3 --jobserver-auth=3,4", Some(" -j3")),
            ("k -j3 --jobserver-auth=fifo:/tmp/GMfifo17", Some("k -j3")),
            ("w --jobserver-fds=3,4 -j -- CC=gcc", Some("w -- CC=gcc")),
            ("-j --jobserver-fds=3,4 --jobserver-auth=3,4", Some("")),
            ("--jobserver-auth=3,4 -j 4", Some(" -j 4")),
            (
                "rk -j3 --jobserver-auth=3,4 --sync-mutex=fnm:/tmp/GM1 -- A=b\\ --jobserver-auth=c",
                Some("rk -j3 --sync-mutex=fnm:/tmp/GM1 -- A=b\\ --jobserver-auth=c"),
            ),
            ("-I a\\ --jobserver-auth=3,4", None),
            ("-- A=b --jobserver-auth=3,4", None),
            ("-j --jobserver-style=pipe", None),
            ("", None),
            ("\\", None),
        ] {
            assert_eq!(flags(given).as_deref(), expected, "{given:?}");
        }
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

    /// Words of `MAKEFLAGS`, with and without a jobserver.
    fn any_flags() -> impl Strategy<Value = Vec<String>> {
        let word = prop_oneof![
            Just("--jobserver-auth=3,4".to_owned()),
            Just("--jobserver-auth=fifo:/tmp/a\\ b".to_owned()),
            Just("--jobserver-fds=10,11".to_owned()),
            Just("-j3".to_owned()),
            Just("-j".to_owned()),
            Just("--".to_owned()),
            "[a-zA-Z=/-]([a-z]|\\\\ ){0,5}",
        ];
        proptest::collection::vec(word, 0..8)
    }

    proptest! {
        #[test]
        fn p03_removes_only_words_of_jobserver(words in any_flags(), blanks in "[ \t]{1,3}") {
            let text = words.join(&blanks);
            let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
            let is_jobserver = |word: &String| word.starts_with("--jobserver-");
            let has_one = words[..end].iter().any(is_jobserver);
            // A bare -j is removed together with a jobserver.
            let is_removed = |word: &String| is_jobserver(word) || (has_one && word == "-j");
            let is_kept = |(at, word): (usize, &String)| (at >= end || !is_removed(word)).then(|| word.clone());
            let expected: Vec<String> = words.iter().enumerate().filter_map(is_kept).collect();
            match without_jobserver(text.as_bytes()) {
                None => prop_assert_eq!(expected, words),
                Some(rest) => {
                    let rest = String::from_utf8(rest).unwrap();
                    prop_assert_eq!(rest.trim_start_matches([' ', '\t']), expected.join(&blanks));
                    prop_assert_eq!(without_jobserver(rest.as_bytes()), None);
                }
            }
        }

        #[test]
        fn pieces_concatenate_to_original_text(text: Vec<u8>) {
            prop_assert_eq!(pieces(&text).concat(), text);
        }
    }
}
