//! The loop thread: kernel events become inputs, outputs become system calls. It decides nothing and waits for nobody.

mod abandon;
mod burial;
mod control;
mod groups;
mod guard;
mod health;
mod keep;
mod life;
mod membership;
mod place;
mod report;
mod streams;
mod watch;

use super::{
    WorkerId,
    clock::Clock,
    control::{Control, Server},
    event::{Disconnected, Event},
    group_state::GroupShared,
    guest::SharedSpec,
    hello::HelloFault,
    inspector::{Findings, Inspector, Task},
    kept::Kept,
    live::Outlet,
    meter::Meter,
    notify::NotifySocket,
    spawner::Starter,
    status::SupervisorStatus,
    timers::TimerQueue,
    tree::Numbers,
    warning::Warning,
    worker::{Present, WorkerShared},
};
use crate::{
    launch::error::SpawnError,
    pipe::anonymous::PipeReader,
    policy::{
        group::members,
        group::{GroupId, Groups},
        lifecycle::Input,
    },
    sys::{
        conduct,
        epoll::{Poller, Reports},
        proc::Held,
        random,
        wake::Waker,
    },
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use guard::GuardWatch;
use keep::Left;
use life::Stuck;
use place::{Slot, Target, Timer};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub(super) use groups::GroupCommand;
pub(super) use guard::GuardNews;
pub(super) use keep::Action;
pub(super) use membership::{FirstStart, Newcomers};
pub(super) use place::Place;

/// The most that is read from one stream before the others have their turn. Four times the usual pipe.
const READ_BYTES: usize = 256 << 10;
/// How long callers wait for an answer of the loop.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How many descriptors one look at the kernel can report.
const REPORTS: usize = 256;
/// How many commands are obeyed before the loop looks at the kernel again.
const COMMANDS: usize = 256;
/// How many timers are run before the loop looks at the kernel again.
const TIMERS: usize = 1024;
/// How often, at first and at last, the loop looks whether the consumer has emptied the channel while it keeps what was in it.
/// Only while somebody is paused: a channel does not tell when something is received.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(128);

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Command {
    Arrive(Box<Arrival>),
    /// The next incarnation of this worker could not be started.
    NotStarted(WorkerId, SpawnError),
    /// What made this incarnation of a worker ready was asked for and found.
    Reached(WorkerId, u32),
    /// Some messages of this incarnation of a worker were looked at, and do not make it ready.
    Passed(WorkerId, u32),
    /// What its user wants of a worker.
    Act(WorkerId, Action),
    /// The control server has been started.
    Listen(Box<Server>),
    /// A caller has read something of this worker that is for the loop.
    Talk(WorkerId),
    /// Callers ask this worker one thing after the other.
    Burst(WorkerId),
    /// The kernel was short of memory for this worker's control connection.
    Rest(WorkerId),
    /// The kernel has refused to report what this worker's connection waits for.
    Watch(WorkerId),
    /// About groups.
    Group(GroupCommand),
    /// The inspector has looked.
    Inspected(Box<Findings>),
    /// How is everybody?
    Report(Sender<SupervisorStatus>),
    /// Everybody is to end. Gives those who are there.
    StopAll(StopAll, Sender<Vec<Arc<WorkerShared>>>),
    /// The program is stopped by its user, with everybody, or goes on.
    Freeze(Sender<()>),
    Thaw,
    /// Nobody will come any more: end when everybody has gone.
    Close,
    /// What has come of a start of the guard.
    Guard(GuardNews),
    /// End everybody.
    Stop,
}

/// What whoever still comes has to do: to end, by then where that is said.
#[derive(Debug, Clone, Copy)]
struct LastCall {
    until: Option<Instant>,
}

/// Who is to end, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopAll {
    /// Who is there, by the ladders.
    Present,
    /// Also who is still on the way here.
    ForGood,
    /// The same, and in so much time.
    Within(Duration),
}

