//! Reads the output streams of an incarnation, and pauses them while its window is used up.

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
            context::{FIRST_CHECK, IncarnationContext},
            output::Kind,
        },
        reactor::token::Token,
        spec::readiness::{Readiness, SEARCHED_BYTES},
    },
    sys::is_transient,
};
use std::time::Instant;

impl Incarnation {
    pub(crate) fn read_stream(&mut self, stream: StreamId, cx: &mut IncarnationContext<'_>) {
        // Before the read: otherwise each of a thousand workers could read once beyond the window of the supervisor.
        self.pause_if_used_up(cx);
        if self.output.paused {
            return;
        }
        // Searching output costs far more than passing it on, so less is read at once.
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
            self.channel_ended(stream, cx);
            self.input(LifecycleInput::StreamEnded(stream), cx);
        }
    }

    /// Unregisters a stream and closes it.
    pub(crate) fn forget_stream(&mut self, stream: StreamId, cx: &mut IncarnationContext<'_>) {
        if let Some(reader) = self.close(stream) {
            // Closing does not suffice: if a fork of the host holds the open file description, epoll would report it forever.
            drop(cx.reactor.poller.remove(&reader));
        }
    }

    fn pause_if_used_up(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.output.paused || !self.levels(cx.sink).must_pause() {
            return;
        }
        for reader in self.readers() {
            drop(cx.reactor.poller.remove(reader));
        }
        self.set_paused(true, cx);
        cx.reading.paused.push(self.key);
        cx.reading.next_check = FIRST_CHECK;
    }

    /// Resumes reading if the window has room again. False if not.
    pub(crate) fn try_resume_output(&mut self, cx: &mut IncarnationContext<'_>) -> bool {
        // The wakeup is requested before the check, so that no return of bytes is missed.
        self.shared.window.flow.wait_for_room();
        if !self.levels(cx.sink).may_resume() {
            return false;
        }
        self.set_paused(false, cx);
        self.reset_watchdog(LivenessSource::Messages, cx.reactor.clock.now());
        self.register_streams(cx);
        true
    }

    fn set_paused(&mut self, is_paused: bool, cx: &mut IncarnationContext<'_>) {
        self.output.paused = is_paused;
        if let Some(connection) = self.process.connection() {
            connection.set_output_paused(is_paused);
        }
        // The worker may not answer before its output is read.
        self.check_receipts(cx);
    }

    /// Registers all output streams.
    pub(crate) fn register_streams(&mut self, cx: &mut IncarnationContext<'_>) {
        for stream in StreamId::ALL {
            self.register(Token::Stream(self.key, stream), cx);
        }
    }

    /// Reads once. True at the end of the stream.
    pub(crate) fn read(&mut self, stream: StreamId, scratch: &mut [u8], sink: &mut EventSink) -> bool {
        self.read_some(stream, scratch, sink).is_some_and(|bytes| bytes == 0)
    }

    /// Records messages that were read as activity.
    pub(crate) fn note_messages(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.output.has_spoken) {
            let now = now();
            self.output.last_message = Some(now);
            self.record_activity(LivenessSource::Messages, now);
        }
    }

    /// Reads the bytes that an exited process has left in the stream, and no more, since a descendant may continue to write. True at the end
    /// of the stream.
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
        // The process has left no more: a further read finds the end, or output of a descendant.
        self.unread(stream) == 0 && self.read(stream, scratch, sink)
    }

    fn unread(&self, stream: StreamId) -> usize {
        let reader = self.output.readers.get(stream.index()).and_then(Option::as_ref);
        reader.map_or(0, |reader| reader.source.bytes_available().unwrap_or(0))
    }

    /// Reads once and returns the number of bytes: `Some(0)` at the end, `None` if nothing is available.
    fn read_some(&mut self, stream: StreamId, scratch: &mut [u8], sink: &mut EventSink) -> Option<usize> {
        let reader = self.output.readers.get_mut(stream.index())?.as_mut()?;
        let read = match reader.source.read(scratch) {
            Err(error) if is_transient(&error) => return None,
            // A pipe has no other errors, and a channel has one: a file descriptor came along. Any is handled as its end.
            read => read.unwrap_or(0),
        };
        let bytes = scratch.get(..read)?;
        if stream == self.spec.stderr_stream() {
            self.output.stderr.push(bytes);
        }
        if self.health.readiness.is_some() {
            self.output.recent.push(bytes);
        }
        if bytes.is_empty() {
            reader.deframer.finish(&mut sink.batch);
        } else {
            reader.deframer.feed(bytes, &mut sink.batch);
        }
        let kind = reader.kind;
        self.deliver(kind, sink);
        if let (Kind::Messages { .. }, 1..) = (kind, read) {
            self.output.has_spoken = true;
        }
        Some(read)
    }

    /// Gives up a stream that a descendant still holds open, and records it as leaked.
    pub(crate) fn abandon(&mut self, stream: StreamId, sink: &mut EventSink) {
        self.output.leaked.push(LeakedStream { stream: stream.name().into() });
        self.output.abandoned = self.pipes();
        if let Some(reader) = self.output.readers.get_mut(stream.index()).and_then(Option::as_mut) {
            reader.deframer.finish(&mut sink.batch);
            let kind = reader.kind;
            self.deliver(kind, sink);
        }
    }
}
