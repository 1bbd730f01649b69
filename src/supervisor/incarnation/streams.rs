//! The workers' streams in the loop: read, paused while too much is out, read again.

use crate::{
    exit::LeakedStream,
    policy::{
        lifecycle::{LifecycleInput, StreamId},
        watchdog::LivenessSource,
    },
    supervisor::{
        events::sink::EventSink,
        incarnation::{
            Incarnation,
            context::{Context, FIRST_CHECK},
            output::Kind,
        },
        reactor::token::Token,
        spec::readiness::{Readiness, SEARCHED_BYTES},
    },
    sys::is_transient,
};
use std::time::Instant;

impl Incarnation {
    pub(crate) fn read_stream(&mut self, stream: StreamId, cx: &mut Context<'_>) {
        // Before the read and not after it: otherwise each of a thousand workers could read once past their supervisor's window.
        self.pause_if_used_up(cx);
        if self.is_over() || self.output.paused {
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
            self.check_output_readiness(cx);
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
        if self.output.paused || !self.levels(cx.sink).must_pause() {
            return;
        }
        for listener in self.listeners() {
            drop(cx.reactor.poller.remove(listener));
        }
        self.output.paused = true;
        cx.reading.paused.push(self.key);
        cx.reading.next_check = FIRST_CHECK;
    }

    /// Reads on if there is room again. False if not.
    pub(crate) fn try_resume_output(&mut self, cx: &mut Context<'_>) -> bool {
        // First ask to be woken, then look: bytes that come back in between are seen by one or the other.
        self.shared.window.flow.wait_for_room();
        if !self.levels(cx.sink).may_resume() {
            return false;
        }
        self.output.paused = false;
        self.reset_watchdog(LivenessSource::Messages, cx.reactor.clock.now());
        self.listen_to(cx);
        true
    }

    /// Has a worker's streams reported.
    pub(crate) fn listen_to(&mut self, cx: &mut Context<'_>) {
        for stream in StreamId::ALL {
            self.register(Token::Stream(self.key, stream), cx);
        }
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
}
