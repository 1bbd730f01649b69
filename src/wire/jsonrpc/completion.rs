//! The outcome of a call: set once, by the first of its answer, its cancellation and the end of its connection.
//!
//! It does not depend on a connection, so a call may move from one to another. A thread waits for it, a
//! task polls it, or an observer receives it.

use super::error::Answer;
use std::{
    fmt, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
#[cfg(feature = "async")]
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Poll, Waker},
};

/// The outcome of a call. Clones share it: one side completes it, the other takes the answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Completion(Arc<CompletionCell>);

/// Receives the outcomes of calls on the threads that complete them, for example the event loop's. Must not block.
pub(crate) trait ObserveCompletion: Send + Sync + fmt::Debug {
    /// The call with this tag has ended.
    fn completed(&self, tag: u64, answer: Answer);
}

#[derive(Debug, Default)]
struct CompletionCell {
    state: Mutex<CompletionState>,
    completed: Condvar,
}

#[derive(Debug)]
enum CompletionState {
    Pending(Waiter),
    Completed(Answer),
    /// The answer was taken, or passed to the observer.
    Taken,
}

impl Default for CompletionState {
    fn default() -> Self {
        Self::Pending(Waiter::None)
    }
}

/// What the completion notifies.
#[derive(Debug, Default)]
enum Waiter {
    #[default]
    None,
    Thread,
    #[cfg(feature = "async")]
    Task(Waker),
    Observer(Arc<dyn ObserveCompletion>, u64),
}

impl Completion {
    /// Creates a completion that passes its answer to `observer`.
    pub(crate) fn observed(observer: Arc<dyn ObserveCompletion>, tag: u64) -> Self {
        let state = CompletionState::Pending(Waiter::Observer(observer, tag));
        Self(Arc::new(CompletionCell { state: Mutex::new(state), completed: Condvar::new() }))
    }

    /// Ends the call with `answer`. Returns false if it has ended already: the first outcome counts. Must not be called
    /// under a lock that the observer takes.
    pub(crate) fn complete(&self, answer: Answer) -> bool {
        let mut state = self.lock();
        let CompletionState::Pending(waiter) = &mut *state else { return false };
        match mem::take(waiter) {
            Waiter::None => *state = CompletionState::Completed(answer),
            Waiter::Thread => {
                *state = CompletionState::Completed(answer);
                drop(state);
                self.0.completed.notify_one();
            }
            #[cfg(feature = "async")]
            Waiter::Task(waker) => {
                *state = CompletionState::Completed(answer);
                drop(state);
                wake(waker);
            }
            Waiter::Observer(observer, tag) => {
                *state = CompletionState::Taken;
                drop(state);
                observer.completed(tag, answer);
            }
        }
        true
    }

    /// Whether the call has ended.
    pub(crate) fn is_complete(&self) -> bool {
        !matches!(*self.lock(), CompletionState::Pending(_))
    }

    /// Takes the answer; `None` while the call is open, and if the answer was taken before.
    pub(crate) fn take(&self) -> Option<Answer> {
        take(&mut self.lock())
    }

    /// Waits up to `timeout` for the answer, and takes it; `None` at the timeout, and if the answer was taken before.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Answer> {
        let mut state = self.lock();
        if let CompletionState::Pending(waiter) = &mut *state {
            *waiter = Waiter::Thread;
        }
        let is_pending = |state: &mut CompletionState| matches!(state, CompletionState::Pending(_));
        let waited = self.0.completed.wait_timeout_while(state, timeout, is_pending);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        take(&mut state)
    }

    /// Takes the answer, or has the task of `waker` woken when there is one. The waker of the last call counts.
    #[cfg(feature = "async")]
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<Answer> {
        let mut state = self.lock();
        let CompletionState::Pending(waiter) = &mut *state else {
            return take(&mut state).map_or(Poll::Pending, Poll::Ready);
        };
        let previous = match waiter {
            Waiter::Task(known) if known.will_wake(waker) => Waiter::None,
            other => mem::replace(other, Waiter::Task(waker.clone())),
        };
        drop(state);
        // Outside the lock: the drop of a waker may run any code.
        drop(previous);
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, CompletionState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes a task. The waker of a runtime should not panic; if it does, the thread that completes the call goes on.
#[cfg(feature = "async")]
fn wake(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        // Its destructor may panic too.
        Box::leak(payload);
    }
}

