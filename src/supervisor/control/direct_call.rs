//! A caller that reads for itself: it takes the reading, and the loop does not hear of its answer.

use crate::{
    deadline::Deadline,
    supervisor::{
        clock::now,
        control::{
            call::PendingCall,
            connection::{Connection, ConnectionEvent, Link, Reader, Socket, State},
            reader::Reading,
        },
    },
    wire::jsonrpc::{
        encode,
        endpoint::Inbound,
        error::{Answer, CallError},
        message::RpcMessage,
        reader::RpcInput,
    },
};
use serde::Serialize;
use serde_json::value::RawValue;
use std::{io, sync::Arc, time::Duration};

/// The reading, in the hands of a caller. It comes back whatever the caller comes to: the loop may be waiting for it.
struct Loan<'a> {
    link: &'a Link,
    lent: Option<Lent>,
}

struct Lent {
    reading: Box<Reading>,
    connection: Arc<Connection>,
}

impl Link {
    /// Asks, and waits for the answer. Where nobody else reads, the caller does.
    pub(crate) fn ask<P: Serialize + ?Sized>(
        self: &Arc<Self>,
        method: &str,
        params: &P,
        timeout: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        let deadline = Deadline::after_now(timeout);
        let id = self.lock().endpoint.calls.next_id();
        let line = encode::request(id, method, params).map_err(CallError::Encode)?;
        let call = match self.borrow_reading(line, timeout)? {
            Ok(loan) => match self.read_answer(loan, id, deadline) {
                Ok(answer) => return answer,
                Err(call) => call,
            },
            Err(line) => self.send_call(id, line)?,
        };
        call.answer_until(deadline)
    }

    /// The loop's turn in a burst: true while it goes on.
    pub(crate) fn goes_on_calling(&self) -> bool {
        let mut state = self.lock();
        let goes_on = state.burst.check();
        state.watch();
        goes_on
    }

    /// Sends a line and takes the reading, so that the loop never hears of the answer; gives the line back, unsent, if somebody
    /// else reads.
    fn borrow_reading(&self, line: Vec<u8>, timeout: Duration) -> Result<Result<Loan<'_>, Vec<u8>>, CallError> {
        // Dropped after the lock, which it takes.
        let mut loan = Loan { link: self, lent: None };
        let mut state = self.lock();
        let Socket::Open(connection) = &state.socket else { return Ok(Err(line)) };
        let connection = Arc::clone(connection);
        let has_unheard = matches!(&state.reader, Reader::Nobody(reading) if !reading.unheard.is_empty());
        if state.is_recalled || has_unheard || !state.queue.is_empty() || timeout.is_zero() {
            return Ok(Err(line));
        }
        let Some(reading) = state.take(Reader::Caller) else { return Ok(Err(line)) };
        let lent = loan.lent.insert(Lent { reading, connection });
        state.set_receive_timeout(&lent.connection, timeout);
        let is_burst = state.endpoint.calls.is_empty() && state.burst.on_call(now());
        let sent = state.send(line);
        drop(state);
        if is_burst {
            self.events.report(ConnectionEvent::CallBurst(self.worker));
        }
        sent.map(|()| Ok(loan)).map_err(CallError::Io)
    }

    /// Reads until the answer to this call has come; or something for the loop, or the end, and then goes on as a [`PendingCall`].
    #[cfg_attr(
        feature = "tracing",
        expect(clippy::result_large_err, reason = "a call that goes on is no error, and is moved once")
    )]
    fn read_answer(self: &Arc<Self>, mut loan: Loan<'_>, own: u64, deadline: Deadline) -> Result<Answer, PendingCall> {
        let answer = loan.lent.as_mut().and_then(|lent| self.read_until(lent, own, deadline));
        answer.ok_or_else(|| loan.give_back(|state| self.begin(state, own)))
    }

    fn read_until(&self, lent: &mut Lent, own: u64, deadline: Deadline) -> Option<Answer> {
        let Lent { reading, connection } = lent;
        let mut answer = None;
        let mut scratch = reading.take_scratch();
        while answer.is_none() && reading.unheard.is_empty() {
            match connection.socket.receive_waiting(&mut scratch) {
                Ok(bytes @ 1..) => {
                    self.note_heard();
                    let bytes = scratch.get(..bytes).unwrap_or_default();
                    reading.understand(bytes, |heard, line, unheard| match heard {
                        RpcInput::Message(RpcMessage::Response { id, outcome }, _) if id == own && answer.is_none() => {
                            answer = Some(outcome.map_err(CallError::from));
                        }
                        RpcInput::Message(message @ RpcMessage::Response { .. }, _) => {
                            if let Some(Inbound::UnexpectedAnswer) = self.receive(message) {
                                unheard.push(RpcInput::Error(line.not_rpc()));
                            }
                        }
                        RpcInput::Message(RpcMessage::UnidentifiedError(refusal), _) => {
                            if answer.is_none() && self.is_only_caller() {
                                answer = Some(Err(CallError::from(refusal)));
                            } else {
                                unheard.push(RpcInput::Error(line.not_rpc()));
                            }
                        }
                        other => unheard.push(other),
                    });
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // The end of the connection is for others to tell.
                Ok(_) | Err(_) => break,
            }
            if answer.is_none() {
                // Whatever else has come, the kernel counts anew with each read.
                match deadline.remaining() {
                    Some(Duration::ZERO) => break,
                    left => self.lock().set_receive_timeout(connection, left.unwrap_or(Duration::MAX)),
                }
            }
        }
        reading.put_scratch(scratch);
        answer
    }
}

impl Loan<'_> {
    fn give_back<T>(&mut self, then: impl FnOnce(&mut State) -> T) -> T {
        let Self { link, lent } = self;
        let is_unheard = lent.as_ref().is_some_and(|lent| !lent.reading.unheard.is_empty());
        let mut state = link.lock();
        let done = then(&mut state);
        if let Some(Lent { reading, .. }) = lent.take() {
            state.reader = Reader::Nobody(reading);
        }
        state.watch();
        let is_recalled = state.is_recalled;
        drop(state);
        if is_recalled {
            link.given_back.notify_all();
        } else if is_unheard {
            link.events.report(ConnectionEvent::Readable(link.worker));
        }
        done
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if self.lent.is_some() {
            self.give_back(|_| ());
        }
    }
}
