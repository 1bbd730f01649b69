//! Specs of workers whose process is started elsewhere.

use crate::{
    launch::{
        error::SpecError,
        plan::{FdSource, MESSAGES},
        stdio::StdinMode,
    },
    policy::{
        stop::{StopPolicy, StopStep},
        survivors::SurvivorPolicy,
    },
    supervisor::spec::{
        MessageSource, WorkerSpec,
        control_source::ControlSource,
        parent::StartedBy,
        readiness::{Readiness, Wanted},
    },
};
use std::time::Duration;

/// The time for an attached worker to exit after `shutdown`; then it is let go.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

impl WorkerSpec {
    /// Checks that the spec can be that of a process which is started elsewhere, and adapts it: such a process has no tree, and no signals
    /// are sent to it unless a stop policy is set.
    pub(crate) fn into_attached(mut self) -> Result<Self, SpecError> {
        self.validate()?;
        if let Some((setting, reason)) = self.not_attachable() {
            return Err(SpecError::Conflict { settings: ["attach", setting], reason: reason.into() });
        }
        self.started_by = StartedBy::Others;
        self.survivors = SurvivorPolicy::Ignore;
        if self.stop_asked.is_none() {
            self.stop =
                StopPolicy::kill().step([StopStep::Notify("shutdown".into()), StopStep::ClosePipes], GRACE_PERIOD);
        }
        Ok(self)
    }

    /// Whether the process is started elsewhere.
    pub(crate) fn is_attached(&self) -> bool {
        self.started_by == StartedBy::Others
    }

    /// Whether the process may be sent SIGKILL: not if it was attached, unless a stop policy is set.
    pub(crate) fn may_kill(&self) -> bool {
        !self.is_attached() || self.stop_asked.is_some()
    }

    /// Whether messages come as notifications: there is no pipe for them.
    pub(crate) fn has_messages_over_control(&self) -> bool {
        self.is_attached() && self.messages == MessageSource::Pipe
    }

    /// A setting whose promise cannot be kept for a process that is started elsewhere, and why.
    fn not_attachable(&self) -> Option<(&'static str, &'static str)> {
        let is_ready_by_pipe =
            |ready: &Readiness| matches!(ready.wanted, Wanted::Line(..) | Wanted::Newline(_) | Wanted::Notify);
        let others = || self.plan.extra_fds.iter().filter(|fd| &*fd.name != MESSAGES);
        let has_fd = |is_it: fn(&FdSource) -> bool| others().any(|fd| is_it(&fd.source));
        let no_pipe = "the process has no pipe to this one, only its control connection";
        let limits = "limits are set when a process is started";
        [
            (
                "control",
                self.control != ControlSource::Pipe,
                "the process is reached by a control pipe only: add `control`",
            ),
            ("restart", self.restart.can_restart(), "the process can be started again only by what has started it"),
            ("messages_on_stdout", self.messages == MessageSource::Stdout, no_pipe),
            ("messages_on_stderr", self.messages == MessageSource::Stderr, no_pipe),
            ("stdin", matches!(self.stdin, Some(StdinMode::Pipe | StdinMode::Pty)), no_pipe),
            ("ready", self.ready.as_ref().is_some_and(is_ready_by_pipe), no_pipe),
            ("input_pipe", has_fd(|source| matches!(source, FdSource::InputPipe)), no_pipe),
            ("output_pipe", has_fd(|source| matches!(source, FdSource::OutputPipe)), no_pipe),
            (
                "inherit_fd",
                has_fd(|source| matches!(source, FdSource::Inherited(_))),
                "descriptors are inherited at the start",
            ),
            (
                "jobserver",
                has_fd(|source| matches!(source, FdSource::TokenReader(_))),
                "descriptors are inherited at the start",
            ),
            ("watchdog", self.watchdog.is_some(), "a process that is stopped in a debugger shows no activity"),
            ("runtime_max", self.runtime_max.is_some(), "a process that is stopped in a debugger would be stopped"),
            ("rlimit", !self.plan.limits.is_empty(), limits),
            ("cgroup_limit", !self.cgroup_limits.is_empty(), limits),
        ]
        .into_iter()
        .find(|(_, is_set, _)| *is_set)
        .map(|(setting, _, reason)| (setting, reason))
    }
}
