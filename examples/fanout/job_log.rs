//! The log of finished commands, in the format of GNU parallel's `--joblog`: tab-separated columns with a line of titles.

use crate::{plan::Step, report::Finished};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

const TITLES: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";

#[derive(Debug)]
pub(crate) struct JobLog {
    path: PathBuf,
    file: File,
}

impl JobLog {
    /// Begins a log.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(TITLES.as_bytes())?;
        Ok(Self { path: path.into(), file })
    }

    /// Continues a log that need not exist. Also returns the commands whose last line says that they succeeded.
    pub(crate) fn resume(path: &Path) -> io::Result<(Self, HashSet<Vec<u8>>)> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Self::create(path)?, HashSet::new())),
            text => text?,
        };
        let mut succeeded = HashSet::new();
        // The last line of a killed run may be torn: then it has no line end.
        for line in text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n")) {
            let columns: Vec<_> = line.splitn(9, |byte| *byte == b'\t').collect();
            if let [_, _, _, _, _, _, code, signal, command] = columns[..] {
                if (code, signal) == (b"0", b"0") {
                    succeeded.insert(command.to_vec());
                } else {
                    succeeded.remove(command);
                }
            }
        }
        let mut file = File::options().append(true).open(path)?;
        if text.last().is_some_and(|last| *last != b'\n') {
            file.write_all(b"\n")?;
        }
        Ok((Self { path: path.into(), file }, succeeded))
    }

    /// Adds a line about the step with the index `index`, in one write.
    pub(crate) fn add(&mut self, index: usize, step: &Step, finished: &Finished) -> io::Result<()> {
        let Finished { wall, output_bytes, code, signal, .. } = finished;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started = since_epoch.saturating_sub(*wall).as_secs_f64();
        // As a shell reports it, a signal has no exit code.
        let (code, signal) = (code.unwrap_or(if signal.is_some() { 0 } else { -1 }), signal.unwrap_or(0));
        let (number, wall) = (index + 1, wall.as_secs_f64());
        let mut line =
            format!("{number}\t:\t{started:.3}\t{wall:10.3}\t0\t{output_bytes}\t{code}\t{signal}\t").into_bytes();
        line.extend(step.command_line());
        line.push(b'\n');
        self.file.write_all(&line)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
