//! A caller that reads for itself: it takes the reading, and the loop does not hear of its answer.

use super::{Answer, Connection, Link, Reader, Socket, State};
use crate::{
    supervisor::{
        call::Call,
        clock::now,
        driver::Command,
        reading::{Heard, Reading, not_rpc},
    },
    sys::{poll::Deadline, socket},
    wire::{
        calls::CallError,
        rpc::{self, Packet},
    },
};
use serde::Serialize;
use serde_json::value::RawValue;
use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

/// The reading, in the hands of a caller.
struct Loan {
    reading: Box<Reading>,
    connection: Arc<Connection>,
}

impl Link {
    /// Asks, and waits for the answer. Where nobody else reads, the caller does.
    pub(in crate::supervisor) fn ask<P: Serialize + ?Sized>(
        self: &Arc<Self>,
        method: &str,
        params: &P,
        timeout: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        let deadline = Deadline::after(timeout);
        let id = self.lock().calls.next_id();
        let line = rpc::request(id, method, params).map_err(CallError::Encode)?;
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
    pub(in crate::supervisor) fn goes_on_calling(&self) -> bool {
        let mut state = self.lock();
        let goes_on = state.burst.goes_on();
        state.watch();
        goes_on
    }

    /// Sends a line and takes the reading, so that the loop never hears of the answer; gives the line back, unsent, if somebody
    /// else reads.
    fn borrow_reading(&self, line: Vec<u8>, timeout: Duration) -> Result<Result<Loan, Vec<u8>>, CallError> {
        let mut state = self.lock();
        let Socket::Open(connection) = &state.socket else { return Ok(Err(line)) };
        let connection = Arc::clone(connection);
        let has_unheard = matches!(&state.reader, Reader::Nobody(reading) if !reading.unheard.is_empty());
        if state.is_recalled || has_unheard || !state.queue.is_empty() || timeout.is_zero() {
            return Ok(Err(line));
        }
        let Some(reading) = state.take(Reader::Caller) else { return Ok(Err(line)) };
        state.set_receive_timeout(&connection, timeout);
        let is_burst = state.calls.is_empty() && state.burst.call(now());
        let sent = state.send(line);
        drop(state);
        if is_burst {
            self.mailbox.send(Command::Burst(self.worker));
        }
        match sent {
            Ok(()) => Ok(Ok(Loan { reading, connection })),
            Err(error) => {
                self.return_reading(reading, |_| ());
                Err(CallError::Io(error))
            }
        }
    }

    /// Reads until the answer to this call has come; or something for the loop, or the end, and then goes on as a [`Call`].
    fn read_answer(self: &Arc<Self>, loan: Loan, own: u64, deadline: Deadline) -> Result<Answer, Call> {
        let Loan { mut reading, connection } = loan;
        let mut answer = None;
        let mut scratch = reading.take_scratch();
        while answer.is_none() && reading.unheard.is_empty() {
            match socket::receive_waiting(connection.as_fd(), &mut scratch) {
                Ok(bytes @ 1..) => {
                    self.note_heard();
                    let bytes = scratch.get(..bytes).unwrap_or_default();
                    reading.understand(bytes, |heard, line, unheard| match heard {
                        Heard::Packet(Packet::Response { id, outcome }, _) if id == own => {
                            answer = Some(outcome.map_err(CallError::from));
                        }
                        Heard::Packet(Packet::Response { id, outcome }, _) => {
                            if !self.answer(id, outcome) {
                                unheard.push(Heard::Fault(not_rpc(line)));
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
                    left => self.lock().set_receive_timeout(&connection, left.unwrap_or(Duration::MAX)),
                }
            }
        }
        reading.put_scratch(scratch);
        match answer {
            Some(answer) => {
                self.return_reading(reading, |_| ());
                Ok(answer)
            }
            None => Err(self.return_reading(reading, |state| self.begin(state, own))),
        }
    }

    fn return_reading<T>(&self, reading: Box<Reading>, then: impl FnOnce(&mut State) -> T) -> T {
        let is_unheard = !reading.unheard.is_empty();
        let mut state = self.lock();
        let done = then(&mut state);
        state.reader = Reader::Nobody(reading);
        state.watch();
        let is_recalled = state.is_recalled;
        drop(state);
        if is_recalled {
            self.given_back.notify_all();
        } else if is_unheard {
            self.mailbox.send(Command::Talk(self.worker));
        }
        done
    }
}
