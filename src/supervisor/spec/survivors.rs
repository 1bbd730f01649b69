//! The settings of a worker for processes that outlive it.

use crate::{policy::survivors::SurvivorPolicy, supervisor::spec::WorkerSpec};

impl WorkerSpec {
    /// What becomes of processes that outlive it; by default they are [killed](SurvivorPolicy::Kill).
    ///
    /// With [`Report`](SurvivorPolicy::Report) and [`Ignore`](SurvivorPolicy::Ignore):
    ///
    /// * When the worker ends by itself, nothing of its tree is killed, also not what is left in its process group.
    /// * When it is stopped, restarted, dropped with its supervisor, or runs into a limit, its process group is ended with it. A
    ///   daemon that has left the group (`setsid`, as daemons do) lives on.
    /// * When the host is killed, the same: the worker and its group are killed, daemons live on.
    /// * It has no cgroup of its own, since all of a cgroup is killed together: [`cgroup_limit`](Self::cgroup_limit) is refused.
    /// * The daemon keeps what it has inherited: a captured stream that it holds open is closed after the
    ///   [drain time](Self::drain_timeout) and named in [`Exit::leaked_streams`](crate::Exit::leaked_streams).
    #[doc(alias = "KillMode")]
    pub fn survivors(mut self, survivors: SurvivorPolicy) -> Self {
        self.survivors = survivors;
        self
    }

    /// Lets it live on, with all it has started, when the process of its supervisor is killed. Dropping the supervisor ends it
    /// all the same.
    pub fn outlive_supervisor(mut self) -> Self {
        self.survives = true;
        self
    }

    /// Whether its tree may be killed as a whole, by its cgroup or by the guard.
    pub(crate) fn ends_as_a_whole(&self) -> bool {
        !self.survives && self.survivors == SurvivorPolicy::Kill
    }
}
