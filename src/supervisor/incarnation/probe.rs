//! Polls whether a worker is ready, on a thread that ends with the wait for readiness.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::{Command, CommandSender},
        spec::readiness::Probe,
    },
    sys::signals,
};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::{io, thread, time::Duration};

/// The first and the longest time between two attempts.
const FIRST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_millis(500);

/// A thread that polls. Dropping this ends it after the current attempt.
#[derive(Debug)]
pub(crate) struct ReadinessProbe {
    _running: Sender<()>,
}

impl ReadinessProbe {
    pub(crate) fn start(probe: Probe, commands: CommandSender, worker: WorkerId, incarnation: u32) -> io::Result<Self> {
        let (running, ended) = crossbeam_channel::bounded(0);
        start_thread("pipewright-probe", move || {
            let mut interval = FIRST_INTERVAL;
            while !probe.try_once() {
                if ended.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                interval = (interval * 2).min(LONGEST_INTERVAL);
            }
            commands.send(Command::ProbeSucceeded(worker, incarnation));
        })?;
        Ok(Self { _running: running })
    }
}

/// Starts a thread for user code, with all signals blocked. It is not joined.
pub(crate) fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.into());
    let started = thread.spawn(move || {
        signals::block_all();
        run();
    });
    started.map(drop)
}
