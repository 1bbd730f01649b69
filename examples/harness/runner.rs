//! Runs tests as jobs of a queue.

use crate::{
    options::{OutputOptions, RunOptions},
    output::KeptOutput,
    program::{ProgramKind, Test},
    report::{self, Cancellation, Report},
    tap::Tap,
    verdict::{Attempt, Verdict, judge, leaks},
};
use crossbeam_channel::{Receiver, never};
use pipewright::{
    Event, EventKind, Exit, ExitCause, SignalGuard, StopPolicy, StopStep, Supervisor, WorkerId,
    events::OutputStream::Stdout,
    pool::{JobError, JobSpec, Jobs},
};
use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

const SIGTERM: i32 = 15;
/// Of retries: they run before the tests that wait for their first attempt.
const RETRY_PRIORITY: i32 = 1;

/// All attempts to run a test; none if it did not run.
#[derive(Debug)]
pub(crate) struct TestResult {
    pub(crate) test: Test,
    pub(crate) attempts: Vec<Attempt>,
}

impl TestResult {
    /// The last attempt, which counts.
    pub(crate) fn last(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    pub(crate) fn is_flaky(&self) -> bool {
        self.attempts.len() > 1 && self.last().is_some_and(|last| last.verdict == Verdict::Passed)
    }
}

struct Running {
    result: TestResult,
    started: Instant,
    slow_periods: u32,
    output: KeptOutput,
    tap: Option<Tap>,
}

pub(crate) struct Runner<'a> {
    supervisor: &'a Supervisor,
    jobs: &'a Jobs,
    signals: &'a SignalGuard,
    options: &'a RunOptions,
    output_options: &'a OutputOptions,
    report: &'a mut Report,
    /// Tests that are not in the queue yet.
    waiting: VecDeque<TestResult>,
    /// Tests that wait for a slot.
    queued: HashMap<WorkerId, TestResult>,
    running: HashMap<WorkerId, Running>,
    /// Tests that wait for the time of their next attempt.
    delayed: Vec<(Instant, TestResult)>,
    finished: Vec<TestResult>,
    not_run: Vec<TestResult>,
    failures: usize,
    is_cancelled: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        (supervisor, jobs, signals): (&'a Supervisor, &'a Jobs, &'a SignalGuard),
        (options, output_options): (&'a RunOptions, &'a OutputOptions),
        report: &'a mut Report,
    ) -> Self {
        Self {
            supervisor,
            jobs,
            signals,
            options,
            output_options,
            report,
            waiting: VecDeque::new(),
            queued: HashMap::new(),
            running: HashMap::new(),
            delayed: Vec::new(),
            finished: Vec::new(),
            not_run: Vec::new(),
            failures: 0,
            is_cancelled: false,
        }
    }

    /// Runs the tests. Returns those that ran, in the order of their ends, and then those that did not.
    pub(crate) fn run(mut self, tests: Vec<Test>, interrupts: &Receiver<i32>) -> Vec<TestResult> {
        self.waiting = tests.into_iter().map(|test| TestResult { test, attempts: Vec::new() }).collect();
        let mut interrupts = interrupts.clone();
        loop {
            self.fill_queue();
            if self.queued.is_empty() && self.running.is_empty() && self.delayed.is_empty() {
                break;
            }
            let timer = self.next_timer().map_or_else(never, crossbeam_channel::at);
            crossbeam_channel::select! {
                recv(self.supervisor.events()) -> event => match event {
                    Ok(event) => self.handle(event),
                    Err(_) => break,
                },
                recv(interrupts) -> signal => match signal {
                    // The supervisor handles the signal, too: it stops the tests and starts no more.
                    Ok(signal) => {
                        self.handle_pending();
                        self.cancel(Cancellation::Signal(signal));
                    }
                    Err(_) => interrupts = never(),
                },
                recv(timer) -> _ => self.handle_timers(),
            }
        }
        self.finished.append(&mut self.not_run);
        self.finished
    }

    /// Submits tests. If a failure is to end the run, only as many as can run at a time: the queue would start the next test before the
    /// failure is known here.
    fn fill_queue(&mut self) {
        let limit = if self.options.max_failures.is_some() { self.options.at_a_time } else { usize::MAX };
        while self.queued.len() + self.running.len() < limit {
            let Some(result) = self.waiting.pop_front() else { return };
            self.submit(result);
        }
    }

    /// Starts no more tests. At a signal, the supervisor has also stopped those that run, and emptied the queue.
    fn cancel(&mut self, why: Cancellation) {
        if self.is_cancelled {
            return;
        }
        self.is_cancelled = true;
        report::cancelled(why, self.running.len());
        let delayed = mem::take(&mut self.delayed).into_iter().map(|(_, result)| result);
        let rest: Vec<TestResult> = mem::take(&mut self.waiting).into_iter().chain(delayed).collect();
        for result in rest {
            self.end(result);
        }
    }

    fn submit(&mut self, result: TestResult) {
        let stop = StopPolicy::kill().step([StopStep::SignalGroup(SIGTERM)], self.options.grace_period);
        let mut spec = result
            .test
            .spec()
            .stop(stop)
            .drain_timeout(self.options.leak_timeout)
            .survivor_grace_period(self.options.leak_timeout);
        if let Some(periods) = self.options.terminate_after {
            spec = spec.runtime_max(self.options.slow_timeout.saturating_mul(periods));
        }
        let priority = if result.attempts.is_empty() { 0 } else { RETRY_PRIORITY };
        match self.jobs.submit(JobSpec::new(spec).priority(priority)) {
            Ok(job) => drop(self.queued.insert(job.id(), result)),
            // A signal that has just arrived.
            Err(JobError::SupervisorGone) => self.end(result),
            Err(error) => self.not_started(result, error.to_string()),
        }
    }

