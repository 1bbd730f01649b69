//! Jobs: workers whose starts wait for a slot of their queue.

use crate::{
    ids::WorkerId,
    policy::{
        restart_history::RunEnd,
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
        worker::{SharedWorker, job::JobOutcome},
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
        let NewJob { shared, spec, job, permit } = new;
        let seed = next_seed(&mut self.seed, shared.id());
        let record = WorkerRecord { job: Some(job), ..WorkerRecord::new(&shared, &spec, WorkerPhase::Queued, seed) };
        self.workers.insert(shared.id(), record);
        drop(permit);
        cx.sink.trace.add_worker(&shared);
        if cx.shutdown.phase != Phase::Open {
            self.request(shared.id(), Action::Stop, cx);
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
        let is_of_queue = |record: &&WorkerRecord| record.job.as_ref().is_some_and(|job| job.shared.queue.id == queue);
        let of_queue = self.workers.values().filter(is_of_queue);
        let mut cancelled: Vec<_> = of_queue.map(|record| Arc::clone(&record.shared)).collect();
        cancelled.sort_unstable_by_key(|shared| shared.id());
        for shared in &cancelled {
            self.request(shared.id(), Action::Stop, cx);
        }
        cancelled
    }

    /// Records for a job whether its last attempt was a success.
    pub(crate) fn note_attempt(&mut self, worker: WorkerId, end: RunEnd) {
        let Some(WorkerRecord { job: Some(job), spec, desired, .. }) = self.workers.get_mut(&worker) else { return };
        let is_success = matches!(end, RunEnd::Exited { status, .. } if spec.restart.is_success(status));
        job.has_succeeded = is_success && *desired == DesiredState::Run;
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
