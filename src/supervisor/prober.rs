//! Asks, again and again, whether a worker is ready, on a thread that lives no longer than that takes.

use super::{
    WorkerId,
    driver::{Command, Mailbox},
    ready::Probe,
};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::{io, thread, time::Duration};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Dropping it ends the asking.
#[derive(Debug)]
pub(super) struct Prober {
    _goes_on: Sender<()>,
}

impl Prober {
    pub(super) fn start(probe: Probe, mailbox: Mailbox, worker: WorkerId, incarnation: u32) -> io::Result<Self> {
        let (goes_on, ended) = crossbeam_channel::bounded(0);
        let run = move || {
            crate::sys::conduct::block_all_signals();
            let mut pause = FIRST_PAUSE;
            while !probe.try_once() {
                if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
            mailbox.send(Command::Reached(worker, incarnation));
        };
        thread::Builder::new().name("pipewright-probe".into()).spawn(run)?;
        Ok(Self { _goes_on: goes_on })
    }
}
