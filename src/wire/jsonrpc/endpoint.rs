//! One side of a connection: what each message means for the calls and requests that are open.
//!
//! The worker and its supervisor use the same state machine. It does no I/O: messages come in, and what is to be done comes out.

use super::{
    dialect::Dialect,
    encode,
    error::{Answer, CallError, RpcFailure},
    message::{RequestId, RpcMessage},
    oversized::OversizedMessage,
    pending::{Answered, PendingCalls, PendingRequests, WhenAbandoned},
};
use crate::wire::framing::error::FrameError;
use serde_json::value::RawValue;
use std::sync::{Arc, atomic::AtomicBool};

/// The open calls of this side, and the open requests of the other. `C` wakes a caller.
#[derive(Debug)]
pub(crate) struct RpcEndpoint<C> {
    pub(crate) calls: PendingCalls<C>,
    pub(crate) requests: PendingRequests,
    dialect: Dialect,
}

/// What a message requires.
#[derive(Debug)]
pub(crate) enum Received<C> {
    /// The call of this caller has ended. The caller is notified outside the lock that guards the endpoint.
    Answer(C, Answer),
    /// The other side waits for this line.
    Reply(Vec<u8>),
    /// A message for the program.
    Forward(Inbound),
    /// Nothing.
    Done,
}

/// A message that the endpoint does not handle itself.
#[derive(Debug)]
pub(crate) enum Inbound {
    Request {
        id: RequestId,
        method: String,
        params: Option<Box<RawValue>>,
        cancelled: Arc<AtomicBool>,
    },
    Notification {
        method: String,
        params: Option<Box<RawValue>>,
    },
    /// An answer to no open request.
    UnexpectedAnswer,
}

impl<C> Default for RpcEndpoint<C> {
    fn default() -> Self {
        Self::new(Dialect::default())
    }
}

impl<C> RpcEndpoint<C> {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self { calls: PendingCalls::default(), requests: PendingRequests::default(), dialect }
    }

    pub(crate) fn receive(&mut self, message: RpcMessage) -> Received<C> {
        match message {
            RpcMessage::Response { id, outcome } => answer(self.calls.answer(id), outcome),
            RpcMessage::UnidentifiedError(failure) => answer(self.calls.answer_without_id(), Err(failure)),
            RpcMessage::Request { id, method, .. } if self.dialect.ping() == Some(&method) => {
                match (self.dialect.pong(&id), &id.batch) {
                    (Ok(pong), Some(batch)) => batch.add(&pong).map_or(Received::Done, Received::Reply),
                    (pong, _) => reply(pong),
                }
            }
            RpcMessage::Request { id, method, params } => {
                let cancelled = self.requests.begin(id.text());
                Received::Forward(Inbound::Request { id, method, params, cancelled })
            }
            RpcMessage::Notification { method, params } if method == self.dialect.cancel() => {
                if let Some(id) = self.dialect.cancelled_id(params.as_deref()) {
                    self.requests.cancel(id.text());
                }
                Received::Done
            }
            RpcMessage::Notification { method, params } => Received::Forward(Inbound::Notification { method, params }),
        }
    }

    /// A line that was not understood. If it is too long, its caller would wait in vain.
    pub(crate) fn receive_error(&mut self, error: &FrameError) -> Received<C> {
        match OversizedMessage::of(error) {
            Some(OversizedMessage::Response(id, failure)) => answer(self.calls.answer(id), Err(failure)),
            Some(OversizedMessage::Request(id, error)) => reply(encode::error_response(&id, &error)),
            None => Received::Done,
        }
    }

    /// The caller of a request that was sent no longer waits. Returns the notification of that, unless the call has ended or must not be
    /// cancelled.
    pub(crate) fn abandon(&mut self, id: u64) -> Option<Vec<u8>> {
        let call = self.calls.abandon(id)?;
        self.cancellation(id, call.when_abandoned)
    }

    /// As [`abandon`](Self::abandon), for all calls.
    pub(crate) fn abandon_all(&mut self) -> Vec<(C, Option<Vec<u8>>)> {
        let calls = self.calls.abandon_all().into_iter();
        calls.map(|(id, call)| (call.caller, self.cancellation(id, call.when_abandoned))).collect()
    }

    /// The notification that cancels a call whose answer is awaited all the same, unless the call has ended.
    pub(crate) fn cancellation_of_open(&self, id: u64) -> Option<Vec<u8>> {
        self.calls.is_waiting(id).then(|| self.cancellation(id, WhenAbandoned::Cancel)).flatten()
    }

    fn cancellation(&self, id: u64, when_abandoned: WhenAbandoned) -> Option<Vec<u8>> {
        match when_abandoned {
            WhenAbandoned::Cancel => self.dialect.cancellation(id).ok(),
            WhenAbandoned::Ignore => None,
        }
    }

    /// The connection has ended: requests are cancelled. Returns the callers that waited.
    pub(crate) fn close(&mut self) -> Vec<C> {
        self.requests.cancel_all();
        self.calls.drain().collect()
    }
}

