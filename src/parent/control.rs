//! The worker's side of control: one connection to the parent, calls both ways.
//!
//! A thread listens, and puts what comes into a channel. A worker that serves on one thread needs no such way round: that
//! thread reads, and the listener stands by for when it is in a request for long.

use super::writer::Writer;
use crate::{
    pipe::{
        named::{connect::ConnectOptions, name::PipeName, split::ReadHalf, stream::Stream},
        timeout::{StartedTimeout, Timeout},
    },
    wire::{
        decode::decode,
        jsonrpc::{
            address::Address,
            encode,
            endpoint::{Inbound, Received, RpcEndpoint},
            error::{Answer, CallError, RpcError},
            protocol::{HELLO, Hello, SHUTDOWN},
            reader::{RpcInput, RpcReader},
            request::{Notification, Request, RpcSender},
        },
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How long to wait for the parent to answer the door.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The longest line of the parent's, in bytes.
const MAX_LINE: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;
/// How long the thread that serves may be in a request before the listener listens for it: so late may a cancellation or a
/// `ping` be, twice over.
const TICK: Duration = Duration::from_millis(10);

/// Something that the parent wants, or tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum ParentMessage {
    /// It waits for an answer.
    Request(Request),
    /// It does not.
    Notification(Notification),
}

/// A worker's link to its parent. Whoever writes waits for the socket itself.
#[derive(Debug)]
pub(super) struct Control {
    writer: Writer,
    reading: Mutex<Reading>,
    shared: Mutex<Shared>,
    /// Wakes the listener that stands by.
    stand_by: Condvar,
    is_asleep: AtomicBool,
    /// Odd while the one thread that serves is in a request.
    turns: AtomicU64,
    incoming: Receiver<ParentMessage>,
}

#[derive(Debug, Default)]
struct Shared {
    endpoint: RpcEndpoint<Sender<Answer>>,
    is_closed: bool,
    servers: Servers,
}

/// How many threads serve.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Servers {
    #[default]
    None,
    One,
    /// Then none of them reads: it would keep its requests to itself. For good, since some may be waiting for the listener.
    Many,
}

/// Had by whoever reads.
#[derive(Debug)]
struct Reading {
    reader: ReadHalf,
    rpc: RpcReader,
    scratch: Vec<u8>,
    /// `None` once the parent wants nothing more.
    heard: Option<Sender<ParentMessage>>,
    is_over: bool,
}

