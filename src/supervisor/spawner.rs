//! Where workers are started: on a thread that lives as long as they may, since the kernel sends the parent-death signal when
//! the *thread* that spawned ends, not the process.
//!
//! The main thread is such a thread, and starts its workers itself: handing them to another and being woken by it takes
//! longer than the start. For every other caller there is a thread that only spawns and outlives all workers.

use super::{
    control,
    driver::{Arrival, Command, Mailbox},
    link::Link,
    spec::{MessageSource, WorkerSpec},
    worker::{Worker, WorkerId, WorkerShared},
};
use crate::{
    launch::{Ends, MESSAGES, Moment, Prepared, SpawnError, SpawnStep, launch},
    sys::{conduct, pidfd},
    wire::rpc::Address,
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};

/// What a worker gets when its parent dies, where its spec does not say.
const DEATH_SIGNAL: Option<i32> = Some(libc::SIGKILL);

/// One worker to start.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: WorkerId,
    pub(super) spec: WorkerSpec,
    pub(super) prepared: Prepared,
    pub(super) answer: Sender<Result<Worker, SpawnError>>,
}

/// Runs until nobody can send a job any more, and then until the loop is done.
pub(super) fn start(jobs: Receiver<Job>, starter: Arc<Starter>, all_done: Receiver<()>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("pipewright-spawn".into()).spawn(move || {
        // The host's signals belong to the host's threads.
        conduct::block_all_signals();
        let closing = Closing(starter);
        for Job { id, spec, prepared, answer } in jobs {
            let (worker, arrival) = match closing.0.start(id, spec, prepared) {
                Ok((worker, arrival)) => (Ok(worker), Some(arrival)),
                Err(error) => (Err(error), None),
            };
            // A caller always waits for its answer, unless it was killed together with everything else. It is answered before
            // the loop is told, so that it does not wait for the loop's wake-up too.
            drop(answer.send(worker));
            if let Some(arrival) = arrival {
                closing.0.mailbox.send(Command::Arrive(arrival));
            }
        }
        drop(closing);
        // Ends with an error when the loop drops its side. To end earlier would kill every worker: see above.
        let Err(_all_gone) = all_done.recv() else { return };
    })
}

/// Tells the loop that nobody will come any more: after the last arrival, and also when this thread panics.
struct Closing(Arc<Starter>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.mailbox.send(Command::Close);
    }
}

/// Starts workers, on whatever thread may be their parent.
#[derive(Debug)]
pub(super) struct Starter {
    mailbox: Mailbox,
    /// Where the control server is, once a worker has needed one.
    control_path: Mutex<Option<String>>,
}

impl Starter {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, control_path: Mutex::new(None) }
    }

    /// Whether the calling thread may be the parent of a worker.
    pub(super) fn may_start_here(spec: &WorkerSpec) -> bool {
        spec.death_signal_or(DEATH_SIGNAL).is_none() || pidfd::is_main_thread()
    }

    /// Starts a worker on the calling thread.
    pub(super) fn start_here(&self, id: WorkerId, spec: WorkerSpec, prepared: Prepared) -> Result<Worker, SpawnError> {
        let (worker, arrival) = self.start(id, spec, prepared)?;
        self.mailbox.send(Command::Arrive(arrival));
        Ok(worker)
    }

    fn start(&self, id: WorkerId, spec: WorkerSpec, prepared: Prepared) -> Result<(Worker, Box<Arrival>), SpawnError> {
        let address = if spec.has_control { Some(self.address(&spec)?) } else { None };
        let control = address.as_ref().map(ToString::to_string).unwrap_or_default();
        let moment = Moment { death_signal: spec.death_signal_or(DEATH_SIGNAL), control: &control };
        let mut launched = launch(&spec.plan, prepared, &moment)?;
        let started = now();
        let (messages, stdout, stderr) = listen_to(&spec, &mut launched.ends);
        let name = spec.name.clone().unwrap_or_else(|| spec.plan.program_name());
        let link = address.is_some().then(|| Arc::new(Link::new(self.mailbox.clone(), id)));
        let shared = Arc::new(WorkerShared::new(id, name, launched, link));
        let worker = Worker { shared: Arc::clone(&shared) };
        let key = address.map(|address| address.key);
        let arrival = Box::new(Arrival { shared, spec, key, started, messages, stdout, stderr });
        Ok((worker, arrival))
    }

    /// The address of a new incarnation; with the first one the server is started.
    fn address(&self, spec: &WorkerSpec) -> Result<Address, SpawnError> {
        let mut path = self.control_path.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &*path {
            Some(path) => control::address(path),
            None => control::listen().and_then(|(listener, at)| {
                self.mailbox.send(Command::Listen(Box::new(listener)));
                control::address(path.insert(at))
            }),
        };
        made.map_err(|source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Control, source))
    }
}

type Pipe = Option<crate::pipe::anonymous::PipeReader>;

/// The pipes that the loop reads: messages, stdout, stderr.
fn listen_to(spec: &WorkerSpec, ends: &mut Ends) -> (Pipe, Pipe, Pipe) {
    let messages = if spec.messages == MessageSource::Pipe { ends.take_reader(MESSAGES) } else { None };
    if let (Some(messages), Some(capacity)) = (&messages, spec.pipe_capacity) {
        // Refused beyond the user's quota; then the pipe is as large as it was, which is what the spec promises.
        drop(messages.set_capacity(capacity));
    }
    (messages, ends.stdout.take(), ends.stderr.take())
}

#[expect(clippy::disallowed_methods, reason = "the start of an incarnation is where its process begins")]
fn now() -> Instant {
    Instant::now()
}
