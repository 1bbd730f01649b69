//! The process of one incarnation, shared by the handles and the event loop.

use crate::{
    launch::{child::ChildProcess, descriptors::ParentFds, stdio::TerminalSize},
    supervisor::{
        containment::process_tree::ProcessTree,
        control::connection::{ConnectionEnd, RpcConnection},
        sync::lock,
    },
};
use serde_json::value::RawValue;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// The process of one incarnation.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    pub(crate) number: u32,
    tree: Arc<ProcessTree>,
    pub(crate) ends: Mutex<ParentFds>,
    /// The control connection, if the spec has one.
    pub(crate) connection: Option<Arc<RpcConnection>>,
    is_ready: AtomicBool,
    /// The accepted result of the readiness call.
    handshake: OnceLock<Box<RawValue>>,
    /// A handle has killed it.
    is_killed: AtomicBool,
}

impl WorkerProcess {
    pub(crate) fn new(number: u32, tree: ProcessTree, ends: ParentFds, connection: Option<Arc<RpcConnection>>) -> Self {
        Self {
            number,
            tree: Arc::new(tree),
            ends: Mutex::new(ends),
            connection,
            is_ready: AtomicBool::new(false),
            handshake: OnceLock::new(),
            is_killed: AtomicBool::new(false),
        }
    }

    pub(crate) fn tree(&self) -> &Arc<ProcessTree> {
        &self.tree
    }

    pub(crate) fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    pub(crate) fn set_handshake(&self, result: Box<RawValue>) {
        // Readiness is reached once.
        drop(self.handshake.set(result));
    }

    pub(crate) fn handshake(&self) -> Option<&RawValue> {
        self.handshake.get().map(|result| &**result)
    }

    /// Sends SIGKILL to the process group, at the request of a user.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.is_killed.store(true, Ordering::Release);
        self.child().signal_group(libc::SIGKILL)
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Acquire)
    }

    /// The number of the incarnation, counted from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn child(&self) -> &ChildProcess {
        self.tree.child()
    }

    pub(crate) fn connection(&self) -> Option<&Arc<RpcConnection>> {
        self.connection.as_ref()
    }

    pub(crate) fn awaits_control(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_awaited())
    }

    /// Closes the control connection of a process that runs on, and ends all calls. Returns true if it was not closed before.
    pub(crate) fn disconnect(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.close(&ConnectionEnd::default()))
    }

    /// Closes the pipes to the child that the user has not taken, which asks it to exit. Returns false if there were none.
    pub(crate) fn close_pipes(&self) -> bool {
        let were_some = lock(&self.ends).close_writers();
        self.connection().is_some_and(|connection| connection.close_input()) || were_some
    }

    /// Closes the child's standard input, unless the user has taken it. Returns false if it was closed before.
    pub(crate) fn close_stdin(&self) -> bool {
        let was_some = lock(&self.ends).close_stdin();
        let closes_control =
            self.connection().is_some_and(|connection| connection.has_calls() && connection.close_input());
        was_some || closes_control
    }

    /// Closes what the child was connected to, after its exit: a handle of an ended worker must not keep it open.
    pub(crate) fn close_all(&self) {
        self.close_pipes();
        // Hangs up.
        drop(lock(&self.ends).terminal.take());
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let ends = lock(&self.ends);
        let missing = || {
            let errno = if self.child().is_running() { libc::ENOTTY } else { libc::ESRCH };
            io::Error::from_raw_os_error(errno)
        };
        ends.terminal.as_ref().ok_or_else(missing)?.resize(size)
    }

    /// Calls `run` with the pidfd of the process; `None` once it is reaped.
    pub(crate) fn with_process<T>(&self, run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> Option<io::Result<T>> {
        let done = self.child().with_pidfd(|pidfd| run(pidfd.as_fd()));
        Some(done).filter(|done| done.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::ESRCH))
    }
}
