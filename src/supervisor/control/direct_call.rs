//! Calls whose caller reads the response itself, without the event loop.

use crate::{
    deadline::Deadline,
    supervisor::{
        clock::now,
        control::{
            connection::{ConnectionEvent, ConnectionState, LineTag, ReadOwner, RpcConnection, SocketState},
            reader::FrameReader,
            rpc_socket::RpcSocket,
        },
    },
    wire::{
        jsonrpc::{
            completion::Completion,
            endpoint::Inbound,
            error::{Answer, CallError},
            message::RpcMessage,
            reader::RpcInput,
        },
        line_queue::QueuedLine,
    },
};
use std::{io, sync::Arc, time::Duration};

/// The right to read a connection, held by a caller. It is returned in any case, since the loop may wait for it.
struct ReadLease<'a> {
    connection: &'a RpcConnection,
    leased: Option<LeasedReader>,
}

struct LeasedReader {
    frame_reader: Box<FrameReader>,
    socket: Arc<RpcSocket>,
}

/// What has become of a call.
pub(crate) enum Asked {
    Answered(Answer),
    /// The loop reads the answer.
    Pending(Completion),
    /// Another side reads, or bytes are queued: the call was not sent.
    Unsent(QueuedLine<LineTag>),
}

impl RpcConnection {
    /// Sends a call and reads its answer, if no other side reads.
    pub(crate) fn ask(
        &self,
        id: u64,
        line: QueuedLine<LineTag>,
        (timeout, deadline): (Duration, Deadline),
    ) -> Result<Asked, CallError> {
        Ok(match self.lease_reader(line, timeout)? {
            Ok(lease) => self.read_answer(lease, id, deadline),
            Err(line) => Asked::Unsent(line),
        })
    }

    /// Checks whether a burst of calls continues.
    pub(crate) fn is_call_burst(&self) -> bool {
        let mut state = self.lock();
        let goes_on = state.burst.check();
        state.watch();
        goes_on
    }

    /// Sends a line and takes the read lease. Returns the line, unsent, if another side reads.
    fn lease_reader(
        &self,
        line: QueuedLine<LineTag>,
        timeout: Duration,
    ) -> Result<Result<ReadLease<'_>, QueuedLine<LineTag>>, CallError> {
        // Dropped after the lock guard, since its drop takes the lock.
        let mut lease = ReadLease { connection: self, leased: None };
        let mut state = self.lock();
        let SocketState::Open(socket) = &state.socket else { return Ok(Err(line)) };
        if socket.is_split() {
            // The end of the worker's standard input would not end the read.
            return Ok(Err(line));
        }
        let socket = Arc::clone(socket);
        let has_pending =
            matches!(&state.read_owner, ReadOwner::Idle(frame_reader) if !frame_reader.pending.is_empty());
        let is_idle = !has_pending && !state.may_be_held_up() && state.queue.is_empty();
        if state.is_revoked || state.has_ended || !is_idle || timeout.is_zero() {
            return Ok(Err(line));
        }
        let Some(frame_reader) = state.take(ReadOwner::Caller) else { return Ok(Err(line)) };
        let leased = lease.leased.insert(LeasedReader { frame_reader, socket });
        state.set_receive_timeout(&leased.socket, timeout);
        let is_burst = state.endpoint.calls.is_empty() && state.burst.on_call(now());
        let sent = state.send(line);
        drop(state);
        if is_burst {
            self.events.report(ConnectionEvent::CallBurst(self.worker));
        }
        sent.map(|()| Ok(lease)).map_err(CallError::Io)
    }

    /// Reads until the response has arrived. If something for the loop or the end arrives first, the loop reads on.
    fn read_answer(&self, mut lease: ReadLease<'_>, own: u64, deadline: Deadline) -> Asked {
        let answer = lease.leased.as_mut().and_then(|leased| self.read_until(leased, own, deadline));
        answer.map_or_else(|| Asked::Pending(lease.return_to(|state| state.expect(own))), Asked::Answered)
    }

    fn read_until(&self, leased: &mut LeasedReader, own: u64, deadline: Deadline) -> Option<Answer> {
        let LeasedReader { frame_reader, socket } = leased;
        let mut answer = None;
        let mut scratch = frame_reader.take_scratch();
        while answer.is_none() && frame_reader.pending.is_empty() {
            match socket.stream.receive_waiting(&mut scratch) {
                Ok(bytes @ 1..) => {
                    self.record_activity();
                    let bytes = scratch.get(..bytes).unwrap_or_default();
                    frame_reader.feed(bytes, |heard, line, pending| match heard {
                        RpcInput::Message(RpcMessage::Response { id, outcome }, _) if id == own && answer.is_none() => {
                            answer = Some(outcome.map_err(CallError::from));
                        }
                        RpcInput::Message(message @ RpcMessage::Response { .. }, _) => {
                            if let Some(Inbound::UnexpectedAnswer) = self.receive(message) {
                                pending.push(RpcInput::Error(line.unexpected_answer()));
                            }
                        }
                        RpcInput::Message(RpcMessage::UnidentifiedError(refusal), _) => {
                            if answer.is_none() && self.is_only_caller() {
                                answer = Some(Err(CallError::from(refusal)));
                            } else {
                                pending.push(RpcInput::Error(line.unexpected_answer()));
                            }
                        }
                        other => pending.push(other),
                    });
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // The loop handles the end of the connection.
                Ok(_) | Err(_) => break,
            }
            if answer.is_none() {
                // The kernel's timeout starts again with each read.
                match deadline.remaining() {
                    Some(Duration::ZERO) => break,
                    left => self.lock().set_receive_timeout(socket, left.unwrap_or(Duration::MAX)),
                }
            }
        }
        frame_reader.put_scratch(scratch);
        answer
    }
}

impl ReadLease<'_> {
    fn return_to<T>(&mut self, then: impl FnOnce(&mut ConnectionState) -> T) -> T {
        let Self { connection, leased } = self;
        let has_pending = leased.as_ref().is_some_and(|leased| !leased.frame_reader.pending.is_empty());
        let mut state = connection.lock();
        let done = then(&mut state);
        if let Some(LeasedReader { frame_reader, .. }) = leased.take() {
            state.read_owner = ReadOwner::Idle(frame_reader);
        }
        state.watch();
        let is_revoked = state.is_revoked;
        drop(state);
        if is_revoked {
            connection.lease_returned.notify_all();
        } else if has_pending {
            connection.events.report(ConnectionEvent::Readable(connection.worker));
        }
        done
    }
}

impl Drop for ReadLease<'_> {
    fn drop(&mut self) {
        if self.leased.is_some() {
            self.return_to(|_| ());
        }
    }
}
