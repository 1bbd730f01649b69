//! The worker's side of control: one connection to the parent, calls both ways.

use crate::{
    pipe::{
        name::PipeName,
        named::{self, ReadHalf, WriteHalf},
    },
    wire::{
        calls::{CallError, Calls},
        frame::{Batch, Deframer, Framing, Piece},
        message::decode,
        request::{Notification, Post, Request},
        rpc::{self, Address, CANCEL, Cancel, HELLO, Hello, PING, Packet, RemoteError},
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How long to wait for the parent to answer the door.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The longest line of the parent's, in bytes.
const MAX_LINE: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;

type Answer = Result<Box<RawValue>, CallError>;

/// Something that the parent wants, or tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// It waits for an answer.
    Request(Request),
    /// It does not.
    Notification(Notification),
}

/// A worker's link to its parent. A thread reads; whoever writes waits for the socket itself.
#[derive(Debug)]
pub(super) struct Control {
    writer: Mutex<WriteHalf>,
    shared: Mutex<Shared>,
    incoming: Receiver<Incoming>,
}

#[derive(Debug, Default)]
struct Shared {
    calls: Calls<Sender<Answer>>,
    requests: HashMap<String, Arc<AtomicBool>>,
    is_closed: bool,
}

impl Control {
    pub(super) fn connect(address: &Address) -> io::Result<Arc<Self>> {
        let name = PipeName::new(&address.path).map_err(io::Error::from)?;
        let stream = named::connect(&name, CONNECT_TIME).map_err(io::Error::from)?;
        let (reader, mut writer) = stream.split();
        let hello = rpc::notification(HELLO, &Hello { key: address.key.clone() }).map_err(io::Error::other)?;
        writer.write_all(&hello)?;
        let (heard, incoming) = crossbeam_channel::unbounded();
        let control = Arc::new(Self { writer: Mutex::new(writer), shared: Mutex::default(), incoming });
        let weak = Arc::downgrade(&control);
        thread::Builder::new().name("pipewright-control".into()).spawn(move || listen(reader, &weak, &heard))?;
        Ok(control)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn incoming(&self) -> &Receiver<Incoming> {
        &self.incoming
    }

    pub(super) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.post(rpc::notification(method, params).map_err(CallError::Encode)?)
    }

    pub(super) fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let (answered, answer) = crossbeam_channel::bounded(1);
        let id = {
            let mut shared = self.shared();
            if shared.is_closed {
                return Err(CallError::ParentGone);
            }
            shared.calls.begin(answered)
        };
        let sent = rpc::request(id, method, params).map_err(CallError::Encode).and_then(|line| self.post(line));
        if let Err(error) = sent {
            self.shared().calls.end(id);
            return Err(error);
        }
        let Ok(answer) = answer.recv_timeout(timeout) else {
            let gave_up = self.shared().calls.end(id).and_then(|_| serde_json::value::to_raw_value(&id).ok());
            if let Some(id) = gave_up {
                // If it cannot be sent, the answer will be passed over.
                drop(self.notify(CANCEL, &Cancel { id }));
            }
            return Err(CallError::TimedOut);
        };
        decode(answer?.get()).map_err(|error| CallError::NotUnderstood(Box::new(error)))
    }

    /// The parent has closed the connection, or has ended.
    fn close(&self) {
        let mut shared = self.shared();
        shared.is_closed = true;
        for (_, cancelled) in shared.requests.drain() {
            cancelled.store(true, Ordering::Relaxed);
        }
        let waiting: Vec<_> = shared.calls.end_all().collect();
        drop(shared);
        for caller in waiting {
            // A caller that has given up in this moment hears nothing.
            drop(caller.try_send(Err(CallError::ParentGone)));
        }
    }

    fn hear(self: &Arc<Self>, packet: Packet, heard: &Sender<Incoming>) {
        match packet {
            Packet::Response { id, outcome } => {
                if let Some(caller) = self.shared().calls.end(id) {
                    drop(caller.try_send(outcome.map_err(|error| CallError::Remote(Box::new(error)))));
                }
            }
            Packet::Request { id, method, .. } if method == PING => {
                drop(rpc::response(&id, &()).map_err(CallError::Encode).and_then(|line| self.post(line)));
            }
            Packet::Request { id, method, params } => {
                let cancelled = Arc::new(AtomicBool::new(false));
                self.shared().requests.insert(id.text().to_owned(), Arc::clone(&cancelled));
                let post = Arc::clone(self) as Arc<dyn Post>;
                let request = Request::new(id, (method, params), post, cancelled, None);
                // The receiver is in `self`.
                drop(heard.send(Incoming::Request(request)));
            }
            Packet::Notification { method, params } if method == CANCEL => {
                let cancel = params.and_then(|params| serde_json::from_str::<Cancel>(params.get()).ok());
                if let Some(cancelled) = cancel.and_then(|cancel| self.shared().requests.get(cancel.id.get()).cloned())
                {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
            Packet::Notification { method, params } => {
                drop(heard.send(Incoming::Notification(Notification { method, params, _charge: None })));
            }
        }
    }
}

impl Post for Control {
    fn post(&self, line: Vec<u8>) -> Result<(), CallError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CallError::ParentGone,
            _ => CallError::Io(error),
        })
    }

    fn answered(&self, id: &str) {
        self.shared().requests.remove(id);
    }
}

/// The reading thread: ends with the connection, or when nobody holds the link any more and the parent says something.
fn listen(mut reader: ReadHalf, control: &Weak<Control>, heard: &Sender<Incoming>) {
    let mut deframer = Deframer::new(Framing::Lines, MAX_LINE);
    let mut batch = Batch::default();
    let mut scratch = vec![0; READ_BYTES];
    loop {
        let read = match reader.read(&mut scratch) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        let Some(control) = control.upgrade() else { return };
        if read == 0 {
            return control.close();
        }
        deframer.feed(scratch.get(..read).unwrap_or_default(), &mut batch);
        for piece in batch.drain() {
            // A fault is a line that no request can be answered for: the parent of this library sends none.
            let Piece::Frames { bytes, spans } = piece else { continue };
            for span in spans {
                let line = bytes.get(span.start as usize..span.end as usize).unwrap_or_default();
                if let Ok(packet) = rpc::parse(line) {
                    control.hear(packet, heard);
                }
            }
        }
    }
}

/// Answers requests with a function: its result, or its error.
pub(super) fn answer<R: Serialize>(request: Request, outcome: Result<R, RemoteError>) -> Result<(), CallError> {
    match outcome {
        Ok(result) => request.reply(&result),
        Err(error) => request.refuse(&error),
    }
}
