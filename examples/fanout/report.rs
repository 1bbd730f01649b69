//! Output for the user: a progress bar or plain lines, the output of each step in one piece, and a summary.

use crate::{diagnostics, output, plan::Step};
use indicatif::{ProgressBar, ProgressStyle};
use pipewright::{Exit, WorkerId};
use std::{
    collections::HashMap,
    ffi::OsString,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// How much output of one step is kept while that of another step is printed.
const QUEUED_BYTES_MAX: usize = 8 << 20;

/// Result of a step.
pub(crate) struct Finished {
    pub(crate) exit: String,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) output_bytes: usize,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_bytes: u64,
}

impl Finished {
    /// The usage includes the compiler's own children: GCC's `cc` runs `cc1` and `as`.
    pub(crate) fn of(exit: &Exit, output_bytes: usize) -> Self {
        let usage = exit.usage.unwrap_or_default();
        Self {
            exit: exit.to_string(),
            code: exit.code(),
            signal: exit.signal(),
            output_bytes,
            wall: exit.duration,
            cpu: usage.user + usage.system,
            peak_bytes: usage.max_rss_bytes,
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// One line about a failure.
    fn describe(&self, step: &Step) -> String {
        let program = step.arguments.first().map_or_else(String::new, |program| program.display().to_string());
        format!("{}: {program}: {}", step.name.display(), self.exit)
    }
}

pub(crate) struct Report {
    bar: Option<ProgressBar>,
    started: Instant,
    counts: Counts,
    is_verbose: bool,
    times: Vec<(OsString, Finished)>,
    queue: OutputQueue,
}

/// Numbers of steps.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// That have to run.
    pub(crate) needed: usize,
    pub(crate) up_to_date: usize,
    /// Invalid entries of the database.
    pub(crate) invalid: usize,
    pub(crate) built: usize,
    pub(crate) failed: usize,
    /// Lines of output.
    pub(crate) warnings: usize,
}

/// Keeps the outputs of steps apart: that of one step is printed at once until it has finished, and that of the others is queued.
#[derive(Default)]
struct OutputQueue {
    current: Option<WorkerId>,
    streams: HashMap<WorkerId, Stream>,
    /// In the order of their first output.
    order: Vec<WorkerId>,
}

#[derive(Default)]
struct Stream {
    /// An unfinished line.
    partial: Vec<u8>,
    lines: Vec<String>,
    bytes: usize,
    left_out: usize,
    is_finished: bool,
}

impl OutputQueue {
    /// Adds output of a step. Returns the lines that can be printed now.
    fn push(&mut self, worker: WorkerId, bytes: &[u8]) -> Vec<String> {
        let stream = self.streams.entry(worker).or_insert_with(|| {
            self.order.push(worker);
            Stream::default()
        });
        stream.partial.extend_from_slice(bytes);
        if let Some(end) = memchr::memrchr(b'\n', &stream.partial) {
            let rest = stream.partial.split_off(end + 1);
            let text = std::mem::replace(&mut stream.partial, rest);
            stream.add(&text);
        }
        if *self.current.get_or_insert(worker) == worker { stream.take() } else { Vec::new() }
    }

    /// Adds a line of this program to the output of a step. Returns the lines that can be printed now.
    fn note(&mut self, worker: WorkerId, line: &str) -> Vec<String> {
        let mut lines = self.push(worker, b"");
        if let Some(stream) = self.streams.get_mut(&worker) {
            let partial = std::mem::take(&mut stream.partial);
            stream.add(&partial);
            stream.add(line.as_bytes());
        }
        lines.extend(self.push(worker, b""));
        lines
    }

    /// As `note`, and marks the step as finished.
    fn finish(&mut self, worker: WorkerId, last: &str) -> Vec<String> {
        let mut lines = self.note(worker, last);
        if let Some(stream) = self.streams.get_mut(&worker) {
            stream.is_finished = true;
        }
        while let Some(stream) = self.current.and_then(|current| self.streams.get_mut(&current)) {
            lines.extend(stream.take());
            if !stream.is_finished {
                break;
            }
            self.streams.retain(|id, _| Some(*id) != self.current);
            self.order.retain(|id| Some(*id) != self.current);
            self.current = self.order.first().copied();
        }
        lines
    }
}

impl Stream {
    fn add(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            if self.bytes + line.len() > QUEUED_BYTES_MAX {
                self.left_out += 1;
            } else {
                self.bytes += line.len();
                self.lines.push(line.to_owned());
            }
        }
    }

