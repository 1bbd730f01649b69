//! Sends lines on a connection, and queues them within its limits.

use crate::{
    supervisor::control::connection::{
        ConnectionEvent, ConnectionState, QUEUE_BYTES, RpcConnection, SendState, SocketState,
    },
    sys::{is_shortage, is_transient},
    wire::{
        framing::encode::reframe,
        jsonrpc::{error::CallError, request::RpcSender},
        send_queue::SendQueue,
    },
};
use std::{io, sync::Arc};

/// The most bytes that are sent to one worker in one turn of the loop.
const FLUSH_BYTES: usize = 1 << 20;

/// The bytes that may be queued beyond [`QUEUE_BYTES`] by error responses that replace responses that did not fit.
const ANSWER_BYTES: usize = 1 << 20;

impl ConnectionState {
    /// Sends a line, or queues it.
    pub(crate) fn send_or_queue(&mut self, line: Vec<u8>) -> Result<(), CallError> {
        if let SocketState::Closed(exit) = &self.socket {
            return Err(CallError::WorkerExited { exit: exit.clone(), restarts_in: None });
        }
        let queued = self.queue.len();
        if queued > 0 && queued + line.len() > QUEUE_BYTES {
            return Err(CallError::QueueFull { queued });
        }
        if queued > 0 && self.sending == SendState::Open {
            return self.push(line);
        }
        self.send(line).map_err(CallError::Io)
    }
}

impl RpcSender for RpcConnection {
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError> {
        self.lock().send_or_queue(line)
    }

    fn send_reply(&self, line: Vec<u8>) -> Result<(), CallError> {
        let mut state = self.lock();
        let queued = state.queue.len();
        if queued == 0 || queued + line.len() <= QUEUE_BYTES {
            return state.send_or_queue(line);
        }
        if queued + line.len() <= QUEUE_BYTES + ANSWER_BYTES {
            return state.push(line);
        }
        // The worker sends requests and reads nothing. The loop reads the end of the connection, and so does the worker, whose calls end
        // with it.
        if let SocketState::Open(socket) = &state.socket {
            socket.shutdown_read();
            socket.shutdown_write();
        }
        Err(CallError::QueueFull { queued })
    }

    fn request_answered(&self, id: &str) {
        self.lock().endpoint.requests.end(id);
    }
}

impl RpcConnection {
    /// Closes the worker's standard input when everything queued is sent. False if it was closed before, or the control connection is not on
    /// standard input.
    pub(crate) fn close_input(&self) -> bool {
        let mut state = self.lock();
        let is_split = matches!(&state.socket, SocketState::Open(socket) if socket.is_split());
        if !is_split || state.sending != SendState::Open {
            return false;
        }
        state.sending = SendState::Closing;
        state.flush_or_watch();
        true
    }

    /// The worker reads no more, and its open calls will not be answered.
    pub(crate) fn fail_calls(&self) {
        let mut state = self.lock();
        state.sending = SendState::Closed;
        let waiting = state.endpoint.calls.drain().collect::<Vec<_>>();
        drop(state);
        for caller in waiting {
            caller.complete(Err(CallError::Io(input_closed())));
        }
    }
}

fn input_closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "standard input of the worker is closed")
}

impl ConnectionState {
    /// Sends a line while nothing is queued. On an error nothing of it was sent.
    pub(crate) fn send(&mut self, line: Vec<u8>) -> io::Result<()> {
        if self.sending != SendState::Open {
            return Err(input_closed());
        }
        let line = reframe(self.framing, line)?;
        let length = line.len();
        self.queue = line.into();
        match self.flush() {
            Ok(all) => self.wants_writes = !all,
            Err(error) if self.queue.len() == length => {
                self.queue = SendQueue::default();
                return Err(error);
            }
            // A line that was sent in part has to be completed.
            Err(_) => self.wants_writes = true,
        }
        self.watch();
        Ok(())
    }

    /// Sends as much as the socket takes. Returns true if nothing more can be sent now.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let SocketState::Open(socket) = &self.socket else { return Ok(true) };
        let socket = Arc::clone(socket);
        let mut share = FLUSH_BYTES;
        while !self.queue.is_empty() {
            if share == 0 {
                return Ok(false);
            }
            match socket.send(self.queue.rest()) {
                Ok(bytes) => {
                    self.queue.advance(bytes);
                    share = share.saturating_sub(bytes);
                }
                Err(error) if is_shortage(&error) => {
                    self.back_off();
                    return Ok(false);
                }
                Err(error) if is_transient(&error) => return Ok(false),
                // The peer has closed the connection. The loop reads the rest, and then the end.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    self.queue = SendQueue::default();
                    if socket.is_split() {
                        // No end would follow if the worker only closes its standard input.
                        self.events.report(ConnectionEvent::InputClosed(self.worker));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if self.sending == SendState::Closing {
            self.sending = SendState::Closed;
            socket.shutdown_write();
        }
        Ok(true)
    }

    /// Adds a line to a queue that the loop is already waiting to send.
    fn push(&mut self, line: Vec<u8>) -> Result<(), CallError> {
        let line = reframe(self.framing, line).map_err(CallError::Encode)?;
        self.queue.push(&line);
        Ok(())
    }
}
