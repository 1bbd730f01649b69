//! Writes all output on a separate thread, so that a terminal stopped by Ctrl-S, a pipe that is not read or a slow disk blocks only
//! that thread.

use crossbeam_channel::{Receiver, Sender, TrySendError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pipewright::pipe::anonymous::PipeWriter;
use std::{
    collections::{HashMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How many texts may be queued before no more events are received, which pauses the workers.
const BEHIND_MAX: usize = 1024;
/// During the shutdown, how long the reader may accept nothing before the rest is dropped.
const STUCK_TIME: Duration = Duration::from_secs(2);

/// One thing to write.
#[derive(Debug)]
pub(crate) enum Text {
    /// A line on standard output.
    Line(String),
    /// A line on standard error.
    Complaint(String),
    /// A line in a log file.
    Log(Arc<Path>, String),
    /// The table below the lines of a terminal.
    Table(String),
    /// Log files are reopened: they may have been renamed.
    Reopen,
}

/// The side that never blocks.
#[derive(Debug)]
pub(crate) struct Screen {
    texts: Option<Sender<Text>>,
    /// Notified after each write; disconnected when the thread has ended.
    progress: Receiver<()>,
    /// Texts that do not fit into the channel yet.
    waiting: VecDeque<Text>,
    last_progress: Instant,
    is_live: bool,
}

impl Screen {
    pub(crate) fn new() -> io::Result<Self> {
        let (texts, to_write) = crossbeam_channel::bounded(BEHIND_MAX);
        let (written, progress) = crossbeam_channel::bounded(1);
        let is_live = io::stdout().is_terminal();
        thread::Builder::new().name("screen".into()).spawn(move || {
            let mut writer = Writer::new(is_live);
            for text in to_write {
                writer.write(text);
                // Full: the other side is already notified.
                let _is_full = written.try_send(());
            }
            writer.close();
        })?;
        Ok(Self { texts: Some(texts), progress, waiting: VecDeque::new(), last_progress: now(), is_live })
    }

    /// Whether standard output is a terminal, which shows the table.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live
    }

    pub(crate) fn write(&mut self, text: Text) {
        self.waiting.push_back(text);
        self.flush_queue();
    }

    /// Whether events must not be received for now.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notifies after a write: then call [`advance`](Self::advance).
    pub(crate) fn progress(&self) -> Receiver<()> {
        if self.texts.is_some() { self.progress.clone() } else { crossbeam_channel::never() }
    }

    pub(crate) fn advance(&mut self) {
        self.last_progress = now();
        self.flush_queue();
    }

    /// When output to a stuck reader is dropped.
    pub(crate) fn stuck_deadline(&self) -> Instant {
        self.last_progress + STUCK_TIME
    }

    /// Drops all queued texts.
    pub(crate) fn drop_queue(&mut self) {
        self.waiting.clear();
        self.texts = None;
    }

    /// Writes the queued texts as long as the reader accepts them.
    pub(crate) fn close(mut self) {
        self.last_progress = now();
        while self.is_behind() && self.progress.recv_timeout(STUCK_TIME).is_ok() {
            self.flush_queue();
        }
        self.texts = None;
        // Fails when the thread has ended, or takes too long.
        while self.progress.recv_timeout(STUCK_TIME).is_ok() {}
    }

    fn flush_queue(&mut self) {
        while let Some(text) = self.waiting.pop_front() {
            let Some(texts) = &self.texts else { continue };
            if let Err(TrySendError::Full(text)) = texts.try_send(text) {
                self.waiting.push_front(text);
                return;
            }
        }
    }
}

/// The side that may block.
struct Writer {
    bar: Option<ProgressBar>,
    /// Standard output is a file, whose lines begin with the time.
    has_times: bool,
    logs: HashMap<Arc<Path>, File>,
}

impl Writer {
    fn new(is_live: bool) -> Self {
        let bar = is_live.then(|| {
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
        });
        let own = io::stdout().as_fd().try_clone_to_owned().and_then(|own| File::from(own).metadata());
        Self { bar, has_times: own.is_ok_and(|own| own.is_file()), logs: HashMap::new() }
    }

    fn write(&mut self, text: Text) {
        match text {
            Text::Line(text) if self.has_times => write_line(io::stdout(), &with_time(&text)),
            Text::Line(text) => self.apart(|| write_line(io::stdout(), &text)),
            Text::Complaint(text) => self.apart(|| write_line(io::stderr(), &text)),
            Text::Log(path, text) => self.log(&path, &text),
            Text::Table(text) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(text);
                    bar.tick();
                }
            }
            Text::Reopen => self.logs.clear(),
        }
    }

    fn log(&mut self, path: &Arc<Path>, text: &str) {
        let written = match self.logs.get_mut(path) {
            Some(file) => writeln!(file, "{}", with_time(text)),
            None => open_log(path).and_then(|file| {
                let file = self.logs.entry(Arc::clone(path)).or_insert(file);
                writeln!(file, "{}", with_time(text))
            }),
        };
        if let Err(error) = written {
            let text = format!("keep_alive: {}: {error}: not logged: {text}", path.display());
            self.apart(|| write_line(io::stderr(), &text));
        }
    }

    fn apart(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Opens a log file for appending.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn with_time(text: &str) -> String {
    format!("{} {text}", humantime::format_rfc3339_millis(SystemTime::now()))
}

/// Also works on a descriptor that another process made non-blocking: it waits instead of losing the line. A closed reader is
/// ignored, where `println!` would panic and end the supervision.
pub(crate) fn write_line(stream: impl AsFd, text: &str) {
    let Ok(descriptor) = stream.as_fd().try_clone_to_owned() else { return };
    let writer = PipeWriter::from(os_pipe::PipeWriter::from(descriptor));
    drop(writer.write_all_timeout(format!("{text}\n").as_bytes(), Duration::MAX));
}

#[expect(clippy::disallowed_methods, reason = "output to a stuck reader is dropped after a timeout")]
fn now() -> Instant {
    Instant::now()
}
