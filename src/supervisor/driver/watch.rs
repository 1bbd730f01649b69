//! What the kernel is to report, and what it has refused to: `epoll_ctl(2)` can run out of memory or of the user's watches, which passes.

use super::{
    Driver,
    place::{Target, Timer, live_at},
};
use crate::{
    policy::incarnation::Input,
    supervisor::{control::Control, event::Event, live::Live, warning::Warning},
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
    pub(super) fn register(&mut self, target: Target) {
        let Some(added) = self.add(target) else {
            // There is nothing to watch any more.
            self.unwatched.remove(&target);
            return;
        };
        match added {
            Err(error) if is_transient(&error) || error.raw_os_error() == Some(libc::ENOSPC) => {
                let is_first = self.unwatched.is_empty();
                self.unwatched.insert(target);
                self.set_timer_after(PAUSE, Timer::Watch);
                if is_first {
                    self.outlet.send(Event::warning(Warning::WatchRefused { error }));
                }
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                self.unwatched.remove(&target);
                self.outlet.send(Event::warning(Warning::WatchRefused { error }));
                if let Target::Process(place) | Target::Stream(place, _) = target {
                    // Its end, or its output, would never be noticed.
                    self.input(place, Input::Unheard);
                }
            }
            Ok(()) | Err(_) => {
                let was_refused = self.unwatched.remove(&target);
                if let (true, Target::Control(place)) = (was_refused, target)
                    && let Some(live) = live_at(&mut self.slots, place)
                    && let Some(link) = live.present.link()
                {
                    link.note_watched();
                }
            }
        }
    }

    /// Asks again for everything that was refused. What still is gets its turn now if it is ready: a refusal that lasts slows a worker
    /// down, and neither silences it nor hides its end.
    pub(super) fn register_again(&mut self) {
        let refused: Vec<Target> = self.unwatched.iter().copied().collect();
        for target in refused {
            self.register(target);
            let is_refused = self.unwatched.contains(&target);
            if is_refused && self.with_descriptor(target, poll::is_readable).is_some_and(is_true) {
                self.ready(target);
            }
        }
    }

    /// Nothing where there is nothing to watch.
    fn add(&mut self, target: Target) -> Option<io::Result<()>> {
        let poller = Arc::clone(&self.poller);
        self.with_descriptor(target, |descriptor| poller.add(&descriptor, target.token()))
    }

    /// Does something with what a target stands for; nothing where that is gone.
    fn with_descriptor<T>(
        &mut self,
        target: Target,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let slots = &mut self.slots;
        let descriptor = match target {
            Target::Process(place) => {
                let done = live_at(slots, place)?.present.child().with_pidfd(|pidfd| run(pidfd.as_fd()));
                // ESRCH: it is reaped.
                return Some(done)
                    .filter(|done| done.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::ESRCH));
            }
            Target::Stream(place, stream) => {
                let live: &Live = live_at(slots, place).filter(|live| !live.paused)?;
                live.listeners().find(|listener| listener.id == stream)?.as_fd()
            }
            Target::Bell(place) => live_at(slots, place)?.health.bell.as_ref()?.as_fd(),
            Target::Notices(place) => live_at(slots, place)?.health.notices.as_ref()?.as_fd(),
            Target::Control(place) => live_at(slots, place)?.session.as_ref()?.as_fd(),
            Target::Visitor(visitor) => self.control.as_ref().and_then(|control: &Control| control.visitor(visitor))?,
            Target::Waker | Target::Door | Target::Guard | Target::Survivor(_) | Target::Stuck(_) => return None,
        };
        Some(run(descriptor))
    }
}

fn is_true(answer: io::Result<bool>) -> bool {
    answer.unwrap_or(false)
}
