//! The worker's side of a pool.

use crate::{
    parent::{Parent, error::ParentError},
    wire::jsonrpc::{
        error::{CallError, RpcError},
        protocol::{PROGRESS, Progress, TASK},
        request::Request,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// Runs the tasks of a [`Pool`](crate::pool::Pool) one by one, in a worker of it. Returns when the pool wants the worker to exit: return from `main` then.
///
/// What the function returns is the result of the task, and every error is its failure, as in [`Parent::serve`]. A panic is one too, and the
/// worker goes on.
///
/// ```no_run
/// // the whole `main` of a worker
/// pipewright::pool::worker(|path: String| std::fs::read_to_string(path).map(|text| text.lines().count()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// As [`Parent::from_args`]: the program was not started as a worker.
pub fn worker<T, R, E>(run: impl Fn(T) -> Result<R, E> + Sync) -> Result<(), ParentError>
where
    T: DeserializeOwned,
    R: Serialize,
    E: Into<RpcError>,
{
    worker_with(1, |_, task| run(task))
}

/// As [`worker`], on `threads` threads, for a pool that has as many tasks [in flight](crate::pool::PoolBuilder::in_flight), and with a
/// [`CurrentTask`] for progress and cancellation.
///
/// # Errors
///
/// As [`worker`].
pub fn worker_with<T, R, E>(
    threads: usize,
    run: impl Fn(&CurrentTask<'_>, T) -> Result<R, E> + Sync,
) -> Result<(), ParentError>
where
    T: DeserializeOwned,
    R: Serialize,
    E: Into<RpcError>,
{
    let parent = Parent::from_args()?;
    parent.serve(threads, |request| {
        if request.method() != TASK {
            return Err(RpcError::method_not_found(request.method()));
        }
        let (task,) = request.params()?;
        run(&CurrentTask { parent: &parent, request }, task).map_err(E::into)
    });
    Ok(())
}

/// In a worker: the task that a function is running.
pub struct CurrentTask<'a> {
    parent: &'a Parent,
    request: &'a Request,
}

impl_debug!(CurrentTask<'_>, |task| { request: task.request });

impl CurrentTask<'_> {
    /// Reports progress, which the program receives from [`Task::progress`](crate::pool::Task::progress).
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn progress<P: Serialize + ?Sized>(&self, value: &P) -> Result<(), CallError> {
        let Some(token) = self.request.number() else { return Ok(()) };
        self.parent.notify(PROGRESS, &Progress { token, value })
    }

    /// Whether the result is no longer needed: the task was cancelled or has timed out. A function that takes long should check this, since
    /// the worker is killed otherwise.
    pub fn is_cancelled(&self) -> bool {
        self.request.is_cancelled()
    }

    /// The connection to the program, to send messages or to call it.
    pub fn parent(&self) -> &Parent {
        self.parent
    }
}
