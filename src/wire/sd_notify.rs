//! Parses `sd_notify(3)` datagrams: lines of `KEY=value`.

use crate::text::printable;
use std::time::Duration;

/// The most bytes of a status text that are kept.
const STATUS_BYTES_MAX: usize = 1024;

/// One assignment of a datagram. Unknown and invalid ones are ignored, as the protocol requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    Ready,
    Stopping,
    /// `STATUS=`: a text for humans.
    Status(Box<str>),
    /// `WATCHDOG=1`.
    Alive,
    /// `WATCHDOG=trigger`: the service reports itself as failed.
    Trigger,
    /// `EXTEND_TIMEOUT_USEC=`: more time, counted from now, to become ready or to exit.
    Extend(Duration),
}

/// The assignments of a datagram, in order.
pub(crate) fn parse(datagram: &[u8]) -> impl Iterator<Item = Notice> {
    datagram.split(|byte| *byte == b'\n').filter_map(notice)
}

fn notice(line: &[u8]) -> Option<Notice> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = line.split_at_checked(at)?;
    let value = value.strip_prefix(b"=")?;
    match (key, value) {
        (b"READY", b"1") => Some(Notice::Ready),
        (b"STOPPING", b"1") => Some(Notice::Stopping),
        (b"WATCHDOG", b"1") => Some(Notice::Alive),
        (b"WATCHDOG", b"trigger") => Some(Notice::Trigger),
        (b"STATUS", text) => {
            let text = text.get(..STATUS_BYTES_MAX).unwrap_or(text);
            Some(Notice::Status(printable(text).to_string().into()))
        }
        (b"EXTEND_TIMEOUT_USEC", text) => {
            let us = str::from_utf8(text).ok()?.trim().parse().ok()?;
            Some(Notice::Extend(Duration::from_micros(us)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(datagram: &[u8]) -> Vec<Notice> {
        parse(datagram).collect()
    }

    #[test]
    fn assignments_of_systemd_notify_are_parsed() {
        assert_eq!(all(b"READY=1\nSTATUS=hello world"), [Notice::Ready, Notice::Status("hello world".into())]);
        assert_eq!(all(b"STATUS=a=b\n"), [Notice::Status("a=b".into())]);
        assert_eq!(all(b"STATUS=\x1b[2Ja\rb"), [Notice::Status("\\u{1b}[2Ja\\rb".into())]);
        let more = b"STOPPING=1\nWATCHDOG=1\nWATCHDOG=trigger\nEXTEND_TIMEOUT_USEC=2500000\n";
        let extend = Notice::Extend(Duration::from_millis(2500));
        assert_eq!(all(more), [Notice::Stopping, Notice::Alive, Notice::Trigger, extend]);
    }

    #[test]
    fn unknown_assignments_are_ignored() {
        let odd: [&[u8]; 8] =
            [b"", b"\n\n", b"READY", b"READY=0", b"X_MINE=1", b"BARRIER=1", b"EXTEND_TIMEOUT_USEC=-1", b"=READY=1"];
        for datagram in odd {
            assert_eq!(all(datagram), [], "{}", String::from_utf8_lossy(datagram));
        }
        assert_eq!(all(b"X=1\nREADY=1"), [Notice::Ready]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_within_limits(datagram in prop::collection::vec(any::<u8>(), 0..3000)) {
            for notice in all(&datagram) {
                if let Notice::Status(text) = notice {
                    // The escape of a control character has six bytes.
                    prop_assert!(text.len() <= 6 * STATUS_BYTES_MAX);
                }
            }
        }
    }
}
