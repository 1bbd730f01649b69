//! What is done with processes that outlive their worker.

/// What is done with descendants of a worker that run when it has ended, from [`WorkerSpec::survivors`](crate::WorkerSpec::survivors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SurvivorPolicy {
    /// They are killed, waited for, and listed in [`Exit::survivors`](crate::Exit::survivors), at most 4096 of them: a tree ends with its
    /// worker.
    #[default]
    Kill,
    /// They are listed in [`Exit::survivors`](crate::Exit::survivors) and left running. For jobs that start daemons on purpose: a compiler
    /// cache, an agent, a build daemon.
    Report,
    /// They are not searched for.
    Ignore,
}
