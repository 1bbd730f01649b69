//! The workers' streams in the loop: read, paused while too much is out, read again.

use crate::{
    pipe::anonymous::ends::PipeReader,
    policy::{
        lifecycle::{LifecycleInput, StreamId},
        watchdog::LivenessSource,
    },
    supervisor::{
        events::event::OutputStream,
        incarnation::{
            Live, MAX_LINE,
            context::{Context, FIRST_LOOK},
        },
        reactor::token::Target,
        spec::{
            MessageSource, WorkerSpec,
            readiness::{Readiness, SEARCHED_BYTES},
        },
    },
    sys::fd,
    wire::framing::deframer::Deframer,
};
use std::os::fd::{AsFd, BorrowedFd};

impl Live {
    pub(crate) fn read_stream(&mut self, stream: StreamId, cx: &mut Context<'_>) {
        // Before the read and not after it: otherwise each of a thousand workers could read once past their supervisor's window.
        self.pause_if_used_up(cx);
        if self.is_over() || self.paused {
            return;
        }
        // What is looked through for a sign of readiness costs far more than what is passed on: a smaller share.
        let is_searched =
            self.health.readiness.is_some() && self.spec.ready.as_ref().is_some_and(Readiness::is_by_output);
        let share = if is_searched { SEARCHED_BYTES.min(cx.reading.scratch.len()) } else { cx.reading.scratch.len() };
        let Some(scratch) = cx.reading.scratch.get_mut(..share) else { return };
        let has_ended = self.read(stream, scratch, cx.sink);
        self.note_messages(|| cx.reactor.clock.now());
        if is_searched {
            self.look_at_signs(cx);
        }
        if has_ended {
            self.forget_stream(stream, cx);
            self.input(LifecycleInput::StreamEnded(stream), cx);
        }
    }

    /// Takes a stream out of the poller and closes it.
    pub(crate) fn forget_stream(&mut self, stream: StreamId, cx: &mut Context<'_>) {
        if let Some(listener) = self.close(stream) {
            // Closing alone would not do: a fork of the host can hold the same description, and it would be reported for ever.
            drop(cx.reactor.poller.remove(&listener));
        }
    }

    fn pause_if_used_up(&mut self, cx: &mut Context<'_>) {
        if self.paused || !self.levels(cx.sink).must_pause() {
            return;
        }
        for listener in self.listeners() {
            drop(cx.reactor.poller.remove(listener));
        }
        self.paused = true;
        cx.reading.paused.push(self.key);
        cx.reading.next_look = FIRST_LOOK;
    }

    /// Reads on if there is room again. False if not.
    pub(crate) fn may_read_again(&mut self, cx: &mut Context<'_>) -> bool {
        // First ask to be woken, then look: bytes that come back in between are seen by one or the other.
        self.shared.window.flow.wait_for_room();
        if !self.levels(cx.sink).may_resume() {
            return false;
        }
        self.paused = false;
        self.reset_watchdog(LivenessSource::Messages, cx.reactor.clock.now());
        self.listen_to(cx);
        true
    }

    /// Has a worker's streams reported.
    pub(crate) fn listen_to(&mut self, cx: &mut Context<'_>) {
        for stream in StreamId::ALL {
            self.register(Target::Stream(self.key, stream), cx);
        }
    }
}

/// What the bytes of a stream are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Messages { check: bool },
    Lines(OutputStream),
}

/// One stream that is read.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: StreamId,
    pub(crate) kind: Kind,
    pub(crate) pipe: PipeReader,
    pub(crate) deframer: Deframer,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Listener {
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
            let stream = if id == StreamId::Stdout { OutputStream::Stdout } else { OutputStream::Stderr };
            (Kind::Lines(stream), Deframer::text(MAX_LINE))
        };
        never_wait(&pipe);
        Self { id, kind, pipe, deframer }
    }
}

/// Our end alone: the two ends of a pipe have a description each, so the child's writes still block.
pub(crate) fn never_wait(pipe: &PipeReader) {
    // Refused for no descriptor that is open.
    drop(fd::set_nonblocking(pipe.as_fd()));
}
