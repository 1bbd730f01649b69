//! The numbers by which events name workers and groups.

use serde::Serialize;
use std::fmt;

/// The name of a worker in events: unique within its process, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct WorkerId(pub(crate) u64);

impl WorkerId {
    /// In events about the supervisor itself ([`EventKind::Warning`](crate::EventKind::Warning)). No worker has this id.
    pub const SUPERVISOR: Self = Self(0);
}

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{}", self.0)
    }
}

/// The name of a group in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct GroupId(pub(crate) u64);

impl fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "group #{}", self.0)
    }
}
