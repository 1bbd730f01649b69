//! Jobs: workers whose starts wait for a slot of their queue.

use crate::{
    exit::ExitCause,
    ids::WorkerId,
    policy::{
        restart::{AfterExit, GiveUpReason},
        restart_history::{RestartDecision, RunEnd},
        schedule::task::{QueueId, TaskId, TaskOutput},
    },
    supervisor::{
        commands::{Action, JobCommand, NewJob},
        events::event::{Event, EventKind},
        reactor::timers::Timer,
        supervision::{
            Supervision, SupervisionContext,
            restart::next_seed,
            shutdown::Phase,
            worker::{DesiredState, WorkerPhase, WorkerRecord},
        },
        worker::{
            SharedWorker,
            job::{JobOutcome, OnFailure},
        },
    },
};
use std::sync::Arc;

impl Supervision {
    pub(crate) fn execute_job(&mut self, command: JobCommand, cx: &mut SupervisionContext<'_>) {
        match command {
            JobCommand::Add(new) => self.add_job(*new, cx),
            JobCommand::Decided(TaskOutput::Start { task, slot }) => self.start_job(worker_of(task), slot, cx),
            JobCommand::Decided(TaskOutput::DependencyFailed { task, on }) => {
                self.fail_dependent(worker_of(task), worker_of(on), cx);
            }
            // A send fails if the caller has timed out.
            JobCommand::CancelAll(queue, answer) => drop(answer.send(self.cancel_jobs(queue, cx))),
        }
    }

    /// Adds a job, which the schedule has already. It waits for its slot.
    fn add_job(&mut self, new: NewJob, cx: &mut SupervisionContext<'_>) {
        let NewJob { shared, spec, job, deadline, permit } = new;
        let has_halted = job.shared.queue.has_halted();
        let seed = next_seed(&mut self.seed, shared.id());
        let record = WorkerRecord { job: Some(job), ..WorkerRecord::new(&shared, &spec, WorkerPhase::Queued, seed) };
        self.workers.insert(shared.id(), record);
        drop(permit);
        cx.sink.trace.add_worker(&shared);
        if let Some(deadline) = deadline {
            cx.reactor.set_timer_after(deadline, Timer::JobDeadline(shared.id()));
        }
        if cx.shutdown.phase != Phase::Open {
            self.request(shared.id(), Action::Stop, cx);
        } else if has_halted {
            self.give_up_job(shared.id(), GiveUpReason::FailFast, ExitCause::FailFast, cx);
        }
    }

    /// Starts a job that has got a slot, unless it has ended meanwhile.
    fn start_job(&mut self, worker: WorkerId, slot: u32, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let Some(job) = &mut record.job else { return };
        job.has_slot = true;
        record.shared.set_slot(slot);
        // As after a backoff: the start waits while the window is full.
        let now = cx.reactor.clock.now();
        record.phase = WorkerPhase::Backoff(now);
        cx.reactor.set_timer(now, Timer::Restart(worker));
    }

    fn fail_dependent(&mut self, worker: WorkerId, on: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let kind = EventKind::DependencyFailed { on };
        record.send_final(Event::of(&record.shared, record.shared.incarnation(), kind), cx.sink);
        self.end(worker, cx);
    }

    fn cancel_jobs(&mut self, queue: QueueId, cx: &mut SupervisionContext<'_>) -> Vec<Arc<SharedWorker>> {
        let cancelled = self.jobs_of(queue);
        for shared in &cancelled {
            self.request(shared.id(), Action::Stop, cx);
        }
        cancelled
    }

    /// The deadline of a job has passed.
    pub(crate) fn job_overdue(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        self.give_up_job(worker, GiveUpReason::DeadlineExceeded, ExitCause::Deadline, cx);
    }

    /// Ends a job: stops it if it runs, and does not start it otherwise.
    fn give_up_job(
        &mut self,
        worker: WorkerId,
        reason: GiveUpReason,
        cause: ExitCause,
        cx: &mut SupervisionContext<'_>,
    ) {
        let Some(record) = self.workers.get_mut(&worker).filter(|record| record.desired != DesiredState::Stop) else {
            return;
        };
        let Some(job) = &mut record.job else { return };
        job.gave_up = Some(reason);
        record.stop_cause = Some(cause);
        self.request(worker, Action::Stop, cx);
    }

