//! What the user sees: a live table below the lines in a terminal, the lines alone elsewhere.

use crossbeam_channel::Receiver;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pipewright::WorkerStatus;
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

const REFRESH: Duration = Duration::from_millis(500);
const LAST_LINE_CHARS: usize = 40;

pub(crate) struct Table {
    bar: Option<ProgressBar>,
}

/// One worker.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) has_failed: bool,
    pub(crate) status: Option<&'a WorkerStatus>,
    pub(crate) last_line: &'a str,
}

impl Table {
    pub(crate) fn new() -> Self {
        let bar = io::stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
        });
        Self { bar }
    }

    /// When it wants to be shown again.
    pub(crate) fn ticks(&self) -> Receiver<Instant> {
        if self.is_live() { crossbeam_channel::tick(REFRESH) } else { crossbeam_channel::never() }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    pub(crate) fn show(&self, rows: &[Row<'_>]) {
        let Some(bar) = &self.bar else { return };
        let mut text =
            format!("{:<16} {:<9} {:>8} {:>10} {:>8}  last line", "worker", "state", "pid", "uptime", "restarts");
        for Row { name, has_failed, status, last_line } in rows {
            let state = status.map_or_else(|| "ended".to_owned(), |status| status.state.to_string());
            let state = if *has_failed { "failed".into() } else { state };
            let pid = status.and_then(|status| status.pid).map(|pid| pid.to_string()).unwrap_or_default();
            let uptime = status.and_then(|status| status.uptime).map(|uptime| Duration::from_secs(uptime.as_secs()));
            let uptime = uptime.map(|uptime| humantime::format_duration(uptime).to_string()).unwrap_or_default();
            let restarts = status.map_or(0, |status| status.restarts);
            let line: String = last_line.chars().filter(|char| !char.is_control()).take(LAST_LINE_CHARS).collect();
            let row = format!("\n{name:<16} {state:<9} {pid:>8} {uptime:>10} {restarts:>8}  {line}");
            text.push_str(&row);
        }
        bar.set_message(text);
        bar.tick();
    }

    pub(crate) fn note(&self, text: &str) {
        self.apart(|| write_line(io::stdout(), text));
    }

    pub(crate) fn complain(&self, text: &str) {
        self.apart(|| write_line(io::stderr(), &format!("keep_alive: {text}")));
    }

    pub(crate) fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn apart(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// Whoever closes our output wants to hear no more; the workers are looked after all the same, where `println!` would panic.
fn write_line(mut stream: impl Write, text: &str) {
    drop(writeln!(stream, "{text}"));
}
