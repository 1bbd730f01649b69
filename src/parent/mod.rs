//! The worker's side: what a child tells its parent, and what its parent asks.

mod control;
mod writer;

use std::{
    cell::Cell,
    env,
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::Receiver;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    pipe::anonymous::{
        ends::PipeWriter,
        handle::{Handle, HandleError},
    },
    text::printable,
    wire::{
        framing::{Framing, encode::encode},
        jsonrpc::{
            address::{Address, KEY_VARIABLE},
            error::{CallError, INTERNAL_ERROR, RpcError},
            protocol,
            request::Request,
        },
    },
};
use control::Control;

pub use control::ParentMessage;

/// The argument that names the pipe for messages: `--messages=3`, or `--messages 3`.
const MESSAGES_ARGUMENT: &str = "--messages";

/// Where the number is looked for when no argument names it.
const MESSAGES_VARIABLE: &str = "PIPEWRIGHT_MESSAGES";

/// The argument that names the control pipe: `--control=/run/…`, or `--control /run/…`; its key is in the environment.
const CONTROL_ARGUMENT: &str = "--control";

/// Where its address, with the key, is looked for when no argument names it.
const CONTROL_VARIABLE: &str = "PIPEWRIGHT_CONTROL";

/// A buffer for one frame that has grown larger is not kept for the next.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// In a worker: its link to the program that started it.
///
/// Make one, early in `main`, and share it: every method takes `&self`, and threads can send at the same time. A message is
/// written whole or not at all.
///
/// ```no_run
/// # #[derive(serde::Serialize)]
/// # struct Progress { done: u32 }
/// let parent = pipewright::Parent::from_args()?;
/// parent.send(&Progress { done: 1 })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Who owns the descriptor
///
/// A number on the command line is only a number: before `Parent` takes it, nobody in the process owns the descriptor behind
/// it. It is checked (open, a pipe, for writing, not taken before) and made close-on-exec, so that no grandchild holds the
/// pipe open. A program that wants the ownership proven as well calls
/// [`command_fds::inherited::init_inherited_fds`](https://docs.rs/command-fds/latest/command_fds/inherited/fn.init_inherited_fds.html)
/// first thing in `main`; the handle is then taken from that registry. This library does not call it: it lays hands on every
/// descriptor of the process, reads `/proc`, is `unsafe`, and is only right before anything else has opened a file. Only the
/// program itself can promise that.
pub struct Parent {
    /// Outside the lock: it can be asked about the reader while a write waits.
    end: Option<PipeWriter>,
    turn: Mutex<Turn>,
    framing: Framing,
    control: Option<Arc<Control>>,
}

shown_as!(Parent, |parent| { messages: parent.end, framing: parent.framing, has_control: parent.control.is_some() });

