//! The control connection of one living incarnation, as the loop sees it: lines in, events and answers out.

use super::{
    event::{Event, EventKind, FaultEvent},
    link::Link,
    live::Outlet,
    meter::Meter,
};
use crate::{
    policy::window::{EVENT_BYTES, Levels},
    sys::socket,
    wire::{
        calls::CallError,
        frame::{Batch, Deframer, Fault, FaultKind, Framing, Piece},
        message::{Charge, Credit},
        request::{Notification, Post, Request},
        rpc::{self, CANCEL, Cancel, PING, Packet},
    },
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// How many bytes of a worker's requests and notifications may be in the channel, or unanswered. Beyond it the worker's control
/// connection is not read, and that is the one case in which answers wait for a consumer.
const CONTROL_WINDOW: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Session {
    socket: Arc<OwnedFd>,
    deframer: Deframer,
    link: Arc<Link>,
    meter: Arc<Meter>,
    batch: Batch,
    last_sent: u64,
    pub(super) is_paused: bool,
    pub(super) is_writing: bool,
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Session {
    /// The worker has connected; `said` came behind its key.
    pub(super) fn new(socket: OwnedFd, link: &Arc<Link>, window: &Arc<Meter>, max_frame: usize) -> Self {
        let socket = Arc::new(socket);
        let is_writing = link.open(Arc::clone(&socket));
        Self {
            socket,
            deframer: Deframer::new(Framing::Lines, max_frame),
            link: Arc::clone(link),
            meter: Arc::new(Meter::of_worker(CONTROL_WINDOW, window)),
            batch: Batch::default(),
            last_sent: 0,
            is_paused: false,
            is_writing,
        }
    }

    pub(super) fn levels(&self, outlet: &Outlet) -> Levels {
        outlet.levels(&self.meter, self.last_sent)
    }

    pub(super) fn wait_for_room(&self) {
        self.meter.wait_for_room();
    }

    /// Reads once. True at the end of the connection.
    pub(super) fn read(&mut self, scratch: &mut [u8], about: impl Fn(EventKind) -> Event, outlet: &mut Outlet) -> bool {
        let bytes = match socket::receive(self.socket.as_fd(), scratch) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            read => read.unwrap_or(0),
        };
        self.hear(scratch.get(..bytes).unwrap_or_default(), about, outlet);
        bytes == 0
    }

    /// Understands what was read; nothing is the end.
    pub(super) fn hear(&mut self, bytes: &[u8], about: impl Fn(EventKind) -> Event, outlet: &mut Outlet) {
        let mut batch = std::mem::take(&mut self.batch);
        if bytes.is_empty() {
            self.deframer.finish(&mut batch);
        } else {
            self.deframer.feed(bytes, &mut batch);
        }
        for piece in batch.drain() {
            match piece {
                Piece::Fault(fault) => self.tell(about(self.fault(fault)), outlet),
                Piece::Frames { bytes, spans } => {
                    for span in spans {
                        let line = bytes.get(span.start as usize..span.end as usize).unwrap_or_default();
                        if let Some(kind) = self.line(line) {
                            self.tell(about(kind), outlet);
                        }
                    }
                }
            }
        }
        self.batch = batch;
    }

    fn tell(&mut self, event: Event, outlet: &mut Outlet) {
        outlet.send(event);
        self.last_sent = outlet.sent();
    }

    /// One line: answered here, or to be told.
    fn line(&self, line: &[u8]) -> Option<EventKind> {
        match rpc::parse(line) {
            Ok(Packet::Response { id, outcome }) => {
                // Nobody waits any more for an answer that comes too late.
                self.link.answer(id, outcome);
                None
            }
            Ok(Packet::Request { id, method, .. }) if method == PING => {
                // A worker that does not read its answers loses only those.
                drop(rpc::response(&id, &()).map_err(CallError::Encode).and_then(|line| self.link.post(line)));
                None
            }
            Ok(Packet::Request { id, method, params }) => {
                let cancelled = self.link.request(id.text());
                let post = Arc::clone(&self.link) as Arc<dyn Post>;
                let charge = Some(self.charge(line.len()));
                Some(EventKind::Request(Request::new(id, (method, params), post, cancelled, charge)))
            }
            Ok(Packet::Notification { method, params }) if method == CANCEL => {
                let cancel = params.and_then(|params| serde_json::from_str::<Cancel>(params.get()).ok());
                if let Some(cancel) = cancel {
                    self.link.cancel_request(cancel.id.get());
                }
                None
            }
            Ok(Packet::Notification { method, params }) => {
                Some(EventKind::Notification(Notification { method, params, _charge: Some(self.charge(line.len())) }))
            }
            Err(_) => Some(self.fault(Fault::new(FaultKind::NotRpc, line.len() as u64, line))),
        }
    }

    fn fault(&self, fault: Fault) -> EventKind {
        let charge = self.charge(fault.excerpt.len() + size_of::<FaultEvent>());
        EventKind::Fault(Box::new(FaultEvent { fault, _charge: charge }))
    }

    fn charge(&self, bytes: usize) -> Charge {
        let bytes = bytes + size_of::<Request>() + EVENT_BYTES;
        self.meter.take(bytes);
        Charge::new(bytes, Arc::clone(&self.meter) as Arc<dyn Credit>)
    }
}
