//! Asks, again and again, whether a worker is ready, on a thread that lives no longer than that takes.

use super::{
    WorkerId,
    driver::{Command, Mailbox},
    ready::Probe,
};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::{io, sync::Arc, thread, time::Duration};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// How often its thread is started again where the kernel has refused one.
const THREAD_TRIES: u32 = 16;

/// Dropping it ends the asking.
#[derive(Debug)]
pub(super) struct Prober {
    _goes_on: Sender<()>,
}

impl Prober {
    pub(super) fn start(probe: Probe, mailbox: Mailbox, worker: WorkerId, incarnation: u32) -> io::Result<Self> {
        let (goes_on, ended) = crossbeam_channel::bounded(0);
        let run = Arc::new(move || {
            crate::sys::conduct::block_all_signals();
            let mut pause = FIRST_PAUSE;
            while !probe.try_once() {
                if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
            mailbox.send(Command::Reached(worker, incarnation));
        });
        let mut tries = 0;
        loop {
            let run = Arc::clone(&run);
            match thread::Builder::new().name("pipewright-probe".into()).spawn(move || run()) {
                // No memory for it, or too many threads: a worker that is never asked is never ready.
                Err(_) if tries < THREAD_TRIES => {
                    tries += 1;
                    thread::yield_now();
                }
                started => return started.map(|_| Self { _goes_on: goes_on }),
            }
        }
    }
}
