//! The tasks and workers of one pool.

use super::{
    call::Call,
    grant_counts::Grants,
    ids::{CallNumber, MemberId, TaskNumber},
    limit::{RunningMedian, TimeLimit},
    member::{MemberPhase, Members},
    settings::DispatchSettings,
    starts::Starts,
    task::{DispatchOutput, Ending, Rank, Task, TaskTerms},
    timers::{DispatchTimer, Timers},
    waiting::{Place, WaitingTasks},
};
use std::{
    collections::HashMap,
    mem,
    time::{Duration, Instant},
};

/// Gives tasks to workers, and decides when workers are started and stopped.
///
/// * No worker that is ready and has room waits while a task waits that it may get. Tasks are sent in the order of their priorities, then of
///   their submission, to the worker with the fewest tasks. A task with a key waits for its worker.
/// * The death of a worker ends its attempts. A task that has retries left waits again, in its old place. One that has seen two deaths is
///   sent only to a worker without other tasks, which gets no other meanwhile; after two more deaths it ends.
/// * Each task ends once: by the answer of its present attempt, or by an [`End`](DispatchOutput::End).
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) settings: DispatchSettings,
    pub(super) tasks: HashMap<TaskNumber, Task>,
    pub(super) calls: HashMap<CallNumber, Call>,
    pub(super) members: Members,
    pub(super) waiting: WaitingTasks,
    pub(super) timers: Timers,
    pub(super) starts: Starts,
    pub(super) grants: Grants,
    pub(super) median: RunningMedian,
    pub(super) outputs: Vec<DispatchOutput>,
    last_task: u64,
    last_call: u64,
    failures: u64,
    pub(super) state: DispatchState,
}

/// Whether tasks are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DispatchState {
    Open,
    /// The halt policy has ended all tasks.
    Halted,
    /// No worker starts.
    Broken,
    /// The tasks that it has are finished.
    Closed,
}

impl Dispatch {
    pub(crate) fn new(settings: DispatchSettings) -> Self {
        Self {
            settings,
            tasks: HashMap::new(),
            calls: HashMap::new(),
            members: Members::default(),
            waiting: WaitingTasks::default(),
            timers: Timers::default(),
            starts: Starts::default(),
            grants: Grants::default(),
            median: RunningMedian::default(),
            outputs: Vec::new(),
            last_task: 0,
            last_call: 0,
            failures: 0,
            state: DispatchState::Open,
        }
    }

