//! Time limits of calls.

use super::{
    dispatcher::Dispatch,
    ids::CallNumber,
    task::{DispatchOutput, Ending},
    timers::DispatchTimer,
};
use std::{mem, time::Instant};

impl Dispatch {
    pub(super) fn abandon_call(&mut self, number: CallNumber, now: Instant) {
        let kill_at = now.checked_add(self.settings.cancel_grace);
        let Some(call) = self.calls.get_mut(&number) else { return };
        let slow = call.slow.take();
        let deadline = mem::replace(&mut call.deadline, kill_at);
        call.task = None;
        self.outputs.push(DispatchOutput::Cancel { call: number, member: call.member });
        self.timers.cancel(deadline, DispatchTimer::Deadline(number));
        self.timers.cancel(slow, DispatchTimer::Slow(number));
        self.timers.set(kill_at, DispatchTimer::Deadline(number));
    }

    /// A call has reached its timeout, or has not ended in time after its cancellation.
    pub(super) fn deadline(&mut self, number: CallNumber, now: Instant) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.deadline = None;
        let (task, member, ran) = (call.task, call.member, now.saturating_duration_since(call.since));
        let Some(task) = task else { return self.kill(member) };
        let Some(limit) = self.tasks.get(&task).map(|task| task.terms.timeout) else { return };
        match limit.now(&self.median) {
            Some(limit) if limit <= ran => self.end(task, Ending::TimedOut(limit), now),
            _ => {
                let due = limit.check_after(&self.median, ran).and_then(|after| call.since.checked_add(after));
                call.deadline = due;
                self.timers.set(due, DispatchTimer::Deadline(number));
            }
        }
    }

    pub(super) fn check_slow(&mut self, number: CallNumber, now: Instant) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.slow = None;
        let ran = now.saturating_duration_since(call.since);
        let Some((task, limit)) = call.task.and_then(|task| Some((task, self.tasks.get(&task)?.terms.slow))) else {
            return;
        };
        match limit.now(&self.median) {
            Some(limit) if limit <= ran => self.outputs.push(DispatchOutput::Slow { task, after: ran }),
            _ => {
                let due = limit.check_after(&self.median, ran).and_then(|after| call.since.checked_add(after));
                call.slow = due;
                self.timers.set(due, DispatchTimer::Slow(number));
            }
        }
    }
}