    /// What happens to a worker after an attempt: a job that its queue ends has given up, whatever its restart policy says. Records whether
    /// the attempt was a success.
    pub(crate) fn after_attempt(&mut self, worker: WorkerId, end: RunEnd, decision: RestartDecision) -> AfterExit {
        let next = AfterExit::from(decision);
        let Some(WorkerRecord { job: Some(job), spec, desired, .. }) = self.workers.get_mut(&worker) else {
            return next;
        };
        let is_success = matches!(end, RunEnd::Exited { status, .. } if spec.restart.is_success(status));
        job.has_succeeded = is_success && *desired == DesiredState::Run;
        if !next.is_final() && job.shared.queue.has_halted() {
            job.gave_up = Some(GiveUpReason::FailFast);
        }
        job.gave_up.map_or(next, AfterExit::GaveUp)
    }

    /// A worker has ended, and its final event is sent. If it is a failed job, its queue may end the others.
    pub(crate) fn job_ended(&mut self, record: WorkerRecord, cx: &mut SupervisionContext<'_>) {
        let Some(job) = &record.job else { return };
        cx.reactor.timers.cancel(Timer::JobDeadline(record.shared.id()));
        let is_cancelled = record.desired == DesiredState::Stop && job.gave_up.is_none();
        let has_failed = match job.shared.outcome() {
            Some(JobOutcome::Failed { .. } | JobOutcome::SpawnFailed { .. } | JobOutcome::NotStarted { .. }) => {
                !is_cancelled && job.gave_up != Some(GiveUpReason::FailFast)
            }
            Some(JobOutcome::Succeeded(_) | JobOutcome::DependencyFailed { .. }) | None => false,
        };
        let queue = Arc::clone(&job.shared.queue);
        let halts = if has_failed { queue.note_failure() } else { None };
        // Before the others end, since it ends this job in the schedule.
        drop(record);
        if let Some(policy) = halts {
            self.halt_queue(queue.id, policy, cx);
        }
    }

    fn halt_queue(&mut self, queue: QueueId, policy: OnFailure, cx: &mut SupervisionContext<'_>) {
        for shared in self.jobs_of(queue) {
            let phase = self.workers.get(&shared.id()).map(|record| record.phase);
            let runs = matches!(phase, Some(WorkerPhase::Running(_) | WorkerPhase::Spawning));
            if !runs || policy == OnFailure::StopRunning {
                self.give_up_job(shared.id(), GiveUpReason::FailFast, ExitCause::FailFast, cx);
            }
        }
    }

    /// The jobs of a queue that have not ended, in the order of their submission.
    fn jobs_of(&self, queue: QueueId) -> Vec<Arc<SharedWorker>> {
        let is_of_queue = |record: &&WorkerRecord| record.job.as_ref().is_some_and(|job| job.shared.queue.id == queue);
        let of_queue = self.workers.values().filter(is_of_queue);
        let mut jobs: Vec<_> = of_queue.map(|record| Arc::clone(&record.shared)).collect();
        jobs.sort_unstable_by_key(|shared| shared.id());
        jobs
    }
}

impl WorkerRecord {
    /// Sets the outcome of a job, as its final event says it.
    pub(crate) fn set_job_outcome(&self, last: &EventKind) {
        let Some(job) = &self.job else { return };
        job.shared.set_outcome(match last {
            EventKind::Exited { exit, .. } if job.has_succeeded => JobOutcome::Succeeded(Arc::clone(exit)),
            EventKind::Exited { exit, next } => JobOutcome::Failed { exit: Arc::clone(exit), next: *next },
            EventKind::SpawnFailed { error, next } => JobOutcome::SpawnFailed { error: Arc::clone(error), next: *next },
            EventKind::DependencyFailed { on } => JobOutcome::DependencyFailed { on: *on },
            EventKind::NotStarted { next } => JobOutcome::NotStarted { next: *next },
            _ => return,
        });
    }
}

fn worker_of(task: TaskId) -> WorkerId {
    WorkerId(task.0)
}
