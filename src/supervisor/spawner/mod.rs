//! Starts workers. The kernel sends the parent-death signal when the *thread* that started a process ends, so workers are started on
//! threads that live at least as long.
//!
//! The main thread is such a thread, and starts its workers itself: passing a start to another thread and waking up takes longer than the
//! start. Starts of all other threads are done by a thread of the supervisor.

mod attach;
pub(crate) mod queue;
mod started;
mod streams;

use crate::{
    deadline::Deadline,
    exit::{Exit, ExitCause, ExitStatus},
    guard::program::Guard,
    ids::WorkerId,
    launch::{
        child::exit_status,
        context::{CgroupPlacement, SpawnContext},
        error::{SpawnError, SpawnStep},
        plan::Program,
        retry::{busy_pause, pause_for},
        spawn::{LaunchedChild, PreparedFds, launch_once},
    },
    supervisor::{
        clock::now,
        commands::{Command, CommandSender, SpawnedProcess},
        containment::{
            cgroup_pool::{CgroupPool, WorkerCgroup},
            guard::TreeGuard,
            process_tree::{ProcessTree, ThreadHold},
            teardown::{KILL_TIMEOUT, kill_and_reap, reap_killed},
            token::TreeToken,
        },
        control::{
            connection::{ConnectionEvent, RpcConnection},
            server::IssuedAddress,
        },
        panics::catch,
        reactor::report::Report,
        spawner::{
            queue::{HandOver, PATIENCE, SpawnKind, SpawnPermit, SpawnQueue, SpawnRequest, SpawnerThreadHold},
            started::StartedProcess,
            streams::{notify_socket, prepare_again, take_pipes},
        },
        spec::{SharedSpec, WorkerSpec, control_source::ControlSource, readiness::READINESS_PIPE},
        sync::lock,
        worker::{
            SharedWorker, job::SLOT_VARIABLE, process::WorkerProcess, registry::WorkerRegistry, sockets::Sockets,
        },
    },
    sys::{pidfd::Reaped, proc::stat, random, signals, this_process},
    wire::jsonrpc::address::KEY_VARIABLE,
};
use crossbeam_channel::RecvTimeoutError;
use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// The parent-death signal where the spec does not set one.
const DEATH_SIGNAL: Option<i32> = Some(libc::SIGKILL);

/// The variable in which a job finds its slot.
fn slot_variable(slot: Option<u32>) -> Option<(&'static str, OsString)> {
    slot.map(|slot| (SLOT_VARIABLE, slot.to_string().into()))
}

/// Starts one more thread that serves the queue.
pub(crate) fn thread(spawner: &Arc<Spawner>, number: u64) -> io::Result<JoinHandle<()>> {
    let spawner = Arc::clone(spawner);
    thread::Builder::new().name("pipewright-spawn".into()).spawn(move || {
        // The host's signals are handled by the host's threads.
        signals::block_all();
        let leaving = Leaving { spawner, number };
        while let Some(start) = leaving.spawner.starts.next(number) {
            leaving.spawner.serve(number, start);
            leaving.spawner.starts.done(number);
        }
    })
}

/// Records the end of a spawner thread, also when it panics.
struct Leaving {
    spawner: Arc<Spawner>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.spawner.starts.leave(self.number);
    }
}

/// Starts workers, on a thread that may be their parent.
#[derive(Debug)]
pub(crate) struct Spawner {
    commands: CommandSender,
    connection_events: Arc<dyn Report<ConnectionEvent>>,
    registry: Arc<WorkerRegistry>,
    sockets: Sockets,
    /// 128 random bits, in the environment of every process of every tree.
    run: Box<str>,
    guard: TreeGuard,
    pool: Arc<CgroupPool>,
    starts: Arc<SpawnQueue>,
    /// Keeps the thread running that started the guard: its end would signal the guard.
    guard_thread: Mutex<Option<SpawnerThreadHold>>,
    /// The number of processes that were or are being started.
    begun: AtomicU64,
    /// The number of processes that were started.
    started: AtomicU64,
}

