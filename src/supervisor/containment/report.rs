//! How a worker's descendants are held together, and which kernel features are missing.

use crate::{
    supervisor::containment::process_tree::ProcessTree,
    sys::{
        pidfd,
        proc::mount::{self, Visibility},
    },
};
use std::fmt;

/// How a worker's descendants are held together with it, from [`Worker::containment`](crate::Worker::containment). The strongest available
/// kind is chosen.
///
/// Its `Display` is one line: the kind, and each missing feature with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Containment {
    /// The kind in use.
    pub kind: ContainmentKind,
    /// The features that are not available, strongest first. Descendants that only such a feature finds may be overlooked, and
    /// [`Exit::uninspected`](crate::Exit::uninspected) may be unknown.
    pub missing: Vec<MissingFeature>,
}

/// The kinds of containment, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContainmentKind {
    /// A cgroup of its own, which no process leaves: all of it ends with the worker. Available if the supervisor may create cgroups (v2)
    /// beside or below its own: as root, or as the owner of a delegated subtree.
    Cgroup,
    /// A process group of its own, and the other signs by which descendants are found: parents, sessions, groups, the token in the
    /// environment, and pipes of the worker.
    ProcessGroup,
    /// The same signs without a process group: the worker is in the host's.
    EnvToken,
}

/// A kernel feature that is missing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingFeature {
    /// What is missing.
    pub feature: KernelFeature,
    /// Why: the kernel's error, or the setting that excludes it.
    pub reason: Box<str>,
}

/// The kernel features that containment uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelFeature {
    /// A cgroup of the worker's own.
    Cgroup,
    /// `/proc`, by which descendants are found.
    Proc,
    /// `pidfd_open(2)`: without it descendants are signalled by process ids that are checked twice.
    PidfdOpen,
    /// `pidfd_send_signal(2)`: without it `kill(2)` is used on process ids that are checked.
    PidfdSendSignal,
}

impl ProcessTree {
    /// Returns how the tree is held together, and which features are missing, as found now.
    pub(crate) fn containment(&self) -> Containment {
        let kind = if self.with_cgroup(|_| ()).is_some() {
            ContainmentKind::Cgroup
        } else if self.child().leads_group() {
            ContainmentKind::ProcessGroup
        } else {
            ContainmentKind::EnvToken
        };
        let mut missing = Vec::new();
        let mut note = |feature, reason: &str| missing.push(MissingFeature { feature, reason: reason.into() });
        if let Some(reason) = self.no_cgroup() {
            note(KernelFeature::Cgroup, reason);
        }
        match mount::visibility() {
            Visibility::All => {}
            Visibility::Hidden => note(KernelFeature::Proc, "mounted with hidepid"),
            Visibility::Absent => note(KernelFeature::Proc, "not mounted, or for another pid namespace"),
        }
        if let Some(error) = pidfd::open_denial() {
            note(KernelFeature::PidfdOpen, &error.to_string());
        }
        if let Some(error) = pidfd::send_denial() {
            note(KernelFeature::PidfdSendSignal, &error.to_string());
        }
        Containment { kind, missing }
    }
}

impl fmt::Display for Containment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(formatter)?;
        for MissingFeature { feature, reason } in &self.missing {
            write!(formatter, "; no {feature}: {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ContainmentKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cgroup => "cgroup",
            Self::ProcessGroup => "process group",
            Self::EnvToken => "environment token",
        })
    }
}

impl fmt::Display for KernelFeature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cgroup => "cgroup",
            Self::Proc => "/proc",
            Self::PidfdOpen => "pidfd_open",
            Self::PidfdSendSignal => "pidfd_send_signal",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p16_containment_says_what_is_missing_and_why() {
        let without = |feature, reason: &str| MissingFeature { feature, reason: reason.into() };
        let missing = vec![
            without(KernelFeature::Cgroup, "cgroup v2 is not mounted"),
            without(KernelFeature::Proc, "mounted with hidepid"),
        ];
        let weak = Containment { kind: ContainmentKind::ProcessGroup, missing };
        let text = "process group; no cgroup: cgroup v2 is not mounted; no /proc: mounted with hidepid";
        assert_eq!(weak.to_string(), text);
    }
}
