//! The thread of a pool: starts workers, and runs timers.

use crate::{
    policy::dispatch::ids::MemberId,
    pool::workers::{core::PoolCore, observer::MemberObserver, state::PoolMember},
    supervisor::{events::observer::ObserveEvents, handles::spawn::start_thread},
};
use std::{io, sync::Arc};

/// Starts the thread. It ends when the pool and all its workers have ended.
pub(crate) fn start(pool: &Arc<PoolCore>) -> io::Result<()> {
    let pool = Arc::clone(pool);
    start_thread("pipewright-pool", move || run(&pool))
}

fn run(pool: &Arc<PoolCore>) {
    let mut state = pool.lock();
    while !state.dispatch.is_over() {
        if let Some(member) = state.starts.pop_front() {
            drop(state);
            start_worker(pool, member);
        } else {
            drop(pool.wait_for_work(state));
            pool.change(None, |state, now, _| state.dispatch.run_timers(now));
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
    pool.change(None, |state, now, effects| match started {
        Ok(worker) => state.started(member, worker, now, effects),
        Err(error) => state.not_started(member, error, now),
    });
}
