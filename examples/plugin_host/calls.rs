//! Open calls, with their deadlines.

use crossbeam_channel::Receiver;
use pipewright::{CallCanceller, CallError, CallSet, FinishedCall, Request, Worker, WorkerId};
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// A plugin that calls another one in a circle would open calls until the first deadline.
const OPEN_MAX: usize = 1000;
/// How often is checked whether a plugin has cancelled its own request, while such a call is open.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Names a call. Those of the prompt have numbers of their own, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CallId {
    Prompt(u64),
    Plugin(u64),
}

impl fmt::Display for CallId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt(number) => write!(formatter, "[{number}]"),
            Self::Plugin(_) => formatter.write_str("[by a plugin]"),
        }
    }
}

/// What waits for the result.
#[derive(Debug)]
pub(crate) enum Caller {
    Prompt,
    /// A plugin that calls another one.
    Plugin(Box<Request>),
}

/// A call that is to be started.
pub(crate) struct NewCall {
    pub(crate) worker: Worker,
    pub(crate) method: String,
    pub(crate) params: Value,
    pub(crate) timeout: Duration,
    pub(crate) caller: Caller,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: CallId,
    worker: Worker,
    method: String,
    began: Instant,
    timeout: Duration,
    pub(crate) caller: Caller,
    canceller: CallCanceller,
    is_late: bool,
}

impl Call {
    /// For `list`.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let age = now.saturating_duration_since(self.began);
        format!("{} {}, for {age:.1?}", self.id, self.target())
    }

    /// The worker and the method.
    pub(crate) fn target(&self) -> String {
        format!("{} {}", self.worker.name(), self.method)
    }

    /// `None` if the timeout is too long for the clock.
    fn deadline(&self) -> Option<Instant> {
        self.began.checked_add(self.timeout)
    }

    /// Why there is no result.
    pub(crate) fn failure(&self, error: &CallError) -> String {
        match error {
            CallError::Cancelled if self.is_late => format!("no answer within {:?}, cancelled", self.timeout),
            error => error.to_string(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Calls {
    set: CallSet<CallId>,
    open: BTreeMap<CallId, Call>,
    /// Of the calls of the prompt.
    last_number: u64,
    /// Of the calls of plugins.
    last_callback: u64,
}

impl Calls {
    /// Starts a call, or returns the caller and why it cannot be started.
    pub(crate) fn start(&mut self, call: NewCall, now: Instant) -> Result<(), (Caller, String)> {
        let NewCall { worker, method, params, timeout, caller } = call;
        if self.open.len() >= OPEN_MAX {
            return Err((caller, format!("{OPEN_MAX} calls are open")));
        }
        let (last, id): (_, fn(u64) -> CallId) = match caller {
            Caller::Prompt => (&mut self.last_number, CallId::Prompt),
            Caller::Plugin(_) => (&mut self.last_callback, CallId::Plugin),
        };
        *last += 1;
        let id = id(*last);
        match self.set.start(&worker, id, &method, &params) {
            Err(error) => Err((caller, format!("{id} {} {method} failed: {error}", worker.name()))),
            Ok(canceller) => {
                let call = Call { id, worker, method, began: now, timeout, caller, canceller, is_late: false };
                self.open.insert(id, call);
                Ok(())
            }
        }
    }

    pub(crate) fn finished(&self) -> &Receiver<FinishedCall<CallId>> {
        self.set.finished()
    }

    /// Takes a call that has ended.
    pub(crate) fn finish(
        &mut self,
        finished: FinishedCall<CallId>,
    ) -> Option<(Call, Result<Box<RawValue>, CallError>)> {
        let (id, result) = finished.into_result();
        Some((self.open.remove(&id)?, result))
    }

    /// Cancels a call of the prompt. Returns whether there is such a call. It ends as any other.
    pub(crate) fn cancel(&self, number: u64) -> bool {
        self.open.get(&CallId::Prompt(number)).inspect(|call| call.canceller.cancel()).is_some()
    }

    pub(crate) fn cancel_all(&self) {
        self.open.values().for_each(|call| call.canceller.cancel());
    }

    /// Cancels calls whose time is over, or whose result is no longer needed.
    pub(crate) fn expire(&mut self, now: Instant) {
        for call in self.open.values_mut() {
            call.is_late |= call.deadline().is_some_and(|deadline| deadline <= now);
            if call.is_late || matches!(&call.caller, Caller::Plugin(request) if request.is_cancelled()) {
                call.canceller.cancel();
            }
        }
    }

    /// When to call `expire`.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let has_nested = self.open.values().any(|call| matches!(call.caller, Caller::Plugin(_)));
        let check = has_nested.then(|| now + CHECK_INTERVAL);
        // Calls that are late wait for their end in the channel.
        let deadlines = self.open.values().filter(|call| !call.is_late).filter_map(Call::deadline);
        deadlines.chain(check).min()
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = &Call> {
        self.open.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn is_calling(&self, worker: WorkerId) -> bool {
        self.open.values().any(|call| call.worker.id() == worker)
    }
}
