//! Backpressure: when the streams of a worker are paused and resumed.

/// The cost of a message beyond its bytes: its event in the channel. Without it, a flood of one-byte messages would use many times
/// the window in memory.
pub(crate) const EVENT_BYTES: usize = 64;

/// How many bytes may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    limit: usize,
}

impl Window {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit }
    }

    fn is_exhausted(self, in_flight: usize) -> bool {
        in_flight >= self.limit
    }

    /// Whether half of the window is free. Resuming at every returned byte would pause again at once, at two system calls each.
    pub(crate) fn has_room(self, in_flight: usize) -> bool {
        in_flight <= self.limit / 2
    }
}

/// The windows of one worker and of its supervisor. Bytes are in flight from the read until the consumer drops the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowState {
    pub(crate) worker: Window,
    pub(crate) worker_in_flight: usize,
    pub(crate) supervisor: Window,
    pub(crate) supervisor_in_flight: usize,
    /// The bytes that this worker may have in flight even when the window of the supervisor is exhausted.
    pub(crate) share: usize,
    /// An event of this worker is still in the channel. A consumer that keeps messages but has emptied the channel is not
    /// stalled: pausing would make it wait for bytes that only it can free.
    pub(crate) unreceived: bool,
    /// An event of any worker is still in the channel.
    pub(crate) any_unreceived: bool,
}

impl WindowState {
    /// Whether the streams of this worker must not be read for now.
    pub(crate) fn must_pause(&self) -> bool {
        self.worker.is_exhausted(self.worker_in_flight) && self.unreceived
            || self.supervisor.is_exhausted(self.supervisor_in_flight)
                && self.any_unreceived
                && self.worker_in_flight >= self.share
    }

    /// Whether the streams of a paused worker may be read again.
    pub(crate) fn may_resume(&self) -> bool {
        (self.worker.has_room(self.worker_in_flight) || !self.unreceived)
            && (self.supervisor.has_room(self.supervisor_in_flight)
                || !self.any_unreceived
                || self.worker_in_flight < self.share / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(worker_in_flight: usize, supervisor_in_flight: usize, unreceived: bool) -> WindowState {
        let (worker, supervisor) = (Window::new(100), Window::new(1000));
        WindowState {
            worker,
            worker_in_flight,
            supervisor,
            supervisor_in_flight,
            share: 0,
            unreceived,
            any_unreceived: unreceived,
        }
    }

    #[test]
    fn p06_worker_pauses_when_its_window_is_exhausted() {
        assert!(!state(99, 99, true).must_pause());
        assert!(state(100, 100, true).must_pause());
        assert!(!state(51, 51, true).may_resume());
        assert!(state(50, 50, true).may_resume());
    }

    #[test]
    fn p07_every_worker_pauses_when_supervisor_window_is_exhausted() {
        assert!(state(1, 1000, true).must_pause());
        assert!(!state(1, 501, true).may_resume());
        assert!(state(1, 500, true).may_resume());
        let newcomer = WindowState { unreceived: false, ..state(0, 1000, true) };
        assert!(newcomer.must_pause(), "a worker that sent nothing yet pauses too: many of them would fill the memory");
        assert!(!newcomer.may_resume());
    }

    #[test]
    fn p06_consumer_that_keeps_messages_is_not_stalled() {
        assert!(!state(5000, 5000, false).must_pause());
        assert!(state(5000, 5000, false).may_resume());
    }

    #[test]
    fn p06_share_is_read_despite_other_workers() {
        let shared = |out| WindowState { share: 10, ..state(out, 2000, true) };
        assert!(!shared(9).must_pause() && shared(10).must_pause());
        assert!(!shared(5).may_resume() && shared(4).may_resume());
        assert!(WindowState { share: 10, ..state(100, 100, true) }.must_pause(), "its own window still applies");
    }

    proptest! {
        #[test]
        fn never_pauses_and_resumes_at_once(
            limit in 1..500_usize, share in 0..500_usize, out in 0..1000_usize, total in 0..1000_usize,
            unreceived: bool, others: bool,
        ) {
            let state = WindowState {
                share,
                worker: Window::new(limit), worker_in_flight: out,
                supervisor: Window::new(limit), supervisor_in_flight: total, unreceived,
                any_unreceived: unreceived || others,
            };
            prop_assert!(!(state.must_pause() && state.may_resume()), "{:?} would pause and resume in a loop", state);
        }
    }
}
