//! Why there is no tunnel, or no connection through it.

use crate::{
    exit::Exit,
    launch::error::SpawnError,
    pipe::named::{connect::ConnectError, name::NameError},
    text::printable_path,
};
use std::{io, path::Path, sync::Arc};

/// Why there is no tunnel, or no connection through it, or none any more.
///
/// Reads and writes of a tunnel's stream give [`Ended`](Self::Ended) inside an [`io::Error`] of the kind
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// Not the name of a machine. Nothing was started.
    #[error("{destination:?} is no destination for ssh: {found}")]
    Destination {
        /// The text as it was given.
        destination: Box<str>,
        /// What is wrong with it.
        found: &'static str,
    },
    /// Not the name of a pipe.
    #[error("this cannot be the name of a pipe on another machine: {0}")]
    Name(#[from] NameError),
    /// The ssh program could not be started.
    #[error("cannot start the ssh client: {0}")]
    Spawn(#[from] SpawnError),
    /// ssh has ended: it never got there, or it lost the other machine, or somebody ended it.
    #[error("ssh has ended ({exit}): {}", last_line(&exit.stderr_text()))]
    Ended {
        /// How it ended, and the last of what it said: [`Exit::stderr_text`].
        exit: Arc<Exit>,
    },
    /// Not done within the time.
    #[error("nothing came through ssh within the time; it said: {}", last_line(said))]
    TimedOut {
        /// The last of what ssh said so far.
        said: Box<str>,
    },
    /// The other machine has no server there, or does not let us reach it.
    #[error("no connection to {} on the other machine; ssh said: {}", printable_path(path), last_line(said))]
    NotReached {
        /// The path there.
        path: Box<Path>,
        /// The last of what ssh said, with the other machine's reason.
        said: Box<str>,
    },
    /// Commands cannot be run on the other machine, so nobody knows its directories.
    #[error("the other machine does not run a shell for us: {}", last_line(said))]
    NoShell {
        /// What the other machine said.
        said: Box<str>,
    },
    /// ssh does not forward the connection.
    #[error("ssh refused to forward: {reason}")]
    Refused {
        /// Its reason.
        reason: Box<str>,
    },
    /// The connection was made and is not what the options want.
    #[error("the server on the other machine does not suit: {0}")]
    Connect(#[source] ConnectError),
    /// The system refused.
    #[error("cannot use the tunnel: {0}")]
    Os(#[from] io::Error),
}

impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> Self {
        let kind = match &error {
            TunnelError::Destination { .. } | TunnelError::Name(_) => io::ErrorKind::InvalidInput,
            TunnelError::Ended { .. } => io::ErrorKind::ConnectionAborted,
            TunnelError::TimedOut { .. } => io::ErrorKind::TimedOut,
            TunnelError::NotReached { .. } => io::ErrorKind::NotFound,
            TunnelError::NoShell { .. } | TunnelError::Refused { .. } => io::ErrorKind::PermissionDenied,
            TunnelError::Spawn(SpawnError::Failed { source, .. }) | TunnelError::Os(source) => source.kind(),
            TunnelError::Spawn(_) | TunnelError::Connect(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// For one line of an error; the whole is in its fields.
fn last_line(said: &str) -> &str {
    said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing")
}
