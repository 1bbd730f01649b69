//! Errors of tunnels.

use crate::{
    exit::Exit,
    launch::error::SpawnError,
    pipe::named::{connect::ConnectError, name::NameError},
    text::printable_path,
};
use std::{io, path::Path, sync::Arc};

/// Why a tunnel could not be opened, a connection through it could not be made, or a stream has ended.
///
/// Reads and writes of a tunnel's stream return [`Ended`](Self::Ended) inside an [`io::Error`] of the kind
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The destination is not the name of a machine. ssh was not started.
    #[error("invalid ssh destination {destination:?}: {reason}")]
    InvalidDestination {
        /// The destination as it was given.
        destination: Box<str>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name of the remote pipe is invalid.
    #[error("invalid remote pipe name: {0}")]
    InvalidName(#[from] NameError),
    /// The ssh program could not be started.
    #[error("failed to start the ssh client: {0}")]
    Spawn(#[from] SpawnError),
    /// ssh has exited: the login failed, the connection was lost, or the process was killed.
    #[error("ssh terminated ({exit}): {}", last_line(&exit.stderr_text()))]
    Ended {
        /// How ssh exited; [`Exit::stderr_text`] has the last of its standard error.
        exit: Arc<Exit>,
    },
    /// The timeout expired.
    #[error("timed out waiting for ssh: {}", last_line(stderr))]
    TimedOut {
        /// The tail of ssh's standard error so far.
        stderr: Box<str>,
    },
    /// No server listens at the remote path, or ssh may not connect to it.
    #[error("cannot reach {} on the remote machine: {}", printable_path(path), last_line(stderr))]
    Unreachable {
        /// The remote path.
        path: Box<Path>,
        /// The tail of ssh's standard error, with the remote machine's reason.
        stderr: Box<str>,
    },
    /// The remote machine runs no commands, so its directory for plain names is unknown.
    #[error("failed to run a shell on the remote machine: {}", last_line(stderr))]
    NoShell {
        /// Standard error of the attempt.
        stderr: Box<str>,
    },
    /// ssh refused to forward the connection.
    #[error("ssh refused to forward the connection: {reason}")]
    ForwardingRefused {
        /// The reason that ssh gave.
        reason: Box<str>,
    },
    /// The connection was made, but does not meet the options.
    #[error("remote server does not match the connect options: {0}")]
    Connect(#[source] ConnectError),
    /// A system call failed.
    #[error("tunnel failed: {0}")]
    Os(#[from] io::Error),
}

impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> Self {
        let kind = match &error {
            TunnelError::InvalidDestination { .. } | TunnelError::InvalidName(_) => io::ErrorKind::InvalidInput,
            TunnelError::Ended { .. } => io::ErrorKind::ConnectionAborted,
            TunnelError::TimedOut { .. } => io::ErrorKind::TimedOut,
            TunnelError::Unreachable { .. } => io::ErrorKind::NotFound,
            TunnelError::NoShell { .. } | TunnelError::ForwardingRefused { .. } => io::ErrorKind::PermissionDenied,
            TunnelError::Spawn(SpawnError::Failed { source, .. }) | TunnelError::Os(source) => source.kind(),
            TunnelError::Spawn(_) | TunnelError::Connect(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The line that fits into an error's text; the error's fields have the rest.
fn last_line(stderr: &str) -> &str {
    stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message from ssh")
}
