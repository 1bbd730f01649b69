//! The loop thread: kernel events become inputs, outputs become system calls. It decides nothing and waits for nobody.

mod control;

use super::{
    WorkerId,
    control::Control,
    event::{Disconnected, Event, EventKind},
    live::{Live, Outlet},
    meter::Meter,
    spec::WorkerSpec,
    worker::WorkerShared,
};
use crate::{
    exit::Exit,
    pipe::{anonymous::PipeReader, named},
    policy::incarnation::{Input, Output, StreamId},
    sys::{
        conduct,
        epoll::{Poller, Reports},
        wake::Waker,
    },
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io, mem,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The most that is read from one stream before the others have their turn. Four times the usual pipe.
const READ_BYTES: usize = 256 << 10;
/// How many descriptors one look at the kernel can report.
const REPORTS: usize = 256;
/// How often, at first and at last, the loop looks whether the consumer has emptied the channel while it keeps what was in it.
/// Only while somebody is paused: a channel does not tell when something is received.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(128);

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Command {
    Arrive(Box<Arrival>),
    /// The control server has been started.
    Listen(Box<named::Listener>),
    /// Something waits for this worker's control connection.
    Flush(WorkerId),
    /// Nobody will come any more: end when everybody has gone.
    Close,
    /// End everybody.
    Stop,
}

/// A process that has just been started.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) shared: Arc<WorkerShared>,
    pub(super) spec: WorkerSpec,
    /// What it will show when it connects.
    pub(super) key: Option<String>,
    pub(super) started: Instant,
    pub(super) messages: Option<PipeReader>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
}

/// Where commands for the loop are put.
#[derive(Debug, Clone)]
pub(super) struct Mailbox {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<Waker>,
}

impl Mailbox {
    pub(super) fn send(&self, command: Command) {
        // The loop outlives every mailbox: it ends only after Close and the last exit, or after Stop.
        drop(self.commands.send(command));
        self.waker.wake();
    }
}

/// A place for one incarnation. The count tells a late report about a former occupant from one about the present one.
#[derive(Debug, Default)]
struct Slot {
    occupants: u32,
    live: Option<Box<Live>>,
}

/// The place of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    slot: usize,
    occupant: u32,
}

/// Who a kernel report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Waker,
    /// The control server.
    Door,
    /// Somebody who has connected to it and has not said yet who it is.
    Visitor(u64),
    Process(Place),
    Stream(Place, StreamId),
    Control(Place),
}

impl Target {
    const PARTS: u64 = 8;
    const PROCESS: u64 = 3;
    const CONTROL: u64 = 4;
    const OTHER: u64 = 7;

    /// The lowest three bits say what it is, the others whose.
    fn token(self) -> u64 {
        let of = |place: Place, part: u64| (place.slot as u64) << 35 | u64::from(place.occupant) << 3 | part;
        match self {
            Self::Waker => Self::OTHER,
            Self::Door => Self::PARTS | Self::OTHER,
            Self::Visitor(visitor) => (visitor + 2) << 3 | Self::OTHER,
            Self::Process(place) => of(place, Self::PROCESS),
            Self::Stream(place, stream) => of(place, stream.index() as u64),
            Self::Control(place) => of(place, Self::CONTROL),
        }
    }

    fn of_token(token: u64) -> Self {
        let rest = token >> 3;
        let occupant = u32::try_from(rest & u64::from(u32::MAX)).unwrap_or_default();
        let place = Place { slot: (token >> 35) as usize, occupant };
        match token % Self::PARTS {
            Self::OTHER => match rest {
                0 => Self::Waker,
                1 => Self::Door,
                visitor => Self::Visitor(visitor - 2),
            },
            Self::CONTROL => Self::Control(place),
            part => match StreamId::ALL.into_iter().find(|stream| stream.index() as u64 == part) {
                Some(stream) => Self::Stream(place, stream),
                None => Self::Process(place),
            },
        }
    }
}

/// Whose time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Incarnation(Place),
    /// It should have connected to control by now.
    Connect(Place),
    /// Its control connection has ended a while ago.
    Disconnect(Place),
    /// It should have said by now who it is.
    Visitor(u64),
    /// The door has been shut for a while.
    Door,
}

#[derive(Debug)]
pub(super) struct Driver {
    poller: Poller,
    waker: Arc<Waker>,
    commands: Receiver<Command>,
    outlet: Outlet,
    window: Arc<Meter>,
    grace_period: Duration,
    slots: Vec<Slot>,
    free: Vec<usize>,
    living: usize,
    /// Earliest first; entries of those who have changed their mind are skipped when they come up.
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    paused: Vec<Place>,
    next_look: Duration,
    closed: bool,
    stopping: bool,
    scratch: Vec<u8>,
    control: Option<Control>,
    /// Where the workers with control are.
    places: HashMap<WorkerId, Place>,
    /// Those whose control connection is not read for now.
    silent: Vec<Place>,
}

