//! Where messages go: whole frames, from many threads.

use super::{
    control::ControlClient,
    error::{ParentError, SendError},
    transport::{wait_output_closed, write_to_standard_output},
};
use crate::{
    pipe::anonymous::{ends::PipeWriter, handle::Handle},
    wire::{
        framing::{Framing, encode::encode},
        jsonrpc::{encode::notification, error::CallError, protocol::MESSAGE},
    },
};
use serde::Serialize;
use std::{
    cell::Cell,
    io::{self, Write as _},
    process,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The most bytes of a frame buffer that are kept for the next frame.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Where messages go.
#[derive(Debug)]
pub(super) struct MessageOutput {
    /// Outside the lock, so that `is_closed` does not wait for a blocked write.
    end: MessageEnd,
    lock: Mutex<WriteLock>,
    framing: Framing,
}

#[derive(Debug)]
enum MessageEnd {
    /// Every `send` fails.
    None,
    Pipe(PipeWriter),
    /// In a worker that is attached: notifications.
    Control(Arc<ControlClient>),
    /// In a worker that is tried by hand.
    StandardOutput,
}

/// Held while frames are written, so that those of several threads do not mix.
#[derive(Debug, Default)]
struct WriteLock {
    /// A write failed within a frame: whatever followed would be read as its rest.
    is_torn: bool,
}

thread_local! {
    /// The buffer for the frames of this thread, kept so that not every message allocates.
    static FRAME: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl MessageOutput {
    fn new(end: MessageEnd) -> Self {
        Self { end, lock: Mutex::default(), framing: Framing::default() }
    }

    /// Without a pipe: every `send` fails.
    pub(super) fn none() -> Self {
        Self::new(MessageEnd::None)
    }

    /// A notification for each message, whatever the framing.
    pub(super) fn over_control(control: &Arc<ControlClient>) -> Self {
        Self::new(MessageEnd::Control(Arc::clone(control)))
    }

    /// A line of standard output for each message, whatever the framing.
    pub(super) fn standalone() -> Self {
        Self::new(MessageEnd::StandardOutput)
    }

    /// `given` describes the handle in errors.
    pub(super) fn inherit(handle: Handle, given: impl FnOnce() -> String) -> Result<Self, ParentError> {
        let pipe = PipeWriter::inherit(handle)
            .map_err(|source| ParentError::InvalidHandle { given: given().into(), source })?;
        Ok(Self::new(MessageEnd::Pipe(pipe)))
    }

    pub(super) fn pipe(&self) -> Option<&PipeWriter> {
        match &self.end {
            MessageEnd::Pipe(pipe) => Some(pipe),
            MessageEnd::None | MessageEnd::Control(_) | MessageEnd::StandardOutput => None,
        }
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    pub(super) fn set_framing(&mut self, framing: Framing) {
        // Lines of the control connection come in between, also where a person reads standard output.
        if !matches!(self.end, MessageEnd::Control(_) | MessageEnd::StandardOutput) {
            self.framing = framing;
        }
    }

    pub(super) fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), SendError> {
        // Taken out, not borrowed: serializing the value may itself send messages.
        let mut frame = FRAME.try_with(Cell::take).unwrap_or_default();
        frame.clear();
        let sent = self.encode(value, &mut frame).and_then(|()| self.write(&frame));
        frame.shrink_to(KEPT_BYTES_MAX);
        // Fails on a thread whose buffer was destroyed already; that thread sends as well.
        FRAME.try_with(|kept| kept.set(frame)).unwrap_or_default();
        sent
    }

    /// Appends a message as one frame. After an error `frames` is unchanged.
    fn encode<T: Serialize + ?Sized>(&self, value: &T, frames: &mut Vec<u8>) -> Result<(), SendError> {
        let encoded = match self.end {
            MessageEnd::Control(_) => notification(MESSAGE, &(value,)).map(|line| frames.extend(line)),
            MessageEnd::None | MessageEnd::Pipe(_) | MessageEnd::StandardOutput => encode(self.framing, value, frames),
        };
        encoded.map_err(SendError::Encode)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.wait_closed(Duration::ZERO)
    }

    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        let waited = match &self.end {
            MessageEnd::None => Ok(false),
            MessageEnd::Pipe(pipe) => pipe.wait_broken(timeout),
            MessageEnd::Control(control) => Ok(control.wait_closed(timeout)),
            MessageEnd::StandardOutput => wait_output_closed(timeout),
        };
        // poll(2) fails only for want of memory, which says nothing about the parent.
        waited.unwrap_or(false)
    }

    /// Writes whole frames.
    fn write(&self, frames: &[u8]) -> Result<(), SendError> {
        let mut pipe = match &self.end {
            MessageEnd::None => return Err(SendError::NoMessages),
            MessageEnd::Pipe(pipe) => pipe,
            MessageEnd::Control(control) => {
                return control.send_lines(frames).map_err(|error| match error {
                    CallError::Io(error) => SendError::Io(error),
                    // The writing has no timeout.
                    _ => SendError::ParentGone,
                });
            }
            MessageEnd::StandardOutput => {
                return write_to_standard_output(frames).map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => SendError::ParentGone,
                    _ => SendError::Io(error),
                });
            }
        };
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_torn {
            return Err(SendError::Io(io::Error::other("an earlier message was written in part only")));
        }
        let mut rest = frames;
        while !rest.is_empty() {
            match pipe.write(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(SendError::ParentGone),
                failed => {
                    lock.is_torn = rest.len() < frames.len();
                    return Err(SendError::Io(failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into())));
                }
            }
        }
        Ok(())
    }
}

