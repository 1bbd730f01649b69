//! What the user sees: a progress bar or plain lines, diagnostics file by file, and the sum at the end.

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
    bad: usize,
    warnings: usize,
    times: Vec<(OsString, Finished)>,
    floor: Floor,
}

/// One file speaks at a time, so that diagnostics do not mix: the first that has something to say holds the floor until it is
/// finished, and the others wait their turn.
#[derive(Default)]
struct Floor {
    speaker: Option<WorkerId>,
    waiting: VecDeque<(WorkerId, Vec<String>, bool)>,
}

impl Floor {
    /// Gives back what may be printed now.
    fn say(&mut self, worker: WorkerId, text: String) -> Option<String> {
        if *self.speaker.get_or_insert(worker) == worker {
            return Some(text);
        }
        match self.waiting.iter_mut().find(|(who, ..)| *who == worker) {
            Some((_, texts, _)) => texts.push(text),
            None => self.waiting.push_back((worker, vec![text], false)),
        }
        None
    }

    /// The worker has no more to say; gives what the next ones have been waiting to say.
    fn leave(&mut self, worker: WorkerId) -> Vec<String> {
        if self.speaker != Some(worker) {
            if let Some((.., is_finished)) = self.waiting.iter_mut().find(|(who, ..)| *who == worker) {
                *is_finished = true;
            }
            return Vec::new();
        }
        self.speaker = None;
        let mut said = Vec::new();
        while let Some((who, texts, is_finished)) = self.waiting.pop_front() {
            said.extend(texts);
            if !is_finished {
                self.speaker = Some(who);
                break;
            }
        }
        said
    }
}

impl Report {
    /// Of so many entries, and so many that cannot be run.
    pub(crate) fn new(total: usize, bad: usize) -> Self {
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
            bad,
            warnings: 0,
            times: Vec::new(),
            floor: Floor::default(),
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

    /// Anything else that a worker gave cause to say.
    pub(crate) fn note(&mut self, worker: WorkerId, text: String) {
        if let Some(text) = self.floor.say(worker, text) {
            self.print(&text);
        }
    }

    pub(crate) fn finished(&mut self, worker: WorkerId, entry: &Entry, finished: Finished) {
        self.leave(worker);
        self.count(entry, finished.compiled);
        self.times.push((entry.file.clone(), finished));
    }

    /// A worker that ended without saying that it was finished: it was killed, or it crashed.
    pub(crate) fn lost(&mut self, worker: WorkerId, entry: &Entry, exit: &Exit) {
        self.note(worker, format!("{}: its worker ended: {exit}", entry.file.display()));
        self.leave(worker);
        self.count(entry, false);
    }

    /// A worker that could not be started.
    pub(crate) fn not_started(&mut self, entry: &Entry, why: &str) {
        self.print(&format!("{}: {why}", entry.file.display()));
        self.count(entry, false);
    }

    fn leave(&mut self, worker: WorkerId) {
        for text in self.floor.leave(worker) {
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
                // What went well is told by the bar.
                if !is_compiled {
                    bar.println(line);
                }
            }
            None => output::write_line(io::stderr(), &line),
        }
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::say(text)),
            None => output::say(text),
        }
    }

    /// The sum. True if everything was compiled.
    pub(crate) fn close(mut self) -> bool {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = now().saturating_duration_since(self.started).as_secs_f64();
        let Self { compiled, failed, bad, warnings, total, .. } = self;
        if compiled + failed < total {
            self.print(&format!("{} not compiled", total - compiled - failed));
        }
        let failed = failed + bad;
        self.print(&format!("{compiled} compiled, {failed} failed, {warnings} warnings in {seconds:.2} s"));
        self.times.sort_by_key(|(_, finished)| std::cmp::Reverse(finished.wall));
        for (file, Finished { wall, cpu, peak_bytes, .. }) in self.times.iter().take(5) {
            let (wall, cpu, mib) = (wall.as_secs_f64(), cpu.as_secs_f64(), peak_bytes >> 20);
            self.print(&format!("  {wall:>7.3} s wall  {cpu:>7.3} s cpu  {mib:>5} MiB  {}", file.display()));
        }
        compiled == total && bad == 0
    }
}

#[expect(clippy::disallowed_methods, reason = "the user wants to know how long it took")]
fn now() -> Instant {
    Instant::now()
}
