//! The guard: a process that ends all trees of a supervisor when the host is killed.
//!
//! Nothing of the library runs in a process that gets SIGKILL. The kernel then sends each worker the parent-death signal, but not
//! what the worker has started. So each supervisor starts one small child with its first worker, titled `pipewright-guard`. It holds
//! none of the host's memory, sleeps until the host ends, kills the trees and ends too. While it lives it is watched: a guard that
//! ends is replaced at once, and its end is reported as a [`Warning`](crate::Warning).
//!
//! [`Guard`] selects the program of the guard. By default it is `/bin/sh`, whatever shell that is, with `grep`, `head`, `rmdir`,
//! `rm`, `sleep` and `tr`. An image without a shell needs [`init`] in the host's `main`. Each guard tests itself when it starts; one that
//! lacks something fails the start of the worker with [`SpawnStep::Guard`](crate::SpawnStep::Guard) and a text that names what is
//! missing. A shell also tries its tools out, on a process of its own; the first worker does not wait for that. Where the tools do not
//! do what they should, [`Warning::GuardExited`](crate::Warning::GuardExited) says so, and further starts fail.

mod groups;
mod own;
mod start;
mod sweep;

pub(crate) use groups::GroupList;
pub(crate) use start::{Order, Running, Until, start};

use std::sync::atomic::{AtomicBool, Ordering};

/// The program that serves as the guard, for [`SupervisorBuilder::guard`](crate::SupervisorBuilder::guard).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Guard {
    /// The host's own executable where [`init`] was called in this process, the shell elsewhere.
    #[default]
    Auto,
    /// `/bin/sh` with `grep`, `head`, `rm`, `rmdir`, `sleep` and `tr`. `ps` shows `sh -s pipewright-guard`.
    Shell,
    /// The host's own executable, which must have called [`init`]. It needs no other program, and finds more than the shell does:
    /// also what shares a session with the tree, or has parents in it. `ps` shows `pipewright-guard`.
    OwnExecutable,
    /// No guard. When the host is killed each worker's own process still ends by its parent-death signal; what it has started
    /// lives on. When the supervisor is dropped, all trees end as always.
    Disabled,
}

/// Whether [`init`] was called in this process.
static IS_INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Lets this executable serve as the guard of its own supervisors. To be called as the first statement of `main`, before any
/// thread is started.
///
/// Returns at once in a normal start. In a process that a supervisor has started as its guard it never returns: it waits for the
/// end of the host, kills what is left of the trees, and exits. Without this call the guard is a shell; see [`Guard`].
///
/// ```no_run
/// // the first line of `main`
/// pipewright::guard::init();
/// ```
#[expect(clippy::exit, reason = "the process is the guard; the program's main is not to run in it")]
pub fn init() {
    if own::is_guard() {
        std::process::exit(own::run());
    }
    IS_INITIALIZED.store(true, Ordering::Relaxed);
}

fn is_initialized() -> bool {
    IS_INITIALIZED.load(Ordering::Relaxed)
}
