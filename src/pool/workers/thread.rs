//! The thread of a pool: starts workers, runs timers, passes events to the user's function and looks at the memory of workers.

use crate::{
    policy::dispatch::ids::MemberId,
    pool::workers::{core::PoolCore, event::EventHandler, observer::MemberObserver, state::PoolMember},
    supervisor::{
        clock::now, commands::Command, events::observer::ObserveEvents, incarnation::probe::start_thread, panics::catch,
    },
};
use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// The interval at which the memory of workers is looked at, if it has a limit.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// What the thread does besides starts and timers.
#[derive(Default)]
pub(crate) struct ThreadTasks {
    pub(crate) on_event: Option<EventHandler>,
    /// The resident memory above which a worker is replaced, in bytes.
    pub(crate) memory_max: Option<u64>,
}

/// Starts the thread. It ends when the pool and all its workers have ended.
pub(crate) fn start_pool_thread(pool: &Arc<PoolCore>, tasks: ThreadTasks) -> io::Result<()> {
    let pool = Arc::clone(pool);
    start_thread("pipewright-pool", move || run(&pool, &tasks))
}

fn run(pool: &Arc<PoolCore>, tasks: &ThreadTasks) {
    let mut memory_due = tasks.memory_max.and_then(|_| now().checked_add(MEMORY_INTERVAL));
    let mut state = pool.lock();
    while !state.dispatch.is_over() || !state.events.is_empty() {
        if !state.events.is_empty() {
            let events = state.events.take();
            drop(state);
            if let Some(on_event) = &tasks.on_event {
                for event in &events {
                    // A panic was reported by the hook.
                    _ = catch(|| on_event(event));
                }
            }
        } else if let Some(member) = state.starts.pop_front() {
            drop(state);
            start_worker(pool, member);
        } else {
            drop(pool.wait_for_work(state, memory_due));
            pool.change(None, |state, now, _| state.dispatch.run_timers(now));
            if let Some(max) = tasks.memory_max {
                memory_due = check_memory(pool, max, memory_due);
            }
        }
        state = pool.lock();
    }
}

/// Starts a worker, unless that is no longer wanted.
fn start_worker(pool: &Arc<PoolCore>, member: MemberId) {
    let is_wanted = matches!(pool.lock().members.get(&member), Some(PoolMember::Spawning { is_stopped: false, .. }));
    if !is_wanted {
        return pool.change(None, |state, now, _| {
            state.members.remove(&member);
            state.dispatch.exited(member, now);
        });
    }
    let weak = Arc::downgrade(pool);
    let observer = move |_| Arc::new(MemberObserver { pool: weak, member }) as Arc<dyn ObserveEvents>;
    let started = pool.starter.spawn_observed(pool.spec.clone(), observer);
    if let Ok(worker) = &started {
        pool.endpoint.started(worker);
    }
    pool.change(None, |state, now, effects| match started {
        Ok(worker) => state.started(member, worker, now, effects),
        Err(error) => state.not_started(member, error, now),
    });
}

/// Replaces the workers that use more than `max` bytes, when that is due. Returns the time of the next check.
fn check_memory(pool: &PoolCore, max: u64, due: Option<Instant>) -> Option<Instant> {
    if due.is_some_and(|due| due > now()) {
        return due;
    }
    // A loop that has ended has no workers.
    let workers = pool.starter.commands.ask(Command::Snapshot).map(|status| status.workers).unwrap_or_default();
    let used: HashMap<_, _> =
        workers.into_iter().filter_map(|worker| Some((worker.worker, worker.rss_bytes?))).collect();
    pool.change(None, |state, now, _| {
        let is_large = |member: &PoolMember| match member {
            PoolMember::Running(worker) => used.get(&worker.id()).is_some_and(|bytes| *bytes > max),
            PoolMember::Spawning { .. } => false,
        };
        let large: Vec<_> = state.members.iter().filter(|(_, member)| is_large(member)).map(|(id, _)| *id).collect();
        for member in large {
            state.dispatch.recycle(member, now);
        }
    });
    now().checked_add(MEMORY_INTERVAL)
}
