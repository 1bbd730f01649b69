//! One process of a spec without a supervisor, and what a spec says of a start.

use crate::{
    launch::{
        context::{OpenMode, SpawnContext},
        error::{SpawnError, SpecError},
        process::Process,
        spawn::{launch, prepare},
    },
    supervisor::spec::{DeathSignal, WorkerSpec, survivors::SurvivorPolicy},
};
use std::time::Duration;

impl WorkerSpec {
    /// Starts one process of this spec by hand, with no supervisor: you read its pipes and wait for it. To read a pipe to its end
    /// has no deadline, and a grandchild may keep it open: use `read_timeout`, or a supervisor.
    ///
    /// # Errors
    ///
    /// As [`Supervisor::spawn`](crate::supervisor::Supervisor::spawn), and [`SpecError::Conflict`] for what only a supervisor does.
    pub fn spawn_unsupervised(&self) -> Result<Process, SpawnError> {
        self.validate()?;
        if self.has_control {
            return Err(SpecError::ControlUnsupported.into());
        }
        let of_supervisors = [
            ("cgroup_limit", !self.cgroup_limits.is_empty()),
            ("runtime_max", self.runtime_max.is_some()),
            ("restart", self.restart.can_restart()),
            ("ready", self.ready.is_some()),
            ("watchdog", self.watchdog.is_some()),
            ("outlive_supervisor", self.survives),
            ("survivors", self.survivors != SurvivorPolicy::Kill),
        ];
        if let Some((setting, _)) = of_supervisors.into_iter().find(|(_, is_set)| *is_set) {
            let reason = "a process started by hand is not looked after: spawn it from a supervisor".into();
            return Err(SpecError::Conflict { settings: [setting, "spawn_unsupervised"], reason }.into());
        }
        let context = SpawnContext { death_signal: self.death_signal_or(None), ..SpawnContext::default() };
        launch(&self.plan, prepare(&self.plan, OpenMode::Blocking)?, &context).map(Process::new)
    }

    pub(crate) fn time_to_connect(&self) -> Duration {
        let to_be_ready = self.ready.as_ref().filter(|ready| ready.is_by_control()).map(|ready| ready.timeout);
        self.control_connect_timeout.max(to_be_ready.unwrap_or_default())
    }

    /// The death signal, `unset` where the spec does not say.
    pub(crate) fn death_signal_or(&self, unset: Option<i32>) -> Option<i32> {
        match self.death_signal {
            DeathSignal::Unset => unset.filter(|_| !self.survives),
            DeathSignal::Never => None,
            DeathSignal::Signal(signal) => Some(signal),
        }
    }
}
