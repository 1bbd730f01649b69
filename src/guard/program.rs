//! The program that serves as the guard.

use std::sync::atomic::{AtomicBool, Ordering};

/// The program that serves as the guard, for [`SupervisorBuilder::guard`](crate::SupervisorBuilder::guard).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Guard {
    /// The host's own executable if [`init`](super::init) was called in this process, otherwise the shell.
    #[default]
    Auto,
    /// `/bin/sh` with `grep`, `head`, `rm`, `rmdir`, `sleep` and `tr`, and `cat` in a program that has opened its
    /// [jobserver](crate::jobserver). `ps` shows `sh -s pipewright-guard`.
    Shell,
    /// The host's own executable, which must have called [`init`](super::init). It needs no other program, and finds more than the shell
    /// does: also processes that share a session with the tree, or have parents in it. `ps` shows `pipewright-guard`.
    OwnExecutable,
    /// No guard. If the host is killed, each worker's own process still ends by its parent-death signal, but its descendants live on. When
    /// the supervisor is dropped, all trees end as always.
    Disabled,
}

/// Whether `init` was called in this process.
static IS_INITIALIZED: AtomicBool = AtomicBool::new(false);

pub(super) fn set_initialized() {
    IS_INITIALIZED.store(true, Ordering::Relaxed);
}

pub(super) fn is_initialized() -> bool {
    IS_INITIALIZED.load(Ordering::Relaxed)
}
