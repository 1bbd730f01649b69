//! Faults of the supervisor's surroundings, reported as events.

use std::{fmt, io};

/// A fault that concerns the supervisor as a whole, from [`EventKind::Warning`](super::EventKind::Warning). Supervision continues;
/// each variant says what is missing until the fault is repaired.
///
/// Its `Display` is one line with operation, object and reason.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// The event loop could not watch the socket to which workers connect for control. It tries again; until that succeeds,
    /// workers cannot connect. Reported once per failure, not once per attempt.
    ControlUnavailable {
        /// The kernel's error.
        error: io::Error,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlUnavailable { error } => {
                write!(formatter, "failed to watch the control socket for connections, retrying: {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p16_a_warning_says_operation_object_and_reason() {
        let error = io::Error::from_raw_os_error(12);
        assert_eq!(
            Warning::ControlUnavailable { error }.to_string(),
            "failed to watch the control socket for connections, retrying: Cannot allocate memory (os error 12)"
        );
    }
}
