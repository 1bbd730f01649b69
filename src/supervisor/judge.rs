//! Shows a worker's messages to the closure of `Ready::message`, on a thread that lives no longer than that takes.

use super::{
    WorkerId,
    driver::{Command, Mailbox},
    guest::unharmed,
    prober::start_thread,
    ready::IsIt,
};
use crate::wire::message::Message;
use crossbeam_channel::{Receiver, Sender};
use std::io;

/// Dropping it ends the thread, as soon as the closure returns.
#[derive(Debug)]
pub(super) struct Judge {
    shown: Sender<Box<[Message]>>,
    /// The other end of `shown`: what the closure has not begun to look at is dropped with this.
    unseen: Receiver<Box<[Message]>>,
    /// How many batches have no verdict yet.
    pending: usize,
}

impl Judge {
    pub(super) fn start(is_it: IsIt, mailbox: Mailbox, worker: WorkerId, incarnation: u32) -> io::Result<Self> {
        let (shown, unseen) = crossbeam_channel::unbounded::<Box<[Message]>>();
        let batches = unseen.clone();
        start_thread("pipewright-judge", move || {
            for batch in &batches {
                let is_ready = batch.iter().any(|message| unharmed(|| is_it(message)).unwrap_or(false));
                // Before the verdict: the bytes are back in the worker's window when the loop hears of it.
                drop(batch);
                if is_ready {
                    return mailbox.send(Command::Reached(worker, incarnation));
                }
                mailbox.send(Command::Passed(worker, incarnation));
            }
        })?;
        Ok(Self { shown, unseen, pending: 0 })
    }

    /// Has these looked at, in their order. A verdict follows, as a command.
    pub(super) fn show(&mut self, messages: Vec<Message>) {
        self.pending += 1;
        // The receiver in this value keeps the channel open.
        drop(self.shown.send(messages.into()));
    }

    /// A verdict has come: no message of a batch makes the worker ready.
    pub(super) fn pass(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Whether a verdict is still to come.
    pub(super) fn is_busy(&self) -> bool {
        self.pending > 0
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        while self.unseen.try_recv().is_ok() {}
    }
}
