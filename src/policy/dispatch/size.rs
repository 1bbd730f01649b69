//! How many workers a pool has: starting, replacing and stopping them.

use super::{
    dispatcher::{Dispatch, DispatchState},
    ids::MemberId,
    member::{Member, MemberPhase},
    task::{DispatchOutput, Ending},
    timers::DispatchTimer,
};
use std::time::{Duration, Instant};

/// A worker that has been ready for so long was started successfully, also if it had no task.
const STABLE_TIME: Duration = Duration::from_secs(1);

impl Dispatch {
    /// Starts workers that are missing.
    pub(super) fn resize(&mut self, now: Instant) {
        while self.wants_member() {
            if let Some(due) = self.starts.not_before {
                if due > now {
                    return self.timers.set(Some(due), DispatchTimer::Start);
                }
                self.starts.not_before = None;
            }
            let member = self.members.add(now, self.starts.round);
            self.outputs.push(DispatchOutput::Start(member));
        }
    }

    /// Whether another worker is to be started: there are fewer than the minimum, or tasks wait that those which start will not take.
    fn wants_member(&self) -> bool {
        let taking = self.members.count_taking();
        if taking >= self.settings.max {
            return false;
        }
        match self.state {
            DispatchState::Broken => return false,
            DispatchState::Open if taking < self.settings.min => return true,
            DispatchState::Open | DispatchState::Halted | DispatchState::Closed => {}
        }
        self.waiting.len() > self.members.count(MemberPhase::Starting) * self.settings.in_flight
    }

    /// Counts a failed start, if the worker has exited by itself before it was used.
    pub(super) fn start_failed_if_unused(&mut self, member: &Member, now: Instant) {
        let is_unused = match member.phase {
            MemberPhase::Starting | MemberPhase::Failed => true,
            MemberPhase::Ready => member.tasks == 0 && now.saturating_duration_since(member.since) < STABLE_TIME,
            MemberPhase::Draining | MemberPhase::Stopping => false,
        };
        if !is_unused || member.round != self.starts.round {
            return;
        }
        self.starts.round += 1;
        self.starts.not_before = now.checked_add(self.settings.backoff.delay(self.starts.failures, 0.0));
        self.starts.failures += 1;
        if self.starts.failures >= self.settings.start_failures_max && self.members.count(MemberPhase::Ready) == 0 {
            if self.state == DispatchState::Open {
                self.state = DispatchState::Broken;
            }
            self.end_waiting(Ending::NoWorkers, now);
        }
    }

    /// Sets the timer of a worker that has nothing to do.
    pub(super) fn watch_idleness(&mut self, id: MemberId, now: Instant) {
        if self.members.count_taking() <= self.settings.min {
            return;
        }
        let due = now.checked_add(self.settings.idle_time);
        let is_new = self.members.change(id, self.settings.in_flight, |member| {
            let is_new = member.phase == MemberPhase::Ready && member.calls.is_empty() && member.idle.is_none();
            if is_new {
                member.idle = due;
            }
            is_new
        });
        if is_new == Some(true) {
            self.timers.set(due, DispatchTimer::Idle(id));
        }
    }

    /// Stops a worker that was idle for long enough, or checks again when it may be.
    pub(super) fn check_idleness(&mut self, id: MemberId, now: Instant) {
        let idle_time = self.settings.idle_time;
        let idle_since = self.members.change(id, self.settings.in_flight, |member| {
            member.idle = None;
            member.calls.is_empty().then_some(member.idle_since)
        });
        // With a task, the timer is set at its end.
        let Some(idle_since) = idle_since.flatten() else { return };
        if self.members.count_taking() <= self.settings.min {
            return;
        }
        match idle_since.checked_add(idle_time) {
            Some(due) if due > now => {
                self.members.change(id, self.settings.in_flight, |member| member.idle = Some(due));
                self.timers.set(Some(due), DispatchTimer::Idle(id));
            }
            _ => self.drain(id),
        }
    }

    /// Replaces a worker that has had its number of tasks.
    pub(super) fn drain_if_used_up(&mut self, id: MemberId) {
        let is_used_up = |member: &Member| self.settings.tasks_max.is_some_and(|max| member.tasks >= max);
        if self.members.all.get(&id).is_some_and(is_used_up) {
            self.drain(id);
        }
    }

    /// Gives a worker no more tasks, and stops it when it has none.
    pub(super) fn drain(&mut self, id: MemberId) {
        let drains = self.members.change(id, self.settings.in_flight, |member| {
            let drains = member.takes_tasks();
            if drains {
                member.phase = MemberPhase::Draining;
            }
            drains
        });
        if drains == Some(true) {
            self.release_keyed(id);
        }
        self.retire(id);
    }

    /// Stops a worker that takes no more tasks and has none.
    pub(super) fn retire(&mut self, id: MemberId) {
        let is_done = |member: &Member| member.phase == MemberPhase::Draining && member.calls.is_empty();
        if self.members.all.get(&id).is_some_and(is_done) {
            self.stop(id);
        }
    }

    /// Stops a worker, whether it has tasks or not.
    pub(super) fn stop(&mut self, id: MemberId) {
        if self.leave(id) {
            self.outputs.push(DispatchOutput::Stop(id));
        }
    }

    /// Kills a worker that does not react or cannot be reached.
    pub(super) fn kill(&mut self, id: MemberId) {
        if self.members.all.contains_key(&id) {
            self.leave(id);
            self.outputs.push(DispatchOutput::Kill(id));
        }
    }

    /// Returns false if its exit was awaited already.
    fn leave(&mut self, id: MemberId) -> bool {
        let left = self.members.change(id, self.settings.in_flight, |member| {
            let is_new = member.phase != MemberPhase::Stopping;
            member.phase = MemberPhase::Stopping;
            is_new
        });
        self.release_keyed(id);
        left == Some(true)
    }

    /// The tasks that wait for a worker go to another one.
    pub(super) fn release_keyed(&mut self, id: MemberId) {
        for rank in self.waiting.take_keyed(id) {
            self.enqueue(rank.task);
        }
    }
}
