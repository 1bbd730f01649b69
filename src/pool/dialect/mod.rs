//! Workers that were not written for this library, in a pool.
//!
//! A [`Dialect`] is an endpoint of the pool. Protocols of messages are a [`codec`], which is pure, over [`message_endpoint`].

pub(crate) mod codec;
pub(crate) mod foreign_error;
pub(crate) mod jest_worker;
pub(crate) mod message_endpoint;

use crate::pool::{
    dialect::{jest_worker::JestWorker, message_endpoint::MessageEndpoint},
    workers::endpoint::Endpoint,
};
use std::{path::PathBuf, sync::Arc};

/// How a [`Pool`](crate::pool::Pool) passes tasks to programs that were not written for this library, for
/// [`PoolBuilder::dialect`](crate::pool::PoolBuilder::dialect).
///
/// Everything else is as with workers of this library: retries, timeouts, priorities, recycling, and the errors of tasks. A worker that
/// violates its protocol is killed and replaced; its tasks are retried as after a death
/// ([`ProtocolViolated`](crate::pool::PoolEvent::ProtocolViolated)).
#[derive(Debug, Clone)]
#[must_use]
pub struct Dialect(pub(crate) Arc<dyn Endpoint>);

impl Dialect {
    /// Functions of a module of Node, which `processChild.js` of [jest-worker](https://www.npmjs.com/package/jest-worker) calls: neither is
    /// changed. `module` is its absolute path. A task is a pair of the function's name and the array of its arguments; the name `default` is
    /// the module itself, or its default export.
    ///
    /// A worker is ready when the module is loaded and its function `setup`, if it exports one, has returned. `teardown` is called before
    /// the worker is stopped, and has the time that the [stop policy](crate::WorkerSpec::node_channel) gives. A worker has one task at a time, and no
    /// way to cancel it, so that it is killed after the [grace period](crate::pool::PoolBuilder::cancel_grace). What a function
    /// sends by `messageParent` is the [progress](crate::pool::Task::progress) of the task. What it throws is a
    /// [`Failed`](crate::pool::TaskErrorKind::Failed) task with its [name, message and stack](crate::pool::TaskError::foreign). `undefined` is `null`.
    ///
    /// ```no_run
    /// use pipewright::{OutputMode, Supervisor, WorkerSpec, pool::{Dialect, Pool}};
    ///
    /// let supervisor = Supervisor::new()?;
    /// let node = WorkerSpec::new("node").arg("node_modules/jest-worker/build/processChild.js").stderr(OutputMode::Lines);
    /// let pool = Pool::<(&str, (f64, f64)), f64>::builder(&supervisor, node)
    ///     .dialect(Dialect::jest_worker("/srv/geometry.js")) // exports.area = (width, height) => width * height;
    ///     .workers(4)
    ///     .build()?;
    /// assert_eq!(pool.submit(("area", (2.0, 3.0)))?.wait()?, 6.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "jest")]
    pub fn jest_worker(module: impl Into<PathBuf>) -> Self {
        Self(Arc::new(MessageEndpoint::new(JestWorker::new(module.into()))))
    }
}
