//! Receives the events of one worker.

use crate::{
    ids::WorkerId,
    policy::dispatch::ids::MemberId,
    pool::workers::{core::PoolCore, endpoint::Report},
    supervisor::events::{
        event::{Event, EventKind},
        observer::ObserveEvents,
    },
};
use std::sync::{Arc, Weak};

#[derive(Debug)]
pub(crate) struct MemberObserver {
    pub(crate) pool: Weak<PoolCore>,
    pub(crate) member: MemberId,
}

impl MemberObserver {
    fn report(&self, pool: &PoolCore, worker: WorkerId, report: Report) {
        match report {
            Report::Answer(id, answer) => {
                let call = pool.lock().call_of(self.member, id).map(|(number, _)| number);
                if let Some(call) = call {
                    pool.answered(call, answer);
                }
            }
            Report::Nothing => {}
            Report::Invalid(reason) => {
                pool.change(None, |state, now, _| state.violated((self.member, worker), reason, now));
            }
            Report::Progress(id, value) => {
                let task = pool.lock().call_of(self.member, id).map(|(_, call)| Arc::clone(&call.task));
                if let Some(task) = task {
                    task.set_progress(value);
                }
            }
        }
    }
}

impl ObserveEvents for MemberObserver {
    fn observe(&self, event: Event) -> Option<Event> {
        let pool = self.pool.upgrade()?;
        if let Some(report) = pool.endpoint.receive(event.worker, &event.kind) {
            self.report(&pool, event.worker, report);
            return None;
        }
        match &event.kind {
            EventKind::Ready { .. } => pool.change(None, |state, now, _| state.ready(self.member, event.worker, now)),
            EventKind::Exited { exit, .. } => {
                pool.change(Some(exit), |state, now, _| state.exited((self.member, event.worker), Some(exit), now));
            }
            kind if kind.is_final() => {
                pool.change(None, |state, now, _| state.exited((self.member, event.worker), None, now));
            }
            // It gets no more tasks, and its exit ends those that it has.
            EventKind::ControlDisconnected(_) => {
                pool.change(None, |state, now, _| state.dispatch.lost(self.member, now));
            }
            EventKind::Warning(_) | EventKind::InvalidFrame(_) | EventKind::Request(_) | EventKind::Notification(_) => {
                return Some(event);
            }
            _ => {}
        }
        None
    }

    fn loop_ended(&self, worker: WorkerId) {
        if let Some(pool) = self.pool.upgrade() {
            pool.change(None, |state, now, _| {
                state.dispatch.give_up(now);
                state.exited((self.member, worker), None, now);
            });
        }
    }
}
