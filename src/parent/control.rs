//! The worker's side of the control connection: calls in both directions.

use super::{
    serving::ReaderRole,
    transport::{ControlInput, ControlOutput},
    writer::LineWriter,
};
use crate::{
    pipe::{
        named::{connect::ConnectOptions, name::PipeName},
        timeout::{StartedTimeout, Timeout},
    },
    wire::{
        decode::decode,
        framing::{Framing, error::FrameErrorKind},
        jsonrpc::{
            address::Address,
            completion::Completion,
            encode,
            endpoint::{Inbound, Received},
            error::CallError,
            hello::{AcceptedHello, Hello},
            protocol::{HELLO, SHUTDOWN},
            reader::{RpcInput, RpcLine, RpcReader},
            request::{Notification, Request, RpcSender},
        },
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{
    io, process,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

/// How long the parent may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to answer the hello. A parent that is stopped in a debugger answers when it continues.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest line of the parent, in bytes.
const MAX_LINE: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;
/// How long the reading thread waits for the parent to read, for an answer of its own: it may have read more requests at once than
/// the socket takes answers.
const REPLY_PATIENCE: Duration = Duration::from_millis(100);

/// A message of the parent.
#[derive(Debug)]
#[non_exhaustive]
pub enum ParentMessage {
    /// The parent waits for an answer.
    Request(Request),
    /// The parent waits for no answer.
    Notification(Notification),
}

/// Why there is no control connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// The parent's reason.
    Refused(String),
    Io(io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The control connection of a worker.
#[derive(Debug)]
pub(super) struct ControlClient {
    writer: LineWriter,
    role: ReaderRole,
    read_state: Mutex<ReadState>,
    incoming: Receiver<ParentMessage>,
    /// Starts the listener of a connection that is not read before it is used.
    first_use: Option<Sender<()>>,
    /// The process that has connected.
    owner: u32,
}

/// Locked by the thread that reads.
#[derive(Debug)]
struct ReadState {
    input: ControlInput,
    rpc: RpcReader,
    buffer: Vec<u8>,
    /// `None` after `shutdown` or the end of the connection.
    program: Option<Sender<ParentMessage>>,
    is_closed: bool,
}

impl ControlClient {
    /// Connects and waits until the parent has accepted the key.
    pub(super) fn connect(address: &Address) -> Result<(Arc<Self>, AcceptedHello), ConnectError> {
        let name = PipeName::new(&address.path).map_err(io::Error::from)?;
        // The parent may run as another user: the worker was started by sudo, or has dropped its privileges.
        let options = ConnectOptions::new().trust_directory();
        let stream = options.connect(&name, CONNECT_TIMEOUT).map_err(io::Error::from)?;
        let (input, output) = stream.split();
        let client = Self::start(ControlInput::Socket(input), ControlOutput::Socket(output), None)?;
        let answer = client.call::<_, Box<RawValue>>(HELLO, &Hello::new(&address.key), HELLO_TIMEOUT);
        match answer {
            Ok(result) => Ok((client, AcceptedHello::from_result(&result))),
            Err(CallError::Rpc(error)) => Err(ConnectError::Refused(error.message)),
            Err(error) => Err(ConnectError::Io(error.into())),
        }
    }

    /// Reads lines from standard input and writes them to standard output. Standard input is not read before the first call, and
    /// before the program wants to receive.
    pub(super) fn standalone() -> io::Result<Arc<Self>> {
        Self::start(ControlInput::standard()?, ControlOutput::Standard, Some(crossbeam_channel::bounded(1)))
    }

    /// Without `first_use`, the listener reads from the start.
    fn start(
        input: ControlInput,
        output: ControlOutput,
        first_use: Option<(Sender<()>, Receiver<()>)>,
    ) -> io::Result<Arc<Self>> {
        let (first_use, used) = first_use.unzip();
        let wait_readable = input.watch();
        let (program, incoming) = crossbeam_channel::unbounded();
        let (rpc, buffer) = (RpcReader::new(Framing::Lines, MAX_LINE), vec![0; READ_BYTES]);
        let read_state = Mutex::new(ReadState { input, rpc, buffer, program: Some(program), is_closed: false });
        let (writer, role) = (LineWriter::new(output), ReaderRole::default());
        let client = Arc::new(Self { writer, role, read_state, incoming, first_use, owner: process::id() });
        let weak = Arc::downgrade(&client);
        thread::Builder::new().name("pipewright-control".into()).spawn(move || {
            // Fails when the client is dropped unused.
            used.is_none_or(|used| used.recv().is_ok()).then(|| listen(&*wait_readable, &weak))
        })?;
        Ok(client)
    }

    pub(super) fn incoming(&self) -> &Receiver<ParentMessage> {
        self.begin_reading();
        &self.incoming
    }

    fn begin_reading(&self) {
        // A full channel has been used before.
        self.first_use.as_ref().map_or(Ok(()), |used| used.try_send(())).unwrap_or_default();
    }

    /// Passes the parent's requests and notifications to `answer`, one by one on this thread, until the parent wants the worker to exit.
    pub(super) fn serve(self: &Arc<Self>, mut answer: impl FnMut(Request)) {
        self.begin_reading();
        let serving = self.role.begin_serving();
        let mut received = Vec::new();
        let mut is_open = true;
        while is_open && serving.is_only_server() {
            is_open = self.read(Timeout::never(), |message| received.push(message));
            // What the listener read while this thread was in a request came earlier.
            let earlier = self.incoming.try_iter();
            for request in earlier.chain(received.drain(..)).filter_map(ParentMessage::into_handled) {
                let _active = serving.begin_request();
                answer(request);
            }
        }
        drop(serving);
        self.incoming.iter().filter_map(ParentMessage::into_handled).for_each(answer);
    }

    pub(super) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.send_line(encode::notification(method, params).map_err(CallError::Encode)?)
    }

    pub(super) fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let completion = Completion::default();
        let id = {
            let mut shared = self.role.shared();
            if shared.is_closed {
                return Err(CallError::ParentGone);
            }
            shared.endpoint.calls.begin(completion.clone())
        };
        self.begin_reading();
        // The serving thread may be in a request, even this thread: the listener reads the answer.
        self.role.wake_listener();
        let timeout = StartedTimeout::now(Timeout::after(timeout));
        let sent =
            encode::request(id, method, params).map_err(CallError::Encode).and_then(|line| self.send(&line, &timeout));
        if let Err(error) = sent {
            // If a part of the line was sent, its rest goes out before the next line.
            self.abandon(id);
            return Err(error);
        }
        let Some(answer) = completion.wait(timeout.remaining()) else {
            self.abandon(id);
            return Err(CallError::TimedOut);
        };
        decode(answer?.get()).map_err(|error| CallError::InvalidResult(Box::new(error)))
    }

    /// Sends whole lines, however long the parent does not read.
    pub(super) fn send_lines(&self, lines: &[u8]) -> Result<(), CallError> {
        self.send(lines, &StartedTimeout::now(Timeout::never()))
    }

    /// Waits until the parent has closed the connection or exited. Returns false if `timeout` passes first.
    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        self.role.wait_closed(timeout)
    }

    fn send(&self, line: &[u8], timeout: &StartedTimeout<'_>) -> Result<(), CallError> {
        self.writer.write(line, timeout).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CallError::ParentGone,
            io::ErrorKind::TimedOut => CallError::TimedOut,
            _ => CallError::Io(error),
        })
    }

    /// Cancels a call whose caller no longer waits. If the parent cannot be notified now, its answer will be ignored.
    fn abandon(&self, id: u64) {
        let cancellation = self.role.shared().endpoint.abandon(id);
        if let Some(line) = cancellation {
            self.writer.try_write(&line, Duration::ZERO);
        }
    }

    /// Reads once. Returns `false` if nothing more will come for the program: the connection has ended, or the parent has sent
    /// `shutdown`. Without a timeout it does not read while messages of the listener are waiting.
    fn read(self: &Arc<Self>, timeout: Timeout<'_>, mut deliver: impl FnMut(ParentMessage)) -> bool {
        let mut state = self.read_state();
        if timeout.is_never() && (!self.incoming.is_empty() || state.program.is_none()) {
            return state.program.is_some();
        }
        let ReadState { input, rpc, buffer, program, is_closed } = &mut *state;
        let bytes = match input.read(buffer, timeout) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => return true,
            read => buffer.get(..read.unwrap_or(0)).unwrap_or_default(),
        };
        let is_end = bytes.is_empty();
        rpc.read(if is_end { input.end_of_line() } else { bytes }, |input, line| {
            let Some(message) = self.receive(input, line) else { return };
            let is_last = message.is_shutdown();
            if program.is_some() {
                deliver(message);
            }
            // What follows `shutdown` is dropped; a dropped request is answered with an error.
            if is_last {
                *program = None;
            }
        });
        if is_end {
            (*program, *is_closed) = (None, true);
            drop(state);
            self.close();
            return false;
        }
        program.is_some()
    }

    /// Reads what is there and sends it into the channel. Returns `false` if the connection has ended.
    fn read_for_channel(self: &Arc<Self>) -> bool {
        let program = self.read_state().program.clone();
        // The channel is unbounded, and its receiver is in `self`. Answers are read even after `shutdown`.
        self.read(Timeout::after(Duration::ZERO), |message| {
            if let Some(program) = &program {
                drop(program.send(message));
            }
        });
        !self.read_state().is_closed
    }

    /// Nothing is received any more. Messages that wait hold the connection open: requests are answered with an error.
    pub(super) fn stop_receiving(&self) {
        if self.owner != process::id() {
            // A fork has a copy, and the original still receives.
            return;
        }
        self.read_state().program = None;
        self.incoming.try_iter().for_each(drop);
    }

    fn read_state(&self) -> MutexGuard<'_, ReadState> {
        self.read_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies one line. Returns a message for the program.
    fn receive(self: &Arc<Self>, input: RpcInput, line: RpcLine<'_>) -> Option<ParentMessage> {
        let received = match input {
            RpcInput::Message(message, _) => self.role.shared().endpoint.receive(message),
            RpcInput::Error(error) if error.kind == FrameErrorKind::NotRpc => {
                line.refusal().map_or(Received::Done, Received::Reply)
            }
            RpcInput::Error(error) => self.role.shared().endpoint.receive_error(&error),
        };
        match received {
            Received::Answer(call, answer) => _ = call.complete(answer),
            // The reading thread must not wait for a parent that does not read. If a pong is dropped, the parent sends the next ping.
            Received::Reply(line) => self.writer.try_write(&line, REPLY_PATIENCE),
            Received::Forward(Inbound::Request { id, method, params, cancelled }) => {
                let sender = Arc::clone(self) as Arc<dyn RpcSender>;
                return Some(ParentMessage::Request(Request::new(id, (method, params), sender, cancelled, None)));
            }
            Received::Forward(Inbound::Notification { method, params }) => {
                return Some(ParentMessage::Notification(Notification { method, params, _permit: None }));
            }
            // Neither can be answered, and a supervisor of this library sends neither.
            Received::Forward(Inbound::UnexpectedAnswer) | Received::Done => {}
        }
        None
    }

    /// The parent has closed the connection or exited.
    fn close(&self) {
        let mut shared = self.role.shared();
        shared.is_closed = true;
        self.role.wake_listener();
        let calls = shared.endpoint.close();
        drop(shared);
        for call in calls {
            call.complete(Err(CallError::ParentGone));
        }
    }
}

