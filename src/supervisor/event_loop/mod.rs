//! The event loop: passes kernel events, timers and commands to incarnations and supervision. It never blocks.

pub(crate) mod attach;
pub(crate) mod control;
pub(crate) mod guard;
pub(crate) mod incarnations;
pub(crate) mod pending;
pub(crate) mod registration;
pub(crate) mod status;
pub(crate) mod teardown;

use crate::{
    exit::ExitCause,
    policy::lifecycle::{LifecycleInput, StopRequest},
    supervisor::{
        commands::{Command, CommandSender},
        control::{connection::ConnectionEvent, hello::HandshakeError, server::ControlServer},
        event_loop::pending::Pending,
        events::{event::Event, sink::EventSink, warning::Warning},
        flow_control::FlowControl,
        incarnation::{
            Incarnation,
            context::{FIRST_CHECK, ReadContext},
            control::CONNECTION_RETRY_TIME,
        },
        process_trees::ProcessTrees,
        reactor::{Reactor, arena::Arena, timers::Timer, token::Token},
        spawner::{Spawner, queue::PATIENCE},
        supervision::{Supervision, restart::IncarnationEnd, shutdown::Shutdown},
    },
    sys::{epoll::EpollEvents, random, signals},
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The most bytes that are read from one stream before the other streams are read: four times the default capacity of a pipe.
const READ_BYTES: usize = 256 << 10;
/// The most events that one call of `epoll_wait(2)` returns.
const EVENTS_PER_WAIT: usize = 256;
/// The most commands that are executed between two calls of `epoll_wait(2)`.
const COMMANDS_PER_ITERATION: usize = 256;
/// The most timers that are fired between two calls of `epoll_wait(2)`.
const TIMERS_PER_ITERATION: usize = 1024;

/// The state of the thread that does all reading and waiting for one supervisor.
#[derive(Debug)]
pub(crate) struct EventLoop {
    pub(crate) reactor: Reactor,
    inbox: Receiver<Command>,
    pub(crate) commands: CommandSender,
    pub(crate) sink: EventSink,
    pub(crate) incarnations: Arena<Incarnation>,
    pub(crate) reading: ReadContext,
    pub(crate) supervision: Supervision,
    pub(crate) trees: ProcessTrees,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) server: Option<ControlServer>,
    pub(crate) shutdown: Shutdown,
    pub(crate) pending: Pending,
}

/// The parts of an event loop that its supervisor provides.
#[derive(Debug)]
pub(crate) struct EventLoopConfig {
    pub(crate) inbox: Receiver<Command>,
    pub(crate) sink: EventSink,
    pub(crate) commands: CommandSender,
    pub(crate) window: Arc<FlowControl>,
    pub(crate) grace_period: Duration,
    /// The host is a subreaper: orphans become its children.
    pub(crate) adopts: bool,
    pub(crate) spawner: Arc<Spawner>,
}

impl EventLoop {
    pub(crate) fn new(config: EventLoopConfig) -> io::Result<Self> {
        let EventLoopConfig { inbox, sink, commands, window, grace_period, adopts, spawner } = config;
        let reactor = Reactor::new()?;
        reactor.poller.add(&*commands.waker, Token::Waker.as_u64())?;
        Ok(Self {
            reactor,
            inbox,
            sink,
            incarnations: Arena::new(),
            reading: ReadContext {
                scratch: vec![0; READ_BYTES],
                window,
                paused: Vec::new(),
                paused_control: Vec::new(),
                next_check: FIRST_CHECK,
            },
            supervision: Supervision::new(u64::from_ne_bytes(random::bytes()?)),
            trees: ProcessTrees::new(commands.clone(), adopts),
            spawner,
            commands,
            server: None,
            shutdown: Shutdown::new(grace_period),
            pending: Pending::default(),
        })
    }

    /// Runs the loop on a new thread until the last worker has ended. `ended` is dropped then.
    pub(crate) fn start(mut self, ended: Sender<()>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("pipewright-loop".into()).spawn(move || {
            signals::block_all();
            self.run();
            drop(self);
            drop(ended);
        })
    }

    fn run(&mut self) {
        let mut events = EpollEvents::with_capacity(EVENTS_PER_WAIT);
        while !self.supervision.is_over(&self.shutdown) {
            let timeout = self.timeout();
            if self.reactor.poller.wait(&mut events, timeout).is_err() {
                // epoll_wait(2) fails only for invalid arguments.
                debug_assert!(false, "epoll_wait failed");
                return;
            }
            self.update_clock();
            for token in events.tokens() {
                self.dispatch(Token::from_u64(token));
                self.settle();
            }
            self.execute_commands();
            self.resume_paused();
            self.settle();
            self.update_clock();
            self.run_timers();
        }
    }

