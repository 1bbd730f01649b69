//! Output for the user: a progress bar or plain lines, diagnostics grouped by file, and a summary.

use crate::{
    compile::Finished,
    database::Entry,
    diagnostics::{Diagnostic, Severity},
    output,
};
use indicatif::{ProgressBar, ProgressStyle};
use pipewright::{Exit, WorkerId};
use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, IsTerminal},
    time::Instant,
};

pub(crate) struct Report {
    bar: Option<ProgressBar>,
    started: Instant,
    total: usize,
    compiled: usize,
    failed: usize,
    invalid: usize,
    warnings: usize,
    times: Vec<(OsString, Finished)>,
    queue: OutputQueue,
}

/// Groups diagnostics by worker: the output of one worker is printed at once until it has finished, and that of the others is
/// queued.
#[derive(Default)]
struct OutputQueue {
    current: Option<WorkerId>,
    /// Texts of the other workers, and whether each has finished.
    waiting: VecDeque<(WorkerId, Vec<String>, bool)>,
}

impl OutputQueue {
    /// Returns the text if it can be printed now; queues it otherwise.
    fn push(&mut self, worker: WorkerId, text: String) -> Option<String> {
        if *self.current.get_or_insert(worker) == worker {
            return Some(text);
        }
        match self.waiting.iter_mut().find(|(other, ..)| *other == worker) {
            Some((_, texts, _)) => texts.push(text),
            None => self.waiting.push_back((worker, vec![text], false)),
        }
        None
    }

    /// Marks the worker as finished; returns the queued texts that can be printed now.
    fn finish(&mut self, worker: WorkerId) -> Vec<String> {
        if self.current != Some(worker) {
            if let Some((.., is_finished)) = self.waiting.iter_mut().find(|(other, ..)| *other == worker) {
                *is_finished = true;
            }
            return Vec::new();
        }
        self.current = None;
        let mut printable = Vec::new();
        while let Some((next, texts, is_finished)) = self.waiting.pop_front() {
            printable.extend(texts);
            if !is_finished {
                self.current = Some(next);
                break;
            }
        }
        printable
    }
}

impl Report {
    /// `total` entries to compile, and `invalid` entries of the database.
    pub(crate) fn new(total: usize, invalid: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
            ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            bar,
            started: now(),
            total,
            compiled: 0,
            failed: 0,
            invalid,
            warnings: 0,
            times: Vec::new(),
            queue: OutputQueue::default(),
        }
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.failed > 0
    }

    pub(crate) fn started(&self, entry: &Entry) {
        if let Some(bar) = &self.bar {
            bar.set_message(entry.file.display().to_string());
        }
    }

    pub(crate) fn diagnostic(&mut self, worker: WorkerId, diagnostic: &Diagnostic) {
        self.warnings += usize::from(diagnostic.severity == Severity::Warning);
        self.note(worker, diagnostic.to_string());
    }

    /// Prints other text of a worker.
    pub(crate) fn note(&mut self, worker: WorkerId, text: String) {
        if let Some(text) = self.queue.push(worker, text) {
            self.print(&text);
        }
    }

    pub(crate) fn finished(&mut self, worker: WorkerId, entry: &Entry, finished: Finished) {
        self.print_queued(worker);
        self.count(entry, finished.compiled);
        self.times.push((entry.file.clone(), finished));
    }

    /// A worker that exited without `Finished`: it was killed, or it crashed.
    pub(crate) fn lost(&mut self, worker: WorkerId, entry: &Entry, exit: &Exit) {
        self.note(worker, format!("{}: worker terminated: {exit}", entry.file.display()));
        self.print_queued(worker);
        self.count(entry, false);
    }

    /// A worker that could not be started.
    pub(crate) fn not_started(&mut self, entry: &Entry, why: &str) {
        self.print(&format!("{}: {why}", entry.file.display()));
        self.count(entry, false);
    }

    fn print_queued(&mut self, worker: WorkerId) {
        for text in self.queue.finish(worker) {
            self.print(&text);
        }
    }

    fn count(&mut self, entry: &Entry, is_compiled: bool) {
        *(if is_compiled { &mut self.compiled } else { &mut self.failed }) += 1;
        let how = if is_compiled { "" } else { ": failed" };
        let line = format!("[{}/{}] {}{how}", self.compiled + self.failed, self.total, entry.file.display());
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                // The bar shows the successful ones.
                if !is_compiled {
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

    /// Prints the summary. Returns whether every entry was compiled.
    pub(crate) fn close(mut self) -> bool {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = now().saturating_duration_since(self.started).as_secs_f64();
        let Self { compiled, failed, invalid, warnings, total, .. } = self;
        if compiled + failed < total {
            self.print(&format!("{} not compiled", total - compiled - failed));
        }
        let failed = failed + invalid;
        self.print(&format!("{compiled} compiled, {failed} failed, {warnings} warnings in {seconds:.2} s"));
        self.times.sort_by_key(|(_, finished)| std::cmp::Reverse(finished.wall));
        for (file, Finished { wall, cpu, peak_bytes, .. }) in self.times.iter().take(5) {
            let (wall, cpu, mib) = (wall.as_secs_f64(), cpu.as_secs_f64(), peak_bytes >> 20);
            self.print(&format!("  {wall:>7.3} s wall  {cpu:>7.3} s cpu  {mib:>5} MiB  {}", file.display()));
        }
        compiled == total && invalid == 0
    }
}

#[expect(clippy::disallowed_methods, reason = "the summary shows the elapsed time")]
fn now() -> Instant {
    Instant::now()
}