/// What a driver is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) commands: Receiver<Command>,
    pub(super) events: Sender<Event>,
    pub(super) waker: Arc<Waker>,
    pub(super) window: usize,
    pub(super) grace_period: Duration,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let Parts { commands, events, waker, window, grace_period } = parts;
        let poller = Poller::new()?;
        poller.add(&*waker, Target::Waker.token())?;
        Ok(Self {
            poller,
            window: Arc::new(Meter::of_supervisor(window, Arc::clone(&waker))),
            waker,
            commands,
            outlet: Outlet::new(events),
            grace_period,
            slots: Vec::new(),
            free: Vec::new(),
            living: 0,
            timers: BinaryHeap::new(),
            paused: Vec::new(),
            next_look: FIRST_LOOK,
            closed: false,
            stopping: false,
            scratch: vec![0; READ_BYTES],
            control: None,
            places: HashMap::new(),
            silent: Vec::new(),
        })
    }

    /// Runs until everybody has gone. `_done` is dropped at the end, which is how the spawner learns that it may go too.
    pub(super) fn start(mut self, done: Sender<()>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("pipewright-loop".into()).spawn(move || {
            conduct::block_all_signals();
            self.run();
            drop(done);
        })
    }

    fn run(&mut self) {
        let mut reports = Reports::with_capacity(REPORTS);
        while !(self.closed && self.living == 0) {
            let timeout = self.timeout();
            if self.poller.wait(&mut reports, timeout).is_err() {
                // epoll_wait(2) fails only for arguments that cannot be: a poller that is none, a buffer that is none.
                debug_assert!(false, "epoll_wait failed");
                return;
            }
            for token in reports.tokens() {
                self.ready(Target::of_token(token));
            }
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            self.resume();
            self.hear_again();
            self.run_timers();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((due, _))| due.saturating_duration_since(now()));
        let look = (!self.paused.is_empty() || !self.silent.is_empty()).then_some(self.next_look);
        timer.into_iter().chain(look).min()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Arrive(arrival) => self.arrive(*arrival),
            Command::Listen(listener) => self.listen(*listener),
            Command::Flush(worker) => self.flush(worker),
            Command::Close => self.closed = true,
            Command::Stop => {
                // Not closed yet: one that was answered for may still be on its way here.
                self.stopping = true;
                for place in self.occupied() {
                    self.input(place, Input::Stop);
                }
            }
        }
    }

    fn occupied(&self) -> Vec<Place> {
        let occupied = self.slots.iter().enumerate().filter(|(_, slot)| slot.live.is_some());
        occupied.map(|(index, slot)| Place { slot: index, occupant: slot.occupants }).collect()
    }

    fn arrive(&mut self, mut arrival: Arrival) {
        let (key, connect_time) = (arrival.key.take(), arrival.spec.connect_time);
        let live = Box::new(Live::new(arrival, &self.window, self.grace_period));
        self.outlet.send(live.event(EventKind::Started { pid: live.shared.child().pid() }));
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.occupants = slot.occupants.wrapping_add(1);
        let place = Place { slot: index, occupant: slot.occupants };
        slot.live = Some(live);
        self.living += 1;
        self.watch(place);
        if let Some(key) = key {
            self.expect(place, key, connect_time);
        }
        if self.stopping {
            self.input(place, Input::Stop);
        }
    }

    fn watch(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        // epoll_ctl(2) can run out of memory or of the user's watches. A worker that cannot be heard must not live on unheard.
        let watched = live.shared.child().with_pidfd(|pidfd| self.poller.add(pidfd, Target::Process(place).token()));
        if watched.is_err() {
            self.input(place, Input::Unheard);
        } else {
            listen(&self.poller, live, place);
        }
    }

    fn ready(&mut self, target: Target) {
        match target {
            Target::Waker => self.waker.reset(),
            Target::Door => self.knock(),
            Target::Visitor(visitor) => self.visit(visitor),
            Target::Process(place) => self.died(place),
            Target::Stream(place, stream) => self.read(place, stream),
            Target::Control(place) => self.talk(place),
        }
    }

    fn read(&mut self, place: Place, stream: StreamId) {
        // Before the read and not after it: otherwise each of a thousand workers could read once past their supervisor's window.
        self.pause_if_used_up(place);
        let Some(live) = live_at(&mut self.slots, place).filter(|live| !live.paused) else { return };
        if live.read(stream, &mut self.scratch, &mut self.outlet) {
            self.forget_stream(place, stream);
            self.input(place, Input::StreamEnded(stream));
        }
    }

    /// Takes a stream out of the poller and closes it.
    fn forget_stream(&mut self, place: Place, stream: StreamId) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        if let Some(listener) = live.close(stream) {
            // Closing alone would not do: a fork of the host can hold the same description, and it would be reported for ever.
            drop(self.poller.remove(&listener));
        }
    }

    fn pause_if_used_up(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        if live.paused || !live.levels(&self.outlet).must_pause() {
            return;
        }
        for listener in live.listeners() {
            drop(self.poller.remove(listener));
        }
        live.paused = true;
        self.paused.push(place);
        self.next_look = FIRST_LOOK;
    }

    /// Goes on with whoever has room again.
    fn resume(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        let before = self.paused.len();
        let mut paused = mem::take(&mut self.paused);
        paused.retain(|&place| {
            let Some(live) = live_at(&mut self.slots, place) else { return false };
            // First ask to be woken, then look: bytes that come back in between are seen by one or the other.
            live.meter.wait_for_room();
            if !live.levels(&self.outlet).may_resume() {
                return true;
            }
            live.paused = false;
            listen(&self.poller, live, place);
            false
        });
        self.paused = paused;
        self.next_look = if self.paused.len() < before { FIRST_LOOK } else { (self.next_look * 2).min(LAST_LOOK) };
    }

    /// The process has ended. What it had written is read now, whatever its window says: it is no more than its pipes hold,
    /// and its exit must not wait for a slow consumer.
    fn died(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        drop(live.shared.child().with_pidfd(|pidfd| self.poller.remove(pidfd)));
        self.last_talk(place);
        for stream in StreamId::ALL {
            let Some(live) = live_at(&mut self.slots, place) else { return };
            if live.drain(stream, &mut self.scratch, &mut self.outlet) {
                self.forget_stream(place, stream);
                self.input(place, Input::StreamEnded(stream));
            }
        }
        self.input(place, Input::Died);
    }

    fn input(&mut self, place: Place, input: Input) {
        let now = now();
        let Some(live) = live_at(&mut self.slots, place) else { return };
        let before = live.incarnation.poll_timeout();
        let outputs = live.incarnation.handle(input, now);
        let after = live.incarnation.poll_timeout();
        if let Some(due) = after.filter(|_| after != before) {
            self.timers.push(Reverse((due, Timer::Incarnation(place))));
        }
        for output in outputs {
            self.perform(place, output);
        }
    }

    fn perform(&mut self, place: Place, output: Output) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        match output {
            Output::Terminate => {
                live.shared.close_pipes();
                // ESRCH: it has ended, and its report is on the way. A stopped one gets its SIGTERM only when it goes on.
                drop(live.shared.child().signal_group(libc::SIGTERM));
                drop(live.shared.child().signal_group(libc::SIGCONT));
            }
            Output::Kill => drop(live.shared.child().signal_group(libc::SIGKILL)),
            Output::Abandon(stream) => {
                // A paused stream was not listened to since the worker's death, so its end may have come unseen.
                if !live.drain(stream, &mut self.scratch, &mut self.outlet) {
                    live.abandon(stream, &mut self.outlet);
                }
                self.forget_stream(place, stream);
            }
            Output::Reap => match live.shared.child().reap() {
                Ok(None) => self.input(place, Input::Withheld),
                reaped => {
                    let exit = live.exit(reaped.ok().flatten(), now());
                    self.leave(place, exit);
                }
            },
            Output::GiveUp => {
                drop(live.shared.child().with_pidfd(|pidfd| self.poller.remove(pidfd)));
                for stream in StreamId::ALL {
                    let Some(live) = live_at(&mut self.slots, place) else { return };
                    live.drain(stream, &mut self.scratch, &mut self.outlet);
                    self.forget_stream(place, stream);
                }
                let Some(live) = live_at(&mut self.slots, place) else { return };
                // It may have ended after all, if it is one whose end could not be heard.
                let reaped = live.shared.child().reap().ok().flatten();
                let exit = live.exit(reaped, now());
                self.leave(place, exit);
            }
        }
    }

    /// The last event of an incarnation; then its place is free.
    fn leave(&mut self, place: Place, exit: Exit) {
        let Some(live) = self.slots.get_mut(place.slot).and_then(|slot| slot.live.take()) else { return };
        self.free.push(place.slot);
        self.living -= 1;
        let exit = Arc::new(exit);
        // Before the event: whoever hears of the exit finds that no call waits any more.
        live.shared.close_link(Some(&exit));
        self.outlet.send(live.event(EventKind::Exited(Arc::clone(&exit))));
        // After the event: whoever has waited for the exit finds it in the channel.
        live.shared.set_exit(exit);
    }

    fn run_timers(&mut self) {
        while let Some(&Reverse((due, timer))) = self.timers.peek() {
            if due > now() {
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Incarnation(place) => self.input(place, Input::Timeout),
                Timer::Connect(place) => self.miss(place),
                Timer::Disconnect(place) => self.disconnect(place, Disconnected::Closed),
                Timer::Visitor(visitor) => self.put_out(visitor),
                Timer::Door => self.open_door(),
            }
        }
    }
}

/// Has a worker's streams reported. If the kernel refuses, its death still is: it is killed rather than left unheard.
fn listen(poller: &Poller, live: &Live, place: Place) {
    if live.listeners().any(|listener| poller.add(listener, Target::Stream(place, listener.id).token()).is_err()) {
        // ESRCH: it has ended already.
        drop(live.shared.child().signal_group(libc::SIGKILL));
    }
}

/// The incarnation that a report is about, if it is still there.
fn live_at(slots: &mut [Slot], place: Place) -> Option<&mut Live> {
    slots.get_mut(place.slot).filter(|slot| slot.occupants == place.occupant)?.live.as_deref_mut()
}

#[expect(clippy::disallowed_methods, reason = "the loop's clock")]
fn now() -> Instant {
    Instant::now()
}