/// Why a program has no [`Parent`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParentError {
    /// Neither the arguments nor the environment name a pipe: most likely a human started the worker.
    #[error(
        "{program} is a worker: another program starts it and hands it a pipe, as in `{program} --messages=3`; \
         it does nothing when started by hand"
    )]
    NotAWorker {
        /// The name of this program.
        program: Box<str>,
    },
    /// The environment variable that should name the pipe is not set.
    #[error("${name} should hold the number of the pipe for messages, but it is not set")]
    MissingVariable {
        /// The variable.
        name: Box<str>,
    },
    /// A handle is named, but no pipe for messages stands behind it.
    #[error("cannot send messages through the handle given as {given}: {source}")]
    InvalidHandle {
        /// Where the handle stands and what it is: `--messages=7`.
        given: Box<str>,
        /// What is wrong with it.
        source: HandleError,
    },
    /// An address of a control pipe is named, but nobody could be reached there.
    #[error("cannot reach the parent at the address given as {given}: {source}")]
    ControlUnavailable {
        /// Where the address stands and its path, without the key: `--control=/run/…`.
        given: Box<str>,
        /// Why.
        source: io::Error,
    },
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The parent has ended or no longer reads. Nothing can be sent any more: most workers end here.
    #[error("the parent is gone, or no longer reads messages")]
    ParentGone,
    /// The value does not turn into JSON. Nothing was written, and other values can be sent.
    #[error("the message cannot be written as JSON: {}", printable(&.0.to_string()))]
    Encode(#[source] serde_json::Error),
    /// The parent has given this worker no pipe for messages.
    #[error("this worker was given no pipe for messages")]
    NoMessages,
    /// The pipe refused the message.
    #[error("the message could not be written to the parent: {0}")]
    Io(#[source] io::Error),
}

/// Held while frames are written, so that nobody's bytes come between.
#[derive(Debug, Default)]
struct Turn {
    /// A write failed when a part of its bytes was in the pipe: whatever came next would be read as their rest.
    is_torn: bool,
}

const _: () = assert!(size_of::<ParentError>() <= 64);
const _: () = assert!(size_of::<SendError>() <= 16);

impl Parent {
    /// Takes what the command line names: the pipe for messages as `--messages=3` or `--messages 3`, and the control pipe as
    /// `--control=PATH` or `--control PATH`, with its key in `PIPEWRIGHT_CONTROL_KEY`; the first of each if there are more, and
    /// none after `--`. What is not named there is looked for in the environment variables `PIPEWRIGHT_MESSAGES` and
    /// `PIPEWRIGHT_CONTROL` (`PATH?KEY`).
    ///
    /// The program's own parser of arguments must let these pass; or it parses the number and calls
    /// [`from_handle`](Self::from_handle). With a control pipe a thread is started that listens to the parent.
    ///
    /// # Errors
    ///
    /// [`ParentError::NotAWorker`] when nothing is named: print it, it tells a human what the program is.
    pub fn from_args() -> Result<Self, ParentError> {
        let mut args = env::args_os();
        let program = args.next();
        let args: Vec<OsString> = args.collect();
        let key = env::var(KEY_VARIABLE).ok();
        let control = match argument(args.iter().cloned(), CONTROL_ARGUMENT) {
            Some(path) => Some(path.connect(key.as_deref())?),
            None => variable(CONTROL_VARIABLE).map(|address| address.connect(None)).transpose()?,
        };
        let messages = argument(args.iter().cloned(), MESSAGES_ARGUMENT).or_else(|| variable(MESSAGES_VARIABLE));
        let messages = messages.map(Given::open).transpose()?;
        match (messages, control) {
            (None, None) => Err(ParentError::NotAWorker { program: program_name(program.as_deref()) }),
            (Some(parent), control) => Ok(Self { control, ..parent }),
            (None, control) => Ok(Self { end: None, turn: Mutex::default(), framing: Framing::default(), control }),
        }
    }

    /// Takes the pipe whose number an environment variable holds.
    ///
    /// Children of this process inherit the variable, but not the pipe: remove the variable where that may confuse them.
    ///
    /// # Errors
    ///
    /// When the variable is not set, or no pipe for writing stands behind its number.
    pub fn from_env(name: &str) -> Result<Self, ParentError> {
        variable(name).ok_or_else(|| ParentError::MissingVariable { name: name.into() })?.open()
    }

    /// Takes the pipe of this number.
    ///
    /// # Errors
    ///
    /// When no pipe for writing stands behind it, or it was taken before.
    pub fn from_handle(messages: Handle) -> Result<Self, ParentError> {
        Self::take(messages, || format!("`{messages}`"))
    }

    /// Uses another framing than one message a line. The spec in the parent must name the same.
    #[must_use]
    pub fn with_framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sends a message. Waits while the pipe is full: the parent decides how far a worker may run ahead.
    ///
    /// # Errors
    ///
    /// [`SendError::ParentGone`] when the parent no longer reads, also when it goes while this call waits.
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        // Taken out, not borrowed: a value may send messages of its own while it is being written.
        let mut frame = FRAME.try_with(Cell::take).unwrap_or_default();
        frame.clear();
        let sent = encode(self.framing, value, &mut frame).map_err(SendError::Encode).and_then(|()| self.write(&frame));
        frame.shrink_to(KEPT_BYTES_MAX);
        // Without its buffer a thread that is ending sends as well.
        FRAME.try_with(|kept| kept.set(frame)).unwrap_or_default();
        sent
    }

    /// Collects messages and writes them together when they have `capacity` bytes: for a worker that has thousands to say
    /// each second, and a parent that need not hear each at once.
    ///
    /// Messages of several buffers, or of [`send`](Self::send), stay whole, but each buffer has an order of its own.
    pub fn buffered(&self, capacity: usize) -> BufferedSender<'_> {
        BufferedSender { parent: self, frames: Vec::new(), capacity, owner: process::id() }
    }

    /// Whether the parent no longer reads messages, so that sending has no use. Never blocks.
    pub fn is_closed(&self) -> bool {
        self.end.as_ref().is_some_and(PipeWriter::is_broken)
    }

    /// Waits until the parent no longer reads messages. Returns `false` when `timeout` has passed before.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        // The kernel fails here for want of memory only, which says nothing about the parent.
        self.end.as_ref().is_some_and(|end| end.wait_broken(timeout).unwrap_or(false))
    }

    /// Asks the parent, and waits for its answer, at most so long, the writing included. Any number of threads can ask at once; the
    /// answers may come in any order.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the parent's own error, or why there is no answer.
    pub fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.control()?.call(method, params, timeout)
    }

    /// Tells the parent something over the control pipe. Waits while the parent does not read: that is when its program does not
    /// receive what this worker tells.
    ///
    /// # Errors
    ///
    /// When it cannot be sent. That the parent has read it is not said.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.control()?.notify(method, params)
    }

    /// Asks for more time, from now: to become ready, or, once the parent has asked for the end, to end. The parent gives a minute
    /// in all for the latter.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    #[doc(alias = "EXTEND_TIMEOUT_USEC")]
    pub fn extend(&self, time: Duration) -> Result<(), CallError> {
        self.notify(protocol::EXTEND, &protocol::Extend { ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) })
    }

    /// What the parent asks and tells, in one channel. It ends when the parent closes the connection, ends, or has told
    /// `shutdown`, which is the last thing in it: that is when a worker should end too. Without a control pipe it has ended already.
    pub fn incoming(&self) -> Receiver<ParentMessage> {
        // A channel whose sender is dropped here is one that has ended.
        self.control.as_ref().map_or_else(|| crossbeam_channel::bounded(0).1, |control| control.incoming().clone())
    }

    /// The parent's requests, one by one, until it wants the worker to end (see [`incoming`](Self::incoming)). Notifications are
    /// passed over.
    pub fn requests(&self) -> impl Iterator<Item = Request> + use<> {
        self.incoming().into_iter().filter_map(|incoming| match incoming {
            ParentMessage::Request(request) => Some(request),
            ParentMessage::Notification(_) => None,
        })
    }

    /// Answers the parent's requests with a function, on so many threads, or as many as the system allows, until it wants the worker to end: it has told
    /// `shutdown`, closed the connection, or ended. Return from `main` then. With one thread they are answered one at a time, in their
    /// order. Requests that wait for a thread wait in this process's memory.
    ///
    /// A method that the function does not know is for it to refuse: with [`RpcError::method_not_found`]. A panic of the function
    /// is answered with an error, and the next request is served.
    pub fn serve<R: Serialize>(&self, threads: usize, answer: impl Fn(&Request) -> Result<R, RpcError> + Sync) {
        let Some(control) = &self.control else { return };
        let answer = |request: Request| {
            let outcome = catch_unwind(AssertUnwindSafe(|| answer(&request)))
                .unwrap_or_else(|_| Err(RpcError::new(INTERNAL_ERROR, "the method panicked")));
            // A parent that has gone meanwhile needs no answer, and the next turn ends the loop.
            drop(control::answer(request, outcome));
        };
        if threads <= 1 {
            return control.serve(answer);
        }
        let serve = || self.requests().for_each(&answer);
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread can be created, those that there are serve.
                if thread::Builder::new().spawn_scoped(scope, serve).is_err() {
                    break;
                }
            }
            serve();
        });
    }

    fn control(&self) -> Result<&Control, CallError> {
        self.control.as_deref().ok_or(CallError::NotConnected)
    }

    fn take(handle: Handle, given: impl FnOnce() -> String) -> Result<Self, ParentError> {
        let end = PipeWriter::inherit(handle)
            .map_err(|source| ParentError::InvalidHandle { given: given().into(), source })?;
        Ok(Self::new(end))
    }

    fn new(end: PipeWriter) -> Self {
        Self { end: Some(end), turn: Mutex::default(), framing: Framing::default(), control: None }
    }

    /// Writes whole frames.
    fn write(&self, frames: &[u8]) -> Result<(), SendError> {
        let Some(mut end) = self.end.as_ref() else { return Err(SendError::NoMessages) };
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.is_torn {
            return Err(SendError::Io(io::Error::other("an earlier message was written in part only")));
        }
        let mut rest = frames;
        while !rest.is_empty() {
            match end.write(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(SendError::ParentGone),
                failed => {
                    turn.is_torn = rest.len() < frames.len();
                    return Err(SendError::Io(failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into())));
                }
            }
        }
        Ok(())
    }
}

