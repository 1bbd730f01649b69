//! The output streams of one incarnation, and the bytes that are kept of them.

use crate::{
    exit::LeakedStream,
    launch::stdio::OutputMode,
    pipe::anonymous::ends::PipeReader,
    policy::lifecycle::StreamId,
    supervisor::{
        events::event::OutputStream,
        incarnation::tail::Ends,
        spec::{MessageSource, WorkerSpec},
    },
    sys::fd,
    wire::framing::deframer::Deframer,
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

/// The longest line of a captured standard stream, in bytes; longer lines are split.
const MAX_LINE: usize = 64 << 10;

/// How many bytes of recent output are reported when a worker does not become ready.
const RECENT_OUTPUT_MAX: usize = 2 << 10;

/// The output streams of an incarnation that are read, and the bytes that are kept of them.
#[derive(Debug)]
pub(crate) struct OutputStreams {
    pub(crate) readers: [Option<OutputReader>; StreamId::ALL.len()],
    /// The streams are not read, since the window is used up.
    pub(crate) paused: bool,
    /// Messages were read since the last check.
    pub(crate) has_spoken: bool,
    pub(crate) last_message: Option<Instant>,
    /// Pipes that were closed while other processes held them, by their inodes.
    pub(crate) abandoned: Vec<(u64, &'static str)>,
    /// The first and last bytes of standard error.
    pub(crate) stderr: Ends,
    /// The first and last bytes of all output before the worker was ready.
    pub(crate) recent: Ends,
    pub(crate) leaked: Vec<LeakedStream>,
}

impl OutputStreams {
    pub(crate) fn new(readers: [Option<OutputReader>; StreamId::ALL.len()], stderr_tail: usize) -> Self {
        Self {
            readers,
            paused: false,
            has_spoken: false,
            last_message: None,
            abandoned: Vec::new(),
            stderr: Ends::of(stderr_tail),
            recent: Ends::of(RECENT_OUTPUT_MAX),
            leaked: Vec::new(),
        }
    }
}

/// The content of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Messages { check: bool },
    Lines(OutputStream),
    Bytes(OutputStream),
}

/// One output stream.
#[derive(Debug)]
pub(crate) struct OutputReader {
    pub(crate) id: StreamId,
    pub(crate) kind: Kind,
    pub(crate) pipe: PipeReader,
    pub(crate) deframer: Deframer,
}

impl AsFd for OutputReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl OutputReader {
    pub(crate) fn new(id: StreamId, pipe: PipeReader, spec: &WorkerSpec) -> Self {
        let messages = match id {
            StreamId::Messages => true,
            StreamId::Stdout => spec.messages == MessageSource::Stdout,
            StreamId::Stderr => spec.messages == MessageSource::Stderr,
        };
        let (kind, deframer) = if messages {
            let check = spec.validate_json || spec.framing.announces_sizes();
            (Kind::Messages { check }, Deframer::new(spec.framing, spec.max_message_size))
        } else {
            let (stream, mode) = match id {
                StreamId::Stdout => (OutputStream::Stdout, &spec.plan.stdout),
                StreamId::Messages | StreamId::Stderr => (OutputStream::Stderr, &spec.plan.stderr),
            };
            match mode {
                OutputMode::Bytes => (Kind::Bytes(stream), Deframer::bytes()),
                _ => (Kind::Lines(stream), Deframer::text(MAX_LINE)),
            }
        };
        set_nonblocking(&pipe);
        Self { id, kind, pipe, deframer }
    }
}

/// Makes the reading end nonblocking. Each end of a pipe has its own open file description, so the writes of the child still block.
pub(crate) fn set_nonblocking(pipe: &PipeReader) {
    // Cannot fail for an open file descriptor.
    drop(fd::set_nonblocking(pipe.as_fd()));
}