impl RpcSender for ControlClient {
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError> {
        self.send_lines(&line)
    }

    fn request_answered(&self, id: &str) {
        self.role.shared().endpoint.requests.end(id);
    }
}

impl ParentMessage {
    fn is_shutdown(&self) -> bool {
        matches!(self, Self::Notification(notification) if notification.method == SHUTDOWN)
    }

    /// What a handler handles: everything but `shutdown`.
    pub(super) fn into_handled(self) -> Option<Request> {
        match self {
            Self::Request(request) => Some(request),
            Self::Notification(notification) if notification.method == SHUTDOWN => None,
            Self::Notification(notification) => Some(notification.into()),
        }
    }

    pub(super) fn into_request(self) -> Option<Request> {
        match self {
            Self::Request(request) => Some(request),
            Self::Notification(_) => None,
        }
    }
}

/// The listener thread. It ends with the connection, or when the client has been dropped.
fn listen(wait_readable: &dyn Fn() -> io::Result<()>, client: &Weak<ControlClient>) {
    loop {
        // poll(2) fails only for want of memory; then it is repeated.
        let waited = wait_readable();
        let Some(client) = client.upgrade() else { return };
        if waited.is_err() || client.role.is_read_by_server() {
            client.role.wait_until_needed();
        } else if !client.read_for_channel() {
            return;
        }
    }
}
