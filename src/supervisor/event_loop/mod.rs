//! The loop thread: kernel events become inputs, outputs become system calls. It decides nothing and waits for nobody.

pub(crate) mod guard;
pub(crate) mod registration;
pub(crate) mod status;
pub(crate) mod teardown;

use crate::{
    ids::{GroupId, WorkerId},
    policy::{
        group::{state::Groups, transition},
        lifecycle::Input,
    },
    supervisor::{
        clock::Clock,
        commands::{Command, Mailbox},
        containment::{
            inspector::{Inspector, Task},
            scan::Numbers,
        },
        control::{hello::HelloFault, server::Control},
        event_loop::guard::GuardWatch,
        events::{
            event::{DisconnectReason, Event},
            sink::Outlet,
            warning::Warning,
        },
        flow_control::Meter,
        incarnation::transitions::Stuck,
        reactor::{
            arena::{Place, Slot},
            timers::{Timer, TimerQueue},
            token::Target,
        },
        spawner::Starter,
        supervision::{restart::Left, worker::Kept},
        worker::group::GroupShared,
    },
    sys::{
        epoll::{Poller, Reports},
        proc::Held,
        random, signals,
    },
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The most that is read from one stream before the others have their turn. Four times the usual pipe.
const READ_BYTES: usize = 256 << 10;
/// How many descriptors one look at the kernel can report.
const REPORTS: usize = 256;
/// How many commands are obeyed before the loop looks at the kernel again.
const COMMANDS: usize = 256;
/// How many timers are run before the loop looks at the kernel again.
const TIMERS: usize = 1024;
/// How often, at first and at last, the loop looks whether the consumer has emptied the channel while it keeps what was in it.
/// Only while somebody is paused: a channel does not tell when something is received.
pub(crate) const FIRST_LOOK: Duration = Duration::from_millis(1);
pub(crate) const LAST_LOOK: Duration = Duration::from_millis(128);

/// What whoever still comes has to do: to end, by then where that is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastCall {
    pub(crate) until: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) poller: Arc<Poller>,
    pub(crate) mailbox: Mailbox,
    commands: Receiver<Command>,
    pub(crate) outlet: Outlet,
    pub(crate) window: Arc<Meter>,
    pub(crate) grace_period: Duration,
    pub(crate) slots: Vec<Slot>,
    pub(crate) free: Vec<usize>,
    /// Those who live or will live again.
    pub(crate) kept: HashMap<WorkerId, Kept>,
    pub(crate) seed: u64,
    pub(crate) groups: Groups,
    pub(crate) group_handles: HashMap<GroupId, Arc<GroupShared>>,
    /// What the groups are still to be told.
    pub(crate) for_groups: VecDeque<transition::Input>,
    /// Whose end was the last of a member.
    pub(crate) cause: WorkerId,
    pub(crate) starter: Arc<Starter>,
    pub(crate) numbers: Numbers,
    pub(crate) inspector: Inspector,
    /// How many requests the inspector has had, and those that it has not answered.
    pub(crate) requests: u64,
    pub(crate) asked: HashMap<u64, (Place, Task)>,
    /// The processes of those who live, and in which tick of the boot clock each was started.
    pub(crate) own: HashMap<i32, u64>,
    pub(crate) clock: Clock,
    /// Whoever has left his worker's group and is stopped with everybody.
    away: Vec<Held>,
    /// Dropped when all that is to be stopped with the program is.
    freezing: Option<Sender<()>>,
    pub(crate) timers: TimerQueue<Timer>,
    /// What the kernel has refused to report so far.
    unwatched: HashSet<Target>,
    pub(crate) paused: Vec<Place>,
    /// Whose restart waits for room in its window.
    pub(crate) held_back: Vec<WorkerId>,
    pub(crate) next_look: Duration,
    pub(crate) closed: bool,
    /// Once all were told to end for good.
    pub(crate) last_call: Option<LastCall>,
    /// Nobody comes back.
    pub(crate) is_ending: bool,
    pub(crate) scratch: Vec<u8>,
    pub(crate) control: Option<Control>,
    /// Those whose control connection is not read for now.
    pub(crate) silent: Vec<Place>,
    /// Those that were told as stuck: they are reaped when they end after all.
    pub(crate) stuck: HashMap<u64, Stuck>,
    guard: GuardWatch,
}

/// What a driver is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) commands: Receiver<Command>,
    pub(crate) events: Sender<Event>,
    pub(crate) mailbox: Mailbox,
    pub(crate) window: Arc<Meter>,
    pub(crate) grace_period: Duration,
    /// The host is a subreaper: orphans become its children.
    pub(crate) adopts: bool,
    pub(crate) starter: Arc<Starter>,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
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
            groups: crate::supervisor::supervision::groups::no_groups(),
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
    pub(crate) fn start(mut self, ended: Sender<()>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("pipewright-loop".into()).spawn(move || {
            signals::block_all();
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
                    self.set_timer_after(crate::supervisor::incarnation::control::REST, Timer::Rest(place));
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
    pub(crate) fn set_timer(&mut self, due: Instant, timer: Timer) {
        self.timers.set(timer, due);
    }

    /// Beyond the end of the clock is never.
    pub(crate) fn set_timer_after(&mut self, time: Duration, timer: Timer) {
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
                Timer::Disconnect(place) => self.disconnect(place, DisconnectReason::Closed),
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
