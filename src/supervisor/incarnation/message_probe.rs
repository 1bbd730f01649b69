//! Passes messages of a worker to the closure of `Readiness::message`, on a thread that ends with the wait for readiness.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::{Command, CommandSender},
        incarnation::probe::start_thread,
        panics::catch,
        spec::readiness::MessagePredicate,
    },
    wire::message::Message,
};
use crossbeam_channel::{Receiver, Sender};
use std::{fmt, io};

/// A thread that checks messages with the closure. Dropping this ends the thread as soon as the closure returns.
pub(crate) struct MessageProbe {
    predicate: MessagePredicate,
    batches: Sender<Box<[Message]>>,
    /// The receiver of `batches`: batches that the closure has not begun to check are dropped with this.
    unchecked: Receiver<Box<[Message]>>,
    /// The number of batches without a result.
    pending: usize,
}

impl fmt::Debug for MessageProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MessageProbe").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl MessageProbe {
    pub(crate) fn new(predicate: MessagePredicate) -> Self {
        let (batches, unchecked) = crossbeam_channel::unbounded();
        Self { predicate, batches, unchecked, pending: 0 }
    }

    /// Starts the thread. It also checks batches that were [added](Self::check) before.
    pub(crate) fn start(&self, commands: CommandSender, worker: WorkerId, incarnation: u32) -> io::Result<()> {
        let (predicate, batches) = (MessagePredicate::clone(&self.predicate), self.unchecked.clone());
        start_thread("pipewright-message_probe", move || {
            for batch in &batches {
                let is_ready = batch.iter().any(|message| catch(|| predicate(message)).unwrap_or(false));
                // Before the result: the bytes are returned to the window of the worker when the loop handles it.
                drop(batch);
                if is_ready {
                    return commands.send(Command::ProbeSucceeded(worker, incarnation));
                }
                commands.send(Command::MessagesRejected(worker, incarnation));
            }
        })
    }

    /// Checks messages in their order. A command with the result follows.
    pub(crate) fn check(&mut self, messages: Vec<Message>) {
        self.pending += 1;
        // The receiver in this value keeps the channel open.
        drop(self.batches.send(messages.into()));
    }

    /// Records a result: no message of a batch makes the worker ready.
    pub(crate) fn batch_rejected(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Whether a result is pending.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending > 0
    }
}

impl Drop for MessageProbe {
    fn drop(&mut self) {
        while self.unchecked.try_recv().is_ok() {}
    }
}
