//! Sends events into the channel.

use crate::{
    policy::backpressure::WindowState,
    supervisor::{
        events::{event::Event, trace::spans::Trace},
        flow_control::FlowControl,
        worker::SharedWorker,
    },
    wire::framing::batch::FrameBatch,
};
use crossbeam_channel::Sender;

/// Sends events. Only the loop sends, so it knows the number of sent events, and with the length of the channel that of received ones.
#[derive(Debug)]
pub(crate) struct EventSink {
    pub(crate) events: Sender<Event>,
    pub(crate) sent: u64,
    pub(crate) batch: FrameBatch,
    /// The events of a chunk before they are sent; reused to save allocations.
    pub(crate) ready: Vec<Event>,
    pub(crate) trace: Trace,
}

impl EventSink {
    pub(crate) fn new(events: Sender<Event>) -> Self {
        Self { events, sent: 0, batch: FrameBatch::default(), ready: Vec::new(), trace: Trace::default() }
    }

    pub(crate) fn send(&mut self, event: Event) {
        self.trace.record_event(&event);
        if let Some(shared) = event.worker_shared() {
            shared.window.note_sent(self.sent + 1);
        }
        // The supervisor holds a receiver until the loop has ended.
        drop(self.events.send(event));
        self.sent += 1;
    }

    /// The number of events that are not received.
    pub(crate) fn waiting(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The state of a worker's window, whose last event has the number `last_sent`.
    pub(crate) fn levels(&self, flow: &FlowControl, last_sent: u64) -> WindowState {
        flow.levels(last_sent > self.received(), !self.events.is_empty())
    }

    pub(crate) fn levels_of(&self, shared: &SharedWorker) -> WindowState {
        self.levels(&shared.window.flow, shared.window.last_sent())
    }

    pub(crate) fn received(&self) -> u64 {
        self.sent.saturating_sub(self.events.len() as u64)
    }
}
