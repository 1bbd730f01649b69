//! Pools of persistent workers.

mod budgets;
mod deaths;
mod ends;
mod flood;
mod functions;
mod sizes;
mod tasks;

use crate::support::{DEADLINE, FIXTURE, becomes_true};
use pipewright::{
    OutputMode, Supervisor, WorkerSpec,
    pool::{Pool, PoolBuilder, Task, TaskError},
};
use serde_json::{Value, json};
use std::fmt::Debug;

/// A word and a value, as the fixture's `pool-worker` takes them.
type Request = (&'static str, Value);

fn spec() -> WorkerSpec {
    WorkerSpec::new(FIXTURE).arg("pool-worker").stderr(OutputMode::Lines)
}

fn builder(supervisor: &Supervisor) -> PoolBuilder<Request, Value> {
    Pool::builder(supervisor, spec())
}

#[track_caller]
fn result(task: Task<Value>) -> Result<Value, TaskError> {
    task.wait_timeout(DEADLINE).unwrap_or_else(|task| panic!("{task:?} has not ended"))
}

/// Waits until the condition holds, for states that nothing reports.
#[track_caller]
fn until<T: Debug>(state: impl Fn() -> T, condition: impl Fn(&T) -> bool) -> T {
    let mut last = None;
    let holds = becomes_true(|| {
        let seen = last.insert(state());
        condition(seen)
    });
    let seen = last.unwrap();
    assert!(holds, "{seen:?}");
    seen
}

fn square(n: u64) -> Request {
    ("square", json!(n))
}