    /// Detects that the process was suspended. Timeouts that a caller has passed still count real time.
    fn update_clock(&mut self) {
        let Some(missed) = self.reactor.clock.update(self.reactor.timers.next()) else { return };
        let earlier = |due: Instant| due.checked_sub(missed).unwrap_or(due);
        if let Some(due) = self.reactor.timers.due(Timer::KillAll) {
            self.reactor.timers.set(Timer::KillAll, earlier(due));
        }
        self.shutdown.advance(earlier);
        self.sink.send(Event::warning(Warning::Suspended { missed }));
    }

    /// Executes commands, up to the limit of an iteration; the others follow after the next `epoll_wait(2)`.
    fn execute_commands(&mut self) {
        for _ in 0..COMMANDS_PER_ITERATION {
            let Ok(command) = self.inbox.try_recv() else { return };
            self.execute(command);
            self.settle();
        }
        self.commands.waker.wake();
    }

    fn timeout(&self) -> Option<Duration> {
        if self.reactor.clock.is_stopped() {
            return None;
        }
        let timer = self.reactor.timers.next().map(|due| due.saturating_duration_since(self.reactor.clock.now()));
        let check = (self.count_paused() > 0).then_some(self.reading.next_check);
        timer.into_iter().chain(check).min()
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Spawned(arrival) => self.spawned(*arrival),
            Command::Attach(worker) => self.await_process(*worker),
            Command::SpawnFailed(worker, error) => self.supervise(|supervision, cx| {
                supervision.on_incarnation_end(worker, IncarnationEnd::SpawnFailed(error), cx);
            }),
            Command::ProbeSucceeded(worker, number) => {
                self.on_incarnation(worker, number, Incarnation::probe_succeeded);
            }
            Command::ReadinessJudged(worker, number, answer) => {
                self.on_incarnation(worker, number, |incarnation, cx| incarnation.readiness_judged(answer, cx));
            }
            Command::MessagesRejected(worker, number) => {
                self.on_incarnation(worker, number, Incarnation::messages_rejected);
            }
            Command::Worker(worker, action) => {
                self.supervise(|supervision, cx| supervision.request(worker, action, cx));
            }
            Command::ControlListener(server) => self.listen(*server),
            Command::Connection(event) => self.on_connection_event(event),
            Command::GroupStatus(group, answer) => drop(answer.send(self.group_status(group))),
            Command::Group(command) => self.supervise(|supervision, cx| supervision.execute_group(command, cx)),
            Command::Observe(worker, observer) => self.sink.observers.add(worker, observer),
            Command::EndObservation(worker) => drop(self.sink.observers.remove(worker)),
            Command::Job(command) => self.supervise(|supervision, cx| supervision.execute_job(command, cx)),
            Command::Serve(scope, queue) => self.sink.handlers.register(scope, queue),
            Command::NotificationFailed(failure) => {
                self.sink.send(Event::warning(Warning::NotificationFailed(*failure)));
            }
            Command::ScanResult(result) => self.inspected(*result),
            // A send fails if the caller has timed out.
            Command::Snapshot(answer) => drop(answer.send(self.status())),
            Command::StopAll(request, answer) => drop(answer.send(self.stop_all(request))),
            // The caller waits until the channel is disconnected.
            Command::Suspend(done) => self.suspend(done),
            Command::Resume => self.resume_all(),
            Command::Close => self.shutdown.is_closed = true,
            Command::Guard(report) => self.guard_reported(report),
            Command::Terminate => {
                // The loop stays open: a worker whose `spawn` has returned may not have arrived here yet.
                let grace_period = self.shutdown.grace_period;
                self.shutdown.terminate(self.reactor.clock.now().checked_add(grace_period));
                self.supervise(Supervision::stop_all_workers);
                self.reactor.set_timer_after(self.shutdown.grace_period, Timer::KillAll);
            }
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Readable(worker) => self.on_worker(worker, Incarnation::control_readable),
            ConnectionEvent::CallBurst(worker) => self.on_worker(worker, Incarnation::check_call_burst),
            ConnectionEvent::CallHeldUp(worker) => self.on_worker(worker, Incarnation::check_receipts),
            ConnectionEvent::OutOfMemory(worker) => self.on_worker(worker, |incarnation, cx| {
                cx.reactor.set_timer_after(CONNECTION_RETRY_TIME, Timer::ConnectionRetry(incarnation.key));
            }),
            ConnectionEvent::StopCallEnded(worker) => self.on_worker(worker, Incarnation::stop_call_ended),
            ConnectionEvent::InputClosed(worker) => self.on_worker(worker, Incarnation::input_closed),
            ConnectionEvent::WatchFailed(worker) => self.on_worker(worker, |incarnation, cx| {
                incarnation.register(Token::Control(incarnation.key), cx);
            }),
        }
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Waker => self.commands.waker.reset(),
            Token::Listener => self.accept_ready(),
            Token::Handshake(handshake) => self.read_hello(handshake),
            Token::Process(key) => self.process_exited(key),
            Token::Stream(key, stream) => self.on(key, |incarnation, cx| incarnation.read_stream(stream, cx)),
            Token::Control(key) => self.on(key, Incarnation::read_control),
            Token::ControlInput(key) => self.on(key, |incarnation, _| incarnation.flush_control()),
            Token::Orphan(key) => self.on(key, Incarnation::orphan_exited),
            Token::ReadinessPipe(key) => {
                self.at(key, Incarnation::read_readiness);
            }
            Token::NotifySocket(key) => self.on(key, Incarnation::read_notifications),
            Token::Unkillable(number) => self.reap_unkillable(number),
            Token::Guard => self.guard_exited(),
            Token::Jobserver => self.supervise(Supervision::hand_out_tokens),
        }
    }

    fn run_timers(&mut self) {
        // Timers that come due meanwhile, and those beyond the limit, fire after the next `epoll_wait(2)`.
        let now = self.reactor.clock.now();
        for _ in 0..TIMERS_PER_ITERATION {
            let Some(timer) = self.reactor.timers.take_due(now) else { return };
            self.fire(timer);
            self.settle();
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Lifecycle(key) => self.input(key, LifecycleInput::Timeout),
            Timer::Health(key) => self.on(key, Incarnation::check_health),
            // The error was reported when the first attempt failed.
            Timer::Probe(key) => drop(self.at(key, Incarnation::probe)),
            Timer::RuntimeMax(key) => self.on(key, Incarnation::runtime_exceeded),
            Timer::TreeRescan(key) | Timer::TreeTimeout(key) => self.on(key, Incarnation::tree_timeout),
            Timer::GroupKill(key) => self.on(key, |incarnation, _| incarnation.kill_group()),
            Timer::Inspector => self.check_inspector(),
            Timer::Unkillable(number) => self.retry_unkillable(number),
            Timer::KillAll => self.supervise(Supervision::kill_all),
            Timer::KillOne(key) => self.on(key, |incarnation, cx| {
                incarnation.stop(StopRequest::Within(Duration::ZERO), ExitCause::Stop, cx);
            }),
            Timer::Group(group) => self.supervise(|supervision, cx| supervision.kill_group_members(group, cx)),
            Timer::Restart(worker) => {
                let is_delayed = self.supervise(|supervision, cx| supervision.restart(worker, cx));
                if is_delayed {
                    self.reading.next_check = FIRST_CHECK;
                }
            }
            Timer::JobDeadline(worker) => self.supervise(|supervision, cx| supervision.job_overdue(worker, cx)),
            Timer::Jobserver => self.supervise(Supervision::hand_out_tokens),
            Timer::SpawnQueue => self.relieve_starts(),
            Timer::SpawnTimeout(worker) => self.supervise(|supervision, cx| supervision.spawn_timed_out(worker, cx)),
            Timer::RegistrationRetry => self.register_again(),
            Timer::AttachTimeout(worker) => {
                self.supervise(|supervision, cx| supervision.attach_timed_out(worker, cx));
            }
            Timer::ControlConnectTimeout(key) => self.on(key, Incarnation::control_timed_out),
            Timer::DisconnectGrace(key) => self.on(key, Incarnation::disconnect_grace_over),
            Timer::HandshakeTimeout(handshake) => self.refuse(handshake, HandshakeError::TimedOut),
            Timer::HandshakeRetry(handshake) => self.read_hello(handshake),
            Timer::AcceptBackoff => self.register(Token::Listener),
            Timer::Guard => self.check_guard(),
            Timer::CallBurst(key) => self.on(key, Incarnation::check_call_burst),
            Timer::ConnectionRetry(key) => self.on(key, Incarnation::retry_control),
            Timer::Receipts(key) => self.on(key, Incarnation::check_receipts),
            Timer::ReadinessPipeGrace(key) => self.on(key, Incarnation::readiness_pipe_closed),
            Timer::MessageProbe(key) => self.on(key, Incarnation::complete_exit),
        }
    }

    /// Starts wait for threads that may hang in others.
    fn relieve_starts(&mut self) {
        if Spawner::add_thread_if_blocked(&self.spawner) {
            self.reactor.set_timer_after(PATIENCE, Timer::SpawnQueue);
        }
    }
}