/// A process that has just been started.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) shared: Arc<WorkerShared>,
    pub(super) present: Arc<Present>,
    pub(super) spec: SharedSpec,
    /// What it will show when it connects.
    pub(super) key: Option<String>,
    pub(super) started: Instant,
    /// How many processes the starter had started by then, this one counted.
    pub(super) starts_before: u64,
    pub(super) messages: Option<PipeReader>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
    /// On which it tells that it is ready.
    pub(super) bell: Option<PipeReader>,
    /// To which it tells how it is.
    pub(super) notices: Option<NotifySocket>,
}

/// Why the loop has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It has ended, and has no workers.
    LoopGone,
    /// Not in time. What was asked for may be done later.
    Late,
}

/// Where commands for the loop are put.
#[derive(Debug, Clone)]
pub(super) struct Mailbox {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<Waker>,
}

impl Mailbox {
    pub(super) fn send(&self, command: Command) {
        self.put(command);
        self.waker.wake();
    }

    /// Asks the loop, and waits for its answer. The loop answers between two looks at the kernel; [`ANSWER_TIME`] is for one that is
    /// not run at all.
    pub(super) fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Command) -> Result<T, Unanswered> {
        self.ask_within(ANSWER_TIME, question)
    }

    pub(super) fn ask_within<T>(
        &self,
        time: Duration,
        question: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.send(question(answer));
        answered.recv_timeout(time).map_err(|error| match error {
            RecvTimeoutError::Disconnected => Unanswered::LoopGone,
            RecvTimeoutError::Timeout => Unanswered::Late,
        })
    }

    /// For a loop that will be woken.
    pub(super) fn put(&self, command: Command) {
        // A loop that has ended has no workers: there is nothing to do for it.
        drop(self.commands.send(command));
    }
}

#[derive(Debug)]
pub(super) struct Driver {
    poller: Arc<Poller>,
    mailbox: Mailbox,
    commands: Receiver<Command>,
    outlet: Outlet,
    window: Arc<Meter>,
    grace_period: Duration,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Those who live or will live again.
    kept: HashMap<WorkerId, Kept>,
    seed: u64,
    groups: Groups,
    group_handles: HashMap<GroupId, Arc<GroupShared>>,
    /// What the groups are still to be told.
    for_groups: VecDeque<members::Input>,
    /// Whose end was the last of a member.
    cause: WorkerId,
    starter: Arc<Starter>,
    numbers: Numbers,
    inspector: Inspector,
    /// How many requests the inspector has had, and those that it has not answered.
    requests: u64,
    asked: HashMap<u64, (Place, Task)>,
    /// The processes of those who live, and in which tick of the boot clock each was started.
    own: HashMap<i32, u64>,
    clock: Clock,
    /// Whoever has left his worker's group and is stopped with everybody.
    away: Vec<Held>,
    /// Dropped when all that is to be stopped with the program is.
    freezing: Option<Sender<()>>,
    timers: TimerQueue<Timer>,
    /// What the kernel has refused to report so far.
    unwatched: HashSet<Target>,
    paused: Vec<Place>,
    /// Whose restart waits for room in its window.
    held_back: Vec<WorkerId>,
    next_look: Duration,
    closed: bool,
    /// Once all were told to end for good.
    last_call: Option<LastCall>,
    /// Nobody comes back.
    is_ending: bool,
    scratch: Vec<u8>,
    control: Option<Control>,
    /// Those whose control connection is not read for now.
    silent: Vec<Place>,
    /// Those that were told as stuck: they are reaped when they end after all.
    stuck: HashMap<u64, Stuck>,
    guard: GuardWatch,
}