thread_local! {
    /// Lets a thread that sends one message after the other allocate once.
    static FRAME: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Messages that wait to be written together: [`Parent::buffered`].
///
/// Dropping it writes what it holds and ignores errors: call [`flush`](Self::flush) to hear of them. What a process holds
/// when it is killed, or ends by [`std::process::exit`], is lost.
pub struct BufferedSender<'a> {
    parent: &'a Parent,
    frames: Vec<u8>,
    capacity: usize,
    /// The process that has made it.
    owner: u32,
}

shown_as!(BufferedSender<'_>, |buffered| { bytes: buffered.frames.len(), capacity: buffered.capacity });

impl BufferedSender<'_> {
    /// Adds a message, and writes all when they have reached the capacity.
    ///
    /// # Errors
    ///
    /// As for [`Parent::send`]. After [`SendError::Encode`] the messages before it are still held; after any other error all
    /// that were held are gone.
    pub fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        encode(self.parent.framing, value, &mut self.frames).map_err(SendError::Encode)?;
        if self.frames.len() >= self.capacity { self.flush() } else { Ok(()) }
    }

    /// Writes the messages held, if any.
    ///
    /// # Errors
    ///
    /// As for [`Parent::send`]. The messages held are gone then.
    pub fn flush(&mut self) -> Result<(), SendError> {
        let written = self.parent.write(&self.frames);
        self.frames.clear();
        self.frames.shrink_to(self.capacity.max(KEPT_BYTES_MAX));
        written
    }
}

