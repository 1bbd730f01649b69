//! Workers that were not written for this library, in a pool.
//!
//! A [`Dialect`] is an endpoint of the pool. Protocols of messages are a [`codec`], which is pure, over [`message_endpoint`].

pub(crate) mod bazel;
pub(crate) mod codec;
pub(crate) mod foreign_error;
pub(crate) mod jest_worker;
pub(crate) mod message_endpoint;
pub(crate) mod rpc;
pub(crate) mod rpc_task;

use crate::pool::{
    dialect::{
        jest_worker::JestWorker,
        message_endpoint::MessageEndpoint,
        rpc::{RpcEndpoint, RpcTasks},
    },
    workers::endpoint::Endpoint,
};
use crate::wire::{framing::Framing, jsonrpc::stdio_protocol::StdioProtocol};
use serde_json::json;
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

    /// Servers of JSON-RPC 2.0 on standard input and output, for example of the Language Server Protocol. The spec gets
    /// [`control_on_stdio`](crate::WorkerSpec::control_on_stdio).
    ///
    /// A task is a pair of a method and its parameters, or an object with the fields `method` and `params`, and `before` and `after`: arrays
    /// of such pairs, which are sent as notifications directly before and after the request. A server that handles messages in their order
    /// so opens a document, answers, and closes it.
    ///
    /// Its own requests and notifications are [events](crate::Supervisor::events), which the program receives or [serves](crate::Supervisor::serve).
    ///
    /// ```no_run
    /// use pipewright::{RpcError, StdioProtocol, Supervisor, WorkerSpec, pool::{Dialect, Pool}};
    /// use serde_json::{Value, json};
    ///
    /// let supervisor = Supervisor::new()?;
    /// let serving = supervisor.serve(1, |_, _| Ok::<_, RpcError>(()))?; // diagnostics are not needed here
    /// let pool = Pool::<Value, Value>::builder(&supervisor, WorkerSpec::new("clangd"))
    ///     .dialect(Dialect::json_rpc(StdioProtocol::lsp()))
    ///     .workers(4)
    ///     .build()?;
    /// let document = json!({"uri": "file:///a.c", "languageId": "c", "version": 1, "text": "int a;"});
    /// let symbols = pool.submit(json!({
    ///     "before": [["textDocument/didOpen", {"textDocument": document}]],
    ///     "method": "textDocument/documentSymbol",
    ///     "params": {"textDocument": {"uri": "file:///a.c"}},
    ///     "after": [["textDocument/didClose", {"textDocument": {"uri": "file:///a.c"}}]],
    /// }))?;
    /// println!("{}", symbols.wait()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "lsp")]
    pub fn json_rpc(protocol: StdioProtocol) -> Self {
        Self(Arc::new(RpcEndpoint { protocol, tasks: RpcTasks::Methods }))
    }

    /// Tools of servers of the Model Context Protocol. A task is a pair of the tool's name and its arguments, an object. Its result is that of
    /// `tools/call`; one with `isError` is a [`Failed`](crate::pool::TaskErrorKind::Failed) task, with the text of its content as message
    /// and the whole result as data. `notifications/progress` is the [progress](crate::pool::Task::progress) of the task.
    /// `protocol` is [`StdioProtocol::mcp`], with the parameters of `initialize` if the client has capabilities.
    ///
    /// Everything else is as with [`json_rpc`](Self::json_rpc).
    pub fn mcp(protocol: StdioProtocol) -> Self {
        Self(Arc::new(RpcEndpoint { protocol, tasks: RpcTasks::Tools }))
    }

    /// Functions of a Python module. The program of the spec is the interpreter, 3.8 or later, with its options; the worker's script is passed by `-c`.
    /// `module` is imported as by an `import` statement of a program in the worker's directory.
    ///
    /// A task is a pair of the function's name, which may have dots, and its arguments: an array, or an object for keyword arguments.
    /// A coroutine is run to its end. Results are what `json` serializes. What a function raises is a
    /// [`Failed`](crate::pool::TaskErrorKind::Failed) task with its [name, message and stack](crate::pool::TaskError::foreign).
    ///
    /// What functions and their child processes print to standard output goes to standard error, and their standard input is empty.
    /// `__main__.progress(value)` reports the [progress](crate::pool::Task::progress) of the task. A running function is not cancelled: its
    /// worker is killed after the [grace period](crate::pool::PoolBuilder::cancel_grace).
    ///
    /// ```no_run
    /// use pipewright::{Supervisor, WorkerSpec, pool::{Dialect, Pool}};
    ///
    /// let supervisor = Supervisor::new()?;
    /// let pool = Pool::<(&str, (f64,)), f64>::builder(&supervisor, WorkerSpec::new("python3"))
    ///     .dialect(Dialect::python_module("math"))
    ///     .workers(4)
    ///     .build()?;
    /// assert_eq!(pool.submit(("sqrt", (16.0,)))?.wait()?, 4.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn python_module(module: &str) -> Self {
        let protocol = StdioProtocol::new(Framing::Lines).initialize(&json!({"module": module}));
        Self(Arc::new(RpcEndpoint { protocol, tasks: RpcTasks::PythonFunctions }))
    }
}
