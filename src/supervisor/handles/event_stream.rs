//! The events of a supervisor as a stream.

use crate::supervisor::{events::event::Event, wakers::WakerSlot};
use crossbeam_channel::{Receiver, TryRecvError};
use futures_core::Stream;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

/// The events of a supervisor as a [`Stream`], for asynchronous programs: from
/// [`Supervisor::event_stream`](crate::Supervisor::event_stream).
///
/// It receives from the same channel as [`Supervisor::events`](crate::Supervisor::events): several streams and receivers receive a part of
/// the events each, a stream that is not polled delays the workers whose windows are full, and the stream ends when the channel is
/// closed. The event loop wakes the tasks of the streams; there is no further thread.
#[must_use = "a stream does nothing unless polled"]
pub struct EventStream {
    events: Receiver<Event>,
    slot: WakerSlot,
    /// The number of events since the task yielded.
    in_a_row: usize,
}

/// The number of events after which the task yields to others of its thread, as tokio's own channels make it do.
const YIELD_AFTER: usize = 128;

impl_debug!(EventStream, |stream| { unreceived: stream.events.len() });

impl EventStream {
    pub(crate) fn new(events: Receiver<Event>, slot: WakerSlot) -> Self {
        Self { events, slot, in_a_row: 0 }
    }

    /// Receives the next event; `None` after the last one, when the channel is closed. As `StreamExt::next` of the crates for streams,
    /// without such a crate.
    ///
    /// Cancel safe: an event is received only by a call that returns it.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &Context<'_>) -> Poll<Option<Event>> {
        if self.in_a_row == YIELD_AFTER {
            self.in_a_row = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut next = self.try_next();
        if next.is_none() {
            self.slot.register(context.waker());
            // An event that was sent before the registration wakes no task.
            next = self.try_next();
        }
        self.in_a_row = if next.is_some() { self.in_a_row + 1 } else { 0 };
        next.map_or(Poll::Pending, Poll::Ready)
    }

    /// `Some(None)` at the end.
    #[expect(clippy::option_option, reason = "no event yet is not the end")]
    fn try_next(&self) -> Option<Option<Event>> {
        match self.events.try_recv() {
            Ok(event) => Some(Some(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(None),
        }
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(context)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.events.len(), None)
    }
}
