//! The worker's side: sends messages to the parent, calls it and answers its requests.

mod arguments; // what the command line and the environment name
mod control; // the control connection
pub(crate) mod error; // why there is no parent, or a message was not sent
mod messages; // where messages go
mod serving; // which thread reads the control connection
mod transport; // a socket, or standard input and output
mod writer; // whole lines from many threads

pub use control::ParentMessage;
pub use error::{ParentError, SendError};
pub use messages::BufferedSender;

use crate::{
    pipe::anonymous::handle::Handle,
    wire::{
        framing::Framing,
        jsonrpc::{
            address::KEY_VARIABLE,
            error::{CallError, RpcError},
            protocol::{EXTEND, Extend},
            request::Request,
        },
    },
};
use arguments::Setting;
use control::ControlClient;
use crossbeam_channel::Receiver;
use messages::MessageOutput;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    env,
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

/// The argument that names the pipe for messages: `--messages=3`, or `--messages 3`.
const MESSAGES_ARGUMENT: &str = "--messages";

/// The environment variable for its number, read when no argument names it.
const MESSAGES_VARIABLE: &str = "PIPEWRIGHT_MESSAGES";

/// The argument that names the control pipe: `--control=/run/…`, or `--control /run/…`. The key is in the environment.
const CONTROL_ARGUMENT: &str = "--control";

/// The environment variable for its address with the key, read when no argument names it.
const CONTROL_VARIABLE: &str = "PIPEWRIGHT_CONTROL";

/// In a worker: the connection to the program that started it.
///
/// Create one early in `main` and share it: every method takes `&self`, and threads can send at the same time. A message is
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
/// # Trying a worker by hand
///
/// With `PIPEWRIGHT_STANDALONE=1`, a worker that is given no pipe uses standard output and standard input. Messages, answers,
/// notifications and calls are lines of JSON on standard output; those of the control connection have a `jsonrpc`. Requests and
/// answers are read from standard input.
///
/// ```text
/// $ PIPEWRIGHT_STANDALONE=1 ./worker
/// "started"
/// {"jsonrpc":"2.0","id":1,"method":"add","params":[2,3]}      <- typed
/// {"jsonrpc":"2.0","id":1,"result":5}
/// {"jsonrpc":"2.0","id":1,"method":"name","params":[]}        the worker calls its parent
/// {"jsonrpc":"2.0","id":1,"result":"build"}                   <- typed
/// ```
///
/// At the end of standard input (Ctrl-D), or after a typed `{"jsonrpc":"2.0","method":"shutdown"}`, requests end as if the parent
/// requested a stop; open calls fail with [`CallError::ParentGone`] at the end. Ctrl-C ends the process. A worker that neither calls
/// nor asks for requests leaves standard input unread. Messages are lines whatever the [framing](Self::with_framing). Writing blocks
/// while nothing reads standard output, also beyond the timeout of a call. Pipes that are named precede the variable.
///
/// # Who owns the file descriptor
///
/// A number on the command line is only a number: until `Parent` takes it, no object in the process owns the file descriptor.
/// `Parent` checks that it is open, is a pipe, is writable and was not taken before, and sets close-on-exec, so that no
/// grandchild holds the pipe open. A program that wants the ownership proven as well calls
/// [`command_fds::inherited::init_inherited_fds`](https://docs.rs/command-fds/latest/command_fds/inherited/fn.init_inherited_fds.html)
/// first thing in `main`; the handle is then taken from that registry. This library does not call it: the function claims every
/// descriptor of the process, reads `/proc`, is `unsafe`, and is sound only before anything else has opened a file. Only the
/// program itself can guarantee that.
pub struct Parent {
    messages: MessageOutput,
    control: Option<Arc<ControlClient>>,
}

impl Drop for Parent {
    fn drop(&mut self) {
        if let Some(control) = &self.control {
            control.stop_receiving();
        }
    }
}

impl_debug!(Parent, |parent| {
    messages: parent.messages.pipe(),
    framing: parent.messages.framing(),
    has_control: parent.control.is_some(),
});

