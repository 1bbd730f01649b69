//! Pauses between attempts.

use std::{thread, time::Duration};

/// How long to wait before another attempt, after so many attempts that found the program's file open for writing (ETXTBSY). That
/// happens when another thread forks while the host writes a program and then runs it: the fork holds the host's descriptor until
/// its exec. Half a second in all, then the error is final.
pub(crate) fn busy_pause(attempts: u32) -> Option<Duration> {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const PAUSES: u32 = 9; // 1 + 2 + 4 + ... + 256 ms = 511 ms
    (attempts < PAUSES).then(|| FIRST_PAUSE * 2_u32.pow(attempts))
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when the last writer of a file has closed it")]
pub(crate) fn pause_for(duration: Duration) {
    thread::sleep(duration);
}
