//! One run of a scenario: which operations may fail in it.

use super::injector::{self, Fault};
use crate::support::carriers;
use crossbeam_channel::{RecvTimeoutError, Sender};
use pipewright::{Event, EventKind, Exit, Supervisor, Worker, WorkerId};
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(8);
const MARK: &str = "TEST_MARK_INJECTION";

pub(super) struct Run {
    pub(super) fault: Option<Fault>,
    pub(super) directory: PathBuf,
    mark: String,
    /// The operations that failed, at most one.
    errors: RefCell<Vec<String>>,
}

impl Run {
    pub(super) fn new(fault: Option<Fault>, directory: PathBuf, number: usize) -> Self {
        let mark = format!("{}-{number}", std::process::id());
        Self { fault, directory, mark, errors: RefCell::default() }
    }

    /// Repeats an operation until it succeeds. With a single failing call it may fail once, with an error that contains the call's; during
    /// a shortage, as long as that lasts.
    #[track_caller]
    pub(super) fn must<T, E: Error>(&self, what: &str, mut operation: impl FnMut() -> Result<T, E>) -> T {
        let (_keep, never) = crossbeam_channel::bounded::<()>(0);
        let failed = |error: String| {
            injector::aside(|| {
                let fault = self.fault.filter(|_| injector::has_fired());
                let fault = fault.unwrap_or_else(|| panic!("{what} failed without a reason: {error}"));
                let reason = io::Error::from_raw_os_error(fault.errno).to_string();
                assert!(error.contains(&reason), "{what}: the error hides its reason: {error}");
                self.errors.borrow_mut().push(format!("{what}: {error}"));
                let most = if fault.lasts.is_zero() { 1 } else { 100 };
                assert!(self.errors.borrow().len() <= most, "more than {most} operations: {:?}", self.errors.borrow());
                if most > 1 {
                    never.recv_timeout(fault.lasts / 10).unwrap_err();
                }
            });
        };
        loop {
            match operation() {
                Ok(done) => return done,
                Err(error) => failed(chain(&error)),
            }
        }
    }

    #[track_caller]
    pub(super) fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            injector::disarm();
            panic!("{}; errors: {:?}", what(), self.errors.borrow());
        }
    }

    #[expect(clippy::unused_self, reason = "it belongs to a run")]
    pub(super) fn aside<T>(&self, run: impl FnOnce() -> T) -> T {
        injector::aside(run)
    }

    /// In the environments of all processes of a tree.
    pub(super) fn mark(&self) -> (&'static str, &str) {
        (MARK, &self.mark)
    }

    pub(super) fn marked(&self) -> Vec<u32> {
        injector::aside(|| carriers(MARK, &self.mark))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    #[track_caller]
    pub(super) fn host(&self) -> Host {
        let supervisor = self.must("Supervisor::new", Supervisor::new);
        self.aside(|| Host::new(supervisor))
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) messages: Vec<Value>,
    pub(super) lines: Vec<String>,
    pub(super) exits: usize,
    pub(super) others: Vec<String>,
}

#[derive(Default)]
struct Ledger {
    seen: Mutex<HashMap<WorkerId, Seen>>,
    changed: Condvar,
}

/// A supervisor whose events a thread receives; requests are answered with their parameters.
pub(super) struct Host {
    pub(super) supervisor: Supervisor,
    ledger: Arc<Ledger>,
    end: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Host {
    fn new(supervisor: Supervisor) -> Self {
        let ledger = Arc::<Ledger>::default();
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (events, noted) = (supervisor.events().clone(), Arc::clone(&ledger));
        let receive = move || {
            loop {
                match events.recv_timeout(Duration::from_millis(50)) {
                    Ok(event) => noted.note(event),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        if ended.try_recv().is_err_and(|error| error.is_disconnected()) {
                            return;
                        }
                    }
                }
            }
        };
        let receiver = thread::Builder::new().name("receiver".into()).spawn(receive).unwrap();
        Self { supervisor, ledger, end: Some((end, receiver)) }
    }

    /// The exit, once it has been received as an event too.
    #[track_caller]
    pub(super) fn exit(&self, worker: &Worker) -> Arc<Exit> {
        self.exit_after(worker, 1)
    }

    /// The exit of this incarnation.
    #[track_caller]
    pub(super) fn exit_after(&self, worker: &Worker, lives: usize) -> Arc<Exit> {
        let Some(exit) = worker.wait_timeout(SOON) else {
            injector::disarm();
            panic!("no end within {SOON:?}: {:?}, {:?}", self.seen(worker), self.supervisor.status());
        };
        let seen = self.ledger.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_missing = |seen: &mut HashMap<WorkerId, Seen>| seen.entry(worker.id()).or_default().exits < lives;
        let (mut seen, late) = self.ledger.changed.wait_timeout_while(seen, SOON, is_missing).unwrap();
        assert!(!late.timed_out(), "no `Exited` within {SOON:?}: {:?}", seen.entry(worker.id()).or_default());
        exit
    }

    pub(super) fn seen(&self, worker: &Worker) -> Seen {
        let mut seen = self.ledger.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(worker.id()).or_default().clone()
    }

    /// All events except messages and lines.
    pub(super) fn all(&self) -> Vec<String> {
        let seen = self.ledger.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().flat_map(|seen| seen.others.clone()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The supervisor is dropped after this; the receiver then sees the end of the events.
        if let Some((end, receiver)) = self.end.take() {
            drop(end);
            injector::aside(|| drop(receiver.join()));
        }
    }
}

impl Ledger {
    fn note(&self, event: Event) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of = seen.entry(event.worker).or_default();
        match event.kind {
            EventKind::Message(message) => of.messages.push(message.json().unwrap_or(Value::Null)),
            EventKind::Line { line, .. } => of.lines.push(line.text().into_owned()),
            EventKind::Request(request) => {
                let question: Value = request.params().unwrap_or(Value::Null);
                // Fails if the connection has failed; then the caller has an error of its own.
                drop(request.reply(&question));
            }
            kind => {
                of.exits += usize::from(matches!(kind, EventKind::Exited { .. }));
                of.others.push(format!("{kind:?}").chars().take(300).collect());
            }
        }
        self.changed.notify_all();
    }
}
