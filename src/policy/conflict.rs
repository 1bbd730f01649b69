//! Why a policy is refused.

/// Two settings that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) settings: [&'static str; 2],
    pub(crate) reason: Box<str>,
}

impl Conflict {
    pub(crate) fn new(settings: [&'static str; 2], reason: impl Into<Box<str>>) -> Self {
        Self { settings, reason: reason.into() }
    }
}
