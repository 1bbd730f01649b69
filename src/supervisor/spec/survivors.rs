//! Settings for processes that outlive their worker or their supervisor.

use crate::{policy::survivors::SurvivorPolicy, supervisor::spec::WorkerSpec};
use std::time::Duration;

impl WorkerSpec {
    /// Sets what happens to descendants that outlive the worker; they are [killed](SurvivorPolicy::Kill) by default.
    ///
    /// With [`Report`](SurvivorPolicy::Report) and [`Ignore`](SurvivorPolicy::Ignore):
    ///
    /// * When the worker exits by itself, no process of its tree is killed, including its process group.
    /// * When the worker is stopped or restarted, exceeds a limit, or its supervisor is dropped, its process group is killed, too.
    ///   Daemons that have left the group with `setsid` keep running.
    /// * When the host is killed, the worker and its process group are killed; daemons keep running.
    /// * The worker has no cgroup of its own, since a cgroup is killed as a whole. [`cgroup_limit`](Self::cgroup_limit) conflicts.
    /// * A daemon may hold captured streams open: they are closed after the [drain timeout](Self::drain_timeout) and reported in [`Exit::leaked_streams`](crate::Exit::leaked_streams).
    #[doc(alias = "KillMode")]
    pub fn survivors(mut self, survivors: SurvivorPolicy) -> Self {
        self.survivors = survivors;
        self
    }

    /// Sets how long descendants may take to exit by themselves after the worker has exited without being stopped; zero by default. Those that
    /// run after this time are survivors. The exit is reported when none is left, or at the end of the period.
    ///
    /// For programs that do not wait for the processes they end: a test that closes the input of a helper and returns.
    pub fn survivor_grace_period(mut self, period: Duration) -> Self {
        self.survivor_grace_period = period;
        self
    }

    /// Keeps the worker and its descendants running when the supervisor's process is killed. Dropping the supervisor still stops
    /// them.
    pub fn outlive_supervisor(mut self) -> Self {
        self.outlives_supervisor = true;
        self
    }

    /// Whether the cgroup or the guard may kill the whole tree.
    pub(crate) fn kills_whole_tree(&self) -> bool {
        !self.outlives_supervisor && self.survivors == SurvivorPolicy::Kill
    }
}
