//! Two endpoints that are connected, under any interleaving of what both sides do: every call ends exactly once.
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test that panics has failed")]

use super::{
    completion::{Completion, ObserveCompletion},
    encode,
    endpoint::{Inbound, Received, RpcEndpoint},
    error::{Answer, CallError, RpcError},
    message::{RequestId, RpcMessage},
};
use proptest::prelude::*;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// What happens next. Indexes choose one of what is there, modulo its number.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A side calls the other.
    Call(usize),
    /// The caller no longer waits: its future is dropped, or it has timed out.
    Abandon(usize, usize),
    /// A canceller on another thread ends a call, which its caller notices later.
    Cancel(usize, usize),
    Notify(usize),
    Ping(usize),
    /// The next line arrives at a side.
    Deliver(usize),
    /// A request is answered by a result or an error.
    Answer {
        side: usize,
        request: usize,
        is_error: bool,
    },
    /// A line in transit to a side arrives twice: the other side does not keep to the protocol.
    Repeat(usize, usize),
    /// An error without an id arrives at a side.
    SendUnidentifiedError(usize),
    /// A side finds the end of the connection. What was in transit to it is lost; what it has sent may still arrive.
    Close(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (side, at) = (0..2_usize, 0..100_usize);
    let step = prop_oneof![
        6 => side.clone().prop_map(Step::Call),
        2 => (side.clone(), at.clone()).prop_map(|(side, call)| Step::Abandon(side, call)),
        1 => (side.clone(), at.clone()).prop_map(|(side, call)| Step::Cancel(side, call)),
        1 => side.clone().prop_map(Step::Notify),
        1 => side.clone().prop_map(Step::Ping),
        12 => side.clone().prop_map(Step::Deliver),
        6 => (side.clone(), at.clone(), any::<bool>())
            .prop_map(|(side, request, is_error)| Step::Answer { side, request, is_error }),
        1 => (side.clone(), at).prop_map(|(side, line)| Step::Repeat(side, line)),
        1 => side.clone().prop_map(Step::SendUnidentifiedError),
        1 => side.prop_map(Step::Close),
    ];
    prop::collection::vec(step, 0..120)
}

/// The ends of all calls of a side.
#[derive(Debug, Default)]
struct Ends(Mutex<Vec<(u64, Answer)>>);

impl ObserveCompletion for Ends {
    fn completed(&self, tag: u64, answer: Answer) {
        self.0.lock().unwrap().push((tag, answer));
    }
}

struct HeldRequest {
    id: RequestId,
    cancelled: Arc<AtomicBool>,
}

#[derive(Default)]
struct Side {
    endpoint: RpcEndpoint<Completion>,
    is_closed: bool,
    /// Lines that are in transit to this side.
    inbox: VecDeque<Vec<u8>>,
    /// Every call that was started, with its id.
    calls: Vec<(u64, Completion)>,
    /// The calls whose callers have gone.
    abandoned: Vec<u64>,
    ends: Arc<Ends>,
    held: Vec<HeldRequest>,
    unexpected_answers: usize,
}

#[derive(Default)]
struct Connection {
    sides: [Side; 2],
    /// Lines were repeated or made up, so answers may be unexpected.
    is_hostile: bool,
}

