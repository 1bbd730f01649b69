//! Which thread reads the control connection.
//!
//! A thread named `pipewright-control`, the listener, reads it and sends what arrives into a channel. A worker that serves on one
//! thread does not need this detour: that thread reads, and the listener sleeps until the thread spends long in a request.

use crate::wire::jsonrpc::{completion::Completion, endpoint::RpcEndpoint};
use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long the serving thread may be in a request before the listener reads instead. A cancellation or a `ping` is handled up
/// to two of these late.
const LISTENER_TICK: Duration = Duration::from_millis(10);

/// The state of the connection that its threads share, and the means to wake the listener.
#[derive(Debug, Default)]
pub(super) struct ReaderRole {
    shared: Mutex<Shared>,
    listener_wake: Condvar,
    is_listener_asleep: AtomicBool,
    /// Odd while the one serving thread is in a request.
    serve_epoch: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) endpoint: RpcEndpoint<Completion>,
    pub(super) is_closed: bool,
    servers: Servers,
}

/// How many threads serve.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Servers {
    #[default]
    None,
    One,
    /// None of them reads, since it would keep its requests to itself. Final, since some may be waiting for the listener.
    Many,
}

impl Shared {
    /// Whether the one serving thread reads, so that the listener need not.
    fn is_read_by_server(&self) -> bool {
        self.servers == Servers::One && self.endpoint.calls.is_empty() && !self.is_closed
    }
}

impl ReaderRole {
    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the listener, if it waits, to decide again whether it is needed.
    pub(super) fn wake_listener(&self) {
        self.listener_wake.notify_all();
    }

    /// Waits until the connection has ended. Returns false if `timeout` passes first.
    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        let waited = self.listener_wake.wait_timeout_while(self.shared(), timeout, |shared| !shared.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    pub(super) fn begin_serving(&self) -> Serving<'_> {
        let mut shared = self.shared();
        shared.servers = if shared.servers == Servers::None { Servers::One } else { Servers::Many };
        drop(shared);
        self.wake_listener();
        Serving(self)
    }

    /// Whether the listener leaves the reading to the serving thread.
    pub(super) fn is_read_by_server(&self) -> bool {
        self.shared().is_read_by_server() && !self.is_in_request()
    }

    /// Blocks the listener until it has to read: no thread serves, or the one that serves has been in a request for more than a
    /// tick, or a call waits for its answer.
    pub(super) fn wait_until_needed(&self) {
        let mut shared = self.shared();
        let mut previous = self.serve_epoch.load(Ordering::SeqCst);
        while shared.is_read_by_server() {
            let epoch = self.serve_epoch.load(Ordering::SeqCst);
            if epoch != previous {
                previous = epoch;
            } else if self.is_in_request() {
                return;
            } else {
                // No request for a tick. The next one wakes the listener; those that follow it soon do not have to.
                self.is_listener_asleep.store(true, Ordering::SeqCst);
                while shared.is_read_by_server() && self.serve_epoch.load(Ordering::SeqCst) == epoch {
                    shared = self.listener_wake.wait(shared).unwrap_or_else(PoisonError::into_inner);
                }
                self.is_listener_asleep.store(false, Ordering::SeqCst);
                continue;
            }
            let waited = self.listener_wake.wait_timeout(shared, LISTENER_TICK);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_in_request(&self) -> bool {
        self.serve_epoch.load(Ordering::SeqCst) % 2 == 1
    }
}

/// Exists while a thread serves.
pub(super) struct Serving<'a>(&'a ReaderRole);

impl Serving<'_> {
    /// Whether this thread is the only one that serves, and therefore reads.
    pub(super) fn is_only_server(&self) -> bool {
        self.0.shared().servers == Servers::One
    }

    pub(super) fn begin_request(&self) -> ActiveRequest<'_> {
        self.0.serve_epoch.fetch_add(1, Ordering::SeqCst);
        if self.0.is_listener_asleep.load(Ordering::SeqCst) {
            // The listener holds the lock from its check until it waits: after this it cannot miss the notification.
            drop(self.0.shared());
            self.0.wake_listener();
        }
        ActiveRequest(self.0)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut shared = self.0.shared();
        if shared.servers == Servers::One {
            shared.servers = Servers::None;
        }
        drop(shared);
        self.0.wake_listener();
    }
}

/// Exists while the one serving thread is in a request, which may panic.
pub(super) struct ActiveRequest<'a>(&'a ReaderRole);

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.0.serve_epoch.fetch_add(1, Ordering::SeqCst);
    }
}
