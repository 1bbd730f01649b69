//! Runs tests, a limited number at a time.

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
    Event, EventKind, Exit, SpawnError, StopPolicy, StopStep, Supervisor, WorkerId, events::OutputStream::Stdout,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

const SIGTERM: i32 = 15;

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

/// A test that waits for its start, or for its next attempt.
struct Waiting {
    result: TestResult,
    not_before: Option<Instant>,
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
    options: &'a RunOptions,
    output_options: &'a OutputOptions,
    report: &'a mut Report,
    waiting: VecDeque<Waiting>,
    running: HashMap<WorkerId, Running>,
    finished: Vec<TestResult>,
    failures: usize,
    is_cancelled: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        supervisor: &'a Supervisor,
        options: (&'a RunOptions, &'a OutputOptions),
        report: &'a mut Report,
        tests: Vec<Test>,
    ) -> Self {
        let waiting = |test| Waiting { result: TestResult { test, attempts: Vec::new() }, not_before: None };
        Self {
            supervisor,
            options: options.0,
            output_options: options.1,
            report,
            waiting: tests.into_iter().map(waiting).collect(),
            running: HashMap::new(),
            finished: Vec::new(),
            failures: 0,
            is_cancelled: false,
        }
    }

    /// Runs all tests. Returns those that ran, in the order of their ends, and then those that did not.
    pub(crate) fn run(mut self, interrupts: &Receiver<i32>) -> Vec<TestResult> {
        let mut interrupts = interrupts.clone();
        loop {
            self.start_more();
            if self.running.is_empty() && (self.is_cancelled || self.waiting.is_empty()) {
                break;
            }
            let timer = self.next_timer().map_or_else(never, crossbeam_channel::at);
            crossbeam_channel::select! {
                recv(self.supervisor.events()) -> event => match event {
                    Ok(event) => self.handle(event),
                    Err(_) => break,
                },
                recv(interrupts) -> signal => match signal {
                    // The supervisor handles the signal, too, and stops the tests.
                    Ok(signal) => self.cancel(Cancellation::Signal(signal)),
                    Err(_) => interrupts = never(),
                },
                recv(timer) -> _ => self.report_slow(),
            }
        }
        self.finished.extend(self.waiting.into_iter().map(|waiting| waiting.result));
        self.finished
    }

    /// Starts no more tests.
    fn cancel(&mut self, why: Cancellation) {
        if !self.is_cancelled {
            report::cancelled(why, self.running.len());
        }
        self.is_cancelled = true;
    }

    fn start_more(&mut self) {
        let now = now();
        while !self.is_cancelled && self.running.len() < self.options.at_a_time {
            let is_due = |waiting: &Waiting| waiting.not_before.is_none_or(|time| time <= now);
            let Some(position) = self.waiting.iter().position(is_due) else { return };
            if let Some(waiting) = self.waiting.remove(position) {
                self.start(waiting.result);
            }
        }
    }

    fn start(&mut self, result: TestResult) {
        let stop = StopPolicy::kill().step([StopStep::SignalGroup(SIGTERM)], self.options.grace_period);
        let mut spec = result.test.spec().stop(stop).drain_timeout(self.options.leak_timeout);
        if let Some(periods) = self.options.terminate_after {
            spec = spec.runtime_max(self.options.slow_timeout.saturating_mul(periods));
        }
        match self.supervisor.spawn(spec) {
            Ok(worker) => {
                let tap = (result.test.program.kind == ProgramKind::Tap).then(Tap::default);
                let running = Running { result, started: now(), slow_periods: 0, output: KeptOutput::default(), tap };
                self.running.insert(worker.id(), running);
            }
            // A signal that arrives now.
            Err(SpawnError::SupervisorGone) => {
                self.waiting.push_front(Waiting { result, not_before: None });
                self.is_cancelled = true;
            }
            Err(error) => self.end_attempt(result, |number| Attempt {
                number,
                verdict: Verdict::NotStarted,
                reason: Some(error.to_string()),
                exit: None,
                duration: Duration::ZERO,
                is_slow: false,
                leaks: Vec::new(),
                output: None,
            }),
        }
    }

    fn handle(&mut self, event: Event) {
        let Some(running) = self.running.get_mut(&event.worker) else { return };
        match event.kind {
            EventKind::Output { stream, bytes } => {
                if let Some(tap) = running.tap.as_mut().filter(|_| stream == Stdout) {
                    tap.read(bytes.as_bytes());
                }
                running.output.push(bytes.as_bytes());
            }
            EventKind::RuntimeExceeded { after } => self.report.terminating(&running.result, after),
            EventKind::Exited { exit, .. } => {
                if let Some(running) = self.running.remove(&event.worker) {
                    self.exited(running, exit);
                }
            }
            _ => {}
        }
    }

    fn exited(&mut self, running: Running, exit: Arc<Exit>) {
        let Running { result, slow_periods, output, tap, .. } = running;
        let tap = tap.map(|mut tap| tap.finish());
        let (verdict, reason) = judge(&exit, tap, self.options.fails_on_leaks);
        let when =
            if verdict.is_failure() { self.output_options.of_failures } else { self.output_options.of_successes };
        let is_kept =
            when.immediate || when.at_the_end || (verdict.is_failure() && self.output_options.junit.is_some());
        self.end_attempt(result, |number| Attempt {
            number,
            verdict,
            reason,
            duration: exit.duration,
            is_slow: slow_periods > 0,
            leaks: leaks(&exit),
            output: is_kept.then(|| output.text()),
            exit: Some(exit),
        });
    }

    fn end_attempt(&mut self, mut result: TestResult, attempt: impl FnOnce(u32) -> Attempt) {
        let number = u32::try_from(result.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let attempt = attempt(number);
        let is_failure = attempt.verdict.is_failure();
        result.attempts.push(attempt);
        if is_failure && number <= self.options.retries && !self.is_cancelled {
            self.report.retrying(&result);
            let not_before = now().checked_add(self.options.retry_delay);
            self.waiting.push_front(Waiting { result, not_before });
            return;
        }
        self.report.finished(&result);
        self.finished.push(result);
        self.failures += usize::from(is_failure);
        if is_failure && self.options.max_failures.is_some_and(|max| self.failures >= max) && !self.waiting.is_empty() {
            self.cancel(Cancellation::Failures);
        }
    }

    /// When the next test becomes slow, or is retried.
    fn next_timer(&self) -> Option<Instant> {
        let slow = self.running.values().filter_map(|running| self.next_slow(running));
        let has_room = !self.is_cancelled && self.running.len() < self.options.at_a_time;
        let retries = self.waiting.iter().filter(|_| has_room).filter_map(|waiting| waiting.not_before);
        slow.chain(retries).min()
    }

    fn next_slow(&self, running: &Running) -> Option<Instant> {
        let period = self.options.slow_timeout.checked_mul(running.slow_periods.saturating_add(1))?;
        running.started.checked_add(period)
    }

    fn report_slow(&mut self) {
        let now = now();
        let is_due = |running: &Running| self.next_slow(running).is_some_and(|time| time <= now);
        let due: Vec<WorkerId> =
            self.running.iter().filter(|(_, running)| is_due(running)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.slow_periods = running.slow_periods.saturating_add(1);
            // The last period is reported as the end.
            if self.options.terminate_after.is_none_or(|last| running.slow_periods < last) {
                self.report.slow(&running.result, self.options.slow_timeout.saturating_mul(running.slow_periods));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "slow tests are measured by the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