fn take(state: &mut CompletionState) -> Option<Answer> {
    match mem::replace(state, CompletionState::Taken) {
        CompletionState::Completed(answer) => Some(answer),
        other => {
            *state = other;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::jsonrpc::error::CallError;
    use serde_json::value::{RawValue, to_raw_value};
    use std::thread;

    const LONG: Duration = Duration::from_secs(20);

    fn number(number: u32) -> Box<RawValue> {
        to_raw_value(&number).unwrap()
    }

    fn text(answer: Option<Answer>) -> Option<String> {
        answer.map(|answer| answer.as_deref().map_or("error", RawValue::get).to_owned())
    }

    #[test]
    fn p02_the_first_outcome_of_a_call_counts() {
        let completion = Completion::default();
        assert_eq!((completion.is_complete(), text(completion.take())), (false, None));
        assert_eq!(text(completion.wait(Duration::ZERO)), None);
        assert!(completion.complete(Ok(number(7))));
        assert!(!completion.complete(Err(CallError::Cancelled)) && completion.is_complete());
        assert_eq!(text(completion.take()).as_deref(), Some("7"));
        assert!(!completion.complete(Ok(number(8))) && completion.is_complete());
        assert_eq!((text(completion.take()), text(completion.wait(LONG))), (None, None), "it is taken once");
    }

    #[derive(Debug, Default)]
    struct Observed(Mutex<Vec<(u64, bool)>>);

    impl ObserveCompletion for Observed {
        fn completed(&self, tag: u64, answer: Answer) {
            self.0.lock().unwrap().push((tag, answer.is_ok()));
        }
    }

    #[test]
    fn p02_observer_receives_the_outcome_once() {
        let observer = Arc::new(Observed::default());
        let completion = Completion::observed(Arc::clone(&observer) as Arc<dyn ObserveCompletion>, 5);
        assert!(completion.complete(Ok(number(7))) && !completion.complete(Err(CallError::TimedOut)));
        assert_eq!(*observer.0.lock().unwrap(), [(5, true)]);
        assert!(completion.is_complete() && completion.take().is_none());
    }

    #[test]
    fn p15_completion_wakes_a_thread() {
        let completion = Completion::default();
        let other = completion.clone();
        let waiting = thread::Builder::new().spawn(move || text(other.wait(LONG))).unwrap();
        while !matches!(*completion.lock(), CompletionState::Pending(Waiter::Thread)) {
            thread::yield_now();
        }
        completion.complete(Ok(number(7)));
        assert_eq!(waiting.join().unwrap().as_deref(), Some("7"));
    }

    #[cfg(feature = "async")]
    mod tasks {
        use super::*;
        use crate::wire::jsonrpc::test_wakers::{Count, Panicking};

        #[test]
        fn p15_completion_wakes_the_task_that_polled_last() {
            let completion = Completion::default();
            let tasks: [Arc<Count>; 2] = Default::default();
            for task in [&tasks[0], &tasks[1], &tasks[1]] {
                assert!(completion.poll(&Waker::from(Arc::clone(task))).is_pending());
            }
            completion.complete(Ok(number(7)));
            assert_eq!(tasks.each_ref().map(|task| task.get()), [0, 1]);
            assert!(matches!(completion.poll(Waker::noop()), Poll::Ready(Ok(_))));
            assert!(completion.poll(Waker::noop()).is_pending());
        }

        #[test]
        fn p06_panic_of_a_waker_does_not_leave_the_completion() {
            let completion = Completion::default();
            assert!(completion.poll(&Waker::from(Arc::new(Panicking))).is_pending());
            assert!(completion.complete(Ok(number(7))));
            assert_eq!(text(completion.take()).as_deref(), Some("7"));
        }
    }
}
