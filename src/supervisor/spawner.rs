//! Where workers are started: on a thread that lives as long as they may, since the kernel sends the parent-death signal when
//! the *thread* that spawned ends, not the process.
//!
//! The main thread is such a thread, and starts its workers itself: handing them to another and being woken by it takes
//! longer than the start. For every other caller there is a thread that only spawns and outlives all workers.

use super::{
    clock::now,
    control,
    driver::{Again, Arrival, Command, Mailbox},
    link::Link,
    lock,
    notify::NotifySocket,
    pen::{Cell, Pen},
    ready::{BELL, Ready},
    roster::Roster,
    sentinel::Sentinel,
    spec::{MessageSource, WorkerSpec},
    tree::Token,
    worker::{Mark, Present, Worker, WorkerId, WorkerShared},
};
use crate::{
    launch::{Birthplace, Ends, MESSAGES, Moment, Patience, Prepared, Program, SpawnError, SpawnStep, launch, prepare},
    policy::watchdog::Life,
    sys::{conduct, pidfd, random},
    wire::rpc::{Address, KEY_VARIABLE},
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    ffi::OsString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
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
pub(super) fn start(jobs: Receiver<Job>, starter: Arc<Starter>, again: Receiver<Again>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("pipewright-spawn".into()).spawn(move || {
        // The host's signals belong to the host's threads.
        conduct::block_all_signals();
        let closing = Closing(Arc::clone(&starter));
        loop {
            crossbeam_channel::select! {
                recv(jobs) -> job => match job {
                    Ok(job) => starter.serve(job),
                    Err(_closed) => break,
                },
                // Not before all jobs are done: the loop holds its side until then.
                recv(again) -> job => match job {
                    Ok(job) => starter.start_again(job),
                    Err(_panicked) => break,
                },
            }
        }
        drop(closing);
        // Ends when the loop does. To end earlier would kill every worker: see above.
        again.iter().for_each(|job| starter.start_again(job));
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
    roster: Arc<Roster>,
    /// Where the control server is, once a worker has needed one.
    control_path: Mutex<Option<String>>,
    /// 128 random bits that are in the environment of every process of every tree.
    run: Box<str>,
    sentinel: Sentinel,
    pen: Arc<Pen>,
    /// The loop has ended: nobody would look after whoever is started. Held while the loop is handed a worker, so that it has ended
    /// before or finds it.
    is_abandoned: Mutex<bool>,
    /// How many processes are being started or were.
    begun: AtomicU64,
    /// How many were.
    started: AtomicU64,
}

impl Starter {
    pub(super) fn new(mailbox: Mailbox, roster: Arc<Roster>) -> io::Result<Self> {
        let run: Box<str> = format!("{:032x}", u128::from_ne_bytes(random::bytes()?)).into();
        let pen = Arc::new(Pen::default());
        let sentinel = Sentinel::new(&run, &pen)?;
        Ok(Self {
            mailbox,
            roster,
            control_path: Mutex::new(None),
            run,
            sentinel,
            pen,
            is_abandoned: Mutex::new(false),
            begun: AtomicU64::new(0),
            started: AtomicU64::new(0),
        })
    }

    /// How many processes were started so far. Less what `begun` was at some moment: at most how many of them have a number
    /// that was given after that.
    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::SeqCst)
    }

    pub(super) fn pen(&self) -> &Pen {
        &self.pen
    }

    pub(super) fn sentinel(&self) -> &Sentinel {
        &self.sentinel
    }

    /// Whether the calling thread may be the parent of a worker, and of the guard that comes with it.
    pub(super) fn may_start_here(spec: &WorkerSpec) -> bool {
        pidfd::is_main_thread() || spec.survives && spec.death_signal_or(DEATH_SIGNAL).is_none()
    }

    fn serve(&self, job: Job) {
        let Job { id, spec, prepared, answer } = job;
        // Handed over before the answer: whatever the caller then wants of its worker must not come to the loop before the worker
        // does.
        let worker = self.start(id, spec, prepared);
        // A caller always waits for its answer, unless it was killed together with everything else. It is answered before the
        // loop is woken, so that it does not wait for that too.
        drop(answer.send(worker));
        self.mailbox.waker.wake();
    }

    fn start_again(&self, again: Again) {
        let Again { shared, spec } = again;
        let number = shared.incarnation() + 1;
        let id = shared.id();
        let started =
            prepare(&spec.plan, Patience::None).and_then(|prepared| self.incarnate(id, &spec, prepared, number));
        match started {
            // Where the loop has ended its end was told already.
            Ok(begun) => drop(self.hand_over(begun.arrival(shared, spec))),
            Err(error) => self.mailbox.put(Command::NotStarted(id, error)),
        }
        self.mailbox.waker.wake();
    }

    /// Starts a worker on the calling thread.
    pub(super) fn start_here(&self, id: WorkerId, spec: WorkerSpec, prepared: Prepared) -> Result<Worker, SpawnError> {
        let worker = self.start(id, spec, prepared)?;
        self.mailbox.waker.wake();
        Ok(worker)
    }

    /// Nobody takes what is handed over from now on.
    pub(super) fn abandon(&self) {
        *lock(&self.is_abandoned) = true;
    }

    /// Puts a worker into the hands of the loop, which is to be woken; ends it where there is no loop any more.
    fn hand_over(&self, arrival: Box<Arrival>) -> Result<(), SpawnError> {
        let is_abandoned = lock(&self.is_abandoned);
        if *is_abandoned {
            drop(is_abandoned);
            self.end_newcomer(&arrival.shared, &arrival.present);
            return Err(SpawnError::SupervisorGone);
        }
        self.mailbox.put(Command::Arrive(arrival));
        Ok(())
    }

    fn start(&self, id: WorkerId, spec: WorkerSpec, prepared: Prepared) -> Result<Worker, SpawnError> {
        let begun = self.incarnate(id, &spec, prepared, 1)?;
        let shared = self.roster.enter(id, &spec, self.mailbox.clone(), Some(Arc::clone(&begun.present)));
        let worker = Worker { shared: Arc::clone(&shared) };
        self.hand_over(begun.arrival(shared, Arc::new(spec)))?;
        Ok(worker)
    }

    fn incarnate(&self, id: WorkerId, spec: &WorkerSpec, prepared: Prepared, number: u32) -> Result<Begun, SpawnError> {
        if *lock(&self.is_abandoned) {
            return Err(SpawnError::SupervisorGone);
        }
        let address = if spec.has_control { Some(self.address(spec)?) } else { None };
        let control = address.as_ref().map(ToString::to_string).unwrap_or_default();
        let token = Token::new(&self.run, id, number, !spec.ends_as_a_whole());
        if !spec.survives {
            self.sentinel.stand()?;
        }
        let (notices, mut variables) = listen_to_notices(spec)?;
        variables.push(token.variable());
        if let Some(address) = address.as_ref().filter(|_| spec.plan.tells_control_in_arguments()) {
            variables.push((KEY_VARIABLE, address.key.clone().into()));
        }
        let (cell, directory) = self.cell_for(spec)?.unzip();
        let moment = Moment {
            birthplace: match &directory {
                Some(directory) if spec.tree_limits.is_empty() => Birthplace::Rather(directory.as_fd()),
                Some(directory) => Birthplace::Only(directory.as_fd()),
                None => Birthplace::Here,
            },
            death_signal: spec.death_signal_or(DEATH_SIGNAL),
            control_path: address.as_ref().map_or("", |address| &address.path),
            control: &control,
            variables: &variables,
        };
        self.begun.fetch_add(1, Ordering::SeqCst);
        // Taken before the process exists: its processor time can then never exceed its uptime.
        let started = now();
        let launched = launch(&spec.plan, prepared, &moment);
        match &launched {
            Ok(_) => self.started.fetch_add(1, Ordering::SeqCst),
            Err(_) => self.begun.fetch_sub(1, Ordering::SeqCst),
        };
        // Those that another thread is about to start are counted: their numbers may be lower than this one's.
        let starts_before = self.begun.load(Ordering::SeqCst);
        let in_cgroup = launched.as_ref().is_ok_and(|launched| launched.in_cgroup);
        let cell = match cell {
            Some(cell) if !in_cgroup => {
                // Nobody is born into it for a reason of its own: a process in it has changed it.
                if launched.is_ok() {
                    cell.discard();
                } else {
                    self.pen.give_back(cell);
                }
                None
            }
            cell => cell,
        };
        let mut launched = launched?;
        let leads = launched.child.leads_group() && !spec.survives;
        let guarded = if leads { self.sentinel.enter(launched.child.pid()) } else { None };
        let streams = listen_to(spec, &mut launched.ends);
        let bell = launched.ends.take_reader(BELL);
        let link = address.is_some().then(|| Arc::new(Link::new(self.mailbox.clone(), id)));
        let mark = Mark { token, guarded: guarded.into(), cell: cell.into(), survivors: spec.survivors };
        let present = Arc::new(Present::new(number, launched, link, mark));
        Ok(Begun { present, key: address.map(|address| address.key), started, starts_before, streams, bell, notices })
    }

    /// Where a new incarnation is to live, if that is a cgroup of ours.
    fn cell_for(&self, spec: &WorkerSpec) -> Result<Option<(Cell, OwnedFd)>, SpawnError> {
        // A user's own `Command` is not born in one, and one that may survive us is not killed with ours.
        let may_be_held = matches!(spec.plan.program, Program::Named(_)) && spec.ends_as_a_whole();
        let is_limited = !spec.tree_limits.is_empty();
        let cell = match may_be_held {
            true if is_limited => Some(self.pen.take_limited(&spec.tree_limits)),
            true => self.pen.take().map(Ok),
            false => None,
        };
        let opened = cell.map(|cell| {
            let cell = cell?;
            match cell.cgroup.open() {
                Ok(directory) => Ok((cell, directory)),
                Err(error) => {
                    cell.discard();
                    Err(error)
                }
            }
        });
        match opened.transpose() {
            Err(error) if is_limited => {
                let source = io::Error::new(error.kind(), error);
                Err(SpawnError::failed(spec.plan.program_name(), SpawnStep::TreeLimit, source))
            }
            opened => Ok(opened.unwrap_or(None)),
        }
    }

    /// The address of a new incarnation. The server is started with the first one, and anew where its name is gone: a user's
    /// runtime directory goes when they log out.
    fn address(&self, spec: &WorkerSpec) -> Result<Address, SpawnError> {
        let mut path = lock(&self.control_path);
        let made = match path.as_ref().filter(|path| fs::symlink_metadata(path).is_ok()) {
            Some(path) => control::address(path),
            None => control::listen().and_then(|(listener, at)| {
                self.mailbox.send(Command::Listen(Box::new(listener)));
                control::address(path.insert(at))
            }),
        };
        made.map_err(|source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Control, source))
    }
}