impl Parent {
    /// Takes the pipes that the command line names: the pipe for messages as `--messages=3` or `--messages 3`, and the control
    /// pipe as `--control=PATH` or `--control PATH`, with its key in `PIPEWRIGHT_CONTROL_KEY`. The first argument of each name
    /// counts, and none after `--`. What no argument names is read from the environment variables `PIPEWRIGHT_MESSAGES` and
    /// `PIPEWRIGHT_CONTROL` (`PATH?KEY`).
    ///
    /// The program's own argument parser must let these arguments pass; or it parses the number and calls
    /// [`from_handle`](Self::from_handle). With a control pipe, a thread is started that reads what the parent sends. Where nothing
    /// is named, `PIPEWRIGHT_STANDALONE=1` lets the worker be [tried by hand](Self#trying-a-worker-by-hand). A worker that is
    /// [attached](crate::Supervisor::attach) has a control pipe only; its messages go over that.
    ///
    /// # Errors
    ///
    /// [`ParentError::NotAWorker`] if nothing is named. Its text explains to a human what the program is: print it.
    pub fn from_args() -> Result<Self, ParentError> {
        let mut args = env::args_os();
        let program = args.next();
        let args: Vec<OsString> = args.collect();
        let key = env::var(KEY_VARIABLE).ok();
        let control = match Setting::argument(args.iter().cloned(), CONTROL_ARGUMENT) {
            Some(path) => Some(path.connect(key.as_deref())?),
            None => Setting::variable(CONTROL_VARIABLE).map(|address| address.connect(None)).transpose()?,
        };
        let messages =
            Setting::argument(args.into_iter(), MESSAGES_ARGUMENT).or_else(|| Setting::variable(MESSAGES_VARIABLE));
        if messages.is_none() && control.is_none() {
            if arguments::is_standalone() {
                return Self::standalone();
            }
            return Err(ParentError::NotAWorker { program: arguments::program_name(program.as_deref()) });
        }
        let messages = match (messages, &control) {
            (Some(number), _) => number.open()?,
            (None, Some((control, hello))) if hello.messages => MessageOutput::over_control(control),
            (None, _) => MessageOutput::none(),
        };
        Ok(Self { messages, control: control.map(|(control, _)| control) })
    }

    /// Takes the pipe whose number is in an environment variable.
    ///
    /// Children of this process inherit the variable, but not the pipe: remove the variable where that may confuse them. Where it is
    /// not set, `PIPEWRIGHT_STANDALONE=1` sends messages to standard output.
    ///
    /// # Errors
    ///
    /// If the variable is not set, or its number is not that of a writable pipe.
    pub fn from_env(name: &str) -> Result<Self, ParentError> {
        let messages = match Setting::variable(name) {
            Some(number) => number.open()?,
            None if arguments::is_standalone() => MessageOutput::standalone(),
            None => return Err(ParentError::MissingVariable { name: name.into() }),
        };
        Ok(Self { messages, control: None })
    }

    /// Takes the pipe of this number.
    ///
    /// # Errors
    ///
    /// If it is not a writable pipe, or was taken before.
    pub fn from_handle(messages: Handle) -> Result<Self, ParentError> {
        Ok(Self { messages: MessageOutput::inherit(messages, || format!("`{messages}`"))?, control: None })
    }

    /// Uses another framing than one message a line. The spec in the parent must name the same.
    #[must_use]
    pub fn with_framing(mut self, framing: Framing) -> Self {
        self.messages.set_framing(framing);
        self
    }

