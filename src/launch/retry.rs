//! Pauses between attempts.

use crate::launch::error::SpawnError;
use std::{thread, time::Duration};

/// Returns the pause before the next attempt, if `result` failed with ETXTBSY; `None` after half a second in all.
///
/// The program's file is open for writing for a short time if another thread forks while the host writes the program: the fork
/// holds the host's fd until its exec.
pub(crate) fn busy_pause<T>(result: &Result<T, SpawnError>, attempts: u32) -> Option<Duration> {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const PAUSES: u32 = 9; // 1 + 2 + 4 + ... + 256 ms = 511 ms
    let is_busy = result.as_ref().is_err_and(SpawnError::is_busy);
    (is_busy && attempts < PAUSES).then(|| FIRST_PAUSE * 2_u32.pow(attempts))
}

#[expect(clippy::disallowed_methods, reason = "no event reports that the last writer of a file has closed it")]
pub(crate) fn pause_for(duration: Duration) {
    thread::sleep(duration);
}