impl Control {
    pub(super) fn connect(address: &Address) -> io::Result<Arc<Self>> {
        let name = PipeName::new(&address.path).map_err(io::Error::from)?;
        // The parent may run as another user: a worker that was started by sudo, or has given up its privileges.
        let options = ConnectOptions::new().trust_directory();
        let stream = options.connect(&name, CONNECT_TIME).map_err(io::Error::from)?;
        let watched = stream.clone();
        let (reader, writer) = stream.split();
        let hello = encode::notification(HELLO, &Hello { key: address.key.clone() }).map_err(io::Error::other)?;
        let writer = Writer::new(writer);
        writer.write(&hello, &StartedTimeout::now(Timeout::after(CONNECT_TIME)))?;
        let (heard, incoming) = crossbeam_channel::unbounded();
        let scratch = vec![0; READ_BYTES];
        let reading = Reading { reader, rpc: RpcReader::new(MAX_LINE), scratch, heard: Some(heard), is_over: false };
        let control = Arc::new(Self {
            writer,
            reading: Mutex::new(reading),
            shared: Mutex::default(),
            stand_by: Condvar::new(),
            is_asleep: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            incoming,
        });
        let weak = Arc::downgrade(&control);
        thread::Builder::new().name("pipewright-control".into()).spawn(move || listen(&watched, &weak))?;
        Ok(control)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn incoming(&self) -> &Receiver<ParentMessage> {
        &self.incoming
    }

    /// The parent's requests, one by one, on this thread, until it wants nothing more.
    pub(super) fn serve(self: &Arc<Self>, mut answer: impl FnMut(Request)) {
        let serving = Serving::begin(self);
        let mut ready = Vec::new();
        let mut goes_on = true;
        while goes_on && serving.reads_itself() {
            goes_on = self.read(Timeout::never(), |incoming| ready.push(incoming));
            // What the listener has heard while this thread was in a request came before.
            let heard = self.incoming.try_iter();
            for request in heard.chain(ready.drain(..)).filter_map(ParentMessage::into_request) {
                let _turn = serving.enter();
                answer(request);
            }
        }
        drop(serving);
        self.incoming.iter().filter_map(ParentMessage::into_request).for_each(answer);
    }

    /// Reads once, or not at all where it would wait and the listener has heard something already. False where nothing more
    /// will be heard: the connection has ended, or the parent has asked for the end.
    fn read(self: &Arc<Self>, wait: Timeout<'_>, mut hear: impl FnMut(ParentMessage)) -> bool {
        let mut reading = self.reading();
        if wait.is_never() && (!self.incoming.is_empty() || reading.heard.is_none()) {
            return reading.heard.is_some();
        }
        let Reading { reader, rpc, scratch, heard, is_over } = &mut *reading;
        let read = if wait.is_never() { reader.read(scratch) } else { reader.as_stream().read_timeout(scratch, wait) };
        let bytes = match read {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => return true,
            read => scratch.get(..read.unwrap_or(0)).unwrap_or_default(),
        };
        if bytes.is_empty() {
            (*heard, *is_over) = (None, true);
            drop(reading);
            self.close();
            return false;
        }
        let mut hear = |incoming: ParentMessage| {
            let is_last = incoming.is_shutdown();
            if heard.is_some() {
                hear(incoming);
            }
            // What comes behind it is dropped, and a request so answers with an error by itself.
            if is_last {
                *heard = None;
            }
        };
        rpc.read(bytes, |input, _| {
            if let Some(message) = self.receive(input) {
                hear(message);
            }
        });
        heard.is_some()
    }

    pub(super) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.send_line(encode::notification(method, params).map_err(CallError::Encode)?)
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
            shared.endpoint.calls.begin(answered)
        };
        // Somebody has to read the answer, and whoever serves may be in a request: this one.
        self.stand_by.notify_all();
        let begun = StartedTimeout::now(Timeout::after(timeout));
        let sent =
            encode::request(id, method, params).map_err(CallError::Encode).and_then(|line| self.send(&line, &begun));
        if let Err(error) = sent {
            // A part of it may be on its way, and the rest goes before the next line: this one, if it can.
            self.abandon(id);
            return Err(error);
        }
        let Ok(answer) = answer.recv_timeout(begun.remaining()) else {
            self.abandon(id);
            return Err(CallError::TimedOut);
        };
        decode(answer?.get()).map_err(|error| CallError::InvalidResult(Box::new(error)))
    }

    fn send(&self, line: &[u8], begun: &StartedTimeout<'_>) -> Result<(), CallError> {
        self.writer.write(line, begun).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CallError::ParentGone,
            io::ErrorKind::TimedOut => CallError::TimedOut,
            _ => CallError::Io(error),
        })
    }

    /// Nobody waits for the answer to this request any more. If the parent cannot be told, the answer will be passed over.
    fn abandon(&self, id: u64) {
        let cancellation = self.shared().endpoint.abandon(id);
        if let Some(line) = cancellation {
            self.writer.write_at_once(&line);
        }
    }

    /// The parent has closed the connection, or has ended.
    fn close(&self) {
        let mut shared = self.shared();
        shared.is_closed = true;
        self.stand_by.notify_all();
        let waiting = shared.endpoint.close();
        drop(shared);
        for caller in waiting {
            // A caller that has given up in this moment hears nothing.
            drop(caller.try_send(Err(CallError::ParentGone)));
        }
    }

    /// The listener's turn. False where the connection has ended.
    fn read_for_all(self: &Arc<Self>) -> bool {
        let heard = self.reading().heard.clone();
        // The channel keeps them all: its receiver is in `self`. Answers are read also when nothing else is wanted any more.
        self.read(Timeout::after(Duration::ZERO), |incoming| {
            if let Some(heard) = &heard {
                drop(heard.send(incoming));
            }
        });
        !self.reading().is_over
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a message, or a line that was not understood. Gives what is for the program.
    fn receive(self: &Arc<Self>, input: RpcInput) -> Option<ParentMessage> {
        let received = match input {
            RpcInput::Message(message, _) => self.shared().endpoint.receive(message),
            RpcInput::Error(error) => self.shared().endpoint.receive_error(&error),
        };
        match received {
            // One that has given up in this moment hears nothing.
            Received::Answer(caller, answer) => drop(caller.try_send(answer)),
            // Whoever reads must not wait for the parent to do so; a parent that had no pong asks again.
            Received::Reply(line) => self.writer.write_at_once(&line),
            Received::Forward(Inbound::Request { id, method, params, cancelled }) => {
                let sender = Arc::clone(self) as Arc<dyn RpcSender>;
                return Some(ParentMessage::Request(Request::new(id, (method, params), sender, cancelled, None)));
            }
            Received::Forward(Inbound::Notification { method, params }) => {
                return Some(ParentMessage::Notification(Notification { method, params, _permit: None }));
            }
            // No request that could be answered, or an answer that nobody waits for: the parent of this library sends none such.
            Received::Forward(Inbound::UnexpectedAnswer) | Received::Done => {}
        }
        None
    }

    /// Whether the one thread that serves reads, so that nobody else needs to.
    fn is_read(shared: &Shared) -> bool {
        shared.servers == Servers::One && shared.endpoint.calls.is_empty() && !shared.is_closed
    }

    fn is_in_request(&self) -> bool {
        self.turns.load(Ordering::SeqCst) % 2 == 1
    }

    /// Waits until somebody else has to listen: nobody serves, or the one that serves is in a request for more than a tick, or
    /// somebody waits for an answer.
    fn stand_by(&self) {
        let mut shared = self.shared();
        let mut before = self.turns.load(Ordering::SeqCst);
        while Self::is_read(&shared) {
            let turns = self.turns.load(Ordering::SeqCst);
            if turns != before {
                before = turns;
            } else if self.is_in_request() {
                return;
            } else {
                // Nothing has come for a tick. The next request wakes us, and those that follow it soon do not have to.
                self.is_asleep.store(true, Ordering::SeqCst);
                while Self::is_read(&shared) && self.turns.load(Ordering::SeqCst) == turns {
                    shared = self.stand_by.wait(shared).unwrap_or_else(PoisonError::into_inner);
                }
                self.is_asleep.store(false, Ordering::SeqCst);
                continue;
            }
            shared = self.stand_by.wait_timeout(shared, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// While a thread serves.
struct Serving<'a>(&'a Control);

impl<'a> Serving<'a> {
    fn begin(control: &'a Control) -> Self {
        let mut shared = control.shared();
        shared.servers = if shared.servers == Servers::None { Servers::One } else { Servers::Many };
        drop(shared);
        control.stand_by.notify_all();
        Self(control)
    }

    fn reads_itself(&self) -> bool {
        self.0.shared().servers == Servers::One
    }

    fn enter(&self) -> Turn<'_> {
        self.0.turns.fetch_add(1, Ordering::SeqCst);
        if self.0.is_asleep.load(Ordering::SeqCst) {
            drop(self.0.shared());
            self.0.stand_by.notify_all();
        }
        Turn(self.0)
    }
}

/// While the one thread that serves is in a request, which may panic.
struct Turn<'a>(&'a Control);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut shared = self.0.shared();
        if shared.servers == Servers::One {
            shared.servers = Servers::None;
        }
        drop(shared);
        self.0.stand_by.notify_all();
    }
}

