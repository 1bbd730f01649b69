//! Sends events into the channel.

#[cfg(feature = "async")]
use crate::supervisor::wakers::WakerSet;
use crate::{
    exit::Exit,
    policy::backpressure::WindowState,
    supervisor::{
        events::{event::Event, observer::Observers, trace::spans::Trace},
        flow_control::FlowControl,
        worker::{
            SharedWorker,
            handlers::{Handlers, WaitingCount},
        },
    },
    wire::framing::batch::FrameBatch,
};
use crossbeam_channel::Sender;
use std::{sync::Arc, time::Instant};

/// Sends events. Only the loop sends, so it knows the number of sent events, and with the length of the channel that of received ones.
/// The events of a worker with an observer go to the observer instead, and are not counted unless it passes them on.
#[derive(Debug)]
pub(crate) struct EventSink {
    pub(crate) events: EventSender,
    pub(crate) sent: u64,
    pub(crate) batch: FrameBatch,
    /// The events of a chunk before they are sent; reused to save allocations.
    pub(crate) ready: Vec<Event>,
    pub(crate) trace: Trace,
    pub(crate) handlers: Handlers,
    pub(crate) observers: Observers,
}

/// The sending side of the event channel.
#[derive(Debug)]
pub(crate) struct EventSender {
    channel: Sender<Event>,
    /// Dropped after the channel, so that the tasks find its end.
    #[cfg(feature = "async")]
    tasks: EventTasks,
}

/// The tasks that wait for events. Dropping it wakes them.
#[cfg(feature = "async")]
#[derive(Debug, Default)]
struct EventTasks(Arc<WakerSet>);

impl EventSink {
    pub(crate) fn new(channel: Sender<Event>) -> Self {
        let events = EventSender {
            channel,
            #[cfg(feature = "async")]
            tasks: EventTasks::default(),
        };
        Self {
            events,
            sent: 0,
            batch: FrameBatch::default(),
            ready: Vec::new(),
            trace: Trace::default(),
            handlers: Handlers::default(),
            observers: Observers::default(),
        }
    }

    pub(crate) fn send(&mut self, event: Event) {
        self.trace.record_event(&event);
        if let Some(event) = self.observers.observe(event) {
            self.send_to_channel(event);
        }
    }

    fn send_to_channel(&mut self, event: Event) {
        if let Some(shared) = event.worker_shared() {
            shared.window.note_sent(self.sent + 1);
        }
        self.events.send_all([event]);
        self.sent += 1;
    }

    /// Passes what a worker has sent over control to its observer, or a request or notification to its handler. Without both it is sent
    /// as an event, and true is returned.
    pub(crate) fn deliver(&mut self, event: Event, waiting: &Arc<WaitingCount>) -> bool {
        self.trace.record_event(&event);
        let Some(event) = self.observers.observe(event) else { return false };
        let queue = event.is_handled().then(|| self.handlers.queue_of(event.worker)).flatten();
        let Some(queue) = queue else {
            self.send_to_channel(event);
            return true;
        };
        if let Some(task) = event.into_task() {
            queue.push(task, waiting);
        }
        false
    }

    /// The tasks that wait for events.
    #[cfg(feature = "async")]
    pub(crate) fn tasks(&self) -> &Arc<WakerSet> {
        &self.events.tasks.0
    }

    /// Sends the final event of a worker, and publishes its end.
    pub(crate) fn send_final(&mut self, event: Event, shared: &SharedWorker, last: (Arc<Exit>, Instant)) {
        // Before the lock: a subscriber may ask for the state of the worker.
        self.trace.record_event(&event);
        if let Some(observer) = self.observers.remove(event.worker) {
            shared.set_ended(last);
            // The program is not to receive the end of a worker that it has not started.
            drop(observer.observe(event));
            return;
        }
        shared.window.note_sent(self.sent + 1);
        shared.end_with(last, || self.events.push(event));
        // After the lock, as wakers are code of the user.
        self.events.wake();
        self.sent += 1;
    }

    /// The number of events that are not received.
    pub(crate) fn waiting(&self) -> usize {
        self.events.channel.len()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The state of a worker's window, whose last event has the number `last_sent`.
    pub(crate) fn levels(&self, flow: &FlowControl, last_sent: u64) -> WindowState {
        flow.levels(last_sent > self.received(), self.waiting() > 0)
    }

    pub(crate) fn levels_of(&self, shared: &SharedWorker) -> WindowState {
        self.levels(&shared.window.flow, shared.window.last_sent())
    }

    pub(crate) fn received(&self) -> u64 {
        self.sent.saturating_sub(self.waiting() as u64)
    }
}

impl EventSender {
    pub(crate) fn send_all(&self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.push(event));
        self.wake();
    }

    fn push(&self, event: Event) {
        // Cannot fail: the supervisor holds a receiver until the loop has ended.
        drop(self.channel.send(event));
    }

    #[cfg_attr(not(feature = "async"), expect(clippy::unused_self, reason = "no task waits"))]
    fn wake(&self) {
        #[cfg(feature = "async")]
        self.tasks.0.wake_all();
    }
}

#[cfg(feature = "async")]
impl Drop for EventTasks {
    fn drop(&mut self) {
        self.0.wake_all();
    }
}
