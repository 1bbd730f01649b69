//! Asks, again and again, whether a worker is ready, on a thread that lives no longer than that takes.

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

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Dropping it ends the asking.
#[derive(Debug)]
pub(crate) struct ReadinessProbe {
    _goes_on: Sender<()>,
}

impl ReadinessProbe {
    pub(crate) fn start(probe: Probe, commands: CommandSender, worker: WorkerId, incarnation: u32) -> io::Result<Self> {
        let (goes_on, ended) = crossbeam_channel::bounded(0);
        start_thread("pipewright-probe", move || {
            let mut pause = FIRST_PAUSE;
            while !probe.try_once() {
                if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
            commands.send(Command::ProbeSucceeded(worker, incarnation));
        })?;
        Ok(Self { _goes_on: goes_on })
    }
}

/// Starts a thread that runs the host's code, and none of its signal handlers.
pub(crate) fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.into());
    let started = thread.spawn(move || {
        signals::block_all();
        run();
    });
    started.map(drop)
}
