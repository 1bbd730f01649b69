//! A trace of the build for <https://ui.perfetto.dev> or `chrome://tracing`: a bar for each command, a row for each slot.
//!
//! Format: "Trace Event Format", JSON array. The closing bracket is optional, so that the trace of a killed run can be read, too.

use crate::{plan::Step, report::Finished};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Debug)]
pub(crate) struct Trace {
    path: PathBuf,
    file: File,
    /// The end of the last bar of each slot.
    rows: HashMap<u32, Duration>,
}

impl Trace {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut trace = Self { path: path.into(), file: File::create(path)?, rows: HashMap::new() };
        let name = json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "fanout"}});
        trace.file.write_all(format!("[\n{name}").as_bytes())?;
        Ok(trace)
    }

    /// Adds a command that has ended `end` after the start of the build.
    pub(crate) fn add(&mut self, step: &Step, finished: &Finished, slot: u32, end: Duration) -> io::Result<()> {
        let previous_end = self.rows.insert(slot, end);
        if previous_end.is_none() {
            let args = json!({"name": format!("slot {slot}")});
            self.write(&json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": slot, "args": args}))?;
        }
        let Finished { exit, wall, cpu, peak_bytes, .. } = finished;
        // `end` is when this program has received the exit, which is later than the exit by more or less.
        let start = end.saturating_sub(*wall).max(previous_end.unwrap_or_default());
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.write(&json!({
            "ph": "X",
            "name": step.name.to_string_lossy(),
            "cat": if finished.is_success() { "success" } else { "failure" },
            "pid": 1,
            "tid": slot,
            "ts": micros(start),
            "dur": micros(end.saturating_sub(start)),
            "args": {
                "exit": exit,
                "cpu_us": micros(*cpu),
                "peak_bytes": peak_bytes,
                "command": String::from_utf8_lossy(&step.command_line()),
            },
        }))
    }

    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.file.write_all(b"\n]\n")
    }

    fn write(&mut self, event: &Value) -> io::Result<()> {
        self.file.write_all(format!(",\n{event}").as_bytes())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