impl ParentMessage {
    fn is_shutdown(&self) -> bool {
        matches!(self, Self::Notification(told) if told.method == SHUTDOWN)
    }

    fn into_request(self) -> Option<Request> {
        match self {
            Self::Request(request) => Some(request),
            Self::Notification(_) => None,
        }
    }
}

impl RpcSender for Control {
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError> {
        self.send(&line, &StartedTimeout::now(Timeout::never()))
    }

    fn request_answered(&self, id: &str) {
        self.shared().endpoint.requests.end(id);
    }
}

/// The listener: ends with the connection, or when nobody holds the link any more.
fn listen(watched: &Stream, control: &Weak<Control>) {
    loop {
        // Fails for want of memory only; then it is asked again.
        let waited = watched.wait_readable();
        let Some(control) = control.upgrade() else { return };
        let is_read = Control::is_read(&control.shared()) && !control.is_in_request();
        if waited.is_err() || is_read {
            control.stand_by();
        } else if !control.read_for_all() {
            return;
        }
    }
}

/// Answers requests with a function: its result, or its error.
pub(super) fn answer<R: Serialize>(request: Request, outcome: Result<R, RpcError>) -> Result<(), CallError> {
    match outcome {
        Ok(result) => request.reply(&result),
        Err(error) => request.reply_error(&error),
    }
}
