//! The output for the user, in the form of nextest.

use crate::{
    counts::{Counts, count},
    options::{OutputOptions, When},
    output,
    runner::{TestResult, now},
    status_line::{Colour, StatusLine, Time, label},
    verdict::{Attempt, Verdict},
};
use pipewright::printable;
use signal_hook::low_level::signal_name;
use std::{
    env,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

const RULE: &str = "────────────";

/// Why no more tests are started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cancellation {
    Failures,
    Signal(i32),
}

pub(crate) struct Report {
    started: Instant,
    /// Tests to run.
    total: usize,
    /// Tests that were not selected.
    skipped: usize,
    finished: usize,
    retries: u32,
    has_colours: bool,
    of_failures: When,
    of_successes: When,
}

impl Report {
    pub(crate) fn new(total: usize, skipped: usize, retries: u32, options: &OutputOptions) -> Self {
        let is_plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            started: now(),
            total,
            skipped,
            finished: 0,
            retries,
            has_colours: !is_plain && io::stderr().is_terminal(),
            of_failures: options.of_failures,
            of_successes: options.of_successes,
        }
    }

    pub(crate) fn begin(&self, programs: usize) {
        let skipped =
            if self.skipped > 0 { format!(" ({} skipped)", count(self.skipped, "test")) } else { String::new() };
        let (tests, programs) = (count(self.total, "test"), count(programs, "program"));
        print(&[RULE.into(), format!("     Starting {tests} across {programs}{skipped}")]);
    }

    /// A line about a test that is running.
    fn progress(&self, label: &str, result: &TestResult, after: Duration) {
        let attempt = result.attempts.len() + 1;
        let label = if attempt > 1 { format!("TRY {attempt} {label}") } else { label.to_owned() };
        let name = &result.test.full_name();
        let line = StatusLine { label, colour: Colour::Yellow, time: Time::LongerThan(after), position: None, name };
        print(&[line.text(self.has_colours)]);
    }

    pub(crate) fn slow(&self, result: &TestResult, after: Duration) {
        self.progress("SLOW", result, after);
    }

    pub(crate) fn terminating(&self, result: &TestResult, after: Duration) {
        self.progress("TRMNTG", result, after);
    }

    /// The last attempt failed and there is another one.
    pub(crate) fn retrying(&self, result: &TestResult) {
        self.ended(result, None);
    }

    pub(crate) fn finished(&mut self, result: &TestResult) {
        self.finished += 1;
        let digits = self.total.to_string().len();
        self.ended(result, Some(format!("{:>digits$}/{}", self.finished, self.total)));
    }

    fn ended(&self, result: &TestResult, position: Option<String>) {
        let Some(attempt) = result.last() else { return };
        let mut lines = self.attempt_lines(result, attempt, position);
        if self.when(attempt).immediate {
            lines.extend(output_lines(attempt));
        }
        print(&lines);
    }

    fn when(&self, attempt: &Attempt) -> When {
        if attempt.verdict.is_failure() { self.of_failures } else { self.of_successes }
    }

    /// An attempt with its reason, and what it left behind.
    fn attempt_lines(&self, result: &TestResult, attempt: &Attempt, position: Option<String>) -> Vec<String> {
        let (label, colour) = label(attempt);
        let is_one_of_several = attempt.number > 1 || (self.retries > 0 && attempt.verdict.is_failure());
        let label = if is_one_of_several { format!("TRY {} {label}", attempt.number) } else { label.into_owned() };
        let name = &result.test.full_name();
        let line = StatusLine { label, colour, time: Time::Took(attempt.duration), position, name };
        let reason = attempt.reason.iter().map(|reason| format!(": {}", printable(reason)));
        let first = line.text(self.has_colours) + &reason.collect::<String>();
        [first].into_iter().chain(attempt.leaks.iter().map(|leak| format!("              {leak}"))).collect()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    /// Prints the summary, and what did not simply pass.
    pub(crate) fn end(&self, results: &[TestResult], counts: &Counts) {
        let seconds = self.elapsed().as_secs_f64();
        let summary = format!("      Summary [{seconds:>8.3}s] {}", counts.summary(self.skipped));
        let mut lines = vec![RULE.into(), summary];
        lines.extend(results.iter().flat_map(|result| self.summary_lines(result)));
        if counts.not_run > 0 {
            lines.push(format!("warning: {} not run", were(counts.not_run)));
        }
        print(&lines);
    }

    fn summary_lines(&self, result: &TestResult) -> Vec<String> {
        let Some(last) = result.last() else { return Vec::new() };
        let is_at_the_end = self.when(last).at_the_end;
        let is_plain = match last.verdict {
            Verdict::Passed => last.leaks.is_empty() && !result.is_flaky(),
            Verdict::Skipped => true,
            _ => false,
        };
        if is_plain && !is_at_the_end {
            return Vec::new();
        }
        let mut lines = if result.is_flaky() {
            let label = format!("FLAKY {}/{}", last.number, self.retries.saturating_add(1));
            let (colour, time, name) = (Colour::Yellow, Time::Took(last.duration), &result.test.full_name());
            vec![StatusLine { label, colour, time, position: None, name }.text(self.has_colours)]
        } else {
            self.attempt_lines(result, last, None)
        };
        if is_at_the_end {
            lines.extend(output_lines(last));
        }
        lines
    }
}

pub(crate) fn cancelled(why: Cancellation, running: usize) {
    let why = match why {
        Cancellation::Failures => "test failure",
        Cancellation::Signal(signal) => signal_name(signal).unwrap_or("signal"),
    };
    print(&[format!("   Cancelling due to {why}: {} still running", count(running, "test"))]);
}

fn were(tests: usize) -> String {
    format!("{} {}", count(tests, "test"), if tests == 1 { "was" } else { "were" })
}

fn print(lines: &[String]) {
    output::write(io::stderr(), &format!("{}\n", lines.join("\n")));
}

/// The output of a test, escaped and indented.
fn output_lines(attempt: &Attempt) -> Vec<String> {
    let output = attempt.output.as_deref().unwrap_or_default();
    if output.trim().is_empty() {
        return Vec::new();
    }
    let text = printable(output).lines().to_string();
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("    {line}") };
    let lines = text.trim_matches('\n').lines().map(indented);
    ["  output ───".to_owned()].into_iter().chain(lines).chain([String::new()]).collect()
}
