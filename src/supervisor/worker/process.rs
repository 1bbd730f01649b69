//! One incarnation, as its handles and the event loop share it.

use crate::{
    exit::Exit,
    launch::{child::ChildProcess, descriptors::ParentFds, spawn::LaunchedChild},
    policy::survivors::SurvivorPolicy,
    supervisor::{
        containment::{Mark, cgroup_pool::Cell, token::Token},
        control::connection::Link,
        spawner::Starter,
        sync::lock,
    },
    sys::cgroup::group::Frozen,
};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// One incarnation, as the handles and the loop know it together.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) number: u32,
    pub(crate) child: ChildProcess,
    pub(crate) ends: Mutex<ParentFds>,
    /// Where the spec gives it a control pipe.
    pub(crate) link: Option<Arc<Link>>,
    mark: Mark,
    is_ready: AtomicBool,
    /// Stopped by its user. Changed together with what it says.
    is_frozen: Mutex<bool>,
}

impl Present {
    pub(crate) fn new(number: u32, launched: LaunchedChild, link: Option<Arc<Link>>, mark: Mark) -> Self {
        let LaunchedChild { child, ends, in_cgroup: _ } = launched;
        Self {
            number,
            child,
            ends: Mutex::new(ends),
            link,
            mark,
            is_ready: AtomicBool::new(false),
            is_frozen: Mutex::new(false),
        }
    }

    pub(crate) fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    pub(crate) fn token(&self) -> &Token {
        &self.mark.token
    }

    pub(crate) fn no_cgroup(&self) -> Option<&str> {
        self.mark.no_cgroup.as_deref()
    }

    pub(crate) fn born(&self) -> u64 {
        self.mark.born
    }

    pub(crate) fn survivors(&self) -> SurvivorPolicy {
        self.mark.survivors
    }

    /// Something about its cgroup; nothing where it has none.
    pub(crate) fn with_cell<T>(&self, run: impl FnOnce(&Cell) -> T) -> Option<T> {
        lock(&self.mark.cell).as_ref().map(run)
    }

    /// It is reaped: the thread that started it may end.
    pub(crate) fn untie(&self) {
        let tie = lock(&self.mark.tie).take();
        drop(tie);
    }

    /// Its cgroup is for others.
    pub(crate) fn leave_cell(&self, starter: &Starter) {
        if let Some(cell) = lock(&self.mark.cell).take() {
            starter.pen().give_back(cell);
        }
    }

    /// Stopped by its user, with its tree.
    pub(crate) fn is_frozen(&self) -> bool {
        *lock(&self.is_frozen)
    }

    /// One that shall end has to hear of it.
    pub(crate) fn thaw(&self) {
        if self.is_frozen() {
            // Fails where its cgroup has been taken away, and where it has ended.
            drop(self.set_frozen(Frozen::No));
        }
    }

    pub(crate) fn set_frozen(&self, frozen: Frozen) -> io::Result<()> {
        let mut is_frozen = lock(&self.is_frozen);
        *is_frozen = frozen == Frozen::Yes;
        match self.with_cell(|cell| cell.freeze(frozen)) {
            Some(done) => done.map_err(io::Error::other),
            None => self.child.signal_group(if frozen == Frozen::Yes { libc::SIGSTOP } else { libc::SIGCONT }),
        }
    }

    /// The guard forgets its group.
    pub(crate) fn leave_guard(&self, starter: &Starter) {
        if let Some(group) = lock(&self.mark.guarded).take() {
            starter.sentinel().leave(group);
        }
    }

    /// Which of the worker's processes it is, counted from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn child(&self) -> &ChildProcess {
        &self.child
    }

    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    pub(crate) fn awaits_control(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_awaited())
    }

    /// Ends all calls. True if the link was not closed before.
    pub(crate) fn close_link(&self, exit: Option<&Arc<Exit>>) -> bool {
        self.link.as_ref().is_some_and(|link| link.close(exit))
    }

    /// Closes the pipes to the child that nobody has taken: the polite way to say that there is no more work. False if there
    /// were none.
    pub(crate) fn close_pipes(&self) -> bool {
        let mut ends = lock(&self.ends);
        let were_some = ends.has_writers();
        ends.close_writers();
        were_some
    }
}