    /// Sends a message. Blocks while the pipe is full: the parent decides how far a worker may run ahead.
    ///
    /// # Errors
    ///
    /// [`SendError::ParentGone`] if the parent no longer reads, also when it closes the pipe during this call.
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        self.messages.send(value)
    }

    /// Collects messages and writes them together when they reach `capacity` bytes: for a worker that sends thousands of
    /// messages a second to a parent that need not receive each at once.
    ///
    /// Messages of several buffers, or of [`send`](Self::send), stay whole, but only those of one buffer keep their order.
    pub fn buffered(&self, capacity: usize) -> BufferedSender<'_> {
        BufferedSender::new(&self.messages, capacity)
    }

    /// Whether the parent no longer reads messages, so that sending is useless. Never blocks.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    /// Waits until the parent no longer reads messages. Returns `false` if `timeout` passes first.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        self.messages.wait_closed(timeout)
    }

    /// Calls a method of the parent and waits up to `timeout` for the result; the timeout includes the sending. Any number of
    /// threads can call at once, and the answers may come in any order.
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

    /// Sends a notification to the parent over the control pipe. Blocks while the parent does not read, which is the case while
    /// its program does not receive what this worker sends.
    ///
    /// # Errors
    ///
    /// If it cannot be sent. Success does not mean that the parent has read it.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.control()?.notify(method, params)
    }

    /// Requests more time, counted from now, to become ready or, once the parent has requested the shutdown, to exit. For the
    /// latter the parent grants up to a minute in total.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    #[doc(alias = "EXTEND_TIMEOUT_USEC")]
    pub fn extend(&self, time: Duration) -> Result<(), CallError> {
        self.notify(EXTEND, &Extend { ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) })
    }

    /// The requests and notifications of the parent, in one channel. It is disconnected when the parent closes the connection,
    /// exits, or has sent `shutdown`, which is the last notification in it; a worker should exit then. Without a control pipe it
    /// is disconnected from the start.
    pub fn incoming(&self) -> Receiver<ParentMessage> {
        // A channel whose sender is dropped here is disconnected.
        self.control.as_ref().map_or_else(|| crossbeam_channel::bounded(0).1, |control| control.incoming().clone())
    }

    /// The requests of the parent, until it wants the worker to exit (see [`incoming`](Self::incoming)). Notifications are
    /// skipped.
    pub fn requests(&self) -> impl Iterator<Item = Request> + use<> {
        self.incoming().into_iter().filter_map(ParentMessage::into_request)
    }

    /// Handles the parent's requests and notifications with a function, on `threads` threads or as many as the system allows.
    /// Returns when the parent wants the worker to exit: it has sent `shutdown`, closed the connection, or exited. Return from
    /// `main` then. One thread handles them in their order. What waits for a thread is kept in this process's memory.
    ///
    /// What the function returns for a [notification](Request::is_notification) is ignored.
    ///
    /// The function returns any type that serializes, also `()`; where the results of its methods have different types, a
    /// `serde_json::Value`. `?` converts every error into an [`RpcError`]. For a method that it does not know, it returns
    /// [`RpcError::method_not_found`]. A panic is answered with an error, and the next request is served.
    ///
    /// ```no_run
    /// use pipewright::{Parent, RpcError};
    /// use serde_json::json;
    ///
    /// let parent = Parent::from_args()?;
    /// parent.serve(1, |request| match request.method() {
    ///     "read" => Ok(json!(std::fs::read_to_string(request.params::<[String; 1]>()?.concat())?)),
    ///     "add" => Ok(json!(request.params::<Vec<i64>>()?.iter().sum::<i64>())),
    ///     other => Err(RpcError::method_not_found(other)),
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve<R: Serialize>(&self, threads: usize, answer: impl Fn(&Request) -> Result<R, RpcError> + Sync) {
        let Some(control) = &self.control else { return };
        let answer = |request: Request| {
            let outcome = catch_unwind(AssertUnwindSafe(|| answer(&request)));
            request.reply_outcome(outcome.ok());
        };
        if threads <= 1 {
            return control.serve(answer);
        }
        let serve = || control.incoming().iter().filter_map(ParentMessage::into_handled).for_each(&answer);
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread can be created, the existing ones serve.
                if thread::Builder::new().spawn_scoped(scope, serve).is_err() {
                    break;
                }
            }
            serve();
        });
    }

    fn standalone() -> Result<Self, ParentError> {
        let control = ControlClient::standalone().map_err(ParentError::Standalone)?;
        Ok(Self { messages: MessageOutput::standalone(), control: Some(control) })
    }

    fn control(&self) -> Result<&ControlClient, CallError> {
        self.control.as_deref().ok_or(CallError::NotConnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn p16_missing_variable_is_not_found() {
        let unset = Parent::from_env("PIPEWRIGHT_TEST_NEVER_SET").unwrap_err();
        assert_eq!(io::Error::from(unset).kind(), io::ErrorKind::NotFound);
    }
}
