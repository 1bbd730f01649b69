//! What the kernel is to report, and what it has refused to: `epoll_ctl(2)` can run out of memory or of the user's watches, which passes.

use super::{
    Driver,
    place::{Target, Timer, live_at},
};
use crate::{
    policy::incarnation::Input,
    supervisor::{control::Control, event::Event, live::Live, warning::Warning},
    sys::is_transient,
};
use std::{io, time::Duration};

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

    /// Asks again for everything that was refused.
    pub(super) fn register_again(&mut self) {
        let refused: Vec<Target> = self.unwatched.iter().copied().collect();
        for target in refused {
            self.register(target);
        }
    }

    /// Nothing where there is nothing to watch.
    fn add(&mut self, target: Target) -> Option<io::Result<()>> {
        let token = target.token();
        let poller = &self.poller;
        let slots = &mut self.slots;
        match target {
            Target::Process(place) => {
                let child = live_at(slots, place)?.present.child();
                let added = child.with_pidfd(|pidfd| poller.add(pidfd, token));
                // ESRCH: it is reaped.
                Some(added).filter(|added| added.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::ESRCH))
            }
            Target::Stream(place, stream) => {
                let live: &Live = live_at(slots, place).filter(|live| !live.paused)?;
                let listener = live.listeners().find(|listener| listener.id == stream)?;
                Some(poller.add(listener, token))
            }
            Target::Bell(place) => Some(poller.add(live_at(slots, place)?.health.bell.as_ref()?, token)),
            Target::Notices(place) => Some(poller.add(live_at(slots, place)?.health.notices.as_ref()?, token)),
            Target::Control(place) => Some(poller.add(live_at(slots, place)?.session.as_ref()?, token)),
            Target::Visitor(visitor) => {
                Some(poller.add(&self.control.as_ref().and_then(|control: &Control| control.visitor(visitor))?, token))
            }
            Target::Waker | Target::Door | Target::Guard | Target::Survivor(_) | Target::Stuck(_) => None,
        }
    }
}
