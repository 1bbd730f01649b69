//! The incarnations of the event loop: inserts them, passes them their inputs, and removes them after their last event.

use crate::{
    exit::ExitCause,
    ids::WorkerId,
    launch::child::GroupCleanup,
    policy::{
        lifecycle::{LifecycleInput, StopRequest},
        restart_history::RunEnd,
    },
    supervisor::{
        commands::{Action, SpawnedProcess},
        containment::inspector::{
            STALL,
            request::{ScanResult, ScanTask},
        },
        event_loop::EventLoop,
        events::event::EventKind,
        incarnation::{
            Incarnation,
            context::{FIRST_CHECK, Fact, IncarnationContext, LAST_CHECK},
            health::HealthFailure,
            transitions::UNKILLABLE_PERIOD,
        },
        process_trees::UnkillableProcess,
        reactor::{arena::Key, timers::Timer},
        supervision::{
            StopOrder, Supervision, SupervisionContext,
            restart::IncarnationEnd,
            shutdown::Phase,
            worker::{WorkerPhase, WorkerRecord},
        },
    },
};
use std::{mem, sync::Arc, time::Duration};

impl EventLoop {
    /// Calls `run` with an incarnation, and removes it if that was its end. `None` if it no longer exists.
    pub(crate) fn at<T>(
        &mut self,
        key: Key,
        run: impl FnOnce(&mut Incarnation, &mut IncarnationContext<'_>) -> T,
    ) -> Option<T> {
        let incarnation = self.incarnations.get_mut(key)?;
        let mut cx = IncarnationContext {
            reactor: &mut self.reactor,
            sink: &mut self.sink,
            trees: &mut self.trees,
            reading: &mut self.reading,
            server: &mut self.server,
            spawner: &self.spawner,
            commands: &self.commands,
            facts: &mut self.pending.facts,
        };
        let done = run(incarnation, &mut cx);
        if incarnation.is_over() {
            drop(self.incarnations.remove(key));
        }
        Some(done)
    }

    /// As [`at`](Self::at), for an input without a result.
    pub(crate) fn on(&mut self, key: Key, run: impl FnOnce(&mut Incarnation, &mut IncarnationContext<'_>)) {
        self.at(key, run);
    }

    pub(crate) fn input(&mut self, key: Key, input: LifecycleInput) {
        self.on(key, |incarnation, cx| incarnation.input(input, cx));
    }

    /// Calls `run` with supervision.
    pub(crate) fn supervise<T>(&mut self, run: impl FnOnce(&mut Supervision, &mut SupervisionContext<'_>) -> T) -> T {
        let mut cx = SupervisionContext {
            reactor: &mut self.reactor,
            sink: &mut self.sink,
            trees: &self.trees,
            spawner: &self.spawner,
            shutdown: &self.shutdown,
            stops: &mut self.pending.stops,
            server: &mut self.server,
        };
        run(&mut self.supervision, &mut cx)
    }

    /// Passes reports of incarnations to supervision, and stop requests of supervision to incarnations. This is the only place that connects
    /// the two.
    ///
    /// Reports come first, so that the events that supervision sends for an exit precede those of other incarnations.
    pub(crate) fn settle(&mut self) {
        loop {
            if let Some(fact) = self.pending.facts.pop_front() {
                match fact {
                    Fact::Ready(worker) => self.supervise(|supervision, cx| supervision.member_ready(worker, cx)),
                    Fact::Finished { worker, exit, failure } => {
                        let (status, ran) = (exit.status, exit.duration);
                        let run = match failure {
                            None => RunEnd::Exited { status, ran },
                            Some(HealthFailure::Unhealthy) => RunEnd::Unhealthy { ran },
                            Some(HealthFailure::Rejected) => RunEnd::Rejected { ran },
                        };
                        let end = IncarnationEnd::Exited { exit, run };
                        self.supervise(|supervision, cx| supervision.on_incarnation_end(worker, end, cx));
                        self.sink.trace.end_incarnation(worker);
                    }
                }
            } else if let Some(StopOrder { incarnation, request, cause }) = self.pending.stops.pop_front() {
                self.on(incarnation, |incarnation, cx| incarnation.stop(request, cause, cx));
            } else {
                return;
            }
        }
    }

    /// Takes over a process that the spawner has started.
    pub(crate) fn spawned(&mut self, mut arrival: SpawnedProcess) {
        // The clock of the loop may be behind the real clock.
        arrival.started = arrival.started.min(self.reactor.clock.now());
        let (secret, control_connect_timeout) = (arrival.key.take(), arrival.spec.time_to_connect());
        let (client, sockets) = (arrival.client.take(), arrival.sockets.take());
        let (shared, spec, process) =
            (Arc::clone(&arrival.shared), Arc::clone(&arrival.spec), Arc::clone(&arrival.process));
        // Before the event: its consumer must find this incarnation through the handle of the worker.
        shared.set_process(&process);
        self.sink.trace.begin_incarnation(&shared, &process);
        let key = self.incarnations.insert_with(|key| Incarnation::new(key, arrival));
        self.on(key, |incarnation, cx| {
            cx.sink.send(incarnation.event(EventKind::Started { pid: incarnation.process.child().pid() }));
        });
        // A process that was started elsewhere may belong to the tree of another worker.
        if !spec.is_attached() {
            self.trees.worker_pids.insert(process.child().pid().cast_signed(), process.tree().started_tick());
        }
        let is_wanted = self.supervision.add_incarnation(&shared, &spec, key);
        self.on(key, Incarnation::watch);
        if let Some(limit) = spec.runtime_max {
            self.reactor.set_timer_after(limit, Timer::RuntimeMax(key));
        }
        self.supervise(|supervision, cx| supervision.member_started(shared.id(), cx));
        // Before the connection is expected: the worker may have connected already, and that can make it ready.
        self.on(key, Incarnation::start_health_checks);
        if let Some(secret) = secret {
            self.on(key, |incarnation, cx| incarnation.expect_connection(secret, control_connect_timeout, cx));
        }
        if let Some(client) = client {
            self.on(key, |incarnation, cx| incarnation.connect(client, cx));
        }
        if let Some(sockets) = sockets {
            self.on(key, |incarnation, cx| incarnation.connect_sockets(sockets, cx));
        }
        self.settle();
        if !self.stop_if_ending(shared.id()) && !is_wanted {
            let record = self.supervision.workers.get(&shared.id());
            let is_overdue = record.is_some_and(|record| record.is_overdue);
            let cause = record.and_then(|record| record.stop_cause).unwrap_or(ExitCause::Stop);
            let request = if is_overdue { StopRequest::Within(Duration::ZERO) } else { StopRequest::Advance };
            self.on(key, |incarnation, cx| incarnation.stop(request, cause, cx));
        }
    }

    /// Stops a worker that arrives while all are stopped. False if they are not.
    pub(crate) fn stop_if_ending(&mut self, worker: WorkerId) -> bool {
        let (Phase::Stopping { until } | Phase::Terminating { until }) = self.shutdown.phase else { return false };
        let left = until.map(|until| until.saturating_duration_since(self.reactor.clock.now()));
        let action = left.map_or(Action::Stop, Action::StopWithin);
        self.supervise(|supervision, cx| supervision.request(worker, action, cx));
        true
    }

    pub(crate) fn process_exited(&mut self, key: Key) {
        if self.incarnations.get(key).is_some_and(Incarnation::awaits_control) {
            self.poll_handshakes();
        }
        self.on(key, Incarnation::exited);
    }

    /// Calls `run` with the running incarnation of a worker, if there is one.
    pub(crate) fn on_worker(
        &mut self,
        worker: WorkerId,
        run: impl FnOnce(&mut Incarnation, &mut IncarnationContext<'_>),
    ) {
        if let Some(key) = self.supervision.workers.get(&worker).and_then(WorkerRecord::key) {
            self.on(key, run);
        }
    }

    /// As [`on_worker`](Self::on_worker), if the incarnation that runs has this number.
    pub(crate) fn on_incarnation(
        &mut self,
        worker: WorkerId,
        number: u32,
        run: impl FnOnce(&mut Incarnation, &mut IncarnationContext<'_>),
    ) {
        self.on_worker(worker, |incarnation, cx| {
            if incarnation.process.number() == number {
                run(incarnation, cx);
            }
        });
    }

    /// Resumes reading and restarts that were paused because of a full window, where there is room again.
    pub(crate) fn resume_paused(&mut self) {
        let before = self.count_paused();
        if before == 0 {
            return;
        }
        let mut paused = mem::take(&mut self.reading.paused);
        paused.retain(|&key| self.at(key, Incarnation::try_resume_output) == Some(false));
        self.reading.paused.append(&mut paused);
        let mut paused_control = mem::take(&mut self.reading.paused_control);
        paused_control.retain(|&key| self.at(key, Incarnation::try_resume_control) == Some(false));
        self.reading.paused_control.append(&mut paused_control);
        self.supervise(Supervision::resume_restarts);
        let has_resumed = self.count_paused() < before;
        self.reading.next_check = if has_resumed { FIRST_CHECK } else { (self.reading.next_check * 2).min(LAST_CHECK) };
    }

    pub(crate) fn count_paused(&self) -> usize {
        self.reading.paused.len() + self.reading.paused_control.len() + self.supervision.delayed_restarts.len()
    }

    /// Checks that the inspector makes progress. If it has stalled, a new one gets all unanswered requests.
    pub(crate) fn check_inspector(&mut self) {
        if self.trees.unanswered.is_empty() {
            return;
        }
        if self.trees.inspector.has_stalled() {
            let asked: Vec<(Key, ScanTask)> = self.trees.unanswered.drain().map(|(_, asked)| asked).collect();
            for (key, task) in asked {
                // Processes that it suspends late are resumed when its result arrives.
                if task != ScanTask::StopTree {
                    self.on(key, |incarnation, cx| incarnation.inspect(task, cx));
                }
            }
            self.end_suspension();
        }
        self.reactor.set_timer_after(STALL, Timer::Inspector);
    }

    /// Handles the result of a scan.
    pub(crate) fn inspected(&mut self, result: ScanResult) {
        let asked = self.trees.unanswered.remove(&result.number);
        if result.task == ScanTask::StopTree {
            // Also from a thread that had stalled, and has suspended processes meanwhile.
            return self.tree_suspended(result.held);
        }
        if let Some((key, task)) = asked {
            self.on(key, |incarnation, cx| incarnation.inspected(task, result, cx));
        }
    }

    /// Retries to kill a process that was reported as unkillable: a process of another user may have changed its user since.
    pub(crate) fn retry_unkillable(&mut self, number: u64) {
        let Some(UnkillableProcess { process, .. }) = self.trees.unkillable.get(&number) else { return };
        if process.child().is_running() {
            drop(process.child().signal_group(libc::SIGKILL));
            self.reactor.set_timer_after(UNKILLABLE_PERIOD, Timer::Unkillable(number));
        } else {
            self.reap_unkillable(number);
        }
    }

    /// Reaps a process that was reported as unkillable and has exited since.
    pub(crate) fn reap_unkillable(&mut self, number: u64) {
        let Some(UnkillableProcess { worker, process }) = self.trees.unkillable.remove(&number) else { return };
        drop(process.child().with_pidfd(|pidfd| self.reactor.poller.remove(pidfd)));
        // Its exit was already reported.
        drop(process.child().reap(GroupCleanup::Kill));
        if self.supervision.workers.get(&worker).is_some_and(|record| record.phase == WorkerPhase::Blocked) {
            self.supervise(|supervision, cx| supervision.start_again(worker, cx));
        }
    }
}
