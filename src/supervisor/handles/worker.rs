//! The parent's handle of a worker.

pub(crate) use crate::supervisor::ids::WorkerId;
use crate::supervisor::{
    clock::now,
    containment::{Mark, cgroup_pool::Cell, scan::Token},
    control::{
        call::{Call, understand},
        connection::Link,
    },
    event_loop::{Command, Mailbox},
    events::trace::Asked,
    flow_control::Account,
    handles::stop::{RestartHandle, StopHandle},
    lock,
    spawner::Starter,
    spec::survivors::Survivors,
    supervision::restart::Action,
};
use crate::{
    exit::Exit,
    launch::{child::ChildProcess, descriptors::ParentFds, spawn::LaunchedChild},
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    sys::cgroup::Frozen,
    wire::jsonrpc::error::CallError,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A worker, as its parent holds it: cheap to clone, and good on any thread. Dropping it changes nothing.
#[derive(Clone)]
pub struct Worker {
    pub(crate) shared: Arc<WorkerShared>,
}

shown_as!(Worker, |worker| { id: worker.id().0, name: worker.name(), pid: worker.pid().unwrap_or_default() });

/// What the handles and the loop know together of a worker.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    id: WorkerId,
    name: Box<str>,
    mailbox: Mailbox,
    standing: Mutex<Standing>,
    changed: Condvar,
    pub(crate) account: Account,
}

#[derive(Debug)]
struct Standing {
    /// The present incarnation, or the last one; none where it has not been started yet, as a member of a group.
    present: Option<Arc<Present>>,
    /// How the last incarnation ended, and when, once there will be no other.
    ended: Option<(Arc<Exit>, Instant)>,
}

/// One incarnation, as the handles and the loop know it together.
#[derive(Debug)]
pub(crate) struct Present {
    number: u32,
    child: ChildProcess,
    ends: Mutex<ParentFds>,
    /// Where the spec gives it a control pipe.
    link: Option<Arc<Link>>,
    mark: Mark,
    is_ready: AtomicBool,
    /// Stopped by its user. Changed together with what it says.
    is_frozen: Mutex<bool>,
}

impl WorkerShared {
    pub(crate) fn new(
        (id, name): (WorkerId, Box<str>),
        mailbox: Mailbox,
        present: Option<Arc<Present>>,
        account: Account,
    ) -> Self {
        let standing = Mutex::new(Standing { present, ended: None });
        Self { id, name, mailbox, standing, changed: Condvar::new(), account }
    }

    pub(crate) fn id(&self) -> WorkerId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn present(&self) -> Option<Arc<Present>> {
        lock(&self.standing).present.clone()
    }

    /// The number of the present incarnation, or of the last; 0 before the first.
    pub(crate) fn incarnation(&self) -> u32 {
        lock(&self.standing).present.as_ref().map_or(0, |present| present.number)
    }

    fn child<T>(&self, run: impl FnOnce(&ChildProcess) -> io::Result<T>) -> io::Result<T> {
        let present = self.present().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        run(&present.child)
    }

    /// The control link of the present incarnation.
    fn link(&self) -> Result<Arc<Link>, CallError> {
        let present = self.present().ok_or(CallError::WorkerExited(None))?;
        present.link.clone().ok_or(CallError::NotConnected)
    }

    /// The next incarnation has started.
    pub(crate) fn begin(&self, present: &Arc<Present>) {
        let mut standing = lock(&self.standing);
        standing.present = Some(Arc::clone(present));
        standing.ended = None;
        drop(standing);
        self.changed.notify_all();
    }

    /// Something of it is different: whoever waits for that looks again.
    pub(crate) fn tell_change(&self) {
        drop(lock(&self.standing));
        self.changed.notify_all();
    }

    /// A member of a group that has ended is to run again.
    pub(crate) fn wake(&self) {
        lock(&self.standing).ended = None;
    }

    /// There will be no other incarnation.
    pub(crate) fn end(&self, last: (Arc<Exit>, Instant)) {
        lock(&self.standing).ended = Some(last);
        self.changed.notify_all();
    }

    /// Waits until its present incarnation, or a later one, is as wanted. False at the deadline, or when it has ended for good.
    pub(crate) fn is_met(&self, deadline: Option<Instant>, is_it: impl Fn(&Present) -> bool) -> bool {
        matches!(self.wait_until(deadline, is_it), Waited::Met)
    }

    /// How it ended for good, and when; waits for that until then.
    pub(crate) fn ended(&self, deadline: Option<Instant>) -> Option<(Arc<Exit>, Instant)> {
        self.wait_until(deadline, |_| false);
        lock(&self.standing).ended.clone()
    }

