//! Queues lines on a connection, within its limits.

use crate::{
    supervisor::control::connection::{QUEUE_BYTES, RpcConnection, SocketState},
    wire::jsonrpc::{error::CallError, request::RpcSender},
};

/// The bytes that may be queued beyond [`QUEUE_BYTES`] by error responses that replace responses that did not fit.
const ANSWER_BYTES: usize = 1 << 20;

impl RpcSender for RpcConnection {
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError> {
        let mut state = self.lock();
        match &state.socket {
            SocketState::Closed(exit) => return Err(CallError::WorkerExited { exit: exit.clone(), restarts_in: None }),
            SocketState::Awaited | SocketState::Open(_) => {}
        }
        let queued = state.queue.len();
        if queued > 0 && queued + line.len() > QUEUE_BYTES {
            return Err(CallError::QueueFull { queued });
        }
        if queued > 0 {
            // The loop is already waiting to send what is queued.
            state.queue.push(&line);
            return Ok(());
        }
        state.send(line).map_err(CallError::Io)
    }

    fn send_reply(&self, line: Vec<u8>) -> Result<(), CallError> {
        let mut state = self.lock();
        let queued = state.queue.len();
        if queued == 0 || queued + line.len() <= QUEUE_BYTES {
            drop(state);
            return self.send_line(line);
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
