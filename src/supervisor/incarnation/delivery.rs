//! Turns frames into events and sends them.

use crate::{
    policy::backpressure::EVENT_BYTES,
    supervisor::{
        events::{
            event::{Event, EventKind, InvalidFrame},
            sink::EventSink,
        },
        incarnation::{Incarnation, output::Kind},
        spec::readiness::{SEARCH_BYTES_MAX, weight},
    },
    wire::{
        credit::Permit,
        decode::check,
        framing::{
            batch::{FrameChunk, Span},
            error::FrameError,
        },
        message::{Chunk, Line, Message, OutputBytes},
        node_channel,
    },
};
use std::sync::Arc;

/// The capacity of the event buffer that is kept between reads; more events than a full pipe of 16-byte messages gives.
const READY_KEPT: usize = 4096;

impl Incarnation {
    /// Sends the frames that the last read has completed. A chunk takes its bytes from the window at once, so that its first messages can be
    /// received and dropped while later ones are being sent.
    pub(crate) fn deliver(&mut self, kind: Kind, sink: &mut EventSink) {
        let EventSink { events, sent, batch, ready, trace, handlers: _, observers } = sink;
        if batch.is_empty() {
            return;
        }
        let observer = observers.get(self.shared.id());
        for piece in batch.drain() {
            let event = |kind| self.event(kind);
            // All events of a chunk are created before the first is sent: see `Message::of`.
            match piece {
                FrameChunk::Error(fault) => ready.push(self.event(self.invalid_frame(fault))),
                FrameChunk::Frames { bytes, offset, spans } => {
                    let chunk = self.chunk(bytes, spans);
                    match kind {
                        Kind::Messages { check, has_internal } => {
                            let messages = Message::of(chunk, spans).zip(spans);
                            let meant =
                                messages.filter(|(one, _)| !has_internal || !node_channel::is_internal(one.as_bytes()));
                            ready.extend(meant.map(|(message, span)| {
                                let offset = offset + span.start() as u64;
                                event(if check { self.checked(message, offset) } else { EventKind::Message(message) })
                            }));
                        }
                        Kind::Lines(stream) => {
                            ready.extend(Line::of(chunk, spans).map(|line| event(EventKind::Line { stream, line })));
                        }
                        Kind::Bytes(stream) => {
                            let pieces = OutputBytes::of(chunk, spans);
                            ready.extend(pieces.map(|bytes| event(EventKind::Output { stream, bytes })));
                        }
                    }
                }
            }
            if self.health.readiness.is_some() {
                self.search(ready);
            }
            let before = *sent;
            let all = ready.drain(..).inspect(|event| trace.record_event(event));
            let passed_on = all.filter_map(|event| match observer {
                Some(observer) => observer.observe(event),
                None => Some(event),
            });
            events.send_all(passed_on.inspect(|_| *sent += 1));
            ready.shrink_to(READY_KEPT);
            if *sent > before {
                self.shared.window.note_sent(*sent);
            }
        }
    }

    /// Searches events for the message or line that makes the worker ready.
    pub(crate) fn search(&mut self, events: &[Event]) {
        let Some(ready) = self.spec.ready.as_ref().filter(|ready| ready.is_by_output()) else { return };
        let health = &mut self.health;
        let mut messages = Vec::new();
        for event in events {
            let length = match &event.kind {
                EventKind::Message(message) => message.len(),
                EventKind::Line { line, .. } => line.as_bytes().len(),
                _ => continue,
            };
            health.searched = health.searched.filter(|searched| *searched < SEARCH_BYTES_MAX);
            let Some(searched) = &mut health.searched else { break };
            *searched += weight(length);
            match &event.kind {
                EventKind::Message(message) if health.message_probe.is_some() => messages.push(message.clone()),
                EventKind::Line { line, .. } if ready.is_line(line) => {
                    health.found = Some(ready.source());
                    return;
                }
                _ => {}
            }
        }
        if let (Some(message_probe), false) = (&mut health.message_probe, messages.is_empty()) {
            message_probe.check(messages);
        }
    }

    fn chunk(&self, bytes: Vec<u8>, spans: &[Span]) -> Arc<Chunk> {
        let permit = self.permit(bytes.capacity() + spans.len() * EVENT_BYTES);
        Chunk::new(bytes, permit)
    }

    fn permit(&self, bytes: usize) -> Permit {
        self.shared.window.flow.permit(bytes)
    }

    fn invalid_frame(&self, fault: FrameError) -> EventKind {
        let permit = self.permit(fault.excerpt.len() + size_of::<InvalidFrame>() + EVENT_BYTES);
        EventKind::InvalidFrame(Box::new(InvalidFrame { fault, _permit: permit }))
    }

    /// Returns the event of a message, or of an invalid frame. `offset` is its start in the stream.
    fn checked(&self, message: Message, offset: u64) -> EventKind {
        match check(message.as_bytes()) {
            Ok(()) => EventKind::Message(message),
            Err(kind) => self.invalid_frame(FrameError::new(kind, offset, message.len() as u64, message.as_bytes())),
        }
    }
}
