//! The table of all workers, as text that fits a terminal of 80 columns.

use pipewright::{printable, status::WorkerStatus};
use std::time::Duration;

const NAME_CHARS: usize = 16;
const LAST_LINE_CHARS: usize = 22;

pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) has_failed: bool,
    pub(crate) status: Option<&'a WorkerStatus>,
    pub(crate) last_line: &'a str,
}

pub(crate) fn table(rows: &[Row<'_>]) -> String {
    let mut text =
        format!("{:<NAME_CHARS$} {:<9} {:>8} {:>8} {:>8}  last line", "worker", "state", "pid", "uptime", "restarts");
    for Row { name, has_failed, status, last_line } in rows {
        let state = status.map_or_else(|| "ended".to_owned(), |status| status.state.to_string());
        let state = if *has_failed { "failed".into() } else { state };
        let pid = status.and_then(|status| status.pid).map(|pid| pid.to_string()).unwrap_or_default();
        let uptime = status.and_then(|status| status.uptime).map(short).unwrap_or_default();
        let restarts = status.map_or(0, |status| status.restarts);
        let (name, line) = (cut(name, NAME_CHARS), cut(last_line, LAST_LINE_CHARS));
        let row = format!("\n{name:<NAME_CHARS$} {state:<9} {pid:>8} {uptime:>8} {restarts:>8}  {line}");
        text.push_str(&row);
    }
    text
}

/// A text cut to `room` characters, with control characters escaped.
fn cut(text: &str, room: usize) -> String {
    let text = printable(text).to_string();
    if text.chars().count() <= room {
        return text;
    }
    text.chars().take(room - 1).chain(['…']).collect()
}

/// In at most 8 characters: `59s`, `59m 59s`, `23h 59m`, `999d 23h`.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (0..1000, ..) => format!("{days}d {}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_fits_80_columns() {
        let row = Row { name: &"n".repeat(300), has_failed: true, status: None, last_line: &"\u{1b}[2Jx".repeat(99) };
        let text = table(&[row]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("nnnnnnnnnnnnnnn… failed"), "{text}");
    }

    #[test]
    fn times_are_short() {
        let cases = [(0, "0s"), (59, "59s"), (3599, "59m 59s"), (86399, "23h 59m"), (86_399_999, "999d 23h")];
        for (seconds, expected) in cases {
            assert_eq!(short(Duration::from_secs(seconds)), expected);
        }
    }
}
