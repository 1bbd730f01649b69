//! What becomes of processes that outlive the worker that started them.

/// What becomes of the processes that a worker has started and that are still running when it ends, from
/// [`WorkerSpec::survivors`](crate::WorkerSpec::survivors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SurvivorPolicy {
    /// They are killed, waited for, and named in [`Exit::survivors`](crate::Exit::survivors), at most 4096 of them at a time: a tree
    /// ends with its worker.
    #[default]
    Kill,
    /// They are named in [`Exit::survivors`](crate::Exit::survivors) and left running. For jobs that start daemons on purpose: a
    /// compiler cache, an agent, a build daemon.
    Report,
    /// They are not looked for.
    Ignore,
}
