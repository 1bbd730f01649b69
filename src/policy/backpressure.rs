//! When a worker is made to wait: bytes that are out and bytes that came back.

/// What a message costs beside its bytes: the event in the channel. Without it a flood of one-byte messages would cost the
/// parent many times its window.
pub(crate) const EVENT_BYTES: usize = 64;

/// How many bytes may be out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    limit: usize,
}

impl Window {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit }
    }

    fn is_used_up(self, out: usize) -> bool {
        out >= self.limit
    }

    /// Half has come back. Resuming at every byte would pause again at once, with two system calls each time.
    pub(crate) fn has_room_again(self, out: usize) -> bool {
        out <= self.limit / 2
    }
}

/// The state of one worker's window and of its supervisor's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Levels {
    pub(crate) worker: Window,
    pub(crate) worker_out: usize,
    pub(crate) supervisor: Window,
    pub(crate) supervisor_out: usize,
    /// So little of this worker may be out whatever others have out.
    pub(crate) share: usize,
    /// Something of this worker's is still in the channel. A consumer that keeps what it received but has emptied the
    /// channel is not stalled: it could wait for ever for bytes that only it could free.
    pub(crate) unreceived: bool,
    /// Something of anybody's is.
    pub(crate) any_unreceived: bool,
}

impl Levels {
    /// Whether this worker's streams are not to be read for now.
    pub(crate) fn must_pause(&self) -> bool {
        self.worker.is_used_up(self.worker_out) && self.unreceived
            || self.supervisor.is_used_up(self.supervisor_out) && self.any_unreceived && self.worker_out >= self.share
    }

    /// Whether a paused worker's streams are to be read again.
    pub(crate) fn may_resume(&self) -> bool {
        (self.worker.has_room_again(self.worker_out) || !self.unreceived)
            && (self.supervisor.has_room_again(self.supervisor_out)
                || !self.any_unreceived
                || self.worker_out < self.share / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn levels(worker_out: usize, supervisor_out: usize, unreceived: bool) -> Levels {
        let (worker, supervisor) = (Window::new(100), Window::new(1000));
        Levels { worker, worker_out, supervisor, supervisor_out, share: 0, unreceived, any_unreceived: unreceived }
    }

    #[test]
    fn p06_a_worker_waits_when_its_window_is_used_up() {
        assert!(!levels(99, 99, true).must_pause());
        assert!(levels(100, 100, true).must_pause());
        assert!(!levels(51, 51, true).may_resume());
        assert!(levels(50, 50, true).may_resume());
    }

    #[test]
    fn p07_every_worker_waits_when_the_supervisors_window_is_used_up() {
        assert!(levels(1, 1000, true).must_pause());
        assert!(!levels(1, 501, true).may_resume());
        assert!(levels(1, 500, true).may_resume());
        let newcomer = Levels { unreceived: false, ..levels(0, 1000, true) };
        assert!(newcomer.must_pause(), "also one that has sent nothing yet, or many of them would fill the parent");
        assert!(!newcomer.may_resume());
    }

    #[test]
    fn p06_a_consumer_that_keeps_everything_is_not_stalled() {
        assert!(!levels(5000, 5000, false).must_pause());
        assert!(levels(5000, 5000, false).may_resume());
    }

    #[test]
    fn p06_a_share_is_heard_whatever_others_have_out() {
        let shared = |out| Levels { share: 10, ..levels(out, 2000, true) };
        assert!(!shared(9).must_pause() && shared(10).must_pause());
        assert!(!shared(5).may_resume() && shared(4).may_resume());
        assert!(Levels { share: 10, ..levels(100, 100, true) }.must_pause(), "and no more than its own window");
    }

    proptest! {
        #[test]
        fn never_both(
            limit in 1..500_usize, share in 0..500_usize, out in 0..1000_usize, total in 0..1000_usize,
            unreceived: bool, others: bool,
        ) {
            let levels = Levels {
                share,
                worker: Window::new(limit), worker_out: out,
                supervisor: Window::new(limit), supervisor_out: total, unreceived,
                any_unreceived: unreceived || others,
            };
            prop_assert!(!(levels.must_pause() && levels.may_resume()), "{:?} would pause and resume for ever", levels);
        }
    }
}