    /// Waits until it has ended for good, or `is_over` says so; `None` at the deadline.
    fn wait_until(&self, deadline: Option<Instant>, is_over: impl Fn(&Present) -> bool) -> Waited {
        let mut standing = lock(&self.standing);
        loop {
            if let Some((exit, _)) = &standing.ended {
                return Waited::Ended(Arc::clone(exit));
            }
            if standing.present.as_deref().is_some_and(&is_over) {
                return Waited::Met;
            }
            // A timeout beyond the end of time is for ever.
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if left.is_zero() {
                return Waited::TimedOut;
            }
            standing = self.changed.wait_timeout(standing, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What a wait for a worker has come to.
enum Waited {
    Ended(Arc<Exit>),
    Met,
    TimedOut,
}

impl Present {
    pub(crate) fn new(number: u32, launched: LaunchedChild, link: Option<Arc<Link>>, mark: Mark) -> Self {
        let LaunchedChild { child, ends, in_cgroup: _ } = launched;
        Self {
            number,
            child,
            ends: Mutex::new(ends),
            link,
            mark,
            is_ready: AtomicBool::new(false),
            is_frozen: Mutex::new(false),
        }
    }

    pub(crate) fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    pub(crate) fn token(&self) -> &Token {
        &self.mark.token
    }

    pub(crate) fn no_cgroup(&self) -> Option<&str> {
        self.mark.no_cgroup.as_deref()
    }

    pub(crate) fn born(&self) -> u64 {
        self.mark.born
    }

    pub(crate) fn survivors(&self) -> Survivors {
        self.mark.survivors
    }

    /// Something about its cgroup; nothing where it has none.
    pub(crate) fn with_cell<T>(&self, run: impl FnOnce(&Cell) -> T) -> Option<T> {
        lock(&self.mark.cell).as_ref().map(run)
    }

    /// It is reaped: the thread that started it may end.
    pub(crate) fn untie(&self) {
        let tie = lock(&self.mark.tie).take();
        drop(tie);
    }

    /// Its cgroup is for others.
    pub(crate) fn leave_cell(&self, starter: &Starter) {
        if let Some(cell) = lock(&self.mark.cell).take() {
            starter.pen().give_back(cell);
        }
    }

    /// Stopped by its user, with its tree.
    pub(crate) fn is_frozen(&self) -> bool {
        *lock(&self.is_frozen)
    }

    /// One that shall end has to hear of it.
    pub(crate) fn thaw(&self) {
        if self.is_frozen() {
            // Fails where its cgroup has been taken away, and where it has ended.
            drop(self.set_frozen(Frozen::No));
        }
    }

    fn set_frozen(&self, frozen: Frozen) -> io::Result<()> {
        let mut is_frozen = lock(&self.is_frozen);
        *is_frozen = frozen == Frozen::Yes;
        match self.with_cell(|cell| cell.freeze(frozen)) {
            Some(done) => done.map_err(io::Error::other),
            None => self.child.signal_group(if frozen == Frozen::Yes { libc::SIGSTOP } else { libc::SIGCONT }),
        }
    }

    /// The guard forgets its group.
    pub(crate) fn leave_guard(&self, starter: &Starter) {
        if let Some(group) = lock(&self.mark.guarded).take() {
            starter.sentinel().leave(group);
        }
    }

    /// Which of the worker's processes it is, counted from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn child(&self) -> &ChildProcess {
        &self.child
    }

    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    pub(crate) fn awaits_control(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_awaited())
    }

    /// Ends all calls. True if the link was not closed before.
    pub(crate) fn close_link(&self, exit: Option<&Arc<Exit>>) -> bool {
        self.link.as_ref().is_some_and(|link| link.close(exit))
    }

    /// Closes the pipes to the child that nobody has taken: the polite way to say that there is no more work. False if there
    /// were none.
    pub(crate) fn close_pipes(&self) -> bool {
        let mut ends = lock(&self.ends);
        let were_some = ends.reach_child();
        ends.close_writers();
        were_some
    }
}

impl Worker {
    /// Its name in events.
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// What people call it: the spec's name, or its program's.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The process id of its present incarnation, or of the last one; `None` before the first, as for a member of a group that has not
    /// started. Use it for display only: the kernel may reuse the number. [`signal`](Self::signal) never reaches another process.
    pub fn pid(&self) -> Option<u32> {
        self.shared.present().map(|present| present.child.pid())
    }

    /// Sends a signal to its process, by the number that `libc` or `kill -l` give.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it has ended and is reaped, `EINVAL` for a number that is no signal, `EPERM` when it changed its user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal(signal))
    }

    /// Sends a signal to its process and everything in its group, where that is its own.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal_group(signal))
    }

    /// Stops it and all it has started, until [`thaw`](Self::thaw): by its cgroup where it has one, else by SIGSTOP to its group.
    /// A watchdog does not take that for silence; a stop goes on all the same, and has it go on.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal); of the kind [`Other`](io::ErrorKind::Other) where its cgroup refuses.
    pub fn freeze(&self) -> io::Result<()> {
        self.set_frozen(Frozen::Yes)
    }

