//! One living incarnation as the loop sees it: its streams, its window, its last words.

pub(crate) mod context;
pub(crate) mod control;
pub(crate) mod health;
pub(crate) mod health_checks;
pub(crate) mod message_probe;
pub(crate) mod output;
pub(crate) mod probe;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod transitions;
pub(crate) mod tree;
pub(crate) mod tree_exit;

use crate::{
    exit::{Exit, ExitStatus, LeakedStream},
    launch::child::{exit_status, usage},
    policy::{
        backpressure::{EVENT_BYTES, WindowState},
        lifecycle::{Lifecycle, LifecycleInput, StreamId, Timeouts},
        watchdog::LivenessSource,
    },
    supervisor::{
        commands::SpawnedProcess,
        containment::{cgroup_pool::WorkerCgroup, teardown::KILL_TIMEOUT},
        events::{
            event::{Event, EventKind, InvalidFrame},
            sink::EventSink,
            warning::Warning,
        },
        incarnation::{
            context::Context,
            health::{Health, Notifications},
            output::{Kind, Listener, OutputStreams, never_wait},
            session::ControlSession,
            tree::TreeExit,
        },
        reactor::{arena::Key, token::Token},
        spec::{
            SharedSpec,
            readiness::{SEARCH_BYTES_MAX, weight},
        },
        worker::{SharedWorker, process::WorkerProcess},
    },
    sys::{fd, is_transient, pidfd::Reaped},
    text::printable,
    wire::{
        credit::Permit,
        decode::check,
        framing::{
            batch::{FrameChunk, Span},
            error::FrameError,
        },
        message::{Chunk, Line, Message},
    },
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// How much longer a worker can make its stop by asking for it.
const MAX_STOP_EXTENSION: Duration = Duration::from_secs(60);

/// How many events the room that is kept between reads is for; more than a full pipe of 16-byte messages gives.
const READY_KEPT: usize = 4096;

#[derive(Debug)]
pub(crate) struct Incarnation {
    /// Its place in the arena of the event loop.
    pub(crate) key: Key,
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) process: Arc<WorkerProcess>,
    pub(crate) spec: SharedSpec,
    pub(crate) started: Instant,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) output: OutputStreams,
    /// The control connection, while there is one.
    pub(crate) session: Option<ControlSession>,
    pub(crate) health: Health,
    pub(crate) tree: TreeExit,
    /// It is stopped or killed by its supervisor.
    pub(crate) is_being_stopped: bool,
    /// Its last event has been sent.
    pub(crate) is_over: bool,
}

impl Incarnation {
    pub(crate) fn new(key: Key, arrival: SpawnedProcess) -> Self {
        let SpawnedProcess {
            shared,
            process,
            spec,
            started,
            starts_before,
            messages,
            stdout,
            stderr,
            readiness_pipe,
            notices,
            key: _,
        } = arrival;
        let streams = [
            messages.map(|pipe| Listener::new(StreamId::Messages, pipe, &spec)),
            stdout.map(|pipe| Listener::new(StreamId::Stdout, pipe, &spec)),
            stderr.map(|pipe| Listener::new(StreamId::Stderr, pipe, &spec)),
        ];
        let timeouts = Timeouts {
            drain_timeout: spec.drain_timeout,
            grace_periods: spec.stop.stages().iter().map(|stage| stage.grace_period).collect(),
            max_extension: MAX_STOP_EXTENSION,
            kill_timeout: KILL_TIMEOUT,
        };
        let open = streams.iter().flatten().map(|listener| listener.id);
        let health = Health {
            readiness_pipe: readiness_pipe.inspect(never_wait),
            notifications: Notifications { socket: notices, ..Notifications::default() },
            searched: Some(0),
            ..Health::default()
        };
        Self {
            key,
            shared,
            process,
            started,
            lifecycle: Lifecycle::new(open, timeouts),
            output: OutputStreams::new(streams, spec.stderr_tail),
            session: None,
            health,
            tree: TreeExit { starts_before, ..TreeExit::default() },
            spec,
            is_being_stopped: false,
            is_over: false,
        }
    }

    /// Whether its last event has been sent: nothing may be sent of it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Has the kernel report this descriptor. One that it refuses for want of something is tried again by timer: what happens
    /// meanwhile is reported then, since epoll is level-triggered.
    pub(crate) fn register(&mut self, token: Token, cx: &mut Context<'_>) {
        let added = if let Token::Control(_) = token {
            // A connection that has ended is open for a while still.
            self.session.as_ref().and_then(|_| self.process.connection()?.register())
        } else {
            self.with_descriptor(token, |descriptor| cx.reactor.poller.add(&descriptor, token.as_u64()))
        };
        let Some(refusal) = cx.reactor.note_registration(token, added) else { return };
        let is_final = refusal.is_final;
        cx.sink.send(Event::warning(Warning::from(refusal)));
        if is_final && matches!(token, Token::Process(_) | Token::Stream(..)) {
            // Its end, or its output, would never be noticed.
            self.input(LifecycleInput::WatchFailed, cx);
        }
    }