impl Drop for BufferedSender<'_> {
    fn drop(&mut self) {
        // A fork has a copy: its parent writes the messages.
        if self.owner == process::id() {
            // A destructor has nobody to tell; `flush` has.
            drop(self.flush());
        }
    }
}

impl From<ParentError> for io::Error {
    fn from(error: ParentError) -> Self {
        let kind = match &error {
            ParentError::InvalidHandle { .. } => io::ErrorKind::InvalidInput,
            ParentError::NotAWorker { .. } | ParentError::MissingVariable { .. } => io::ErrorKind::NotFound,
            ParentError::ControlUnavailable { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match &error {
            SendError::ParentGone => io::ErrorKind::BrokenPipe,
            SendError::Encode(_) => io::ErrorKind::InvalidInput,
            SendError::NoMessages => io::ErrorKind::NotConnected,
            SendError::Io(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// A handle as it was found, and where.
#[derive(Debug, PartialEq)]
struct Given {
    place: String,
    text: OsString,
}

impl Given {
    fn open(self) -> Result<Parent, ParentError> {
        let text = self.text.to_string_lossy();
        let given = || format!("`{}{text}`", self.place);
        match text.parse() {
            Ok(handle) => Parent::take(handle, given),
            Err(source) => Err(ParentError::InvalidHandle { given: given().into(), source }),
        }
    }
}

impl Given {
    /// Connects to the control pipe. Without a key of its own the text ends with one, behind a `?`.
    fn connect(self, key: Option<&str>) -> Result<Arc<Control>, ParentError> {
        let text = self.text.to_string_lossy();
        let address = match key {
            Some(key) => Address::new(&text, key),
            None => text.parse::<Address>(),
        };
        let connected = address.and_then(|address| Control::connect(&address));
        connected.map_err(|source| {
            // What is no path may be a key.
            let path = Some(&*text).filter(|text| text.starts_with('/')).unwrap_or("…");
            let path = path.rsplit_once('?').map_or(path, |(path, _)| path);
            ParentError::ControlUnavailable { given: format!("`{}{path}`", self.place).into(), source }
        })
    }
}

/// Finds an argument of this name, the program's name not counted.
fn argument(mut args: impl Iterator<Item = OsString>, name: &str) -> Option<Given> {
    let given = |text: &OsStr| Some(Given { place: format!("{name}="), text: text.to_owned() });
    while let Some(arg) = args.next() {
        if arg == "--" {
            return None;
        }
        if arg == name {
            // A last argument without a number is one with an empty number, and the error shows it.
            return given(&args.next().unwrap_or_default());
        }
        let number = arg.as_bytes().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        if let Some(number) = number {
            return given(OsStr::from_bytes(number));
        }
    }
    None
}

fn variable(name: &str) -> Option<Given> {
    env::var_os(name).map(|text| Given { place: format!("{name}="), text })
}

fn program_name(first: Option<&OsStr>) -> Box<str> {
    let name = first.map(Path::new).and_then(Path::file_name);
    name.map_or_else(|| "this program".into(), |name| name.to_string_lossy().into())
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::AsFd as _, sync::Arc};

    use serde_json::json;

    use super::*;
    use crate::pipe::anonymous::{ends::PipeReader, from_child};

    fn link() -> (Parent, PipeReader) {
        let (reader, end) = from_child().unwrap();
        (Parent::new(end.into_writer().unwrap()), reader)
    }

    fn found(args: &[&str]) -> Option<String> {
        argument(args.iter().map(OsString::from), MESSAGES_ARGUMENT).map(|given| given.text.into_string().unwrap())
    }

    #[test]
    fn the_first_argument_that_names_messages_counts() {
        assert_eq!(found(&["compile", "--messages=17", "--messages=18"]), Some("17".into()));
        assert_eq!(found(&["--messages", "17"]), Some("17".into()));
        assert_eq!(found(&["--messages"]), Some(String::new()));
        assert_eq!(found(&["--messages="]), Some(String::new()));
        assert_eq!(found(&["--messages-to=3", "messages=4", "--", "--messages=5"]), None);
    }

    #[test]
    fn p16_errors_say_what_to_do() {
        let by_hand = ParentError::NotAWorker { program: program_name(Some(OsStr::new("/usr/bin/compile"))) };
        let text = "compile is a worker: another program starts it and hands it a pipe, as in `compile --messages=3`; \
                    it does nothing when started by hand";
        assert_eq!(by_hand.to_string(), text);
        assert_eq!(&*program_name(None), "this program");
        let bad = |args: &[&str]| {
            argument(args.iter().map(OsString::from), MESSAGES_ARGUMENT).unwrap().open().unwrap_err().to_string()
        };
        let text = bad(&["--messages=x"]);
        assert!(text.starts_with("cannot send messages through the handle given as `--messages=x`: "), "{text}");
        let unset = Parent::from_env("PIPEWRIGHT_TEST_NEVER_SET").unwrap_err();
        assert_eq!(io::Error::from(unset).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn p12_an_error_names_the_path_of_a_control_pipe_and_not_its_key() {
        let error = |text: &str, key: Option<&str>| {
            let given = argument([OsString::from(text)].into_iter(), CONTROL_ARGUMENT).unwrap();
            let error = given.connect(key).unwrap_err();
            format!("{error} {error:?}")
        };
        // Too long for a socket, so that it is refused at once.
        let argument = format!("--control=/{}", "x".repeat(4096));
        for (text, key) in [(format!("{argument}?secret"), None), (argument.clone(), Some("secret"))] {
            let text = error(&text, key);
            assert!(text.contains(&format!("`{argument}`")) && !text.contains("secret"), "{text}");
        }
        let text = error("--control=secret", None);
        assert!(text.contains("--control=") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn p02_threads_send_whole_messages() {
        let (parent, mut reader) = link();
        let parent = Arc::new(parent);
        let long = "x".repeat(10_000);
        let mut heard = String::new();
        thread::scope(|scope| {
            for sender in [0, 1, 2] {
                let (parent, long) = (Arc::clone(&parent), &long);
                scope.spawn(move || (0..50).for_each(|n| parent.send(&(sender, n, long)).unwrap()));
            }
            drop(parent);
            reader.read_to_string(&mut heard).unwrap();
        });
        let mut next = [0, 0, 0];
        for line in heard.lines() {
            let (sender, n, text): (usize, u32, &str) = serde_json::from_str(line).unwrap();
            assert_eq!((n, text), (next[sender], &*long));
            next[sender] += 1;
        }
        assert_eq!(next, [50, 50, 50]);
    }

    #[test]
    fn p02_sends_whole_messages_through_a_pipe_that_others_set_to_nonblocking() {
        let (parent, mut reader) = link();
        crate::sys::fd::set_nonblocking(parent.end.as_ref().unwrap().as_fd()).unwrap();
        crate::sys::fd::set_nonblocking(reader.as_fd()).unwrap();
        let long = "x".repeat(300_000);
        let mut heard = String::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..10).for_each(|n| parent.send(&(n, &long)).unwrap());
                drop(parent);
            });
            reader.read_to_string(&mut heard).unwrap();
        });
        let numbers = heard.lines().map(|line| serde_json::from_str::<(u32, &str)>(line).unwrap().0);
        assert_eq!(numbers.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn buffered_messages_are_written_together() {
        let (parent, reader) = link();
        let unread = || reader.bytes_available().unwrap();
        let mut buffered = parent.buffered(8);
        buffered.send(&12).unwrap();
        buffered.send(&34).unwrap();
        assert_eq!(unread(), 0);
        buffered.send(&5).unwrap();
        assert_eq!(unread(), 8, "12, 34 and 5, a line each");
        buffered.send(&6).unwrap();
        let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(buffered.send(&unwritable), Err(SendError::Encode(_))));
        buffered.flush().unwrap();
        assert_eq!(unread(), 10);
        buffered.send(&7).unwrap();
        drop(buffered);
        assert_eq!(unread(), 12, "dropping writes the rest");
    }

    #[test]
    fn p02_messages_of_another_process_are_not_written_by_a_drop() {
        let (parent, reader) = link();
        let mut buffered = parent.buffered(100);
        buffered.send(&1).unwrap();
        // As in a fork, whose parent writes it too.
        buffered.owner = 0;
        drop(buffered);
        assert_eq!(reader.bytes_available().unwrap(), 0);
    }

    #[test]
    fn a_value_may_send_while_it_is_written() {
        struct Talkative<'a>(&'a Parent);
        impl Serialize for Talkative<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.send(&"inner").map_err(serde::ser::Error::custom)?;
                serializer.serialize_str("outer")
            }
        }
        let (parent, mut reader) = link();
        parent.send(&Talkative(&parent)).unwrap();
        drop(parent);
        let mut heard = String::new();
        reader.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "\"inner\"\n\"outer\"\n");
    }

    #[test]
    fn p15_a_parent_that_is_gone_is_noticed() {
        let (parent, reader) = link();
        assert!(!parent.is_closed());
        assert!(!parent.wait_closed(Duration::from_millis(1)));
        drop(reader);
        assert!(parent.wait_closed(Duration::from_secs(60)));
        assert!(parent.is_closed());
        let error = parent.send(&json!({"done": 1})).unwrap_err();
        assert!(matches!(error, SendError::ParentGone));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
        let mut buffered = parent.buffered(100);
        buffered.send(&1).unwrap();
        assert!(matches!(buffered.flush(), Err(SendError::ParentGone)));
    }
}