    /// Handles what happened before a signal, so that the number of running tests is right.
    fn handle_pending(&mut self) {
        while let Ok(event) = self.supervisor.events().try_recv() {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event.kind {
            EventKind::Started { .. } => {
                if let Some(result) = self.queued.remove(&event.worker) {
                    let tap = (result.test.program.kind == ProgramKind::Tap).then(Tap::default);
                    let output = KeptOutput::default();
                    self.running.insert(event.worker, Running { result, started: now(), slow_periods: 0, output, tap });
                }
            }
            EventKind::Output { stream, bytes } => {
                if let Some(running) = self.running.get_mut(&event.worker) {
                    if let Some(tap) = running.tap.as_mut().filter(|_| stream == Stdout) {
                        tap.read(bytes.as_bytes());
                    }
                    running.output.push(bytes.as_bytes());
                }
            }
            EventKind::RuntimeExceeded { after } => {
                if let Some(running) = self.running.get(&event.worker) {
                    self.report.terminating(&running.result, after);
                }
            }
            EventKind::Exited { exit, .. } => {
                // The end of the first test may be known before the signal's own thread has sent it.
                if let (ExitCause::SupervisorEnd, Some(signal)) = (exit.cause, self.signals.received()) {
                    self.cancel(Cancellation::Signal(signal));
                }
                if let Some(running) = self.running.remove(&event.worker) {
                    self.exited(running, exit);
                }
            }
            EventKind::SpawnFailed { error, next } if next.is_final() => {
                if let Some(result) = self.queued.remove(&event.worker) {
                    self.not_started(result, error.to_string());
                }
            }
            EventKind::NotStarted { .. } => {
                if let Some(result) = self.queued.remove(&event.worker) {
                    self.end(result);
                }
            }
            _ => {}
        }
    }

    fn exited(&mut self, running: Running, exit: Arc<Exit>) {
        let Running { result, slow_periods, output, tap, .. } = running;
        let tap = tap.map(|mut tap| tap.finish());
        let (verdict, reason) = judge(&exit, tap, self.options.fails_on_leaks);
        let is_failure = verdict.is_failure();
        let when = if is_failure { self.output_options.of_failures } else { self.output_options.of_successes };
        let is_kept = when.immediate || when.at_the_end || (is_failure && self.output_options.junit.is_some());
        let attempt = Attempt {
            verdict,
            reason,
            duration: exit.duration,
            is_slow: slow_periods > 0,
            leaks: leaks(&exit),
            output: is_kept.then(|| output.text()),
            ..Attempt::of(Some(exit))
        };
        self.end_attempt(result, attempt);
    }

    fn not_started(&mut self, result: TestResult, reason: String) {
        let attempt = Attempt { verdict: Verdict::NotStarted, reason: Some(reason), ..Attempt::of(None) };
        self.end_attempt(result, attempt);
    }

    fn end_attempt(&mut self, mut result: TestResult, attempt: Attempt) {
        let number = u32::try_from(result.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let is_retried = attempt.verdict.is_failure() && number <= self.options.retries && !self.is_cancelled;
        result.attempts.push(Attempt { number, ..attempt });
        if !is_retried {
            return self.end(result);
        }
        self.report.retrying(&result);
        match now().checked_add(self.options.retry_delay) {
            Some(time) if !self.options.retry_delay.is_zero() => self.delayed.push((time, result)),
            _ => self.waiting.push_front(result),
        }
    }

    /// The end of a test, whose last attempt counts. Without one it has not run.
    fn end(&mut self, result: TestResult) {
        let Some(last) = result.last() else {
            self.not_run.push(result);
            return;
        };
        let is_failure = last.verdict.is_failure();
        self.report.finished(&result);
        self.finished.push(result);
        self.failures += usize::from(is_failure);
        let has_more = !(self.waiting.is_empty() && self.delayed.is_empty());
        if is_failure && has_more && self.options.max_failures.is_some_and(|max| self.failures >= max) {
            self.cancel(Cancellation::Failures);
        }
    }

    /// When the next test becomes slow, or is retried.
    fn next_timer(&self) -> Option<Instant> {
        let slow = self.running.values().filter_map(|running| self.next_slow(running));
        slow.chain(self.delayed.iter().map(|(time, _)| *time)).min()
    }

    fn next_slow(&self, running: &Running) -> Option<Instant> {
        let period = self.options.slow_timeout.checked_mul(running.slow_periods.saturating_add(1))?;
        running.started.checked_add(period)
    }

    fn handle_timers(&mut self) {
        let now = now();
        let delayed = mem::take(&mut self.delayed);
        let (due, delayed): (Vec<_>, Vec<_>) = delayed.into_iter().partition(|(time, _)| *time <= now);
        self.delayed = delayed;
        for (_, result) in due {
            self.waiting.push_front(result);
        }
        self.report_slow(now);
    }

    fn report_slow(&mut self, now: Instant) {
        let is_due = |running: &Running| self.next_slow(running).is_some_and(|time| time <= now);
        let due: Vec<WorkerId> =
            self.running.iter().filter(|(_, running)| is_due(running)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.slow_periods = running.slow_periods.saturating_add(1);
            // The last period is reported as the end.
            if self.options.terminate_after.is_none_or(|last| running.slow_periods < last) {
                let after: Duration = self.options.slow_timeout.saturating_mul(running.slow_periods);
                self.report.slow(&running.result, after);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "slow tests are measured by the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