    /// The decisions since the last call.
    pub(crate) fn take_outputs(&mut self) -> Vec<DispatchOutput> {
        mem::take(&mut self.outputs)
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> DispatchState {
        self.state
    }

    /// Whether tasks are accepted.
    pub(crate) fn is_open(&self) -> bool {
        self.state == DispatchState::Open
    }

    /// The number of tasks that wait for a worker.
    pub(crate) fn count_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn count_members(&self, phase: MemberPhase) -> usize {
        self.members.count(phase)
    }

    /// The number of tasks that have not ended.
    pub(crate) fn count_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task and no worker is left, and none will come.
    pub(crate) fn is_over(&self) -> bool {
        self.state != DispatchState::Open && self.tasks.is_empty() && self.members.all.is_empty()
    }

    /// Starts the first workers.
    pub(crate) fn open(&mut self, now: Instant) {
        self.resize(now);
    }

    /// Adds a task, unless the pool is not open.
    pub(crate) fn submit(&mut self, terms: TaskTerms, now: Instant) -> Result<TaskNumber, DispatchState> {
        if self.state != DispatchState::Open {
            return Err(self.state);
        }
        self.last_task += 1;
        let number = TaskNumber(self.last_task);
        let rank = Rank::new(&terms, number);
        if let Some(class) = terms.class {
            self.grants.of(class);
        }
        self.tasks.insert(number, Task { rank, terms, attempts: 0, deaths: 0, deaths_alone: 0, call: None });
        self.enqueue(number);
        self.fill(now);
        Ok(number)
    }

    /// A worker is ready.
    pub(crate) fn ready(&mut self, member: MemberId, now: Instant) {
        let age = self.settings.age_max.and_then(|age| now.checked_add(age));
        let is_ready = self.members.change(member, self.settings.in_flight, |member| {
            let is_starting = member.phase == MemberPhase::Starting;
            if is_starting {
                member.phase = MemberPhase::Ready;
                (member.since, member.idle_since, member.age) = (now, now, age);
            }
            is_starting
        });
        if is_ready != Some(true) {
            return;
        }
        self.timers.set(age, DispatchTimer::Age(member));
        self.fill(now);
        self.watch_idleness(member, now);
    }

    /// A worker has answered a call. Returns the task, which has ended with this answer; `None` if it had ended before. `is_failure` says
    /// whether the answer is an error.
    pub(crate) fn answered(&mut self, call: CallNumber, is_failure: bool, now: Instant) -> Option<(TaskNumber, u32)> {
        let Call { task, member, since, .. } = self.end_call(call, now)?;
        let ended = task.and_then(|number| Some((number, self.tasks.remove(&number)?.attempts)));
        self.starts.on_answer();
        if ended.is_some() {
            self.median.add(now.saturating_duration_since(since));
            if is_failure {
                self.count_failure(now);
            }
        }
        self.fill(now);
        self.retire(member);
        self.watch_idleness(member, now);
        self.finish_if_closed();
        ended
    }

    /// A call could not be sent: its worker is about to exit.
    pub(crate) fn unsent(&mut self, call: CallNumber, now: Instant) {
        let Some(Call { task, member, .. }) = self.end_call(call, now) else { return };
        self.kill(member);
        if let Some(number) = task
            && let Some(task) = self.tasks.get_mut(&number)
        {
            task.call = None;
            task.attempts -= 1;
            self.enqueue(number);
        }
        self.fill(now);
    }

    /// A worker has exited, or could not be started.
    pub(crate) fn exited(&mut self, id: MemberId, now: Instant) {
        let Some(member) = self.members.remove(id) else { return };
        self.timers.cancel(member.age, DispatchTimer::Age(id));
        self.timers.cancel(member.idle, DispatchTimer::Idle(id));
        self.release_keyed(id);
        let is_alone = member.calls.len() == 1;
        let tasks: Vec<_> =
            member.calls.iter().filter_map(|call| self.forget_call(*call)).filter_map(|call| call.task).collect();
        for task in &tasks {
            // Before the first one ends, which can end others.
            if let Some(task) = self.tasks.get_mut(task) {
                task.call = None;
            }
        }
        for task in tasks {
            self.died(task, is_alone, now);
        }
        self.start_failed_if_unused(&member, now);
        self.fill(now);
        self.finish_if_closed();
    }

    /// Ends a task that is no longer needed. Returns false if it has ended.
    pub(crate) fn cancel(&mut self, task: TaskNumber, now: Instant) -> bool {
        let is_open = self.tasks.contains_key(&task);
        if is_open {
            self.end(task, Ending::Cancelled, now);
            self.fill(now);
            self.finish_if_closed();
        }
        is_open
    }

    /// Replaces a worker when its tasks are done.
    pub(crate) fn recycle(&mut self, member: MemberId, now: Instant) {
        self.drain(member);
        self.fill(now);
    }

    /// Refuses tasks from now on. Workers are stopped when those that exist have ended.
    pub(crate) fn close(&mut self, now: Instant) {
        if self.state == DispatchState::Open {
            self.state = DispatchState::Closed;
        }
        self.fill(now);
        self.finish_if_closed();
    }

    /// Ends all tasks, and stops all workers.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        self.state = DispatchState::Closed;
        self.end_all(Ending::ShutDown, now);
        for member in self.members.all.keys().copied().collect::<Vec<_>>() {
            self.stop(member);
        }
        self.fill(now);
    }

    /// No worker can be started any more.
    pub(crate) fn give_up(&mut self, now: Instant) {
        if self.state == DispatchState::Open {
            self.state = DispatchState::Broken;
        }
        self.end_waiting(Ending::NoWorkers, now);
        self.fill(now);
        self.finish_if_closed();
    }

    /// A worker can no longer be reached. One that was never ready has then failed to start.
    pub(crate) fn lost(&mut self, id: MemberId, now: Instant) {
        match self.members.all.get(&id).map(|member| member.phase) {
            Some(MemberPhase::Starting) => {
                self.members.change(id, self.settings.in_flight, |member| member.phase = MemberPhase::Failed);
                self.outputs.push(DispatchOutput::Kill(id));
            }
            Some(MemberPhase::Ready | MemberPhase::Draining | MemberPhase::Stopping) => self.kill(id),
            Some(MemberPhase::Failed) | None => {}
        }
        self.fill(now);
    }

