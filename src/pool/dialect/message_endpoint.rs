//! Tasks as messages: over Node's channel, or over standard input and output.

use crate::{
    ids::WorkerId,
    pool::{
        dialect::codec::{Codec, Reply},
        workers::endpoint::{Endpoint, Report},
    },
    supervisor::{events::event::EventKind, handles::worker::Worker, spec::WorkerSpec, sync::lock},
    text::printable,
    wire::{
        framing::error::FrameErrorKind,
        jsonrpc::{completion::Completion, error::CallError},
    },
};
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// The most bytes of a message that a text quotes.
const EXCERPT_BYTES: usize = 200;

/// A dialect whose workers exchange messages.
#[derive(Debug)]
pub(crate) struct MessageEndpoint<C> {
    codec: C,
    /// The last id.
    ids: AtomicU32,
    /// The workers that run.
    sessions: Mutex<HashMap<WorkerId, Session>>,
}

/// What a worker has not answered.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    is_greeting: bool,
    /// The tasks.
    open: Vec<u64>,
}

impl<C: Codec> MessageEndpoint<C> {
    pub(crate) fn new(codec: C) -> Self {
        Self { codec, ids: AtomicU32::new(0), sessions: Mutex::new(HashMap::new()) }
    }

    fn message(&self, worker: WorkerId, message: &[u8]) -> Report {
        let invalid = |reason: &str| {
            let excerpt = message.get(..EXCERPT_BYTES.min(message.len())).unwrap_or_default();
            let more = if excerpt.len() < message.len() { "…" } else { "" };
            Report::Invalid(format!("{reason}: `{}{more}`", printable(excerpt)).into())
        };
        let reply = match self.codec.reply(message) {
            Ok(reply) => reply,
            Err(reason) => return invalid(&reason),
        };
        let mut sessions = lock(&self.sessions);
        // It is being killed.
        let Some(session) = sessions.get_mut(&worker) else { return Report::Nothing };
        session.attribute(reply).unwrap_or_else(|reason| invalid(&reason))
    }
}

impl Session {
    /// Finds the task that a reply is about.
    fn attribute(&mut self, reply: Reply) -> Result<Report, Box<str>> {
        let (id, is_answer) = match &reply {
            Reply::Answer(id, _) => (*id, true),
            Reply::Progress(id, _) => (*id, false),
        };
        if self.is_greeting {
            return match reply {
                Reply::Answer(_, Ok(_)) => {
                    self.is_greeting = false;
                    Ok(Report::Nothing)
                }
                Reply::Answer(_, Err(error)) => Err(format!("the worker is not set up: {error}").into()),
                Reply::Progress(..) => Ok(Report::Nothing),
            };
        }
        let at = match (id, self.open.as_slice()) {
            (None, [_]) => Some(0),
            (None, _) => None,
            (Some(id), open) => open.iter().position(|open| *open == id),
        };
        let Some(at) = at else {
            // Functions may report after they have returned.
            return if is_answer { Err(unexpected(id)) } else { Ok(Report::Nothing) };
        };
        let Some(id) = self.open.get(at).copied() else { return Err(unexpected(id)) };
        Ok(match reply {
            Reply::Answer(_, answer) => {
                self.open.swap_remove(at);
                Report::Answer(id, answer)
            }
            Reply::Progress(_, value) => Report::Progress(id, value),
        })
    }
}

fn unexpected(id: Option<u64>) -> Box<str> {
    match id {
        Some(id) => format!("an answer with the id {id}, which no task of the worker has").into(),
        None => "an answer, although the worker has no task".into(),
    }
}

impl<C: Codec> Endpoint for MessageEndpoint<C> {
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec {
        self.codec.prepare(spec)
    }

    fn in_flight_max(&self) -> Option<(usize, &'static str)> {
        self.codec.in_flight_max()
    }

    fn started(&self, worker: &Worker) {
        if let Some(Ok(greeting)) = self.codec.greeting() {
            // A worker that cannot be reached has exited.
            drop(worker.send_frames(greeting));
        }
    }

    fn ending(&self, worker: &Worker) {
        if let Some(end) = self.codec.end() {
            drop(worker.send_frames(end));
        }
    }

    fn next_id(&self) -> u64 {
        // The ids of some protocols are signed and have 32 bits, and 0 is none.
        u64::from(self.ids.fetch_add(1, Ordering::Relaxed) % i32::MAX.unsigned_abs()) + 1
    }

    fn send(&self, worker: &Worker, (id, request): (u64, &RawValue), _: Completion) -> Result<(), CallError> {
        let frames = self.codec.request(id, request).map_err(CallError::Encode)?;
        let gone = CallError::WorkerExited { exit: None, restarts_in: None };
        lock(&self.sessions).get_mut(&worker.id()).ok_or(gone)?.open.push(id);
        worker.send_frames(frames).inspect_err(|_| {
            if let Some(session) = lock(&self.sessions).get_mut(&worker.id()) {
                session.open.retain(|open| *open != id);
            }
        })
    }

    fn cancel(&self, worker: &Worker, id: u64) {
        if let Some(cancellation) = self.codec.cancel_request(id) {
            drop(worker.send_frames(cancellation));
        }
    }

    fn receive(&self, worker: WorkerId, event: &EventKind) -> Option<Report> {
        match event {
            EventKind::Started { .. } => {
                let session = Session { is_greeting: self.codec.greeting().is_some(), open: Vec::new() };
                lock(&self.sessions).insert(worker, session);
                None
            }
            EventKind::Message(message) => Some(self.message(worker, message.as_bytes())),
            // The exit, which follows, says more.
            EventKind::InvalidFrame(frame) if frame.kind == FrameErrorKind::Truncated => Some(Report::Nothing),
            EventKind::InvalidFrame(frame) => Some(Report::Invalid(frame.to_string().into())),
            event => {
                if event.is_final() {
                    lock(&self.sessions).remove(&worker);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::to_raw_value;

    fn answer(id: Option<u64>) -> Reply {
        Reply::Answer(id, Ok(to_raw_value(&1).unwrap()))
    }

    #[test]
    fn p16_replies_are_attributed_to_open_tasks_only() {
        let mut session = Session { is_greeting: true, open: Vec::new() };
        assert!(matches!(session.attribute(answer(None)), Ok(Report::Nothing)));
        assert_eq!(&*session.attribute(answer(None)).unwrap_err(), "an answer, although the worker has no task");
        session.open = vec![7];
        let progress = |id| Reply::Progress(id, to_raw_value(&1).unwrap());
        assert!(matches!(session.attribute(progress(None)), Ok(Report::Progress(7, _))));
        assert!(matches!(session.attribute(answer(None)), Ok(Report::Answer(7, Ok(_)))));
        assert!(matches!(session.attribute(progress(None)), Ok(Report::Nothing)), "it is late");
        session.open = vec![7, 8];
        assert!(session.attribute(answer(None)).is_err(), "which one?");
        assert!(matches!(session.attribute(answer(Some(8))), Ok(Report::Answer(8, Ok(_)))));
        let twice = session.attribute(answer(Some(8))).unwrap_err();
        assert_eq!(&*twice, "an answer with the id 8, which no task of the worker has");
        assert_eq!(session, Session { is_greeting: false, open: vec![7] });
    }
}
