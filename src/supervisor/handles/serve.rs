//! Threads that handle requests and notifications of workers.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::{Command, CommandSender},
        events::notification_failure::NotificationFailure,
        panics::catch,
        worker::{
            SharedWorker,
            handlers::{FailureReports, HandlerQueue, HandlerScope, HandlerTask},
        },
    },
    sys::this_process,
    wire::jsonrpc::{
        error::{INTERNAL_ERROR, RpcError},
        request::Request,
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use std::{
    io, mem,
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

/// How long the drop of a guard waits for handlers that run.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Handles requests and notifications of workers, from [`Supervisor::serve`](crate::Supervisor::serve) or [`Worker::serve`](crate::Worker::serve). Dropping it
/// ends that.
///
/// * **Order.** One thread handles what a worker sends in its order; several threads handle it concurrently. The threads serve the workers
///   in turn, so a worker that sends much does not delay the requests of others. There is no order between handlers and events: the
///   `Exited` of a worker may be received before its last notification is handled.
/// * **Notifications** are [requests without an answer](Request::is_notification). The result of the function is ignored; an error or a
///   panic is a [`Warning::NotificationFailed`](crate::events::Warning::NotificationFailed).
/// * **Backpressure.** What waits for a thread or is being handled counts against the worker's
///   [`control_window`](crate::WorkerSpec::control_window). A worker that is faster than its handler is paused, and the answers that it sends
///   meanwhile wait too. Those of other workers do not.
/// * **Calls.** The function may call workers. Its thread handles nothing else meanwhile, so a worker that calls back needs another thread.
/// * **Precedence.** The handler of a worker comes before that of its supervisor. A later handler for the same workers replaces the
///   earlier one, whose threads still handle what waits for them. What a worker sent before there was a handler is an event.
///
/// # Dropping
///
/// Requests that wait for a thread are answered with an error; later ones go to the handler of the supervisor, or are
/// [events](crate::EventKind::Request). The drop waits for handlers that run, up to 5 s; one that takes longer keeps its thread. On one of
/// the threads itself, the drop does not wait.
#[must_use = "dropping it ends the handling"]
pub struct ServeGuard {
    queue: Arc<HandlerQueue>,
    threads: Vec<ThreadId>,
    /// Disconnected when the threads have ended.
    ended: Receiver<()>,
    owner: i32,
}

impl_debug!(ServeGuard, |guard| { threads: guard.threads.len() });

impl ServeGuard {
    /// Starts the threads. Fails if none can be created.
    pub(crate) fn start<R: Serialize>(
        (commands, scope): (&CommandSender, HandlerScope),
        threads: usize,
        handler: impl Fn(Arc<SharedWorker>, &Request) -> Result<R, RpcError> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(HandlerQueue::default());
        let (running, ended) = crossbeam_channel::bounded(0);
        let handler = Arc::new(handler);
        let mut guard = Self { queue, threads: Vec::new(), ended, owner: this_process::own_pid() };
        for _ in 0..threads.max(1) {
            let (queue, handler) = (Arc::clone(&guard.queue), Arc::clone(&handler));
            let (commands, running) = (commands.clone(), running.clone());
            let thread = thread::Builder::new().name("pipewright-serve".into());
            match thread.spawn(move || serve(&queue, handler, &commands, running)) {
                Ok(thread) => guard.threads.push(thread.thread().id()),
                Err(error) if guard.threads.is_empty() => return Err(error),
                // The others serve.
                Err(_) => break,
            }
        }
        commands.send(Command::Serve(scope, Arc::downgrade(&guard.queue)));
        Ok(guard)
    }
}

impl Drop for ServeGuard {
    #[expect(clippy::mem_forget, reason = "dropping a channel takes locks that a fork may have copied locked")]
    fn drop(&mut self) {
        if this_process::own_pid() != self.owner {
            // In a fork of the host the threads do not exist.
            mem::forget(mem::replace(&mut self.ended, crossbeam_channel::never()));
            return;
        }
        self.queue.close();
        if !self.threads.contains(&thread::current().id()) {
            // Nothing is sent: it ends when the last thread has dropped its sender.
            _ = self.ended.recv_timeout(JOIN_TIMEOUT);
        }
    }
}

/// Handles what the queue holds, until it is closed. The handler is dropped before `running`, which tells that the thread has ended.
fn serve<R, H>(queue: &HandlerQueue, handler: Arc<H>, commands: &CommandSender, running: Sender<()>)
where
    R: Serialize,
    H: Fn(Arc<SharedWorker>, &Request) -> Result<R, RpcError>,
{
    while let Some(HandlerTask { worker, request }) = queue.take() {
        let id = worker.id();
        let outcome = catch(|| handler(worker, &request));
        if request.is_notification() {
            report_failure(outcome, (id, request.method()), &queue.failures, commands);
        } else {
            // Serializing or dropping the result may panic too; then the request is answered by its drop.
            catch(|| request.reply_outcome(outcome));
        }
    }
    catch(|| drop(handler));
    drop(running);
}

/// Reports the error of a notification's handler, unless too many reports are not received.
fn report_failure<R>(
    outcome: Option<Result<R, RpcError>>,
    (worker, method): (WorkerId, &str),
    failures: &Arc<FailureReports>,
    commands: &CommandSender,
) {
    let error = match outcome {
        // Its drop may panic.
        Some(Ok(result)) => {
            catch(|| drop(result));
            return;
        }
        Some(Err(error)) => error,
        None => RpcError::new(INTERNAL_ERROR, "the handler panicked"),
    };
    if let Some(report) = failures.begin() {
        let failure = NotificationFailure::new(worker, method, error, report);
        commands.send(Command::NotificationFailed(Box::new(failure)));
    }
}