impl Spawner {
    pub(crate) fn new(commands: CommandSender, registry: Arc<WorkerRegistry>, guard: Guard) -> io::Result<Self> {
        let run: Box<str> = format!("{:032x}", u128::from_ne_bytes(random::bytes()?)).into();
        let pool = Arc::new(CgroupPool::default());
        let guard = TreeGuard::new(guard, &run, &pool, Arc::new(commands.clone()))?;
        let starts = SpawnQueue::new(commands.clone());
        Ok(Self {
            connection_events: Arc::new(commands.clone()),
            commands,
            registry,
            sockets: Sockets::default(),
            run,
            guard,
            pool,
            starts,
            guard_thread: Mutex::new(None),
            begun: AtomicU64::new(0),
            started: AtomicU64::new(0),
        })
    }

    /// The number of processes started so far. The difference to an earlier value of `begun` bounds how many of them have a process id that
    /// was assigned after that.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Ordering::SeqCst)
    }

    pub(crate) fn guard(&self) -> &TreeGuard {
        &self.guard
    }

    /// Whether the calling thread may be the parent of a worker and of the guard that is started with it.
    pub(crate) fn may_start_on_this_thread(spec: &WorkerSpec) -> bool {
        this_process::is_main_thread() || spec.outlives_supervisor && spec.death_signal_or(DEATH_SIGNAL).is_none()
    }

    pub(crate) fn starts(&self) -> &Arc<SpawnQueue> {
        &self.starts
    }

    /// Starts another thread for the queue if all threads are blocked. Returns true while starts wait.
    pub(crate) fn add_thread_if_blocked(this: &Arc<Self>) -> bool {
        this.starts.add_thread_if_blocked(|number| thread(this, number))
    }

    /// Queues the start of a new worker, and waits for its result.
    pub(crate) fn start_on_spawner_thread(
        this: &Arc<Self>,
        id: WorkerId,
        spec: SharedSpec,
        (prepared, permit): (PreparedFds, SpawnPermit),
    ) -> Result<Arc<SharedWorker>, SpawnError> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let purpose = SpawnKind::New { answer, _permit: permit };
        this.starts.push(SpawnRequest { id, spec, purpose, prepared: Some(prepared), attempts: 0, due: None });
        loop {
            match answered.recv_timeout(PATIENCE) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => return Err(SpawnError::SupervisorGone),
                Err(RecvTimeoutError::Timeout) => Self::add_thread_if_blocked(this),
            };
        }
    }

    /// Queues the next incarnation of a worker.
    pub(crate) fn start_again(&self, shared: Arc<SharedWorker>, spec: SharedSpec) {
        let (id, purpose) = (shared.id(), SpawnKind::Respawn(shared));
        self.starts.push(SpawnRequest { id, spec, purpose, prepared: None, attempts: 0, due: None });
    }

    /// Makes one attempt at a start, on the spawner thread `number`.
    fn serve(&self, number: u64, mut start: SpawnRequest) {
        let spec = Arc::clone(&start.spec);
        let (count, slot, terminal_size) = match &start.purpose {
            SpawnKind::New { .. } => (1, None, None),
            SpawnKind::Respawn(shared) => (shared.incarnation() + 1, shared.slot(), shared.terminal_size()),
        };
        let prepared = &mut start.prepared;
        let begun = catch(|| {
            if prepared.is_none() {
                *prepared = Some(prepare_again(&spec, terminal_size)?);
            }
            self.launch_incarnation(start.id, &spec, prepared, (count, Some(number), slot))
        });
        if let Some(begun) = begun {
            match busy_pause(&begun, start.attempts) {
                Some(pause) => {
                    start.attempts += 1;
                    start.due = now().checked_add(pause);
                    self.starts.put_back(number, start);
                }
                None => self.conclude(number, start, begun),
            }
        } else {
            let source = io::Error::other("a library thread panicked");
            let error = SpawnError::failed(spec.plan.program_name(), SpawnStep::Command, source);
            self.conclude(number, start, Err(error));
        }
    }

    /// Passes the result of a start to the loop, and to the caller that waits for it.
    fn conclude(&self, number: u64, start: SpawnRequest, begun: Result<StartedProcess, SpawnError>) {
        let SpawnRequest { id, spec, purpose, prepared: _, attempts: _, due: _ } = start;
        match (purpose, begun) {
            (SpawnKind::New { answer, _permit }, begun) => {
                // The loop receives the process before the caller receives its answer, and so before any command of the caller for this
                // worker. The caller waits for its answer in any case. It is answered before the loop is woken, to save that time.
                drop(answer.send(begun.and_then(|begun| self.enter(id, spec, begun, Some(number)))));
            }
            (SpawnKind::Respawn(shared), Ok(begun)) => {
                // If the loop has ended, the end of the worker was reported already.
                drop(self.hand_over(begun.arrival(shared, spec), Some(number)));
            }
            (SpawnKind::Respawn(_), Err(error)) => {
                // If the start was cancelled or the loop has ended, the result is not used.
                let _: HandOver = self.starts.hand_over(Some(number), || Command::SpawnFailed(id, error));
            }
        }
        self.starts.wake_loop();
    }

    /// Starts a worker on the calling thread, which waits while the start blocks or the program file is busy.
    pub(crate) fn start_on_this_thread(
        &self,
        id: WorkerId,
        spec: SharedSpec,
        prepared: PreparedFds,
    ) -> Result<Arc<SharedWorker>, SpawnError> {
        let mut prepared = Some(prepared);
        let mut attempts = 0;
        let begun = loop {
            let begun = self.launch_incarnation(id, &spec, &mut prepared, (1, None, None));
            match busy_pause(&begun, attempts) {
                Some(pause) => {
                    attempts += 1;
                    pause_for(pause);
                }
                None => break begun?,
            }
        };
        let shared = self.enter(id, spec, begun, None)?;
        self.starts.wake_loop();
        Ok(shared)
    }

    /// The loop has ended: refuses all further starts.
    pub(crate) fn abandon(&self) {
        self.starts.end();
    }

    /// Passes a process to the loop, which the caller wakes. Kills the process if the loop has ended or the start was cancelled.
    fn hand_over(&self, arrival: Box<SpawnedProcess>, thread: Option<u64>) -> Result<(), SpawnError> {
        let (shared, process) = (Arc::clone(&arrival.shared), Arc::clone(&arrival.process));
        match self.starts.hand_over(thread, || Command::Spawned(arrival)) {
            HandOver::Accepted => Ok(()),
            HandOver::Cancelled => {
                Self::undo(&process);
                Ok(())
            }
            HandOver::LoopGone => {
                self.kill_unregistered(&shared, &process);
                Err(SpawnError::SupervisorGone)
            }
        }
    }

    /// Kills these processes with their trees, and reaps them. `None` for a process that does not exit in time.
    pub(crate) fn kill_and_reap_all(&self, orphans: &[Arc<WorkerProcess>]) -> Vec<Option<Reaped>> {
        let trees: Vec<_> = orphans.iter().map(|process| Arc::clone(process.tree())).collect();
        let reaped = kill_and_reap(&self.guard, &trees);
        for process in orphans {
            process.close_all();
        }
        reaped
    }

    /// Kills a new process whose worker was stopped during the start. It has just reached its program.
    fn undo(process: &WorkerProcess) {
        process.tree().kill();
        reap_killed(process.tree(), Deadline::after_now(KILL_TIMEOUT));
        process.close_all();
        process.disconnect();
    }

    /// Kills a new process that the loop has not received, and notifies the waiters of its worker.
    pub(crate) fn kill_unregistered(&self, shared: &SharedWorker, process: &Arc<WorkerProcess>) {
        let reaped = self.kill_and_reap_all(std::slice::from_ref(process)).pop().flatten();
        let status = reaped.map_or(ExitStatus::Unkillable, |reaped| exit_status(reaped.ending));
        let exit = Arc::new(Exit { cause: ExitCause::SupervisorEnd, ..Exit::of(status) });
        shared.set_ended((exit, now()));
    }

    /// Registers a new worker whose first incarnation runs.
    fn enter(
        &self,
        id: WorkerId,
        spec: SharedSpec,
        begun: StartedProcess,
        thread: Option<u64>,
    ) -> Result<Arc<SharedWorker>, SpawnError> {
        let shared = self.registry.register(id, &spec, Some(Arc::clone(&begun.process)));
        self.hand_over(begun.arrival(Arc::clone(&shared), spec), thread)?;
        Ok(shared)
    }

    /// Starts incarnation `number` on the calling thread: the spawner thread of that number, or the main thread. A job has a slot.
    fn launch_incarnation(
        &self,
        id: WorkerId,
        spec: &WorkerSpec,
        prepared: &mut Option<PreparedFds>,
        (number, thread, slot): (u32, Option<u64>, Option<u32>),
    ) -> Result<StartedProcess, SpawnError> {
        if self.starts.is_over() {
            return Err(SpawnError::SupervisorGone);
        }
        let issued = if matches!(spec.control, ControlSource::Pipe) { Some(self.address(spec)?) } else { None };
        let address = issued.as_ref().map(|issued| &issued.address);
        let control = address.map(ToString::to_string).unwrap_or_default();
        let token = TreeToken::new(&self.run, id, number, !spec.kills_whole_tree());
        if !spec.outlives_supervisor {
            self.ensure_guard(thread)?;
        }
        let (notify_socket, mut variables) = notify_socket(spec, &self.sockets)?;
        if let Some(place) = self.sockets.place() {
            self.guard.set_directory(place.path());
        }
        variables.extend([token.variable()].into_iter().chain(slot_variable(slot)));
        if let Some(address) = address.filter(|_| spec.plan.has_control_argument()) {
            variables.push((KEY_VARIABLE, address.key.clone().into()));
        }
        let (mut cgroup, directory, mut no_cgroup) = match self.cgroup_for(spec)? {
            Ok((cgroup, directory)) => (Some(cgroup), Some(directory), None),
            Err(reason) => (None, None, Some(reason)),
        };
        let context = SpawnContext {
            cgroup: CgroupPlacement::new(directory.as_ref(), &spec.cgroup_limits),
            death_signal: spec.death_signal_or(DEATH_SIGNAL),
            control_path: address.map_or("", |address| &address.path),
            control: &control,
            variables: &variables,
        };
        // Read before the process exists, so that its processor time never exceeds its uptime.
        let started = now();
        let started_tick = stat::boot_ticks();
        let (launched, starts_before) = self.launch_counted(spec, prepared, &context);
        let in_cgroup = launched.as_ref().is_ok_and(|launched| launched.in_cgroup);
        if !in_cgroup && let Some(cgroup) = cgroup.take() {
            no_cgroup = Some("the kernel refused to start a process in it".into());
            if launched.is_ok() {
                // The kernel has no reason of its own to refuse: a process in the cgroup has changed it.
                cgroup.discard();
            }
        }
        let LaunchedChild { child, mut ends, .. } = launched?;
        let leads = child.leads_group() && !spec.outlives_supervisor;
        let guard_entry = if leads { self.guard.register(child.pid()) } else { None };
        let streams = take_pipes(spec, &mut ends);
        let readiness_pipe = ends.take_reader(READINESS_PIPE);
        let connection = self.connection(spec, id);
        let sockets = ends.sockets.take();
        let hold = thread.filter(|_| context.death_signal.is_some()).and_then(|thread| self.starts.hold_thread(thread));
        let tree = ProcessTree {
            guard_entry: guard_entry.into(),
            child,
            token,
            cgroup: cgroup.into(),
            tokens: ends.tokens.take().into(),
            no_cgroup,
            started_tick,
            survivors: spec.survivors,
            thread: hold.map(|hold| Box::new(hold) as Box<dyn ThreadHold>).into(),
            is_frozen: Mutex::default(),
        };
        let process = Arc::new(WorkerProcess::new(number, tree, ends, connection));
        Ok(StartedProcess {
            process,
            key: issued.map(IssuedAddress::into_key),
            started,
            starts_before,
            streams,
            sockets,
            readiness_pipe,
            notify_socket,
        })
    }

    /// Starts the process; also returns how many starts have begun until then, including unfinished starts of other threads: their
    /// pids may be lower than this one's.
    fn launch_counted(
        &self,
        spec: &WorkerSpec,
        prepared: &mut Option<PreparedFds>,
        context: &SpawnContext<'_>,
    ) -> (Result<LaunchedChild, SpawnError>, u64) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let launched = launch_once(&spec.plan, prepared, context);
        match &launched {
            Ok(_) => self.started.fetch_add(1, Ordering::SeqCst),
            Err(_) => self.begun.fetch_sub(1, Ordering::SeqCst),
        };
        (launched, self.begun.load(Ordering::SeqCst))
    }

    /// The control connection of a new incarnation, if the spec has one.
    fn connection(&self, spec: &WorkerSpec, id: WorkerId) -> Option<Arc<RpcConnection>> {
        let events = &self.connection_events;
        spec.control.protocol().map(|rpc| Arc::new(RpcConnection::new(Arc::clone(events), id, rpc)))
    }

    /// Starts the guard unless it runs, and keeps the thread running that started it: the end of that thread is the end of the host for the
    /// guard.
    fn ensure_guard(&self, thread: Option<u64>) -> Result<(), SpawnError> {
        if self.guard.ensure_running()? {
            let hold = thread.and_then(|thread| self.starts.hold_thread(thread));
            let before = std::mem::replace(&mut *lock(&self.guard_thread), hold);
            drop(before);
        }
        Ok(())
    }

    /// The cgroup for a new incarnation with its open directory, or the reason why there is none.
    fn cgroup_for(&self, spec: &WorkerSpec) -> Result<Result<(WorkerCgroup, OwnedFd), Box<str>>, SpawnError> {
        let open = |cgroup: WorkerCgroup| match cgroup.open() {
            Ok(directory) => Ok((cgroup, directory)),
            Err(error) => {
                cgroup.discard();
                Err(error)
            }
        };
        if !spec.cgroup_limits.is_empty() {
            let cgroup = self.pool.take_limited(&spec.cgroup_limits).and_then(open).map_err(|error| {
                let source = io::Error::new(error.kind(), error);
                SpawnError::failed(spec.plan.program_name(), SpawnStep::CgroupLimit, source)
            })?;
            return Ok(Ok(cgroup));
        }
        // A user's own `Command` cannot be started in a cgroup, and a tree that may outlive the host must not be killed with it.
        if !matches!(spec.plan.program, Program::Named(_)) {
            return Ok(Err("not for from_command".into()));
        }
        if !spec.kills_whole_tree() {
            return Ok(Err("not for outlive_supervisor, or survivors that are not killed".into()));
        }
        Ok(self.pool.take().and_then(|cgroup| open(cgroup).map_err(|error| error.to_string().into())))
    }

    /// Issues the control address of a new incarnation.
    fn address(&self, spec: &WorkerSpec) -> Result<IssuedAddress, SpawnError> {
        let made = self.sockets.address(spec, |server| self.commands.send(Command::ControlListener(Box::new(server))));
        made.map_err(|source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Control, source))
    }
}