    /// The time of the next timer.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn run_timers(&mut self, now: Instant) {
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                DispatchTimer::Deadline(call) => self.deadline(call, now),
                DispatchTimer::Slow(call) => self.check_slow(call, now),
                DispatchTimer::Idle(member) => self.check_idleness(member, now),
                DispatchTimer::Age(member) => {
                    self.members.change(member, self.settings.in_flight, |member| member.age = None);
                    self.drain(member);
                }
                DispatchTimer::Start => {}
            }
        }
        self.fill(now);
        self.finish_if_closed();
    }

    /// Where a task waits, or will wait.
    fn place(&self, task: &Task) -> Place {
        if task.is_suspect() {
            return Place::Suspects;
        }
        task.terms.key.and_then(|key| self.members.for_key(key)).map_or(Place::General, Place::Keyed)
    }

    pub(super) fn enqueue(&mut self, number: TaskNumber) {
        let Some(task) = self.tasks.get(&number) else { return };
        self.waiting.insert(self.place(task), task.rank);
    }

    /// Sends what can be sent, and adjusts the number of workers.
    pub(super) fn fill(&mut self, now: Instant) {
        while !self.waiting.is_empty()
            && let Some((rank, member, is_isolated)) = self.next_pair()
        {
            self.send(rank, (member, is_isolated), now);
        }
        self.adjust_grants();
        self.resize(now);
    }

    /// The next task, its worker, and whether it must run alone. While a task waits that must, the least loaded worker gets no other.
    fn next_pair(&self) -> Option<(Rank, MemberId, bool)> {
        let is_granted = |class| self.grants.is_granted(class);
        let suspect = self.waiting.first(Place::Suspects, is_granted);
        for (at, (load, member)) in self.members.free().enumerate() {
            match suspect {
                Some(suspect) if load == 0 => return Some((suspect, member, true)),
                Some(_) if at == 0 => continue,
                _ => {}
            }
            let places = [Place::General, Place::Keyed(member)];
            if let Some(rank) = places.into_iter().filter_map(|place| self.waiting.first(place, is_granted)).min() {
                return Some((rank, member, false));
            }
        }
        None
    }

    fn send(&mut self, rank: Rank, (member, is_isolated): (MemberId, bool), now: Instant) {
        self.waiting.remove(rank);
        self.last_call += 1;
        let call = CallNumber(self.last_call);
        let Some(task) = self.tasks.get_mut(&rank.task) else { return };
        task.call = Some(call);
        task.attempts += 1;
        let terms = task.terms;
        if let Some(class) = terms.class {
            self.grants.of(class).free -= 1;
        }
        self.members.change(member, self.settings.in_flight, |member| {
            member.calls.push(call);
            member.tasks += 1;
            member.is_isolated = is_isolated;
        });
        let due = |limit: TimeLimit| now.checked_add(limit.check_after(&self.median, Duration::ZERO)?);
        let (deadline, slow) = (due(terms.timeout), due(terms.slow));
        self.timers.set(deadline, DispatchTimer::Deadline(call));
        self.timers.set(slow, DispatchTimer::Slow(call));
        self.calls.insert(call, Call { task: Some(rank.task), member, class: terms.class, since: now, deadline, slow });
        self.outputs.push(DispatchOutput::Send { call, task: rank.task, member });
        self.drain_if_used_up(member);
    }

    /// Removes a call whose worker has not ended.
    fn end_call(&mut self, number: CallNumber, now: Instant) -> Option<Call> {
        let call = self.forget_call(number)?;
        self.members.change(call.member, self.settings.in_flight, |member| {
            member.calls.retain(|call| *call != number);
            if member.calls.is_empty() {
                member.is_isolated = false;
                member.idle_since = now;
            }
        });
        Some(call)
    }

    fn forget_call(&mut self, number: CallNumber) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        self.timers.cancel(call.deadline, DispatchTimer::Deadline(number));
        self.timers.cancel(call.slow, DispatchTimer::Slow(number));
        self.outputs.extend(call.class.map(DispatchOutput::Return));
        Some(call)
    }

    /// The worker of a task has died.
    fn died(&mut self, number: TaskNumber, is_alone: bool, now: Instant) {
        let Some(task) = self.tasks.get_mut(&number) else { return };
        let was_isolated = task.is_suspect() && is_alone;
        task.deaths += 1;
        task.deaths_alone += u32::from(was_isolated);
        if task.deaths <= task.terms.retries && !task.is_poison() {
            self.enqueue(number);
        } else if was_isolated {
            self.end(number, Ending::Poison, now);
        } else {
            self.end(number, Ending::Died, now);
        }
    }

    /// Ends a task. If it runs, its worker is asked to cancel it, and has some time for that.
    pub(super) fn end(&mut self, number: TaskNumber, ending: Ending, now: Instant) {
        let Some(task) = self.tasks.remove(&number) else { return };
        match task.call {
            Some(call) => self.abandon_call(call, now),
            None => self.waiting.remove(task.rank),
        }
        self.outputs.push(DispatchOutput::End { task: number, attempts: task.attempts, ending });
        if matches!(ending, Ending::Died | Ending::Poison | Ending::TimedOut(_)) {
            self.count_failure(now);
        }
    }

    fn count_failure(&mut self, now: Instant) {
        self.failures += 1;
        let Some(halt) = self.settings.halt else { return };
        if self.failures < halt.failures || self.state == DispatchState::Halted {
            return;
        }
        self.state = DispatchState::Halted;
        if halt.is_immediate {
            self.end_all(Ending::Halted, now);
        } else {
            self.end_waiting(Ending::Halted, now);
        }
    }

    pub(super) fn end_waiting(&mut self, ending: Ending, now: Instant) {
        for rank in self.waiting.take_all() {
            self.end(rank.task, ending, now);
        }
    }

    fn end_all(&mut self, ending: Ending, now: Instant) {
        self.end_waiting(ending, now);
        let mut running: Vec<_> = self.tasks.keys().copied().collect();
        running.sort_unstable();
        for task in running {
            self.end(task, ending, now);
        }
    }

    /// Stops the workers if no task will come.
    fn finish_if_closed(&mut self) {
        if self.state != DispatchState::Open && self.tasks.is_empty() {
            for member in self.members.all.keys().copied().collect::<Vec<_>>() {
                self.drain(member);
            }
        }
    }
}