    /// Has it go on.
    ///
    /// # Errors
    ///
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&self) -> io::Result<()> {
        self.set_frozen(Frozen::No)
    }

    fn set_frozen(&self, frozen: Frozen) -> io::Result<()> {
        let present = self.shared.present().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        present.set_frozen(frozen)
    }

    /// Kills its process, and everything in its group where that is its own, with SIGKILL. That it has ended is told by
    /// [`Exited`](crate::EventKind::Exited). One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// `EPERM` when it changed its user.
    pub fn kill(&self) -> io::Result<()> {
        match self.shared.child(|child| child.signal_group(libc::SIGKILL)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Waits until it has ended for good and its last event is in the channel; a restart is no end.
    ///
    /// A worker whose window is used up cannot end while it has more to say: wait on another thread than the one that
    /// receives, or receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self) -> Arc<Exit> {
        loop {
            if let Waited::Ended(exit) = self.shared.wait_until(None, |_| false) {
                return exit;
            }
        }
    }

    /// As [`wait`](Self::wait), at most so long; `None` if it still runs, or will run again.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Arc<Exit>> {
        match self.shared.wait_until(now().checked_add(timeout), |_| false) {
            Waited::Ended(exit) => Some(exit),
            Waited::Met | Waited::TimedOut => None,
        }
    }

    /// Ends it for good, by its [stop ladder](crate::WorkerSpec::stop). Returns at once, with what can be waited for;
    /// [`Exited`](crate::EventKind::Exited) tells too when it is over. Called again it goes to the next rung of the ladder at once.
    /// One that has ended is no error; one that waits for its restart is not started again.
    pub fn stop(&self) -> StopHandle {
        self.end(Action::Stop)
    }

    /// As [`stop`](Self::stop), and it is killed after so long, whatever its ladder says.
    pub fn stop_timeout(&self, timeout: Duration) -> StopHandle {
        self.end(Action::StopWithin(timeout))
    }

    fn end(&self, action: Action) -> StopHandle {
        let began = now();
        self.shared.mailbox.send(Command::Act(self.shared.id, action));
        StopHandle::new(vec![Arc::clone(&self.shared)], began)
    }

    /// Has it begin anew: ends the present incarnation by the stop ladder, and starts the next one when that one's tree is gone,
    /// whatever its [restart policy](crate::WorkerSpec::restart) says and without counting as one of its restarts. A worker that
    /// has ended for good stays ended. Returns at once, with what can be waited for.
    pub fn restart(&self) -> RestartHandle {
        let restarting = RestartHandle::new([(Arc::clone(&self.shared), self.incarnation())]);
        self.shared.mailbox.send(Command::Act(self.shared.id, Action::Restart));
        restarting
    }

    /// Waits until its present incarnation is ready, or the next one: at once where its spec does not say what it takes. False
    /// when the time is over before, or when it has ended for good.
    pub fn wait_ready(&self, timeout: Duration) -> bool {
        self.shared.is_met(now().checked_add(timeout), Present::is_ready)
    }

    /// Which of its processes runs, or ran last, counted from 1.
    pub fn incarnation(&self) -> u32 {
        self.shared.incarnation()
    }

    /// Waits until an incarnation of at least this number has started. False when the time is over before, or when it has ended
    /// for good.
    pub fn wait_incarnation(&self, number: u32, timeout: Duration) -> bool {
        match self.shared.wait_until(now().checked_add(timeout), |present| present.number >= number) {
            Waited::Ended(_) => self.incarnation() >= number,
            Waited::Met => true,
            Waited::TimedOut => false,
        }
    }

    /// Asks it over control and waits for its answer, at most so long. Any number of threads can ask at once, and the answers
    /// may come in any order. Before the worker has connected the question waits for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer: [`WorkerExited`](CallError::WorkerExited) with its exit
    /// when it ends first.
    pub fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut asked = Asked::begin(self.shared.id, method);
        let answer = self.shared.link().and_then(|link| link.ask(method, params, timeout));
        let result = answer.and_then(|answer| understand(&answer));
        asked.end(result.as_ref().err());
        result
    }

    /// Asks it over control; the answer is waited for later, or the call is cancelled.
    ///
    /// # Errors
    ///
    /// When the question cannot be sent: never waits for a worker that does not read, but is [`QueueFull`](CallError::QueueFull) when a
    /// mebibyte waits already.
    pub fn start_call<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<Call, CallError> {
        let mut asked = Asked::begin(self.shared.id, method);
        let call = self.shared.link().and_then(|link| link.call(method, params));
        let mut call = call.inspect_err(|error| asked.end(Some(error)))?;
        call.asked = asked;
        Ok(call)
    }

    /// Tells it something over control.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call). That it has read it is not said.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.shared.link()?.notify(method, params)
    }

    /// Our end of its standard input, where the spec says [`Input::Pipe`](crate::Input::Pipe); once.
    pub fn take_stdin(&self) -> Option<PipeWriter> {
        lock(&self.shared.present()?.ends).stdin.take()
    }

    /// Our end of the pipe that [`input_pipe`](crate::WorkerSpec::input_pipe) named; once.
    pub fn take_writer(&self, name: &str) -> Option<PipeWriter> {
        lock(&self.shared.present()?.ends).take_writer(name)
    }

    /// Our end of the pipe that [`output_pipe`](crate::WorkerSpec::output_pipe) named; once. The supervisor does not read it.
    pub fn take_reader(&self, name: &str) -> Option<PipeReader> {
        lock(&self.shared.present()?.ends).take_reader(name)
    }
}