/// Messages that are written together: [`Parent::buffered`](crate::Parent::buffered).
///
/// Dropping it writes the buffered messages and ignores errors; [`flush`](Self::flush) returns them. Buffered messages are lost
/// when the process is killed or ends by [`std::process::exit`].
pub struct BufferedSender<'a> {
    messages: &'a MessageOutput,
    frames: Vec<u8>,
    capacity: usize,
    /// The process that created it.
    owner: u32,
}

impl_debug!(BufferedSender<'_>, |buffered| { bytes: buffered.frames.len(), capacity: buffered.capacity });

impl<'a> BufferedSender<'a> {
    pub(super) fn new(messages: &'a MessageOutput, capacity: usize) -> Self {
        Self { messages, frames: Vec::new(), capacity, owner: process::id() }
    }

    /// Adds a message, and writes all buffered messages once they reach the capacity.
    ///
    /// # Errors
    ///
    /// As for [`Parent::send`](crate::Parent::send). After [`SendError::Encode`] the messages before it are still buffered; after
    /// any other error the buffer is empty.
    pub fn send<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SendError> {
        self.messages.encode(value, &mut self.frames)?;
        if self.frames.len() >= self.capacity { self.flush() } else { Ok(()) }
    }

    /// Writes the buffered messages, if any.
    ///
    /// # Errors
    ///
    /// As for [`Parent::send`](crate::Parent::send). The buffer is empty then.
    pub fn flush(&mut self) -> Result<(), SendError> {
        let written = self.messages.write(&self.frames);
        self.frames.clear();
        self.frames.shrink_to(self.capacity.max(KEPT_BYTES_MAX));
        written
    }
}

impl Drop for BufferedSender<'_> {
    fn drop(&mut self) {
        // After a fork both processes have a copy; only the original writes the messages.
        if self.owner == process::id() {
            // A destructor cannot return the error; `flush` can.
            drop(self.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::AsFd as _, thread};

    use serde_json::json;

    use super::*;
    use crate::pipe::anonymous::{ends::PipeReader, from_child};

    fn pipe() -> (MessageOutput, PipeReader) {
        let (reader, end) = from_child().unwrap();
        (MessageOutput::new(MessageEnd::Pipe(end.into_writer().unwrap())), reader)
    }

    #[test]
    fn p02_threads_send_whole_messages() {
        let (parent, mut reader) = pipe();
        let parent = Arc::new(parent);
        let long = "x".repeat(10_000);
        let mut received = String::new();
        thread::scope(|scope| {
            for sender in [0, 1, 2] {
                let (parent, long) = (Arc::clone(&parent), &long);
                scope.spawn(move || (0..50).for_each(|n| parent.send(&(sender, n, long)).unwrap()));
            }
            drop(parent);
            reader.read_to_string(&mut received).unwrap();
        });
        let mut next = [0, 0, 0];
        for line in received.lines() {
            let (sender, n, text): (usize, u32, &str) = serde_json::from_str(line).unwrap();
            assert_eq!((n, text), (next[sender], &*long));
            next[sender] += 1;
        }
        assert_eq!(next, [50, 50, 50]);
    }

    #[test]
    fn p02_sends_whole_messages_through_a_nonblocking_pipe() {
        let (parent, mut reader) = pipe();
        crate::sys::fd::set_nonblocking(parent.pipe().unwrap().as_fd()).unwrap();
        crate::sys::fd::set_nonblocking(reader.as_fd()).unwrap();
        let long = "x".repeat(300_000);
        let mut received = String::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..10).for_each(|n| parent.send(&(n, &long)).unwrap());
                drop(parent);
            });
            reader.read_to_string(&mut received).unwrap();
        });
        let numbers = received.lines().map(|line| serde_json::from_str::<(u32, &str)>(line).unwrap().0);
        assert_eq!(numbers.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn buffered_messages_are_written_together() {
        let (parent, reader) = pipe();
        let available = || reader.bytes_available().unwrap();
        let mut buffered = BufferedSender::new(&parent, 8);
        buffered.send(&12).unwrap();
        buffered.send(&34).unwrap();
        assert_eq!(available(), 0);
        buffered.send(&5).unwrap();
        assert_eq!(available(), 8, "12, 34 and 5, a line each");
        buffered.send(&6).unwrap();
        let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(buffered.send(&unwritable), Err(SendError::Encode(_))));
        buffered.flush().unwrap();
        assert_eq!(available(), 10);
        buffered.send(&7).unwrap();
        drop(buffered);
        assert_eq!(available(), 12, "dropping writes the rest");
    }

    #[test]
    fn p02_buffered_messages_are_not_written_by_the_drop_in_another_process() {
        let (parent, reader) = pipe();
        let mut buffered = BufferedSender::new(&parent, 100);
        buffered.send(&1).unwrap();
        // As in a forked child, whose parent writes the message too.
        buffered.owner = 0;
        drop(buffered);
        assert_eq!(reader.bytes_available().unwrap(), 0);
    }

    #[test]
    fn serializing_a_message_may_send_another() {
        struct Sending<'a>(&'a MessageOutput);
        impl Serialize for Sending<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.send(&"inner").map_err(serde::ser::Error::custom)?;
                serializer.serialize_str("outer")
            }
        }
        let (parent, mut reader) = pipe();
        parent.send(&Sending(&parent)).unwrap();
        drop(parent);
        let mut received = String::new();
        reader.read_to_string(&mut received).unwrap();
        assert_eq!(received, "\"inner\"\n\"outer\"\n");
    }

    #[test]
    fn p15_closed_pipe_is_reported() {
        let (parent, reader) = pipe();
        assert!(!parent.is_closed());
        assert!(!parent.wait_closed(Duration::from_millis(1)));
        drop(reader);
        assert!(parent.wait_closed(Duration::from_secs(60)));
        assert!(parent.is_closed());
        let error = parent.send(&json!({"done": 1})).unwrap_err();
        assert!(matches!(error, SendError::ParentGone));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
        let mut buffered = BufferedSender::new(&parent, 100);
        buffered.send(&1).unwrap();
        assert!(matches!(buffered.flush(), Err(SendError::ParentGone)));
    }
}
