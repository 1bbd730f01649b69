//! The tasks of asynchronous programs that wait for a condition, as a condition variable knows its threads.

use crate::{
    supervisor::{panics::catch, sync::lock},
    sys::this_process::own_pid,
};
use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::Waker,
};

/// The wakers of the tasks that wait for a condition. Without such tasks, waking costs a fence.
#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    slots: Mutex<WakerSlots>,
    /// Whether a waker is registered.
    is_awaited: AtomicBool,
}

#[derive(Debug, Default)]
struct WakerSlots {
    wakers: HashMap<u64, Waker>,
    last_number: u64,
}

/// The place of one task in a [`WakerSet`]. Dropping it deregisters the task.
#[derive(Debug)]
pub(crate) struct WakerSlot {
    set: Arc<WakerSet>,
    number: u64,
    /// The process that has created it.
    owner: i32,
}

impl WakerSet {
    /// Wakes the registered tasks and deregisters them. The condition is set before.
    pub(crate) fn wake_all(&self) {
        // Either this thread sees the registration, or the task sees the condition: both set theirs before their fence.
        fence(Ordering::SeqCst);
        if !self.is_awaited.load(Ordering::Relaxed) {
            return;
        }
        let wakers = {
            let mut slots = lock(&self.slots);
            self.is_awaited.store(false, Ordering::Relaxed);
            mem::take(&mut slots.wakers)
        };
        for waker in wakers.into_values() {
            catch(|| waker.wake());
        }
    }

    pub(crate) fn slot(self: &Arc<Self>) -> WakerSlot {
        let mut slots = lock(&self.slots);
        slots.last_number += 1;
        WakerSlot { set: Arc::clone(self), number: slots.last_number, owner: own_pid() }
    }
}

impl WakerSlot {
    /// Registers the task until it is woken, in place of an earlier one. The caller checks the condition afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        let previous = {
            let mut slots = lock(&self.set.slots);
            self.set.is_awaited.store(true, Ordering::Relaxed);
            slots.wakers.insert(self.number, waker.clone())
        };
        fence(Ordering::SeqCst);
        // Outside the lock: the drop of a waker may run any code.
        drop(previous);
    }
}

impl Drop for WakerSlot {
    fn drop(&mut self) {
        // A fork of the host may have copied the lock locked.
        if self.owner == own_pid() {
            let waker = lock(&self.set.slots).wakers.remove(&self.number);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::jsonrpc::test_wakers::{Count, Panicking};

    #[test]
    fn p15_registered_tasks_are_woken_once() {
        let set = Arc::new(WakerSet::default());
        let tasks: [Arc<Count>; 3] = Default::default();
        let slots = [(); 3].map(|()| set.slot());
        set.wake_all();
        for (slot, task) in slots.iter().zip(&tasks) {
            slot.register(&Waker::from(Arc::clone(task)));
        }
        slots[1].register(&Waker::from(Arc::clone(&tasks[0])));
        let [first, second, third] = slots;
        drop(third);
        set.wake_all();
        set.wake_all();
        assert_eq!(tasks.each_ref().map(|task| task.get()), [2, 0, 0]);
        drop((first, second));
        assert!(lock(&set.slots).wakers.is_empty());
    }

    #[test]
    fn p06_panic_of_a_waker_affects_no_other_task() {
        let set = Arc::new(WakerSet::default());
        let task = Arc::new(Count::default());
        let slots = [(); 3].map(|()| set.slot());
        slots[0].register(&Waker::from(Arc::new(Panicking)));
        slots[1].register(&Waker::from(Arc::clone(&task)));
        slots[2].register(&Waker::from(Arc::new(Panicking)));
        set.wake_all();
        assert_eq!(task.get(), 1);
    }
}
