//! Adds jobs to a supervisor.

use crate::{
    ids::WorkerId,
    policy::schedule::{
        task::{NewTask, QueueId, TaskId},
        tasks::Schedule,
    },
    supervisor::{
        clock::now,
        commands::{AskError, Command, CommandSender, JobCommand, NewJob},
        handles::{stop::StopHandle, worker::Worker},
        spawner::queue::SpawnQueue,
        spec::WorkerSpec,
        worker::{
            budget::SharedBudget,
            job::{JobOutcome, JobQueue, ScheduledJob, SharedJob},
            registry::WorkerRegistry,
        },
    },
    sys::deferred_close::DropInBackground,
};
use std::{fmt, sync::Arc, time::Duration};

/// Adds jobs to one supervisor, as long as it takes new workers.
#[derive(Clone)]
pub(crate) struct JobIntake {
    commands: CommandSender,
    registry: Arc<WorkerRegistry>,
    /// `None` once the supervisor is dropped in a fork of the host.
    starts: Option<Arc<SpawnQueue>>,
}

impl_debug!(JobIntake, |_intake| {});

/// Keeps the event loop running until it has a new worker.
pub(crate) type IntakePermit = Box<dyn fmt::Debug + Send>;

impl JobIntake {
    pub(crate) fn new(commands: CommandSender, registry: Arc<WorkerRegistry>, starts: Option<Arc<SpawnQueue>>) -> Self {
        Self { commands, registry, starts }
    }

    /// Adds a queue to a budget.
    pub(crate) fn add_queue(&self, budget: &Arc<SharedBudget>) -> JobQueue {
        let id = budget.add_queue(Arc::new(self.commands.clone()));
        JobQueue::new(id, Arc::clone(budget))
    }

    /// Returns a permit for a new job; `None` if the supervisor takes no more workers.
    pub(crate) fn permit(&self) -> Option<IntakePermit> {
        let permit = self.starts.as_ref()?.permit()?;
        Some(Box::new(permit))
    }

    /// Adds a job to its queue and to the loop. `task` is called with its number under the lock of the budget.
    pub(crate) fn add<E>(
        &self,
        queue: &Arc<JobQueue>,
        (spec, deadline, permit): (WorkerSpec, Option<Duration>, IntakePermit),
        after: &[Arc<SharedJob>],
        task: impl FnOnce(&Schedule, TaskId) -> Result<NewTask, E>,
    ) -> Result<(Worker, Arc<SharedJob>), E> {
        let worker = self.registry.register(WorkerId(self.registry.next_id()), &spec, None);
        let job = Arc::new(SharedJob::new(worker.id(), Arc::clone(queue)));
        let spec = Arc::new(DropInBackground::new(spec));
        let unsent = queue.budget.change(|schedule| {
            let new = task(schedule, job.task)?;
            // A job that is not in the schedule has ended, and its outcome was set before.
            let has_failed =
                |on: &&Arc<SharedJob>| !schedule.contains(on.task) && !on.outcome().is_some_and(JobOutcome::success);
            let failed = after.iter().find(has_failed).map(|on| on.task);
            schedule.submit(queue.id, new, failed);
            let scheduled = ScheduledJob::new(Arc::clone(&worker), Arc::clone(&job));
            let new = Box::new(NewJob { shared: Arc::clone(&worker), spec, job: scheduled, deadline, permit });
            // Within the lock: the loop receives the job before any decision about it.
            Ok(self.commands.try_push(Command::Job(JobCommand::Add(new))))
        })?;
        // Not within the lock: if the loop has ended, this ends the job in the schedule.
        drop(unsent);
        self.commands.waker.wake();
        Ok((Worker::new(worker, &self.commands), job))
    }

    /// Cancels all jobs of a queue that have not ended.
    pub(crate) fn cancel_all(&self, queue: QueueId) -> StopHandle {
        let began = now();
        match self.commands.ask(|answer| Command::Job(JobCommand::CancelAll(queue, answer))) {
            Ok(workers) => StopHandle::new(workers, began),
            Err(why @ (AskError::LoopGone | AskError::TimedOut)) => StopHandle::unanswered(why, began),
        }
    }
}
