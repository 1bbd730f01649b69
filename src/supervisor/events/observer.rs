//! Workers whose events go to another part of the library instead of the program's channel.

use crate::{ids::WorkerId, supervisor::events::event::Event};
use std::{collections::HashMap, fmt, sync::Arc};

/// Receives the events of its workers, in their order, on the thread of the event loop. Must not block.
///
/// What it keeps of an event counts against the windows of the worker and the supervisor until it is dropped, as for a program.
pub(crate) trait ObserveEvents: Send + Sync + fmt::Debug {
    /// Takes an event, or returns it: the program then receives it. The final event of the worker is the last one; it is not passed on.
    fn observe(&self, event: Event) -> Option<Event>;

    /// The event loop has ended, and with it the worker. Called instead of the final event if that was not sent.
    fn loop_ended(&self, worker: WorkerId);
}

/// The observers of workers that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Observers(HashMap<WorkerId, Arc<dyn ObserveEvents>>);

impl Observers {
    pub(crate) fn add(&mut self, worker: WorkerId, observer: Arc<dyn ObserveEvents>) {
        self.0.insert(worker, observer);
    }

    pub(crate) fn remove(&mut self, worker: WorkerId) -> Option<Arc<dyn ObserveEvents>> {
        self.0.remove(&worker)
    }

    pub(crate) fn get(&self, worker: WorkerId) -> Option<&Arc<dyn ObserveEvents>> {
        self.0.get(&worker)
    }

    /// Passes an event to the observer of its worker. Returns it if there is none, or the observer has not taken it.
    pub(crate) fn observe(&mut self, event: Event) -> Option<Event> {
        let worker = event.worker;
        let Some(observer) = self.get(worker) else { return Some(event) };
        if event.kind.is_final() {
            let observer = self.remove(worker)?;
            drop(observer.observe(event));
            return None;
        }
        observer.observe(event)
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        for (worker, observer) in self.0.drain() {
            observer.loop_ended(worker);
        }
    }
}
