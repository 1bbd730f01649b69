//! Shows a worker's messages to the closure of `Readiness::message`, on a thread that lives no longer than that takes.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::{Command, CommandSender},
        incarnation::probe::start_thread,
        panics::catch,
        spec::readiness::IsIt,
    },
    wire::message::Message,
};
use crossbeam_channel::{Receiver, Sender};
use std::{fmt, io};

/// Dropping it ends the thread, as soon as the closure returns.
pub(crate) struct MessageProbe {
    is_it: IsIt,
    shown: Sender<Box<[Message]>>,
    /// The other end of `shown`: what the closure has not begun to look at is dropped with this.
    unseen: Receiver<Box<[Message]>>,
    /// How many batches have no verdict yet.
    pending: usize,
}

impl fmt::Debug for MessageProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MessageProbe").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl MessageProbe {
    pub(crate) fn new(is_it: IsIt) -> Self {
        let (shown, unseen) = crossbeam_channel::unbounded();
        Self { is_it, shown, unseen, pending: 0 }
    }

    /// Starts the thread. What was [shown](Self::show) before that waits for it.
    pub(crate) fn start(&self, commands: CommandSender, worker: WorkerId, incarnation: u32) -> io::Result<()> {
        let (is_it, batches) = (IsIt::clone(&self.is_it), self.unseen.clone());
        start_thread("pipewright-message_probe", move || {
            for batch in &batches {
                let is_ready = batch.iter().any(|message| catch(|| is_it(message)).unwrap_or(false));
                // Before the verdict: the bytes are back in the worker's window when the loop hears of it.
                drop(batch);
                if is_ready {
                    return commands.send(Command::ProbeSucceeded(worker, incarnation));
                }
                commands.send(Command::MessagesRejected(worker, incarnation));
            }
        })
    }

    /// Has these looked at, in their order. A verdict follows, as a command.
    pub(crate) fn show(&mut self, messages: Vec<Message>) {
        self.pending += 1;
        // The receiver in this value keeps the channel open.
        drop(self.shown.send(messages.into()));
    }

    /// A verdict has come: no message of a batch makes the worker ready.
    pub(crate) fn pass(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Whether a verdict is still to come.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending > 0
    }
}

impl Drop for MessageProbe {
    fn drop(&mut self) {
        while self.unseen.try_recv().is_ok() {}
    }
}
