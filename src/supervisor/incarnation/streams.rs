//! The workers' streams in the loop: read, paused while too much is out, read again.

use crate::{
    pipe::anonymous::ends::PipeReader,
    policy::{
        lifecycle::{LifecycleInput, StreamId},
        watchdog::LivenessSource,
    },
    supervisor::{
        event_loop::{Driver, FIRST_LOOK, LAST_LOOK},
        events::event::OutputStream,
        incarnation::MAX_LINE,
        reactor::{
            arena::{Place, live_at},
            token::Target,
        },
        spec::{
            MessageSource, WorkerSpec,
            readiness::{Readiness, SEARCHED_BYTES},
        },
    },
    sys::fd,
    wire::framing::deframer::Deframer,
};
use std::{
    mem,
    os::fd::{AsFd, BorrowedFd},
};

impl Driver {
    pub(crate) fn read(&mut self, place: Place, stream: StreamId) {
        // Before the read and not after it: otherwise each of a thousand workers could read once past their supervisor's window.
        self.pause_if_used_up(place);
        let Some(live) = live_at(&mut self.incarnations.slots, place).filter(|live| !live.paused) else { return };
        // What is looked through for a sign of readiness costs far more than what is passed on: a smaller share.
        let is_searched =
            live.health.readiness.is_some() && live.spec.ready.as_ref().is_some_and(Readiness::is_by_output);
        let share = if is_searched {
            SEARCHED_BYTES.min(self.incarnations.scratch.len())
        } else {
            self.incarnations.scratch.len()
        };
        let Some(scratch) = self.incarnations.scratch.get_mut(..share) else { return };
        let has_ended = live.read(stream, scratch, &mut self.outlet);
        live.note_messages(|| self.reactor.clock.now());
        if is_searched {
            self.look_at_signs(place);
        }
        if has_ended {
            self.forget_stream(place, stream);
            self.input(place, LifecycleInput::StreamEnded(stream));
        }
    }

    /// Takes a stream out of the poller and closes it.
    pub(crate) fn forget_stream(&mut self, place: Place, stream: StreamId) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(listener) = live.close(stream) {
            // Closing alone would not do: a fork of the host can hold the same description, and it would be reported for ever.
            drop(self.reactor.poller.remove(&listener));
        }
    }

    fn pause_if_used_up(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.paused || !live.levels(&self.outlet).must_pause() {
            return;
        }
        for listener in live.listeners() {
            drop(self.reactor.poller.remove(listener));
        }
        live.paused = true;
        self.incarnations.paused.push(place);
        self.incarnations.next_look = FIRST_LOOK;
    }

    /// Goes on with whoever has room again.
    pub(crate) fn resume(&mut self) {
        let before = self.incarnations.paused.len() + self.incarnations.silent.len() + self.supervision.held_back.len();
        if before == 0 {
            return;
        }
        self.read_again();
        self.hear_again();
        self.restart_again();
        let has_resumed =
            self.incarnations.paused.len() + self.incarnations.silent.len() + self.supervision.held_back.len() < before;
        self.incarnations.next_look =
            if has_resumed { FIRST_LOOK } else { (self.incarnations.next_look * 2).min(LAST_LOOK) };
    }

    fn read_again(&mut self) {
        let now = self.reactor.clock.now();
        let mut paused = mem::take(&mut self.incarnations.paused);
        let mut resumed = Vec::new();
        paused.retain(|&place| {
            let Some(live) = live_at(&mut self.incarnations.slots, place) else { return false };
            // First ask to be woken, then look: bytes that come back in between are seen by one or the other.
            live.shared.account.meter.wait_for_room();
            if !live.levels(&self.outlet).may_resume() {
                return true;
            }
            live.paused = false;
            live.reset_watchdog(LivenessSource::Messages, now);
            resumed.push(place);
            false
        });
        self.incarnations.paused = paused;
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
