//! The workers' streams in the loop: read, paused while too much is out, read again.

use crate::policy::{
    lifecycle::{Input, StreamId},
    watchdog::Life,
};
use crate::supervisor::spec::readiness::{Readiness, SEARCHED_BYTES};
use crate::supervisor::{
    event_loop::{Driver, FIRST_LOOK, LAST_LOOK},
    reactor::token::{Place, Target, live_at},
};
use std::mem;

impl Driver {
    pub(crate) fn read(&mut self, place: Place, stream: StreamId) {
        // Before the read and not after it: otherwise each of a thousand workers could read once past their supervisor's window.
        self.pause_if_used_up(place);
        let Some(live) = live_at(&mut self.slots, place).filter(|live| !live.paused) else { return };
        // What is looked through for a sign of readiness costs far more than what is passed on: a smaller share.
        let is_searched =
            live.health.readiness.is_some() && live.spec.ready.as_ref().is_some_and(Readiness::is_by_output);
        let share = if is_searched { SEARCHED_BYTES.min(self.scratch.len()) } else { self.scratch.len() };
        let Some(scratch) = self.scratch.get_mut(..share) else { return };
        let has_ended = live.read(stream, scratch, &mut self.outlet);
        live.note_messages(|| self.clock.now());
        if is_searched {
            self.look_at_signs(place);
        }
        if has_ended {
            self.forget_stream(place, stream);
            self.input(place, Input::StreamEnded(stream));
        }
    }

    /// Takes a stream out of the poller and closes it.
    pub(crate) fn forget_stream(&mut self, place: Place, stream: StreamId) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        if let Some(listener) = live.close(stream) {
            // Closing alone would not do: a fork of the host can hold the same description, and it would be reported for ever.
            drop(self.poller.remove(&listener));
        }
    }

    fn pause_if_used_up(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        if live.paused || !live.levels(&self.outlet).must_pause() {
            return;
        }
        for listener in live.listeners() {
            drop(self.poller.remove(listener));
        }
        live.paused = true;
        self.paused.push(place);
        self.next_look = FIRST_LOOK;
    }

    /// Goes on with whoever has room again.
    pub(crate) fn resume(&mut self) {
        let before = self.paused.len() + self.silent.len() + self.held_back.len();
        if before == 0 {
            return;
        }
        self.read_again();
        self.hear_again();
        self.restart_again();
        let has_resumed = self.paused.len() + self.silent.len() + self.held_back.len() < before;
        self.next_look = if has_resumed { FIRST_LOOK } else { (self.next_look * 2).min(LAST_LOOK) };
    }

    fn read_again(&mut self) {
        let now = self.clock.now();
        let mut paused = mem::take(&mut self.paused);
        let mut resumed = Vec::new();
        paused.retain(|&place| {
            let Some(live) = live_at(&mut self.slots, place) else { return false };
            // First ask to be woken, then look: bytes that come back in between are seen by one or the other.
            live.shared.account.meter.wait_for_room();
            if !live.levels(&self.outlet).may_resume() {
                return true;
            }
            live.paused = false;
            live.excuse(Life::Messages, now);
            resumed.push(place);
            false
        });
        self.paused = paused;
        for place in resumed {
            self.listen_to(place);
        }
    }

    /// Has a worker's streams reported.
    pub(crate) fn listen_to(&mut self, place: Place) {
        for stream in StreamId::ALL {
            self.register(Target::Stream(place, stream));
        }
    }
}