    /// Does something with what a token of this incarnation stands for; `None` where that is gone.
    pub(crate) fn with_descriptor<T>(
        &self,
        token: Token,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match token {
            Token::Process(_) => return self.process.with_process(run),
            Token::Stream(..) if self.output.paused => return None,
            Token::Stream(_, stream) => self.listeners().find(|listener| listener.id == stream)?.as_fd(),
            Token::ReadinessPipe(_) => self.health.readiness_pipe.as_ref()?.as_fd(),
            Token::NotifySocket(_) => self.health.notifications.socket.as_ref()?.as_fd(),
            Token::Control(_) => self.session.as_ref()?.as_fd(),
            // The first is looked for again by `wait_for`; the others are not of incarnations.
            Token::Orphan(_)
            | Token::Waker
            | Token::Listener
            | Token::Handshake(_)
            | Token::Unkillable(_)
            | Token::Guard => return None,
        };
        Some(run(descriptor))
    }

    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event::of(&self.shared, self.process.number(), kind)
    }

    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.output.readers.iter().flatten()
    }

    /// The pipes that may be held by others, by their inodes.
    pub(crate) fn pipes(&self) -> Vec<(u64, &'static str)> {
        let open =
            self.output.readers.iter().flatten().filter_map(|one| Some((fd::inode(one.as_fd()).ok()?, one.id.name())));
        let mut pipes: Vec<_> = open.chain(self.output.abandoned.iter().copied()).collect();
        pipes.sort_unstable();
        pipes.dedup();
        pipes
    }

    pub(crate) fn close(&mut self, stream: StreamId) -> Option<Listener> {
        self.output.readers.get_mut(stream.index())?.take()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.output.paused || self.session.as_ref().is_some_and(ControlSession::is_paused)
    }

    pub(crate) fn levels(&self, sink: &EventSink) -> WindowState {
        sink.levels_of(&self.shared)
    }

    /// Reads once. True at the end of the stream.
    pub(crate) fn read(&mut self, stream: StreamId, scratch: &mut [u8], sink: &mut EventSink) -> bool {
        self.read_some(stream, scratch, sink).is_some_and(|bytes| bytes == 0)
    }

    /// What it has sent is noted as a sign of life.
    pub(crate) fn note_messages(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.output.has_spoken) {
            let now = now();
            self.output.last_message = Some(now);
            self.record_activity(LivenessSource::Messages, now);
        }
    }

    /// Reads what an ended process has left in the stream, and no more than that: somebody it has started may go on writing
    /// for ever. True when that was the end.
    pub(crate) fn drain(&mut self, stream: StreamId, scratch: &mut [u8], sink: &mut EventSink) -> bool {
        let mut left = self.unread(stream);
        while left > 0 {
            let most = left.min(scratch.len());
            let Some(scratch) = scratch.get_mut(..most) else { return false };
            match self.read_some(stream, scratch, sink) {
                None => return false,
                Some(0) => return true,
                Some(bytes) => left = left.saturating_sub(bytes),
            }
        }
        // Nothing is left of its own: whatever comes now is the end, or somebody else's.
        self.unread(stream) == 0 && self.read(stream, scratch, sink)
    }

    fn unread(&self, stream: StreamId) -> usize {
        let listener = self.output.readers.get(stream.index()).and_then(Option::as_ref);
        listener.map_or(0, |listener| listener.pipe.bytes_available().unwrap_or(0))
    }

    /// How many bytes came: `Some(0)` at the end, `None` where there is nothing for now.
    fn read_some(&mut self, stream: StreamId, scratch: &mut [u8], sink: &mut EventSink) -> Option<usize> {
        let listener = self.output.readers.get_mut(stream.index())?.as_mut()?;
        let read = match listener.pipe.read_once(scratch) {
            Err(error) if is_transient(&error) => return None,
            // A pipe has no other errors to give. If it had one, nothing more would come.
            read => read.unwrap_or(0),
        };
        let bytes = scratch.get(..read)?;
        if stream == StreamId::Stderr {
            self.output.stderr.push(bytes);
        }
        if self.health.readiness.is_some() {
            self.output.recent.push(bytes);
        }
        if bytes.is_empty() {
            listener.deframer.finish(&mut sink.batch);
        } else {
            listener.deframer.feed(bytes, &mut sink.batch);
        }
        let kind = listener.kind;
        self.deliver(kind, sink);
        if let (Kind::Messages { .. }, 1..) = (kind, read) {
            self.output.has_spoken = true;
        }
        Some(read)
    }

    /// The stream is given up while somebody still holds it.
    pub(crate) fn abandon(&mut self, stream: StreamId, sink: &mut EventSink) {
        self.output.leaked.push(LeakedStream { stream: stream.name().into() });
        self.output.abandoned = self.pipes();
        if let Some(listener) = self.output.readers.get_mut(stream.index()).and_then(Option::as_mut) {
            listener.deframer.finish(&mut sink.batch);
            let kind = listener.kind;
            self.deliver(kind, sink);
        }
    }

    /// Sends what the last read has completed. The bytes go out of the window together, so that a chunk's messages can be
    /// received and dropped while the later ones are still being sent.
    fn deliver(&mut self, kind: Kind, sink: &mut EventSink) {
        let EventSink { events, sent, batch, ready, trace } = sink;
        if batch.is_empty() {
            return;
        }
        for piece in batch.drain() {
            let event = |kind| self.event(kind);
            // All of a chunk's events are made before the first is sent: see `Message::of`.
            match piece {
                FrameChunk::Error(fault) => ready.push(self.event(self.fault(fault))),
                FrameChunk::Frames { bytes, offset, spans } => {
                    let chunk = self.chunk(bytes, spans);
                    match kind {
                        Kind::Messages { check: false } => {
                            ready.extend(Message::of(chunk, spans).map(EventKind::Message).map(event));
                        }
                        Kind::Messages { check: true } => {
                            let messages = Message::of(chunk, spans).zip(spans);
                            let checked =
                                messages.map(|(message, span)| self.checked(message, offset + span.start() as u64));
                            ready.extend(checked.map(event));
                        }
                        Kind::Lines(stream) => {
                            ready.extend(Line::of(chunk, spans).map(|line| event(EventKind::Line { stream, line })));
                        }
                    }
                }
            }
            if self.health.readiness.is_some() {
                self.search(ready);
            }
            *sent += ready.len() as u64;
            for event in ready.drain(..) {
                trace.record_event(&event);
                // The supervisor holds a receiver until this loop has ended.
                drop(events.send(event));
            }
            ready.shrink_to(READY_KEPT);
        }
        self.shared.window.note_sent(*sent);
    }

    /// Looks for what makes it ready.
    fn search(&mut self, events: &[Event]) {
        let Some(ready) = self.spec.ready.as_ref().filter(|ready| ready.is_by_output()) else { return };
        let health = &mut self.health;
        let mut messages = Vec::new();
        for event in events {
            let length = match &event.kind {
                EventKind::Message(message) => message.len(),
                EventKind::Line { line, .. } => line.as_bytes().len(),
                _ => continue,
            };
            health.searched = health.searched.filter(|searched| *searched < SEARCH_BYTES_MAX);
            let Some(searched) = &mut health.searched else { break };
            *searched += weight(length);
            match &event.kind {
                EventKind::Message(message) if health.message_probe.is_some() => messages.push(message.clone()),
                EventKind::Line { line, .. } if ready.is_line(line) => {
                    health.shown = Some(ready.source());
                    return;
                }
                _ => {}
            }
        }
        if let (Some(message_probe), false) = (&mut health.message_probe, messages.is_empty()) {
            message_probe.show(messages);
        }
    }

    fn chunk(&self, bytes: Vec<u8>, spans: &[Span]) -> Arc<Chunk> {
        let permit = self.permit(bytes.capacity() + spans.len() * EVENT_BYTES);
        Chunk::new(bytes, permit)
    }

    fn permit(&self, bytes: usize) -> Permit {
        self.shared.window.flow.permit(bytes)
    }

    fn fault(&self, fault: FrameError) -> EventKind {
        let permit = self.permit(fault.excerpt.len() + size_of::<InvalidFrame>() + EVENT_BYTES);
        EventKind::InvalidFrame(Box::new(InvalidFrame { fault, _permit: permit }))
    }

    /// A message, if it is one; it began at this place in the stream.
    fn checked(&self, message: Message, offset: u64) -> EventKind {
        match check(message.as_bytes()) {
            Ok(()) => EventKind::Message(message),
            Err(kind) => self.fault(FrameError::new(kind, offset, message.len() as u64, message.as_bytes())),
        }
    }

    /// What it said last, before it was ready.
    pub(crate) fn take_last_words(&mut self) -> Box<str> {
        let words = self.output.recent.take();
        match &self.health.notifications.status {
            Some(status) if words.is_empty() => status.clone(),
            _ => printable(&words).lines().to_string().into(),
        }
    }

    pub(crate) fn exit(&mut self, reaped: Option<Reaped>, now: Instant) -> Exit {
        Exit {
            status: reaped.map_or(ExitStatus::Unknown, |reaped| exit_status(reaped.ending)),
            usage: reaped.and_then(|reaped| reaped.usage).map(usage),
            duration: now.saturating_duration_since(self.started),
            stderr_tail: self.output.stderr.take(),
            leaked_streams: std::mem::take(&mut self.output.leaked),
            oom_killed: self.process.tree().with_cgroup(WorkerCgroup::oom_killed).unwrap_or(false),
            survivors: std::mem::take(&mut self.tree.survivors),
            uninspected: self.tree.scan.uninspected,
        }
    }
}
