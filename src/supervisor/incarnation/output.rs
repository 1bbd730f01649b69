//! The output streams of one incarnation, and the bytes that are kept of them.

use crate::{
    exit::LeakedStream,
    launch::{kept_output::KeptOutput, stdio::OutputMode},
    pipe::anonymous::ends::PipeReader,
    policy::lifecycle::StreamId,
    supervisor::{
        control::rpc_socket::RpcSocket,
        events::event::OutputStream,
        spec::{MessageSource, WorkerSpec, control_source::ControlSource},
    },
    sys::{fd, fifo, terminal},
    wire::framing::deframer::Deframer,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
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
    pub(crate) stderr: KeptOutput,
    /// The first and last bytes of all output before the worker was ready.
    pub(crate) recent: KeptOutput,
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
            stderr: KeptOutput::of(stderr_tail),
            recent: KeptOutput::of(RECENT_OUTPUT_MAX),
            leaked: Vec::new(),
        }
    }
}

/// The content of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Messages {
        check: bool,
        /// Some messages are Node's own.
        has_internal: bool,
    },
    Lines(OutputStream),
    Bytes(OutputStream),
}

/// What a stream is read from.
#[derive(Debug)]
pub(crate) enum OutputSource {
    Pipe(PipeReader),
    /// Our side of a pseudo-terminal.
    Terminal(PipeReader),
    /// Node's channel, which can carry file descriptors.
    Channel(Arc<RpcSocket>),
}

impl OutputSource {
    /// What a stream with this mode is read from.
    pub(crate) fn of(pipe: PipeReader, mode: &OutputMode) -> Self {
        if mode.is_terminal() { Self::Terminal(pipe) } else { Self::Pipe(pipe) }
    }

    /// Reads once. Never blocks.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) | Self::Terminal(pipe) => pipe.read_once(buffer),
            Self::Channel(socket) => socket.stream.receive(buffer),
        }
    }

    /// The most bytes that can be read now.
    pub(crate) fn bytes_available(&self) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.bytes_available(),
            // FIONREAD does not count what the kernel is still passing on. A read returns that, too.
            Self::Terminal(_) => Ok(terminal::BUFFERED_BYTES_MAX),
            Self::Channel(socket) => fifo::unread(socket.as_fd()),
        }
    }
}

/// One output stream.
#[derive(Debug)]
pub(crate) struct OutputReader {
    pub(crate) id: StreamId,
    pub(crate) kind: Kind,
    pub(crate) source: OutputSource,
    pub(crate) deframer: Deframer,
}

impl AsFd for OutputReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            OutputSource::Pipe(pipe) | OutputSource::Terminal(pipe) => pipe.as_fd(),
            OutputSource::Channel(socket) => socket.as_fd(),
        }
    }
}

impl OutputReader {
    pub(crate) fn new(id: StreamId, source: OutputSource, spec: &WorkerSpec) -> Self {
        let messages = match id {
            StreamId::Messages => true,
            StreamId::Stdout => spec.messages == MessageSource::Stdout,
            StreamId::Stderr => spec.messages == MessageSource::Stderr,
        };
        let (kind, deframer) = if messages {
            let check = spec.validate_json || spec.framing.announces_sizes();
            let has_internal = spec.control == ControlSource::NodeChannel;
            (Kind::Messages { check, has_internal }, Deframer::new(spec.framing, spec.max_message_size))
        } else {
            let (stream, mode) = match id {
                StreamId::Stdout => (OutputStream::Stdout, &spec.plan.stdout),
                StreamId::Messages | StreamId::Stderr => (OutputStream::Stderr, &spec.plan.stderr),
            };
            if mode.is_in_lines() {
                (Kind::Lines(stream), Deframer::text(MAX_LINE))
            } else {
                (Kind::Bytes(stream), Deframer::bytes())
            }
        };
        if let OutputSource::Pipe(pipe) = &source {
            set_nonblocking(pipe);
        }
        Self { id, kind, source, deframer }
    }
}

/// Makes the reading end nonblocking. Each end of a pipe has its own open file description, so the writes of the child still block.
pub(crate) fn set_nonblocking(pipe: &PipeReader) {
    // Cannot fail for an open file descriptor.
    drop(fd::set_nonblocking(pipe.as_fd()));
}
