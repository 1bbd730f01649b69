//! Queues lines on a connection, within its limits.

use crate::{
    supervisor::control::connection::{ConnectionState, QUEUE_BYTES, RpcConnection, SocketState},
    wire::jsonrpc::{error::CallError, request::RpcSender},
};

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
        if queued > 0 {
            // The loop is already waiting to send what is queued.
            self.queue.push(&line);
            return Ok(());
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
            state.queue.push(&line);
            return Ok(());
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
