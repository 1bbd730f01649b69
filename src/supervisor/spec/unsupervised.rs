//! Starts without a supervisor, and values that both kinds of start derive from the spec.

use crate::{
    launch::{
        context::{OpenMode, SpawnContext},
        error::{SpawnError, SpecError},
        process::Process,
        spawn::{launch, prepare},
    },
    policy::survivors::SurvivorPolicy,
    supervisor::spec::{
        WorkerSpec,
        control_source::{CONTROL_CONNECT_TIMEOUT, ControlSource},
        parent::DeathSignal,
    },
};
use std::time::Duration;

impl WorkerSpec {
    /// Starts one process without a supervisor: the caller reads its pipes and waits for its exit.
    /// [`Process::wait_with_output`] does both with a timeout. Reading a pipe to its end has none, and a descendant may keep the pipe open.
    ///
    /// # Errors
    ///
    /// As [`Supervisor::spawn`](crate::Supervisor::spawn), and [`SpecError::Conflict`] for settings that require a supervisor.
    pub fn spawn_unsupervised(&self) -> Result<Process, SpawnError> {
        self.validate()?;
        if self.control != ControlSource::Nowhere {
            return Err(SpecError::ControlUnsupported.into());
        }
        let supervised_only = [
            ("cgroup_limit", !self.cgroup_limits.is_empty()),
            ("runtime_max", self.runtime_max.is_some()),
            ("restart", self.restart.can_restart()),
            ("ready", self.ready.is_some()),
            ("watchdog", self.watchdog.is_some()),
            ("outlive_supervisor", self.outlives_supervisor),
            ("survivors", self.survivors != SurvivorPolicy::Kill),
            ("survivor_grace_period", !self.survivor_grace_period.is_zero()),
        ];
        if let Some((setting, _)) = supervised_only.into_iter().find(|(_, is_set)| *is_set) {
            let reason = "it requires a supervisor".into();
            return Err(SpecError::Conflict { settings: [setting, "spawn_unsupervised"], reason }.into());
        }
        let context = SpawnContext { death_signal: self.death_signal_or(None), ..SpawnContext::default() };
        let launched = launch(&self.plan, prepare(&self.plan, OpenMode::Blocking)?, &context)?;
        Ok(Process::new(&self.plan, launched).drain_timeout(self.drain_timeout))
    }

    pub(crate) fn time_to_connect(&self) -> Duration {
        let to_be_ready = self.ready.as_ref().filter(|ready| ready.needs_connection()).map(|ready| ready.timeout);
        self.control_connect_timeout.unwrap_or(CONTROL_CONNECT_TIMEOUT).max(to_be_ready.unwrap_or_default())
    }

    /// Sets the signal that the kernel sends to the worker when its parent dies; `None` for none. SIGKILL by default under a
    /// supervisor, none by default for [`spawn_unsupervised`](Self::spawn_unsupervised): the kernel sends it when the spawning *thread*
    /// exits.
    #[doc(alias = "PR_SET_PDEATHSIG")]
    pub fn parent_death_signal(mut self, signal: Option<i32>) -> Self {
        self.death_signal = signal.map_or(DeathSignal::Never, DeathSignal::Signal);
        self
    }

    /// The parent-death signal, or `unset` if the spec does not set it.
    pub(crate) fn death_signal_or(&self, unset: Option<i32>) -> Option<i32> {
        match self.death_signal {
            DeathSignal::Unset => unset.filter(|_| !self.outlives_supervisor),
            DeathSignal::Never => None,
            DeathSignal::Signal(signal) => Some(signal),
        }
    }
}
