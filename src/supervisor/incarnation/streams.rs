//! The workers' streams in the loop: read, paused while too much is out, read again.

use crate::{
    policy::{
        lifecycle::{LifecycleInput, StreamId},
        watchdog::LivenessSource,
    },
    supervisor::{
        incarnation::{
            Incarnation,
            context::{Context, FIRST_CHECK},
        },
        reactor::token::Token,
        spec::readiness::{Readiness, SEARCHED_BYTES},
    },
};

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
}
