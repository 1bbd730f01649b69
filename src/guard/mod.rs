//! The guard: a process that ends all trees of a supervisor when the host is killed.
//!
//! Nothing of the library runs in a process that gets SIGKILL. The kernel then sends each worker the parent-death signal, but not
//! what the worker has started. So each supervisor starts one small child with its first worker, titled `pipewright-guard`. It holds
//! none of the host's memory, sleeps until the host ends, kills the trees and ends too. While it lives it is watched: a guard that
//! ends is replaced at once, and its end is reported as a [`Warning`](crate::events::Warning).
//!
//! [`Guard`] selects the program of the guard. By default it is `/bin/sh`, whatever shell that is, with `grep`, `head`, `rmdir`,
//! `rm`, `sleep` and `tr`. An image without a shell needs [`init`] in the host's `main`. Each guard tests itself when it starts; one that
//! lacks something fails the start of the worker with [`SpawnStep::Guard`](crate::SpawnStep::Guard) and a text that names what is
//! missing. A shell also tries its tools out, on a process of its own; the first worker does not wait for that. Where the tools do not
//! do what they should, [`Warning::GuardExited`](crate::events::Warning::GuardExited) says so, and further starts fail.

mod cleanup;
mod executable;
pub(crate) mod groups;
pub(crate) mod program;
mod protocol;
pub(crate) mod start;

pub use program::Guard;

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
    if executable::is_guard() {
        std::process::exit(executable::run());
    }
    program::set_initialized();
}