    fn take(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        if self.left_out > 0 {
            lines.push(format!("({} more lines are left out)", std::mem::take(&mut self.left_out)));
        }
        lines
    }
}

impl Report {
    pub(crate) fn new(counts: Counts, is_verbose: bool) -> Self {
        let bar = (counts.needed > 0 && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
            let bar = ProgressBar::new(counts.needed as u64);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, started: now(), counts, is_verbose, times: Vec::new(), queue: OutputQueue::default() }
    }

    pub(crate) fn started(&self, step: &Step) {
        if let Some(bar) = &self.bar {
            bar.set_message(step.name.display().to_string());
        }
        if self.is_verbose {
            self.print(&String::from_utf8_lossy(&step.command_line()));
        }
    }

    pub(crate) fn output(&mut self, worker: WorkerId, bytes: &[u8]) {
        let lines = self.queue.push(worker, bytes);
        self.print_output(lines);
    }

    pub(crate) fn finished(&mut self, worker: WorkerId, step: &Step, finished: Finished) {
        let is_success = finished.is_success();
        let last = if is_success { String::new() } else { format!("error: {}", finished.describe(step)) };
        let lines = self.queue.finish(worker, &last);
        self.print_output(lines);
        self.count(step, is_success);
        self.times.push((step.name.clone(), finished));
    }

    /// An attempt that has failed, and is not the last.
    pub(crate) fn retried(&mut self, worker: WorkerId, step: &Step, finished: &Finished) {
        let lines = self.queue.note(worker, &format!("retried: {}", finished.describe(step)));
        self.print_output(lines);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    /// A step that could not be started.
    pub(crate) fn not_started(&mut self, step: &Step, why: &str) {
        self.print(&format!("error: {}: {why}", step.name.display()));
        self.count(step, false);
    }

    pub(crate) fn warn(&self, text: &str) {
        let print = || output::print_error(&text);
        self.bar.as_ref().map_or_else(print, |bar| bar.suspend(print));
    }

    fn print_output(&mut self, lines: Vec<String>) {
        for line in lines {
            self.counts.warnings += usize::from(diagnostics::is_warning(&line));
            self.print(&line);
        }
    }

    fn count(&mut self, step: &Step, is_built: bool) {
        let Counts { built, failed, needed, .. } = &mut self.counts;
        *(if is_built { &mut *built } else { &mut *failed }) += 1;
        let how = if is_built { "" } else { ": failed" };
        let line = format!("[{}/{needed}] {}{how}", *built + *failed, step.name.display());
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                // The bar shows the successful ones.
                if !is_built {
                    bar.println(line);
                }
            }
            None => output::write_line(io::stderr(), &line),
        }
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::print_line(text)),
            None => output::print_line(text),
        }
    }

    /// Prints the summary. Returns whether everything is built.
    pub(crate) fn close(mut self) -> bool {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = self.elapsed().as_secs_f64();
        let Counts { needed, up_to_date, invalid, built, failed, warnings } = self.counts;
        if built + failed < needed {
            self.print(&format!("{} not built", needed - built - failed));
        }
        let up_to_date = if up_to_date > 0 { format!(" {up_to_date} up to date,") } else { String::new() };
        let all_failed = failed + invalid;
        self.print(&format!("{built} built,{up_to_date} {all_failed} failed, {warnings} warnings in {seconds:.2} s"));
        self.times.sort_by_key(|(_, finished)| std::cmp::Reverse(finished.wall));
        for (name, Finished { wall, cpu, peak_bytes, .. }) in self.times.iter().take(5) {
            let (wall, cpu, mib) = (wall.as_secs_f64(), cpu.as_secs_f64(), peak_bytes >> 20);
            self.print(&format!("  {wall:>7.3} s wall  {cpu:>7.3} s cpu  {mib:>5} MiB  {}", name.display()));
        }
        built == needed && invalid == 0
    }
}

#[expect(clippy::disallowed_methods, reason = "the summary shows the elapsed time")]
fn now() -> Instant {
    Instant::now()
}
