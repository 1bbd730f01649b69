//! Why a program has no parent, and why a message was not sent.

use crate::{pipe::anonymous::handle::HandleError, text::printable};
use std::io;

/// Why a program has no [`Parent`](crate::Parent).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParentError {
    /// Neither the arguments nor the environment name a pipe: most likely a human started the worker.
    #[error(
        "{program} is a worker: another program starts it and gives it a pipe for messages (`--messages=3` or \
         $PIPEWRIGHT_MESSAGES), the address of a control connection (`--control=PATH` or $PIPEWRIGHT_CONTROL) or both; to \
         try it by hand, set PIPEWRIGHT_STANDALONE=1: it then writes messages and answers to standard output and reads \
         requests from standard input, each a line of JSON"
    )]
    NotAWorker {
        /// The name of this program.
        program: Box<str>,
    },
    /// The environment variable that should hold the number of the pipe is not set.
    #[error(
        "${name} should hold the number of the pipe for messages, but it is not set: the program is a worker, which another \
         program starts; to try it by hand, set PIPEWRIGHT_STANDALONE=1, and it writes its messages to standard output"
    )]
    MissingVariable {
        /// The variable.
        name: Box<str>,
    },
    /// A handle is named, but it is not that of a pipe for messages.
    #[error("cannot send messages through the handle given as {given}: {source}")]
    InvalidHandle {
        /// The argument or variable, with its value: `--messages=7`.
        given: Box<str>,
        /// The reason.
        source: HandleError,
    },
    /// A control pipe is named, but the parent refused the connection: the key is not valid, or was used before, or the parent speaks
    /// another version of the protocol.
    #[error("the parent at the address given as {given} refused this worker: {}", printable(&**.reason))]
    Refused {
        /// The argument or variable, with the path and without the key: `--control=/run/…`.
        given: Box<str>,
        /// The reason that the parent gives.
        reason: Box<str>,
    },
    /// `PIPEWRIGHT_STANDALONE` is 1, but requests cannot be read from standard input.
    #[error("cannot read requests from standard input, as $PIPEWRIGHT_STANDALONE demands: {0}")]
    Standalone(#[source] io::Error),
    /// A control pipe is named, but the connection to it failed.
    #[error("cannot reach the parent at the address given as {given}: {source}")]
    ControlUnavailable {
        /// The argument or variable, with the path and without the key: `--control=/run/…`.
        given: Box<str>,
        /// The reason.
        source: io::Error,
    },
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The parent has exited or no longer reads. No message can be sent any more: most workers exit here.
    #[error("the parent is gone, or no longer reads messages")]
    ParentGone,
    /// The value cannot be serialized as JSON. Nothing was written, and other values can be sent.
    #[error("the message cannot be written as JSON: {}", printable(&.0.to_string()))]
    Encode(#[source] serde_json::Error),
    /// The parent has given this worker no pipe for messages.
    #[error("this worker was given no pipe for messages")]
    NoMessages,
    /// Writing to the pipe failed.
    #[error("the message could not be written to the parent: {0}")]
    Io(#[source] io::Error),
}

const _: () = assert!(size_of::<ParentError>() <= 64);
const _: () = assert!(size_of::<SendError>() <= 16);

impl From<ParentError> for io::Error {
    fn from(error: ParentError) -> Self {
        let kind = match &error {
            ParentError::InvalidHandle { .. } => io::ErrorKind::InvalidInput,
            ParentError::NotAWorker { .. } | ParentError::MissingVariable { .. } => io::ErrorKind::NotFound,
            ParentError::Refused { .. } => io::ErrorKind::PermissionDenied,
            ParentError::ControlUnavailable { source, .. } | ParentError::Standalone(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match &error {
            SendError::ParentGone => io::ErrorKind::BrokenPipe,
            SendError::Encode(_) => io::ErrorKind::InvalidInput,
            SendError::NoMessages => io::ErrorKind::NotConnected,
            SendError::Io(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