/// A process that runs.
struct Begun {
    present: Arc<Present>,
    key: Option<String>,
    started: Instant,
    starts_before: u64,
    streams: (Pipe, Pipe, Pipe),
    bell: Pipe,
    notices: Option<NotifySocket>,
}

impl Begun {
    fn arrival(self, shared: Arc<WorkerShared>, spec: Arc<WorkerSpec>) -> Box<Arrival> {
        let Self { present, key, started, starts_before, streams: (messages, stdout, stderr), bell, notices } = self;
        Box::new(Arrival {
            shared,
            present,
            spec,
            key,
            started,
            starts_before,
            messages,
            stdout,
            stderr,
            bell,
            notices,
        })
    }
}

/// The socket for `sd_notify(3)`, where the spec has a use for it, and what the worker is told about it.
fn listen_to_notices(spec: &WorkerSpec) -> Result<(Option<NotifySocket>, Variables), SpawnError> {
    let period = spec.watchdog.filter(|watchdog| watchdog.life() == Life::Notify).map(|watchdog| watchdog.period());
    if period.is_none() && !spec.ready.as_ref().is_some_and(Ready::is_by_notice) {
        return Ok((None, Vec::new()));
    }
    let failed = |source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Notify, source);
    let (socket, address) = NotifySocket::bind().map_err(failed)?;
    let mut variables = vec![("NOTIFY_SOCKET", address.into())];
    if let Some(period) = period {
        variables.push(("WATCHDOG_USEC", period.as_micros().to_string().into()));
    }
    Ok((Some(socket), variables))
}

type Variables = Vec<(&'static str, OsString)>;

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
