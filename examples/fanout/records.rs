//! What is written about finished commands on request: `--joblog` and `--trace`.

use crate::{job_log::JobLog, options::Options, plan::Step, report::Finished, trace::Trace};
use std::{collections::HashSet, fmt::Display, path::Path, time::Duration};

#[derive(Debug)]
pub(crate) struct Records {
    job_log: Option<JobLog>,
    trace: Option<Trace>,
}

/// A command that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) step: &'a Step,
    /// The index of the step.
    pub(crate) index: usize,
    pub(crate) finished: &'a Finished,
    pub(crate) slot: u32,
    /// After the start of the build.
    pub(crate) end: Duration,
}

impl Records {
    /// Also returns the commands that have succeeded according to the job log that is resumed.
    pub(crate) fn open(options: &Options) -> Result<(Self, HashSet<Vec<u8>>), String> {
        let mut records = Self { job_log: None, trace: None };
        let mut succeeded = HashSet::new();
        if let Some(path) = &options.job_log {
            let opened = if options.resume {
                JobLog::resume(path)
            } else {
                JobLog::create(path).map(|log| (log, HashSet::new()))
            };
            let log;
            (log, succeeded) = opened.map_err(|error| named(path, &error))?;
            records.job_log = Some(log);
        }
        if let Some(path) = &options.trace {
            records.trace = Some(Trace::create(path).map_err(|error| named(path, &error))?);
        }
        Ok((records, succeeded))
    }

    /// Adds a command. After an error, which is returned once, nothing more is written to that file.
    pub(crate) fn add(&mut self, ended: &Ended<'_>) -> Vec<String> {
        let Ended { step, index, finished, slot, end } = *ended;
        let mut errors = Vec::new();
        if let Some(log) = &mut self.job_log
            && let Err(error) = log.add(index, step, finished)
        {
            errors.push(named(log.path(), &error));
            self.job_log = None;
        }
        if let Some(trace) = &mut self.trace
            && let Err(error) = trace.add(step, finished, slot, end)
        {
            errors.push(named(trace.path(), &error));
            self.trace = None;
        }
        errors
    }

    pub(crate) fn close(&mut self) -> Option<String> {
        let trace = self.trace.as_mut()?;
        trace.close().err().map(|error| named(trace.path(), &error))
    }
}

fn named(path: &Path, error: &impl Display) -> String {
    format!("{}: {error}", path.display())
}
