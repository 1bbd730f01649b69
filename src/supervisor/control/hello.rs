//! The report of rejected handshakes on the control socket, and its limits.

use crate::{
    text::printable,
    wire::jsonrpc::{
        error::{INVALID_REQUEST, RpcError},
        protocol::VERSION,
    },
};
use serde::Serialize;
use std::{
    fmt,
    time::{Duration, Instant},
};

/// The most rejections that are reported until they are received and [`PERIOD`] has passed: any process of the user can cause them.
const REPORTS_MAX: u32 = 8;
const PERIOD: Duration = Duration::from_secs(10);
/// The most bytes of a rejected line that are reported.
const EXCERPT_BYTES: usize = 128;
/// The number of consecutive hexadecimal digits that may be part of a key.
const SECRET_DIGITS: usize = 8;

/// Why a connection to the control socket was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Its first line is not the method `hello` with a key.
    NotHello,
    /// No worker with this key is expected: the key was used before, or its incarnation has ended.
    UnknownKey,
    /// The worker speaks another version of the protocol. Its key stays valid: it may connect again with a version that is supported.
    UnsupportedVersion {
        /// The version that its `hello` names.
        version: u64,
    },
    /// It sent 4 KiB without a line end.
    LineTooLong,
    /// It did not send its first line within 10 s.
    TimedOut,
    /// It closed the connection in the middle of its first line.
    Closed,
    /// It has the key of a worker that is to be [attached](crate::Supervisor::attach), but its process has exited, or is in another PID
    /// namespace. The key stays valid.
    UnknownProcess,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::UnsupportedVersion { version } => {
                return write!(formatter, "protocol version {version} is not supported, only {VERSION}");
            }
            Self::NotHello => "the first line is not the method `hello` with a key",
            Self::UnknownKey => "no worker with this key is expected: it was used before, or its worker has ended",
            Self::LineTooLong => "no line end within the first 4096 bytes",
            Self::TimedOut => "no first line within 10 s",
            Self::Closed => "closed in the middle of the first line",
            Self::UnknownProcess => "the process that connected has exited, or is in another PID namespace",
        })
    }
}

/// The data of the error for an unsupported version.
#[derive(Serialize)]
struct SupportedVersions {
    versions: [u64; 1],
}

impl HandshakeError {
    /// What the peer is sent.
    pub(crate) fn rpc_error(self) -> RpcError {
        let error = RpcError::new(INVALID_REQUEST, self.to_string());
        match self {
            Self::UnsupportedVersion { .. } => {
                error.clone().with_data(&SupportedVersions { versions: [VERSION] }).unwrap_or(error)
            }
            Self::NotHello
            | Self::UnknownKey
            | Self::LineTooLong
            | Self::TimedOut
            | Self::Closed
            | Self::UnknownProcess => error,
        }
    }
}

/// A rejected handshake that is to be reported. The fields are those of [`Warning::HandshakeRejected`](crate::events::Warning).
#[derive(Debug)]
pub(crate) struct RejectedHandshake {
    pub(crate) fault: HandshakeError,
    pub(crate) pid: Option<u32>,
    pub(crate) excerpt: Box<str>,
    pub(crate) unreported: u64,
}

/// Returns what was received, printable, without parts of keys.
pub(crate) fn excerpt(received: &[u8]) -> Box<str> {
    let mut shown = Vec::with_capacity(EXCERPT_BYTES);
    for run in received.chunk_by(|one, other| one.is_ascii_hexdigit() == other.is_ascii_hexdigit()) {
        let is_secret = run.len() >= SECRET_DIGITS && run.iter().all(u8::is_ascii_hexdigit);
        shown.extend_from_slice(if is_secret { b"..." } else { run });
        if shown.len() > EXCERPT_BYTES {
            shown.truncate(EXCERPT_BYTES);
            shown.extend_from_slice(b"...");
            break;
        }
    }
    printable(&shown).to_string().into()
}

/// Limits the reported rejections.
#[derive(Debug, Default)]
pub(crate) struct RejectionLimiter {
    reported: u32,
    /// The time of the first of them, and the number of the event of the last.
    since: Option<Instant>,
    last_event: u64,
    unreported: u64,
}

impl RejectionLimiter {
    /// Counts a rejection, after `received` events were received. If it is to be reported, returns the number of earlier rejections that
    /// were not.
    pub(crate) fn next(&mut self, now: Instant, received: u64) -> Option<u64> {
        let is_over = self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD);
        if is_over && received >= self.last_event {
            (self.since, self.reported) = (Some(now), 0);
        }
        if self.reported >= REPORTS_MAX {
            self.unreported = self.unreported.saturating_add(1);
            return None;
        }
        self.reported += 1;
        Some(std::mem::take(&mut self.unreported))
    }

    /// Records the number of the event that reports it.
    pub(crate) fn reported_as(&mut self, event: u64) {
        self.last_event = event;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter;

    #[test]
    fn p12_an_excerpt_shows_no_key() {
        let key = "0123456789abcdef0123456789abcdef";
        let line = format!("debug{{\"method\":\"hello\",\"params\":{{\"Key\":\"{key}\"}}}}\n");
        let shown = excerpt(line.as_bytes());
        assert_eq!(&*shown, "debug{\"method\":\"hello\",\"params\":{\"Key\":\"...\"}}\\n");
        // Cut within a key, and beside other digits.
        let long = [&[b'x'; EXCERPT_BYTES - 4], key.as_bytes()].concat();
        assert!(!excerpt(&long).contains("0123"), "{}", excerpt(&long));
        assert_eq!(&*excerpt(b"GET / HTTP/1.1\r\x1b"), "GET / HTTP/1.1\\r\\u{1b}");
        assert!(excerpt(&[b'x'; 4096]).len() <= EXCERPT_BYTES + 3);
    }

    #[test]
    fn p07_refusals_are_reported_within_bounds() {
        let start = crate::supervisor::clock::now();
        let mut refusals = RejectionLimiter::default();
        let mut next = |after: u64, received| refusals.next(start + Duration::from_secs(after), received);
        let reported = iter::repeat_with(|| next(0, 0)).take(100).flatten().count();
        assert_eq!(reported, 8);
        assert_eq!(next(9, 100), None, "the period is not over");
        assert_eq!(next(11, 100), Some(93));
        assert_eq!(next(11, 100), Some(0));
        refusals.reported_as(200);
        let mut next = |after: u64, received| refusals.next(start + Duration::from_secs(after), received);
        (0..6).for_each(|_| assert_eq!(next(12, 199), Some(0)));
        assert_eq!(next(1000, 199), None, "the earlier ones are not received yet");
        assert_eq!(next(1000, 200), Some(1));
    }
}
