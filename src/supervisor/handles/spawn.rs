//! Starts workers, also for other parts of the library that outlive the call.

use crate::{
    ids::WorkerId,
    launch::{context::OpenMode, error::SpawnError, spawn::prepare},
    supervisor::{
        commands::{Command, CommandSender},
        events::observer::ObserveEvents,
        handles::worker::Worker,
        spawner::Spawner,
        spec::WorkerSpec,
        worker::registry::WorkerRegistry,
    },
    sys::deferred_close::DropInBackground,
};
use std::sync::Arc;

/// Starts workers of a supervisor. After the end of the supervisor, starts fail.
#[derive(Debug, Clone)]
pub(crate) struct WorkerStarter {
    pub(crate) commands: CommandSender,
    pub(crate) registry: Arc<WorkerRegistry>,
    pub(crate) spawner: Arc<Spawner>,
}

impl WorkerStarter {
    /// Starts a worker and returns when its program runs.
    pub(crate) fn spawn(&self, spec: WorkerSpec) -> Result<Worker, SpawnError> {
        self.spawn_as(WorkerId(self.registry.next_id()), spec)
    }

    /// As [`spawn`](Self::spawn), with an observer for the events of the worker, which may get some before this returns.
    pub(crate) fn spawn_observed(
        &self,
        spec: WorkerSpec,
        observer: impl FnOnce(WorkerId) -> Arc<dyn ObserveEvents>,
    ) -> Result<Worker, SpawnError> {
        let id = WorkerId(self.registry.next_id());
        // The loop executes it before the worker arrives.
        self.commands.push_no_wake(Command::Observe(id, observer(id)));
        let started = self.spawn_as(id, spec);
        started.inspect_err(|_| self.commands.send(Command::EndObservation(id)))
    }

    fn spawn_as(&self, id: WorkerId, spec: WorkerSpec) -> Result<Worker, SpawnError> {
        spec.validate()?;
        // Held until the loop has the worker, so that the loop does not end before.
        let permit = self.spawner.starts().permit().ok_or(SpawnError::SupervisorGone)?;
        let prepared = prepare(&spec.plan, OpenMode::Blocking)?;
        let may_start_on_this_thread = Spawner::may_start_on_this_thread(&spec);
        let spec = Arc::new(DropInBackground::new(spec));
        if may_start_on_this_thread {
            let started = self.spawner.start_on_this_thread(id, spec, prepared);
            drop(permit);
            return started.map(|shared| Worker::new(shared, &self.commands));
        }
        let started = Spawner::start_on_spawner_thread(&self.spawner, id, spec, (prepared, permit))?;
        Ok(Worker::new(started, &self.commands))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        launch::stdio::OutputMode,
        supervisor::{
            Supervisor,
            events::event::{Event, EventKind},
        },
    };
    use crossbeam_channel::{Receiver, Sender};
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// Takes everything but lines.
    #[derive(Debug)]
    struct Taker(Sender<Option<Event>>);

    impl ObserveEvents for Taker {
        fn observe(&self, event: Event) -> Option<Event> {
            if let EventKind::Line { .. } = event.kind {
                return Some(event);
            }
            self.0.send(Some(event)).unwrap();
            None
        }

        fn loop_ended(&self, _: WorkerId) {
            self.0.send(None).unwrap();
        }
    }

    fn taker() -> (impl FnOnce(WorkerId) -> Arc<dyn ObserveEvents>, Receiver<Option<Event>>) {
        let (sender, events) = crossbeam_channel::unbounded();
        (|_| Arc::new(Taker(sender)) as Arc<dyn ObserveEvents>, events)
    }

    #[test]
    fn p01_events_of_observed_worker_go_to_its_observer() {
        let supervisor = Supervisor::new().unwrap();
        let spec = WorkerSpec::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]);
        let spec = spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        let (observer, taken) = taker();
        let worker = supervisor.starter().unwrap().spawn_observed(spec.clone(), observer).unwrap();
        let mut seen = Vec::new();
        while let Ok(Some(event)) = taken.recv_timeout(DEADLINE) {
            assert_eq!(event.worker, worker.id());
            seen.push(event.kind);
        }
        assert!(matches!(seen[..], [EventKind::Started { .. }, EventKind::Exited { .. }]), "{seen:?}");
        // The end was published before the observer received it, and the observer is released.
        assert_eq!(worker.wait_timeout(Duration::ZERO).unwrap().code(), Some(3));
        assert!(taken.recv().is_err());
        let lines = || supervisor.events().try_iter().filter(|event| matches!(event.kind, EventKind::Line { .. }));
        assert_eq!(lines().count(), 2, "events that the observer returns are sent");
        assert!(supervisor.events().is_empty());

        let plain = supervisor.spawn(spec).unwrap();
        plain.wait_timeout(DEADLINE).expect("exits");
        assert_eq!(supervisor.events().try_iter().count(), 4, "other workers have the channel");
    }

    #[test]
    fn p06_observer_that_keeps_lines_is_not_waited_for() {
        #[derive(Debug)]
        struct Keeper(Sender<Event>);
        impl ObserveEvents for Keeper {
            fn observe(&self, event: Event) -> Option<Event> {
                self.0.send(event).unwrap();
                None
            }

            fn loop_ended(&self, _: WorkerId) {}
        }
        let supervisor = Supervisor::builder().window(1 << 20).build().unwrap();
        let (sender, events) = crossbeam_channel::unbounded();
        let spec = WorkerSpec::new("sh").args(["-c", "seq 1 200000"]).stdout(OutputMode::Lines);
        let starter = supervisor.starter().unwrap();
        let worker = starter.spawn_observed(spec, |_| Arc::new(Keeper(sender)) as Arc<dyn ObserveEvents>).unwrap();
        let mut lines = 0;
        for event in &events {
            lines += u32::from(matches!(event.kind, EventKind::Line { .. }));
        }
        assert_eq!(lines, 200_000, "an observer that has everything is not waited for");
        assert!(worker.wait_timeout(DEADLINE).is_some_and(|exit| exit.success()));
    }

    #[test]
    fn p15_observer_learns_of_a_start_that_fails_and_of_the_end_of_the_loop() {
        let supervisor = Supervisor::new().unwrap();
        let starter = supervisor.starter().unwrap();
        let (observer, taken) = taker();
        assert!(starter.spawn_observed(WorkerSpec::new("/nonexistent/program"), observer).is_err());
        assert!(taken.recv_timeout(DEADLINE).is_err(), "the observer is released without an event");
        let (observer, taken) = taker();
        starter.spawn_observed(WorkerSpec::new("sleep").arg("1000"), observer).unwrap();
        drop(supervisor);
        let last = taken.iter().last().flatten().expect("an event");
        assert!(last.kind.is_final(), "{last:?}");
        let (observer, taken) = taker();
        let error = starter.spawn_observed(WorkerSpec::new("true"), observer).unwrap_err();
        assert!(matches!(error, SpawnError::SupervisorGone), "{error:?}");
        assert!(taken.recv_timeout(DEADLINE).is_err());
    }
}