impl Connection {
    fn send(&mut self, from: usize, line: Vec<u8>) {
        if !self.sides[from].is_closed && !self.sides[1 - from].is_closed {
            self.sides[1 - from].inbox.push_back(line);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Call(side) => self.call(side),
            Step::Abandon(side, call) => self.abandon(side, call),
            Step::Cancel(side, call) => {
                if let Some((_, completion)) = pick(&self.sides[side].calls, call) {
                    completion.complete(Err(CallError::Cancelled));
                }
            }
            Step::Notify(side) => self.send(side, encode::notification("n", &[1]).unwrap()),
            Step::Ping(side) => {
                let calls = &mut self.sides[side].endpoint.calls;
                let id = calls.next_id();
                calls.expect_ignored(id);
                self.send(side, encode::request(id, "ping", &()).unwrap());
            }
            Step::Deliver(side) => {
                if let Some(line) = self.sides[side].inbox.pop_front() {
                    self.receive(side, &line);
                }
            }
            Step::Answer { side, request, is_error } => self.answer(side, request, is_error),
            Step::Repeat(side, line) => {
                let inbox = &mut self.sides[side].inbox;
                if let Some(at) = line.checked_rem(inbox.len()) {
                    inbox.push_back(inbox[at].clone());
                    self.is_hostile = true;
                }
            }
            Step::SendUnidentifiedError(side) => {
                let line = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}"#;
                self.sides[side].inbox.push_back(line.to_vec());
                self.is_hostile = true;
            }
            Step::Close(side) => self.close(side),
        }
    }

    fn call(&mut self, side: usize) {
        let from = &mut self.sides[side];
        let completion =
            Completion::observed(Arc::clone(&from.ends) as Arc<dyn ObserveCompletion>, from.calls.len() as u64);
        if from.is_closed {
            from.calls.push((0, completion.clone()));
            completion.complete(Err(CallError::ParentGone));
            return;
        }
        let id = from.endpoint.calls.begin(completion.clone());
        from.calls.push((id, completion));
        self.send(side, encode::request(id, "m", &[id]).unwrap());
    }

    fn abandon(&mut self, side: usize, call: usize) {
        let from = &mut self.sides[side];
        let Some((id, completion)) = pick(&from.calls, call).cloned() else { return };
        from.abandoned.push(id);
        completion.complete(Err(CallError::TimedOut));
        if let Some(line) = from.endpoint.abandon(id) {
            self.send(side, line);
        }
    }

    fn answer(&mut self, side: usize, request: usize, is_error: bool) {
        let from = &mut self.sides[side];
        let Some(at) = request.checked_rem(from.held.len()) else { return };
        let HeldRequest { id, cancelled: _ } = from.held.remove(at);
        from.endpoint.requests.end(id.text());
        let line = if is_error {
            encode::error_response(&id, &RpcError::new(1, id.text()))
        } else {
            encode::response(&id, &id.text())
        };
        self.send(side, line.unwrap());
    }

    fn receive(&mut self, side: usize, line: &[u8]) {
        let to = &mut self.sides[side];
        match to.endpoint.receive(RpcMessage::parse(line.trim_ascii_end()).expect("a message")) {
            Received::Answer(completion, answer) => _ = completion.complete(answer),
            Received::Reply(line) => self.send(side, line),
            Received::Forward(Inbound::Request { id, cancelled, .. }) => to.held.push(HeldRequest { id, cancelled }),
            Received::Forward(Inbound::UnexpectedAnswer) => to.unexpected_answers += 1,
            Received::Forward(Inbound::Notification { .. }) | Received::Done => {}
        }
    }

    fn close(&mut self, side: usize) {
        let closed = &mut self.sides[side];
        closed.is_closed = true;
        closed.inbox.clear();
        for completion in closed.endpoint.close() {
            completion.complete(Err(CallError::ParentGone));
        }
        for request in &closed.held {
            // One whose id was repeated has lost its place, and a flag without a place cannot be set.
            assert!(self.is_hostile || request.cancelled.load(Ordering::Relaxed), "{} goes on", request.id.text());
        }
    }

    /// No call has two ends, and an answer belongs to its call. Ends stay, so one check at the end finds all.
    fn check(&self) {
        for side in &self.sides {
            let ends = side.ends.0.lock().unwrap();
            let mut tags: Vec<u64> = ends.iter().map(|(tag, _)| *tag).collect();
            tags.sort_unstable();
            assert!(tags.windows(2).all(|pair| pair[0] < pair[1]), "a call has two ends: {tags:?}");
            for (tag, answer) in &*ends {
                let id = side.calls[usize::try_from(*tag).unwrap()].0;
                match answer {
                    Ok(result) => assert_eq!(result.get(), format!("\"{id}\"")),
                    Err(CallError::Rpc(error)) => {
                        assert!(error.message == id.to_string() || self.is_hostile && error.code == -32700, "{error}");
                    }
                    Err(CallError::TimedOut) => assert!(side.abandoned.contains(&id)),
                    Err(CallError::Cancelled | CallError::ParentGone) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(self.is_hostile || side.unexpected_answers == 0, "an answer to no call");
        }
    }
}

fn pick<T>(list: &[T], index: usize) -> Option<&T> {
    index.checked_rem(list.len()).map(|at| &list[at])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn p02_any_interleaving_ends_every_call_exactly_once(steps in steps(), first in 0..2_usize) {
        let mut connection = Connection::default();
        for step in steps {
            connection.step(step);
        }
        for side in [first, 1 - first] {
            while !connection.sides[side].inbox.is_empty() {
                connection.step(Step::Deliver(side));
            }
            connection.step(Step::Close(side));
        }
        connection.check();
        for side in &connection.sides {
            let ends = side.ends.0.lock().unwrap().len();
            prop_assert_eq!(ends, side.calls.len(), "a call has no end");
            prop_assert!(side.calls.iter().all(|(_, completion)| completion.is_complete()));
            prop_assert!(side.endpoint.calls.is_empty());
        }
    }

    /// Without losses and cancellations every call ends with its own answer, in whatever order the requests are answered.
    #[test]
    fn p02_every_request_that_is_answered_ends_its_call_with_the_answer(
        order in prop::collection::vec((0..2_usize, 0..3_u8, 0..100_usize), 0..80),
    ) {
        let mut connection = Connection::default();
        for (side, what, request) in order {
            connection.step(match what {
                0 => Step::Call(side),
                1 => Step::Deliver(side),
                _ => Step::Answer { side, request, is_error: false },
            });
        }
        for side in [0, 1, 0, 1] {
            while !connection.sides[side].inbox.is_empty() {
                connection.step(Step::Deliver(side));
            }
            while !connection.sides[side].held.is_empty() {
                connection.step(Step::Answer { side, request: 0, is_error: false });
            }
        }
        connection.check();
        for side in &connection.sides {
            let ends = side.ends.0.lock().unwrap();
            prop_assert!(ends.len() == side.calls.len() && ends.iter().all(|(_, answer)| answer.is_ok()));
        }
    }
}
