//! Open calls whose results arrive in one channel.

use crate::{
    ids::WorkerId,
    supervisor::{
        control::{
            call::{CallCanceller, PendingCall, decode_result},
            call_span::CallSpan,
            connection::WhenFull,
        },
        handles::worker::Worker,
        sync::lock,
    },
    sys::this_process::own_pid,
    wire::jsonrpc::{
        completion::{Completion, ObserveCompletion},
        error::{Answer, CallError},
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fmt, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Open calls to any number of workers. Their results arrive in one crossbeam channel, in the order in which the calls end: for `select!`
/// with the [events](crate::Supervisor::events), or for a thread that waits for many calls at once.
///
/// Each call has a tag, which is returned with its result. It ends exactly once: by its answer, an error, the exit of its worker or its
/// [`CallCanceller`]. It has no timeout. The channel holds at most one entry for each call that was started.
///
/// ```no_run
/// use crossbeam_channel::select;
/// use pipewright::{CallSet, Pass, Supervisor, WorkerSpec};
///
/// let supervisor = Supervisor::new()?;
/// let calls = CallSet::new();
/// for file in ["a.c", "b.c"] {
///     let linter = supervisor.spawn(WorkerSpec::new("./linter").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
///     calls.start(&linter, file, "lint", &[file])?;
/// }
/// while !calls.is_empty() {
///     select! {
///         recv(calls.finished()) -> call => {
///             let (file, problems) = call?.into_result::<Vec<String>>();
///             println!("{file}: {:?}", problems?);
///         }
///         recv(supervisor.events()) -> event => println!("{:?}", event?.kind),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping the set cancels the calls that are open.
#[doc(alias = "JoinSet")]
#[doc(alias = "FuturesUnordered")]
pub struct CallSet<T> {
    calls: Arc<SharedCalls<T>>,
    finished: Receiver<FinishedCall<T>>,
    last_number: AtomicU64,
    /// The process that has created the set.
    owner: i32,
}

/// A call of a [`CallSet`] that has ended.
#[non_exhaustive]
pub struct FinishedCall<T> {
    /// The tag that was passed to [`CallSet::start`].
    pub tag: T,
    /// The worker that was called.
    pub worker: WorkerId,
    answer: Answer,
    span: CallSpan,
}

/// Shared by the set and the completions of its calls.
struct SharedCalls<T> {
    /// Locked while a call is started, since it may end before that returns.
    open: Mutex<HashMap<u64, OpenCall<T>>>,
    results: Sender<FinishedCall<T>>,
}

struct OpenCall<T> {
    tag: T,
    worker: WorkerId,
    call: PendingCall,
}

impl<T: Send + 'static> CallSet<T> {
    /// Creates an empty set.
    pub fn new() -> Self {
        let (results, finished) = crossbeam_channel::unbounded();
        let calls = Arc::new(SharedCalls { open: Mutex::default(), results });
        Self { calls, finished, last_number: AtomicU64::new(0), owner: own_pid() }
    }

    /// Starts a call. Returns a handle that cancels it: its result is then [`Cancelled`](CallError::Cancelled), and the worker is notified.
    ///
    /// # Errors
    ///
    /// As [`Worker::start_call`]. The call is then not in the set.
    pub fn start<P>(&self, worker: &Worker, tag: T, method: &str, params: &P) -> Result<CallCanceller, CallError>
    where
        P: Serialize + ?Sized,
    {
        let unsent = worker.prepare_call(method, params, WhenFull::Fail)?;
        let number = self.last_number.fetch_add(1, Ordering::Relaxed);
        let completion = Completion::observed(Arc::clone(&self.calls) as Arc<dyn ObserveCompletion>, number);
        let mut open = lock(&self.calls.open);
        let call = unsent.send(completion)?;
        let canceller = call.cancel_handle();
        open.insert(number, OpenCall { tag, worker: worker.id(), call });
        Ok(canceller)
    }
}

impl<T> CallSet<T> {
    /// Returns the channel of finished calls. It can be cloned for several consumers, each of which receives a part of them.
    pub fn finished(&self) -> &Receiver<FinishedCall<T>> {
        &self.finished
    }

    /// Returns the number of calls that are open or whose results are not received.
    pub fn len(&self) -> usize {
        let open = lock(&self.calls.open);
        open.len().saturating_add(self.finished.len())
    }

    /// Whether no call is open and all results are received.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Send + 'static> Default for CallSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FinishedCall<T> {
    /// Returns the tag, and the result or why there is none.
    pub fn into_result<R: DeserializeOwned>(self) -> (T, Result<R, CallError>) {
        let Self { tag, answer, mut span, worker: _ } = self;
        let result = answer.and_then(|answer| decode_result(&answer));
        span.end(result.as_ref().err());
        (tag, result)
    }
}

impl<T: Send> ObserveCompletion for SharedCalls<T> {
    fn completed(&self, number: u64, answer: Answer) {
        let mut open = lock(&self.open);
        let Some(OpenCall { tag, worker, mut call }) = open.remove(&number) else { return };
        let span = mem::take(&mut call.span);
        // Fails if the set and all receivers are dropped. Under the lock, so that no call is missing in `len` meanwhile.
        drop(self.results.send(FinishedCall { tag, worker, answer, span }));
        drop(open);
        // Notifies the worker if the call was cancelled.
        drop(call);
    }
}

impl<T> Drop for CallSet<T> {
    #[expect(clippy::mem_forget, reason = "dropping a channel takes locks that a fork may have copied locked")]
    fn drop(&mut self) {
        if self.owner != own_pid() {
            mem::forget(Arc::clone(&self.calls));
            mem::forget(mem::replace(&mut self.finished, crossbeam_channel::never()));
            return;
        }
        let open = mem::take(&mut *lock(&self.calls.open));
        for OpenCall { call, .. } in open.into_values() {
            // Releases this set, which its cancellers keep alive otherwise.
            call.cancel_handle().cancel();
        }
    }
}

impl<T> fmt::Debug for CallSet<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CallSet").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T: fmt::Debug> fmt::Debug for FinishedCall<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.answer.as_ref().err();
        let mut call = formatter.debug_struct("FinishedCall");
        call.field("tag", &self.tag).field("worker", &self.worker.0).field("error", &error).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for SharedCalls<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SharedCalls").finish_non_exhaustive()
    }
}
