//! What the kernel is to report, and what it has refused to: `epoll_ctl(2)` can run out of memory or of the user's watches, which passes.

use crate::{
    policy::lifecycle::LifecycleInput,
    supervisor::{
        control::server::Control,
        event_loop::Driver,
        events::{event::Event, warning::Warning},
        incarnation::Live,
        reactor::{arena::live_at, timers::Timer, token::Target},
        worker::process::Present,
    },
    sys::{is_transient, poll},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

/// How soon it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

impl Driver {
    /// Has the kernel report this descriptor. Where it refuses that for want of something, it is asked again by timer: what happens
    /// meanwhile is reported then, since epoll is level-triggered.
    pub(crate) fn register(&mut self, target: Target) {
        let Some(added) = self.add(target) else {
            // There is nothing to watch any more.
            self.reactor.unwatched.remove(&target);
            return;
        };
        match added {
            Err(error) if is_transient(&error) || error.raw_os_error() == Some(libc::ENOSPC) => {
                // Once for each shortage; and the control server for itself, since that all workers need.
                let is_known = |known: &Target| (*known == Target::Door) == (target == Target::Door);
                let is_first = !self.reactor.unwatched.iter().any(is_known);
                self.reactor.unwatched.insert(target);
                self.reactor.set_timer_after(PAUSE, Timer::Watch);
                if is_first {
                    self.warn_of_refusal(target, error);
                }
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                self.reactor.unwatched.remove(&target);
                self.warn_of_refusal(target, error);
                if let Target::Process(place) | Target::Stream(place, _) = target {
                    // Its end, or its output, would never be noticed.
                    self.input(place, LifecycleInput::WatchFailed);
                }
            }
            Ok(()) | Err(_) => {
                self.reactor.unwatched.remove(&target);
            }
        }
    }

    fn warn_of_refusal(&mut self, target: Target, error: io::Error) {
        let warning = match target {
            Target::Door => Warning::ControlUnavailable { error },
            _ => Warning::WatchFailed { error },
        };
        self.outlet.send(Event::warning(warning));
    }

    /// Asks again for everything that was refused. What still is gets its turn now if it is ready: a refusal that lasts slows a worker
    /// down, and neither silences it nor hides its end.
    pub(crate) fn register_again(&mut self) {
        let refused: Vec<Target> = self.reactor.unwatched.iter().copied().collect();
        for target in refused {
            self.register(target);
            // A connection may wait for room to write, too.
            let is_connection = matches!(target, Target::Control(_));
            if self.reactor.unwatched.contains(&target)
                && (is_connection || self.with_descriptor(target, poll::is_readable).is_some_and(is_true))
            {
                self.ready(target);
            }
        }
    }

    /// Nothing where there is nothing to watch.
    fn add(&mut self, target: Target) -> Option<io::Result<()>> {
        if let Target::Control(place) = target {
            let live = live_at(&mut self.incarnations.slots, place)?;
            // One that has ended is open for a while still.
            live.session.as_ref()?;
            return live.present.link()?.register();
        }
        let poller = Arc::clone(&self.reactor.poller);
        self.with_descriptor(target, |descriptor| poller.add(&descriptor, target.token()))
    }

    /// Does something with what a target stands for; nothing where that is gone.
    fn with_descriptor<T>(
        &mut self,
        target: Target,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let slots = &mut self.incarnations.slots;
        let descriptor = match target {
            Target::Process(place) => return with_process(&live_at(slots, place)?.present, run),
            Target::Stuck(number) => return with_process(&self.trees.stuck.get(&number)?.present, run),
            Target::Stream(place, stream) => {
                let live: &Live = live_at(slots, place).filter(|live| !live.paused)?;
                live.listeners().find(|listener| listener.id == stream)?.as_fd()
            }
            Target::Bell(place) => live_at(slots, place)?.health.bell.as_ref()?.as_fd(),
            Target::Notices(place) => live_at(slots, place)?.health.notices.as_ref()?.as_fd(),
            Target::Control(place) => live_at(slots, place)?.session.as_ref()?.as_fd(),
            Target::Visitor(visitor) => self.server.as_ref().and_then(|control: &Control| control.visitor(visitor))?,
            Target::Door => self.server.as_ref()?.as_fd(),
            Target::Guard => self.guard.end.as_ref()?.as_fd(),
            // The first is watched from the start; the second is looked for again by `wait_for`.
            Target::Waker | Target::Survivor(_) => return None,
        };
        Some(run(descriptor))
    }
}

/// Nothing where it is reaped.
fn with_process<T>(present: &Present, run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> Option<io::Result<T>> {
    let done = present.child().with_pidfd(|pidfd| run(pidfd.as_fd()));
    Some(done).filter(|done| done.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::ESRCH))
}

fn is_true(answer: io::Result<bool>) -> bool {
    answer.unwrap_or(false)
}
