//! Where workers are started: on a thread that lives as long as they may, since the kernel sends the parent-death signal when
//! the *thread* that spawned ends, not the process.
//!
//! The main thread is such a thread, and starts its workers itself: handing them to another and being woken by it takes
//! longer than the start. For every other caller there is a thread that only spawns and outlives all workers.

use super::{
    driver::{Arrival, Command, Mailbox},
    spec::{MessageSource, WorkerSpec},
    worker::{Worker, WorkerId, WorkerShared},
};
use crate::{
    launch::{Ends, Launched, MESSAGES, SpawnError, launch},
    sys::{conduct, pidfd},
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    io,
    sync::Arc,
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
    pub(super) answer: Sender<Result<Worker, SpawnError>>,
}

/// Runs until nobody can send a job any more, and then until the loop is done.
pub(super) fn start(jobs: Receiver<Job>, mailbox: Mailbox, all_done: Receiver<()>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("pipewright-spawn".into()).spawn(move || {
        // The host's signals belong to the host's threads.
        conduct::block_all_signals();
        let closing = Closing(mailbox);
        for Job { id, spec, answer } in jobs {
            let (worker, arrival) = match spawn(id, spec) {
                Ok((worker, arrival)) => (Ok(worker), Some(arrival)),
                Err(error) => (Err(error), None),
            };
            // A caller always waits for its answer, unless it was killed together with everything else. It is answered before
            // the loop is told, so that it does not wait for the loop's wake-up too.
            drop(answer.send(worker));
            if let Some(arrival) = arrival {
                closing.0.send(Command::Arrive(arrival));
            }
        }
        drop(closing);
        // Ends with an error when the loop drops its side. To end earlier would kill every worker: see above.
        let Err(_all_gone) = all_done.recv() else { return };
    })
}

/// Tells the loop that nobody will come any more: after the last arrival, and also when this thread panics.
struct Closing(Mailbox);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.send(Command::Close);
    }
}

/// Starts a worker on the calling thread.
pub(super) fn spawn_here(id: WorkerId, spec: WorkerSpec, mailbox: &Mailbox) -> Result<Worker, SpawnError> {
    let (worker, arrival) = spawn(id, spec)?;
    mailbox.send(Command::Arrive(arrival));
    Ok(worker)
}

/// Whether the calling thread may be the parent of a worker.
pub(super) fn may_spawn_here(spec: &WorkerSpec) -> bool {
    spec.death_signal_or(DEATH_SIGNAL).is_none() || pidfd::is_main_thread()
}

fn spawn(id: WorkerId, spec: WorkerSpec) -> Result<(Worker, Box<Arrival>), SpawnError> {
    let Launched { child, mut ends } = launch(&spec.plan, spec.death_signal_or(DEATH_SIGNAL))?;
    let started = now();
    let (messages, stdout, stderr) = listen_to(&spec, &mut ends);
    let name = spec.name.clone().unwrap_or_else(|| spec.plan.program_name());
    let shared = Arc::new(WorkerShared::new(id, name, child, ends));
    let worker = Worker { shared: Arc::clone(&shared) };
    let arrival = Box::new(Arrival { shared, spec, started, messages, stdout, stderr });
    Ok((worker, arrival))
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
