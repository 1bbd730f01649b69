//! The guard: a process that kills the process trees of a supervisor when the host is killed.
//!
//! No code of the library runs in a process that receives SIGKILL. The kernel then sends the parent-death signal to each worker, but not
//! to the worker's descendants. So each supervisor starts one small child with its first worker, titled `pipewright-guard`. It holds
//! none of the host's memory, sleeps until the host ends, kills the trees and exits. The supervisor watches the guard: one that exits is
//! replaced at once, and its exit is reported as a [`Warning`](crate::events::Warning).
//!
//! [`Guard`] selects the program. By default it is `/bin/sh`, whichever shell that is, with `grep`, `head`, `rmdir`, `rm`, `sleep` and
//! `tr`, and `cat` in a program that has opened its [jobserver](crate::jobserver). A container image without a shell needs [`init`] in the host's `main`. Each guard tests itself when it starts; if something is
//! missing, the start of the worker fails with [`SpawnStep::Guard`](crate::SpawnStep::Guard) and an error that names it. A shell also
//! tests its tools on a process of its own, without delaying the first worker. If they do not work,
//! [`Warning::GuardExited`](crate::events::Warning::GuardExited) is reported, and further starts fail.

mod cleanup;
mod executable;
pub(crate) mod groups;
pub(crate) mod program;
mod protocol;
pub(crate) mod start;

pub use program::Guard;

/// Lets this executable serve as the guard of its own supervisors. Call it as the first statement of `main`, before any thread is
/// started.
///
/// Returns at once in a normal start. In a process that a supervisor has started as its guard it never returns: it waits for the host to
/// end, kills what is left of the trees, and exits. Without this call the guard is a shell; see [`Guard`].
///
/// ```no_run
/// // the first line of `main`
/// pipewright::guard::init();
/// ```
#[expect(clippy::exit, reason = "the process is the guard, and must not run the program's main")]
pub fn init() {
    if executable::is_guard() {
        std::process::exit(executable::run());
    }
    program::set_initialized();
}
