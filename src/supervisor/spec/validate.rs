//! The validation of a spec before a start.

use crate::{
    launch::{error::SpecError, plan::Program, stdio::OutputMode},
    policy::{conflict::Conflict, survivors::SurvivorPolicy, watchdog::LivenessSource},
    supervisor::spec::{
        MessageSource, WorkerSpec, control_source::ControlSource, parent::DeathSignal, readiness::Wanted,
    },
};

fn refused(conflict: Conflict) -> SpecError {
    SpecError::Conflict { settings: conflict.settings, reason: conflict.reason }
}

impl WorkerSpec {
    /// Checks for errors that would make every start fail.
    ///
    /// # Errors
    ///
    /// The first error.
    pub fn validate(&self) -> Result<(), SpecError> {
        let only_in_groups = [("depends_on", !self.dependencies.is_empty()), ("significant", self.is_significant)];
        if let Some((setting, _)) = only_in_groups.into_iter().find(|(_, is_set)| *is_set) {
            let reason = "it has a meaning only for a member of a group: add it by `WorkerGroup::add`".into();
            return Err(SpecError::Conflict { settings: [setting, "spawn"], reason });
        }
        self.validate_apart_from_restart()?;
        self.restart.check().map_err(refused)
    }

    /// As [`validate`](Self::validate), for a member of a group, which checks the restart policy itself.
    pub(crate) fn validate_apart_from_restart(&self) -> Result<(), SpecError> {
        self.plan.validate()?;
        for (what, bytes, most) in [
            ("window", self.window, usize::MAX),
            ("control window", self.control_window, usize::MAX),
            // Offsets in a chunk have 32 bits.
            ("maximum message size", self.max_message_size, 1 << 30),
        ] {
            if bytes == 0 || bytes > most {
                return Err(SpecError::InvalidSize { what, bytes });
            }
        }
        if let Some(stream) = self.contradicted_stream() {
            let reason = "its messages come from there: only `OutputMode::Lines` fits".into();
            return Err(SpecError::Conflict { settings: [stream.0, stream.1], reason });
        }
        self.check_connection()?;
        self.check_merged_stderr()?;
        self.check_health()?;
        let is_ours = matches!(self.plan.program, Program::Named(_)) && self.kills_whole_tree();
        if !self.cgroup_limits.is_empty() && !is_ours {
            let other = match (self.outlives_supervisor, self.survivors) {
                (true, _) => "outlive_supervisor",
                (false, SurvivorPolicy::Report | SurvivorPolicy::Ignore) => "survivors",
                (false, SurvivorPolicy::Kill) => "from_command",
            };
            let reason = "it is not started in a cgroup of ours, and so cannot be limited with its tree".into();
            return Err(SpecError::Conflict { settings: ["cgroup_limit", other], reason });
        }
        if let Some(signal) = self.stop.invalid_signal() {
            return Err(SpecError::InvalidSignal { signal });
        }
        match self.death_signal {
            DeathSignal::Signal(signal) if !(1..=64).contains(&signal) => Err(SpecError::InvalidSignal { signal }),
            DeathSignal::Signal(_) | DeathSignal::Unset | DeathSignal::Never => Ok(()),
        }
    }

    /// The two settings that conflict, if messages are read from a stream that is redirected.
    fn contradicted_stream(&self) -> Option<(&'static str, &'static str)> {
        let elsewhere =
            |output: &Option<OutputMode>| output.as_ref().is_some_and(|output| !matches!(output, OutputMode::Lines));
        match self.messages {
            MessageSource::Stdout if elsewhere(&self.stdout) => Some(("messages_on_stdout", "stdout")),
            MessageSource::Stderr if elsewhere(&self.stderr) => Some(("messages_on_stderr", "stderr")),
            MessageSource::Stdout | MessageSource::Stderr | MessageSource::Pipe | MessageSource::Nowhere => None,
        }
    }

    /// Rejects standard error between the frames of a protocol.
    fn check_merged_stderr(&self) -> Result<(), SpecError> {
        let setting = match (self.messages, &self.control) {
            _ if !matches!(self.stderr, Some(OutputMode::ToStdout)) => return Ok(()),
            (MessageSource::Stdout, _) => "messages_on_stdout",
            (_, ControlSource::Stdio(_) | ControlSource::StdioMessages) => self.control.setting(),
            _ => return Ok(()),
        };
        let reason = "text between its frames would make them invalid: capture standard error by itself".into();
        Err(SpecError::Conflict { settings: [setting, "stderr"], reason })
    }

    fn check_health(&self) -> Result<(), SpecError> {
        let missing = |settings, reason: &str| Err(SpecError::Conflict { settings, reason: reason.into() });
        if let Some(ready) = &self.ready {
            ready.check_spec()?;
            let streams = [(&self.plan.stdout, MessageSource::Stdout), (&self.plan.stderr, MessageSource::Stderr)];
            let reads_lines = streams.iter().any(|(output, source)| output.is_in_lines() && self.messages != *source);
            match ready.wanted {
                Wanted::Control if self.control != ControlSource::Pipe => {
                    return missing(["ready", "control"], "readiness by control needs a control pipe");
                }
                Wanted::Call(_) if !matches!(self.control, ControlSource::Pipe | ControlSource::Stdio(_)) => {
                    return missing(["ready", "control"], "readiness by a call needs a control connection");
                }
                Wanted::Message(_) if self.messages == MessageSource::Nowhere => {
                    return missing(["ready", "messages"], "readiness by a message needs messages");
                }
                Wanted::Line(..) if !reads_lines => {
                    let reason =
                        "readiness by a line needs a captured stream: `stdout(OutputMode::Lines)` or `stderr(..)`";
                    return missing(["ready", "stdout"], reason);
                }
                _ => {}
            }
        }
        if self.runtime_max.is_some_and(|limit| limit.is_zero()) {
            return missing(["runtime_max", "spawn"], "it cannot be zero: it would be stopped at once");
        }
        if let (Some(limit), Some(ready)) = (self.runtime_max, &self.ready_asked)
            && !matches!(ready.wanted, Wanted::Started)
            && limit <= ready.timeout
        {
            let within = ready.timeout;
            let reason = format!(
                "it has {within:?} to become ready (`Readiness::timeout`; 30 s by default), and is stopped after {limit:?}: shorten the \
                 one, or lengthen the other"
            );
            return missing(["runtime_max", "ready"], &reason);
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.check().map_err(refused)?;
            match watchdog.liveness_source() {
                LivenessSource::Ping
                    if self.control.protocol().and_then(|protocol| protocol.dialect.ping()).is_none() =>
                {
                    return missing(["watchdog", "control"], "a watchdog that pings needs a control pipe");
                }
                LivenessSource::Messages if self.messages == MessageSource::Nowhere => {
                    return missing(["watchdog", "messages"], "a watchdog of messages needs messages");
                }
                LivenessSource::Ping | LivenessSource::Messages | LivenessSource::Notify => {}
            }
        }
        Ok(())
    }
}
