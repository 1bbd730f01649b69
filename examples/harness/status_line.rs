//! One line about a test: ` TRY 1 FAIL [   0.012s] (1/6) app::it parses`.

use crate::verdict::{Attempt, Verdict};
use pipewright::printable;
use signal_hook::low_level::signal_name;
use std::{borrow::Cow, time::Duration};

/// The width of the label: `TRY 1 SIGSEGV`.
const LABEL_WIDTH: usize = 13;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Green = 32,
    Red = 31,
    Yellow = 33,
}

pub(crate) struct StatusLine<'a> {
    pub(crate) label: String,
    pub(crate) colour: Colour,
    pub(crate) time: Time,
    /// `1/6`: the number of tests that have ended, if this one has.
    pub(crate) position: Option<String>,
    pub(crate) name: &'a str,
}

pub(crate) enum Time {
    Took(Duration),
    LongerThan(Duration),
}

impl StatusLine<'_> {
    pub(crate) fn text(&self, has_colours: bool) -> String {
        let Self { label, colour, time, position, name } = self;
        let padding = " ".repeat(LABEL_WIDTH.saturating_sub(label.chars().count()));
        let code = *colour as u8;
        let label = if has_colours { format!("\x1b[1;{code}m{label}\x1b[0m") } else { label.clone() };
        let time = match time {
            Time::Took(time) => format!("{:>8.3}s", time.as_secs_f64()),
            Time::LongerThan(time) => format!(">{:>7.3}s", time.as_secs_f64()),
        };
        format!("{padding}{label} [{time}] ({}) {}", position.as_deref().unwrap_or("───"), printable(*name))
    }
}

/// The label of an attempt that has ended.
pub(crate) fn label(attempt: &Attempt) -> (Cow<'static, str>, Colour) {
    let signal = attempt.exit.as_ref().and_then(|exit| exit.signal());
    let (label, colour) = match attempt.verdict {
        Verdict::Passed if attempt.leaks.is_empty() => ("PASS", Colour::Green),
        Verdict::Passed => ("LEAK", Colour::Yellow),
        Verdict::Skipped => ("SKIP", Colour::Yellow),
        Verdict::Failed => (signal.and_then(signal_name).unwrap_or("FAIL"), Colour::Red),
        Verdict::LeakFailed => ("LEAK-FAIL", Colour::Red),
        Verdict::TimedOut => ("TIMEOUT", Colour::Red),
        Verdict::NotStarted => ("XFAIL", Colour::Red),
        Verdict::Interrupted => ("INTERRUPT", Colour::Yellow),
    };
    (label.into(), colour)
}