fn answer<C>(answered: Answered<C>, outcome: Result<Box<RawValue>, RpcFailure>) -> Received<C> {
    match answered {
        Answered::Call(caller) => Received::Answer(caller, outcome.map_err(CallError::from)),
        Answered::Ignored => Received::Done,
        Answered::Unexpected => Received::Forward(Inbound::UnexpectedAnswer),
    }
}

fn reply<C>(line: serde_json::Result<Vec<u8>>) -> Received<C> {
    line.map_or(Received::Done, Received::Reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::framing::error::FrameErrorKind;
    use std::sync::atomic::Ordering;

    fn receive(endpoint: &mut RpcEndpoint<char>, line: &str) -> Received<char> {
        endpoint.receive(RpcMessage::parse(line.as_bytes()).unwrap())
    }

    #[test]
    fn p15_ping_is_answered_without_the_program() {
        let mut endpoint = RpcEndpoint::default();
        let line = r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#;
        let Received::Reply(reply) = receive(&mut endpoint, line) else { panic!() };
        assert_eq!(reply, b"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"result\":null}\n");
        assert!(endpoint.requests.is_empty());
    }

    #[test]
    fn p02_an_answer_goes_to_its_caller_and_an_unexpected_one_is_reported() {
        let mut endpoint = RpcEndpoint::default();
        let id = endpoint.calls.begin('a');
        let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":7}}"#);
        let Received::Answer('a', Ok(result)) = receive(&mut endpoint, &line) else { panic!() };
        assert_eq!(result.get(), "7");
        assert!(matches!(receive(&mut endpoint, &line), Received::Forward(Inbound::UnexpectedAnswer)));
        let id = endpoint.calls.begin('b');
        let cancellation = endpoint.abandon(id).unwrap();
        assert!(cancellation.starts_with(br#"{"jsonrpc":"2.0","method":"$/cancelRequest""#));
        assert!(endpoint.abandon(id).is_none());
        let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":7}}"#);
        assert!(matches!(receive(&mut endpoint, &line), Received::Done));
    }

    #[test]
    fn p02_late_answers_to_abandoned_calls_are_ignored() {
        let mut endpoint = RpcEndpoint::default();
        let ids = ['a', 'b'].map(|caller| endpoint.calls.begin(caller));
        let abandoned = endpoint.abandon_all();
        assert_eq!(abandoned.iter().map(|(caller, _)| *caller).collect::<String>(), "ab");
        for (id, (_, cancellation)) in ids.into_iter().zip(abandoned) {
            let text = String::from_utf8(cancellation.unwrap()).unwrap();
            assert!(text.contains("$/cancelRequest") && text.contains(&format!("\"id\":{id}")), "{text}");
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":7}}"#);
            assert!(matches!(receive(&mut endpoint, &line), Received::Done));
        }
    }

    #[test]
    fn p15_a_call_of_the_life_cycle_is_not_cancelled() {
        let mut endpoint = RpcEndpoint::new(Dialect::Mcp);
        let begin = |endpoint: &mut RpcEndpoint<char>, caller| {
            let id = endpoint.calls.next_id();
            endpoint.calls.wait(id, caller, WhenAbandoned::Ignore);
            id
        };
        let (first, second, third) = (begin(&mut endpoint, 'a'), begin(&mut endpoint, 'b'), endpoint.calls.begin('c'));
        assert_eq!(endpoint.abandon(first), None);
        let abandoned = endpoint.abandon_all();
        let cancelled = abandoned.iter().map(|(caller, line)| (*caller, line.is_some())).collect::<Vec<_>>();
        assert_eq!(cancelled, [('b', false), ('c', true)]);
        for id in [first, second, third] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":7}}"#);
            assert!(matches!(receive(&mut endpoint, &line), Received::Done), "a late answer is ignored");
        }
    }

    #[test]
    fn p02_requests_are_cancelled_by_the_other_side_and_by_the_end() {
        let mut endpoint = RpcEndpoint::<char>::default();
        let request = |endpoint: &mut RpcEndpoint<char>, id: u8| {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
            let Received::Forward(Inbound::Request { cancelled, .. }) = receive(endpoint, &line) else { panic!() };
            cancelled
        };
        let flags = [1, 2].map(|id| request(&mut endpoint, id));
        let line = r#"{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}"#;
        assert!(matches!(receive(&mut endpoint, line), Received::Done));
        let states = || flags.each_ref().map(|flag| flag.load(Ordering::Relaxed));
        assert_eq!(states(), [true, false]);
        endpoint.calls.begin('a');
        assert_eq!(endpoint.close(), ['a']);
        assert_eq!(states(), [true, true]);
    }

    #[test]
    fn p15_each_dialect_cancels_and_answers_pings_in_its_own_words() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        for (dialect, pong, cancel) in [
            (Dialect::Pipewright, Some("null"), r#""$/cancelRequest","params":{"id":"#),
            (Dialect::Lsp, None, r#""$/cancelRequest","params":{"id":"#),
            (Dialect::Mcp, Some("{}"), r#""notifications/cancelled","params":{"requestId":"#),
        ] {
            let mut endpoint = RpcEndpoint::new(dialect);
            let pong = pong.map(|pong| format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{pong}}}\n"));
            match receive(&mut endpoint, ping) {
                Received::Reply(reply) => assert_eq!(Some(reply), pong.map(String::into_bytes)),
                Received::Forward(Inbound::Request { method, .. }) => assert_eq!((&*method, pong), ("ping", None)),
                other => panic!("{other:?}"),
            }
            let id = endpoint.calls.begin('a');
            let sent = String::from_utf8(endpoint.abandon(id).unwrap()).unwrap();
            assert!(sent.contains(&format!("{cancel}{id}")), "{sent}");
            // The peer uses the same words.
            let request = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
            let Received::Forward(Inbound::Request { cancelled, .. }) = receive(&mut endpoint, request) else {
                panic!()
            };
            assert!(matches!(receive(&mut endpoint, sent.trim()), Received::Done));
            assert!(cancelled.load(Ordering::Relaxed), "{sent}");
        }
    }

    #[test]
    fn p02_a_line_that_is_too_long_ends_its_call_or_is_answered() {
        let mut endpoint = RpcEndpoint::default();
        let id = endpoint.calls.begin('a');
        let error = |text: &str| FrameError::new(FrameErrorKind::TooLong { limit: 9 }, 0, 70, text.as_bytes());
        let response = error(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"xx"#));
        assert!(matches!(endpoint.receive_error(&response), Received::Answer('a', Err(CallError::InvalidResult(_)))));
        let request = error(r#"{"jsonrpc":"2.0","id":"a","method":"m","params":["#);
        assert!(matches!(endpoint.receive_error(&request), Received::Reply(_)));
    }
}