/// What a driver is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) commands: Receiver<Command>,
    pub(super) events: Sender<Event>,
    pub(super) mailbox: Mailbox,
    pub(super) window: Arc<Meter>,
    pub(super) grace_period: Duration,
    /// The host is a subreaper: orphans become its children.
    pub(super) adopts: bool,
    pub(super) starter: Arc<Starter>,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let Parts { commands, events, mailbox, window, grace_period, adopts, starter } = parts;
        let poller = Arc::new(Poller::new()?);
        poller.add(&*mailbox.waker, Target::Waker.token())?;
        Ok(Self {
            poller,
            window,
            commands,
            outlet: Outlet::new(events),
            grace_period,
            slots: Vec::new(),
            free: Vec::new(),
            kept: HashMap::new(),
            groups: groups::no_groups(),
            group_handles: HashMap::new(),
            for_groups: VecDeque::new(),
            cause: WorkerId(0),
            seed: u64::from_ne_bytes(random::bytes()?),
            starter,
            numbers: Numbers::new(),
            inspector: Inspector::new(mailbox.clone(), adopts),
            mailbox,
            requests: 0,
            asked: HashMap::new(),
            own: HashMap::new(),
            clock: Clock::default(),
            away: Vec::new(),
            freezing: None,
            timers: TimerQueue::new(),
            unwatched: HashSet::new(),
            paused: Vec::new(),
            held_back: Vec::new(),
            next_look: FIRST_LOOK,
            closed: false,
            last_call: None,
            is_ending: false,
            scratch: vec![0; READ_BYTES],
            control: None,
            silent: Vec::new(),
            stuck: HashMap::new(),
            guard: GuardWatch::default(),
        })
    }

    /// Runs until everybody has gone. `ended` is dropped then.
    pub(super) fn start(mut self, ended: Sender<()>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("pipewright-loop".into()).spawn(move || {
            conduct::block_all_signals();
            self.run();
            drop(self);
            drop(ended);
        })
    }

    fn run(&mut self) {
        let mut reports = Reports::with_capacity(REPORTS);
        while !self.is_over() {
            let timeout = self.timeout();
            if self.poller.wait(&mut reports, timeout).is_err() {
                // epoll_wait(2) fails only for arguments that cannot be: a poller that is none, a buffer that is none.
                debug_assert!(false, "epoll_wait failed");
                return;
            }
            self.look_at_clock();
            for token in reports.tokens() {
                self.ready(Target::of_token(token));
            }
            self.obey_some();
            self.resume();
            self.look_at_clock();
            self.run_timers();
        }
    }

    /// Notices that the process was suspended. What was promised to callers is counted in real time all the same.
    fn look_at_clock(&mut self) {
        let Some(missed) = self.clock.look(self.timers.next()) else { return };
        let earlier = |due: Instant| due.checked_sub(missed).unwrap_or(due);
        if let Some(due) = self.timers.due(Timer::Force) {
            self.timers.set(Timer::Force, earlier(due));
        }
        if let Some(LastCall { until }) = &mut self.last_call {
            *until = until.map(earlier);
        }
        self.outlet.send(Event::warning(Warning::Suspended { missed }));
    }

    /// Commands up to a turn's share; the rest has its turn after the next look at the kernel.
    fn obey_some(&mut self) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { return };
            self.obey(command);
        }
        self.mailbox.waker.wake();
    }

    fn timeout(&self) -> Option<Duration> {
        if self.clock.stands_still() {
            return None;
        }
        let timer = self.timers.next().map(|due| due.saturating_duration_since(self.clock.now()));
        let is_someone_paused = !(self.paused.is_empty() && self.silent.is_empty() && self.held_back.is_empty());
        let look = is_someone_paused.then_some(self.next_look);
        timer.into_iter().chain(look).min()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Arrive(arrival) => self.arrive(*arrival),
            Command::NotStarted(worker, error) => self.left(worker, Left::NotStarted(error)),
            Command::Reached(worker, incarnation) => self.reached(worker, incarnation),
            Command::Passed(worker, incarnation) => self.passed(worker, incarnation),
            Command::Act(worker, action) => self.act(worker, action),
            Command::Listen(server) => self.listen(*server),
            Command::Talk(worker) => self.hear_of(worker),
            Command::Burst(worker) => {
                if let Some(place) = self.kept.get(&worker).and_then(Kept::place) {
                    self.let_call(place);
                }
            }
            Command::Rest(worker) => {
                if let Some(place) = self.kept.get(&worker).and_then(Kept::place) {
                    self.set_timer_after(control::REST, Timer::Rest(place));
                }
            }
            Command::Watch(worker) => {
                if let Some(place) = self.kept.get(&worker).and_then(Kept::place) {
                    self.register(Target::Control(place));
                }
            }
            Command::Group(command) => self.obey_group(command),
            Command::Inspected(findings) => self.inspected(*findings),
            // Whoever has asked and gone gets no answer.
            Command::Report(answer) => drop(answer.send(self.report())),
            Command::StopAll(wanted, answer) => drop(answer.send(self.stop_all(wanted))),
            // The caller waits for the end of the channel.
            Command::Freeze(done) => self.freeze(done),
            Command::Thaw => self.thaw(),
            Command::Close => self.closed = true,
            Command::Guard(news) => self.hear_of_guard(news),
            Command::Stop => {
                // Not closed yet: one that was answered for may still be on its way here.
                self.last_call = Some(LastCall { until: self.clock.now().checked_add(self.grace_period) });
                self.is_ending = true;
                self.end_everybody();
                self.set_timer_after(self.grace_period, Timer::Force);
            }
        }
    }

    fn ready(&mut self, target: Target) {
        match target {
            Target::Waker => self.mailbox.waker.reset(),
            Target::Door => self.knock(),
            Target::Visitor(visitor) => self.visit(visitor),
            Target::Process(place) => self.died(place),
            Target::Stream(place, stream) => self.read(place, stream),
            Target::Control(place) => self.talk(place),
            Target::Survivor(place) => self.buried(place),
            Target::Bell(place) => {
                self.ring(place);
            }
            Target::Notices(place) => self.notice(place),
            Target::Stuck(number) => self.reap_late(number),
            Target::Guard => self.guard_ended(),
        }
    }

    /// Sets this timer, or moves it where it is set already.
    fn set_timer(&mut self, due: Instant, timer: Timer) {
        self.timers.set(timer, due);
    }

    /// Beyond the end of the clock is never.
    fn set_timer_after(&mut self, time: Duration, timer: Timer) {
        if let Some(due) = self.clock.now().checked_add(time) {
            self.set_timer(due, timer);
        }
    }

    fn run_timers(&mut self) {
        // What comes due while these are run, and what is beyond a turn's share, has its turn after the next look at the kernel.
        let now = self.clock.now();
        for _ in 0..TIMERS {
            let Some(timer) = self.timers.take_due(now) else { return };
            match timer {
                Timer::Incarnation(place) => self.input(place, Input::Timeout),
                Timer::Health(place) => self.check_health(place),
                // Reported when it failed first.
                Timer::Probe(place) => drop(self.probe(place)),
                Timer::TimeLimit(place) => self.end_its_time(place),
                Timer::Bury(place) | Timer::BuryEnd(place) => self.bury_in_time(place),
                Timer::Kill(place) => self.kill_without_inspector(place),
                Timer::Inspector => self.check_inspector(),
                Timer::Stuck(number) => self.check_stuck(number),
                Timer::Force => self.force(),
                Timer::ForceOne(place) => self.kill_at_once(vec![place]),
                Timer::Group(group) => self.force_group(group),
                Timer::Restart(worker) => self.restart(worker),
                Timer::Starts => self.relieve_starts(),
                Timer::Arrival(worker) => self.miss_arrival(worker),
                Timer::Watch => self.register_again(),
                Timer::Connect(place) => self.miss(place),
                Timer::Disconnect(place) => self.disconnect(place, Disconnected::Closed),
                Timer::Visitor(visitor) => self.refuse(visitor, HelloFault::Late),
                Timer::Door => self.register(Target::Door),
                Timer::Guard => self.look_after_guard(),
                Timer::Burst(place) => self.let_call(place),
                Timer::Rest(place) => self.talk_again(place),
                Timer::Bell(place) => self.miss_bell(place),
                Timer::Verdict(place) => self.die(place),
            }
        }
    }
}
