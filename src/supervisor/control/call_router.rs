//! Routes the calls and notifications of a worker's handles to the incarnation that takes them.
//!
//! While none does, they wait here, in their order. A line belongs to the worker until the first byte of it is sent: if the incarnation
//! exits before, the line waits for the next one. What was sent belongs to that incarnation, and is never sent again.

use crate::{
    exit::Exit,
    supervisor::{
        clock::now,
        control::{
            connection::{ConnectionEnd, LineTag, RpcConnection, WhenDown},
            send_line::{CallerLine, SubmitError, check_room},
        },
        sync::lock,
    },
    wire::{
        jsonrpc::{completion::Completion, error::CallError, stdio_protocol::RpcProtocol},
        line_queue::{LineOwner, LineQueue, QueuedLine},
    },
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// The route of a worker's calls.
#[derive(Debug)]
pub(crate) struct CallRouter {
    state: Mutex<RouterState>,
    /// Of the connections of all incarnations.
    protocol: RpcProtocol,
}

#[derive(Debug)]
struct RouterState {
    route: Route,
    /// The lines that wait. Empty while the route is open or calls fail.
    queue: LineQueue<Waiting>,
    last_exit: Option<Arc<Exit>>,
}

#[derive(Debug)]
struct Waiting {
    tag: LineTag,
    completion: Option<Completion>,
}

impl LineOwner for Waiting {
    fn is_limited(&self) -> bool {
        self.tag.is_limited()
    }
}

#[derive(Debug)]
enum Route {
    /// No incarnation runs. The next one is started at this time, or when what it depends on is ready.
    Down {
        starts_at: Instant,
    },
    /// An incarnation runs, and takes no more calls, or none yet: it has not connected or is not ready.
    Unready {
        /// The connection that still sends what was queued on it.
        ending: Option<Arc<RpcConnection>>,
    },
    Open(Arc<RpcConnection>),
    /// An incarnation runs without a connection.
    Disconnected,
    /// The worker does not run, unless its group starts it again.
    Ended,
}

impl CallRouter {
    /// The route of a worker whose first incarnation runs, or is started later.
    pub(crate) fn new(protocol: RpcProtocol, is_running: bool) -> Self {
        let route = if is_running { Route::Unready { ending: None } } else { Route::Down { starts_at: now() } };
        Self { state: Mutex::new(RouterState { route, queue: LineQueue::default(), last_exit: None }), protocol }
    }

    pub(crate) fn protocol(&self) -> RpcProtocol {
        self.protocol
    }

    /// The connection, if the incarnation takes calls.
    pub(crate) fn connection(&self) -> Option<Arc<RpcConnection>> {
        match &lock(&self.state).route {
            Route::Open(connection) => Some(Arc::clone(connection)),
            Route::Down { .. } | Route::Unready { .. } | Route::Disconnected | Route::Ended => None,
        }
    }

    /// Sends a line, or queues it.
    pub(crate) fn submit(&self, mut from: CallerLine) -> Result<(), CallError> {
        loop {
            let mut state = lock(&self.state);
            let connection = match &state.route {
                Route::Open(connection) => Arc::clone(connection),
                Route::Down { .. } if from.is_fail_fast() => return Err(state.exit_error()),
                Route::Disconnected | Route::Ended => return Err(state.exit_error()),
                Route::Down { .. } | Route::Unready { .. } => return state.push(from),
            };
            drop(state);
            match connection.submit(from) {
                Ok(()) => return Ok(()),
                Err(SubmitError::Failed(error)) => return Err(error),
                // The route has changed before the connection was ended.
                Err(SubmitError::Ended(unsent)) => from = unsent,
            }
        }
    }

    /// The caller of a call no longer waits.
    pub(crate) fn abandon(&self, id: u64) {
        let mut state = lock(&self.state);
        let removed = state.remove(id);
        let connection = state.connection().filter(|_| removed.is_none()).cloned();
        // Before the completion, which can hold the last reference to other calls.
        drop(state);
        drop(removed);
        if let Some(connection) = connection {
            connection.abandon_call(id);
        }
    }

    /// Asks the worker to cancel a call, whose answer is awaited all the same.
    pub(crate) fn request_cancellation(&self, id: u64) {
        let connection = lock(&self.state).connection().cloned();
        if let Some(connection) = connection {
            connection.request_cancellation(id);
        }
    }

    /// The error of a call whose time is over.
    pub(crate) fn timeout_error(&self, id: u64) -> CallError {
        let mut state = lock(&self.state);
        let unsent = state.remove(id);
        if unsent.is_some() {
            return match state.route {
                Route::Unready { .. } => CallError::NotReady,
                Route::Down { .. } | Route::Open(_) | Route::Disconnected | Route::Ended => state.exit_error(),
            };
        }
        state.connection().map_or(CallError::TimedOut, |connection| connection.timeout_error())
    }

    /// The number of bytes that wait.
    pub(crate) fn queued(&self) -> usize {
        lock(&self.state).queue.len()
    }
}

/// Changes of the route, by the event loop.
impl CallRouter {
    /// An incarnation has started.
    pub(crate) fn started(&self) {
        lock(&self.state).route = Route::Unready { ending: None };
    }

    /// The incarnation takes calls: sends those that wait.
    pub(crate) fn open(&self, connection: &Arc<RpcConnection>) {
        let mut state = lock(&self.state);
        connection.adopt(state.take_all());
        state.route = Route::Open(Arc::clone(connection));
    }

    /// The incarnation takes no more calls, since its standard input is closed when what is queued is sent.
    pub(crate) fn stop_sending(&self) {
        let mut state = lock(&self.state);
        if let Route::Open(connection) = &state.route {
            connection.end_submission();
            state.route = Route::Unready { ending: Some(Arc::clone(connection)) };
        }
    }

    /// The incarnation takes no more calls: it is exiting, or its connection has ended. Calls of which nothing was sent wait.
    pub(crate) fn suspend(&self) {
        lock(&self.state).suspend();
    }

    /// The incarnation runs without a connection. Calls fail until the next one.
    pub(crate) fn disconnected(&self) {
        self.close(Route::Disconnected, None);
    }

    /// The next incarnation starts after this time.
    pub(crate) fn schedule_start(&self, after: Duration) {
        let mut state = lock(&self.state);
        state.suspend();
        let starts_at = now().checked_add(after).unwrap_or_else(now);
        state.route = Route::Down { starts_at };
    }

    /// An incarnation has exited. What follows was decided before. Ends the calls that were sent to it, and those that wait for no other.
    pub(crate) fn exited(&self, connection: Option<&Arc<RpcConnection>>, exit: &Arc<Exit>) {
        let mut state = lock(&self.state);
        state.suspend();
        state.last_exit = Some(Arc::clone(exit));
        if let Route::Unready { .. } | Route::Open(_) | Route::Disconnected = state.route {
            // Its group starts it later.
            state.route = Route::Down { starts_at: now() };
        }
        let end = state.end();
        let failed = state.queue.take_unsent(|waiting| waiting.tag.is_fail_fast());
        drop(state);
        complete(failed, &end);
        if let Some(connection) = connection {
            connection.close(&end);
        }
    }

    /// The worker has ended: it does not run unless its group starts it again.
    pub(crate) fn ended(&self, exit: &Arc<Exit>) {
        self.close(Route::Ended, Some(exit));
    }

    fn close(&self, route: Route, exit: Option<&Arc<Exit>>) {
        let mut state = lock(&self.state);
        state.suspend();
        state.route = route;
        state.last_exit = exit.cloned();
        let end = state.end();
        let failed = state.queue.take_unsent(|_| true);
        drop(state);
        complete(failed, &end);
    }
}

/// Completes calls outside the lock: that can wake tasks.
fn complete(failed: Vec<QueuedLine<Waiting>>, end: &ConnectionEnd) {
    for completion in failed.into_iter().filter_map(|line| line.tag.completion) {
        completion.complete(Err(CallError::from(end)));
    }
}

impl RouterState {
    fn suspend(&mut self) {
        let Some(connection) = self.connection().cloned() else { return };
        self.route = Route::Unready { ending: None };
        let unsent = connection.end_sending().into_iter().map(|CallerLine { line, completion }| QueuedLine {
            bytes: line.bytes,
            tag: Waiting { tag: line.tag, completion },
        });
        // What waits here was submitted later.
        let later = self.queue.take_unsent(|_| true);
        unsent.chain(later).for_each(|line| self.queue.push(line));
    }

    /// The connection that sends lines of callers.
    fn connection(&self) -> Option<&Arc<RpcConnection>> {
        match &self.route {
            Route::Open(connection) | Route::Unready { ending: Some(connection) } => Some(connection),
            Route::Down { .. } | Route::Unready { ending: None } | Route::Disconnected | Route::Ended => None,
        }
    }

    fn push(&mut self, from: CallerLine) -> Result<(), CallError> {
        check_room(&self.queue, &from.line)?;
        let CallerLine { line: QueuedLine { bytes, tag }, completion } = from;
        self.queue.push(QueuedLine { bytes, tag: Waiting { tag, completion } });
        Ok(())
    }

    fn remove(&mut self, call: u64) -> Option<QueuedLine<Waiting>> {
        self.queue.remove(|waiting| matches!(waiting.tag, LineTag::Caller { call: Some(id), .. } if id == call))
    }

    fn take_all(&mut self) -> impl Iterator<Item = CallerLine> {
        self.queue.take_unsent(|_| true).into_iter().map(|QueuedLine { bytes, tag: Waiting { tag, completion } }| {
            CallerLine { line: QueuedLine { bytes, tag }, completion }
        })
    }

    fn end(&self) -> ConnectionEnd {
        let restarts_in = match self.route {
            Route::Down { starts_at } => Some(starts_at.saturating_duration_since(now())),
            Route::Unready { .. } | Route::Open(_) | Route::Disconnected | Route::Ended => None,
        };
        ConnectionEnd { exit: self.last_exit.clone(), restarts_in }
    }

    fn exit_error(&self) -> CallError {
        CallError::from(&self.end())
    }
}

impl CallerLine {
    fn is_fail_fast(&self) -> bool {
        self.line.tag.is_fail_fast()
    }
}

impl LineTag {
    fn is_fail_fast(self) -> bool {
        matches!(self, Self::Caller { when_down: WhenDown::Fail, .. })
    }
}
