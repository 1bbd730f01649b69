//! The end of the loop. Usually all workers have ended before. After a panic of the loop or a failed `epoll_wait(2)` the remaining
//! workers are killed, and their exits are reported.

use crate::{
    exit::{Exit, ExitCause, ExitStatus},
    ids::WorkerId,
    policy::restart::AfterExit,
    supervisor::{
        clock::now,
        commands::{Command, JobCommand},
        event_loop::EventLoop,
        events::event::{Event, EventKind},
        incarnation::{Incarnation, context::Fact},
        worker::group::GroupEndReason,
    },
};
use std::{mem, sync::Arc};

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.spawner.abandon();
        // Disconnects the channel of commands: pending requests get no answer, and later ones fail.
        let inbox = mem::replace(&mut self.inbox, crossbeam_channel::never());
        for command in inbox.try_iter() {
            if let Command::Observe(worker, observer) = command {
                self.sink.observers.add(worker, observer);
            } else if let Command::EndObservation(worker) = command {
                drop(self.sink.observers.remove(worker));
            } else if let Command::Job(JobCommand::Add(new)) = command {
                let next = AfterExit::Finished;
                self.sink.send(Event::of(&new.shared, 0, EventKind::NotStarted { next }));
            } else if let Command::Spawned(arrival) = command {
                self.spawner.kill_unregistered(&arrival.shared, &arrival.process);
                if !self.supervision.workers.contains_key(&arrival.shared.id()) {
                    let next = AfterExit::Finished;
                    self.sink.send(Event::of(&arrival.shared, 0, EventKind::NotStarted { next }));
                }
            } else if let Command::Attach(worker) = command {
                self.supervision.add_attached(&worker.shared, &worker.spec);
            }
        }
        drop(inbox);
        self.kill_all_processes();
        for record in self.supervision.workers.values_mut() {
            record.publish_end(AfterExit::Finished, &mut self.sink);
        }
        for group in self.supervision.group_handles.values() {
            group.set_end_if_none(GroupEndReason::SupervisorGone);
        }
    }
}

impl EventLoop {
    /// Kills and reaps all processes that this one has started, and sends the last events of all.
    fn kill_all_processes(&mut self) {
        let mut incarnations: Vec<Box<Incarnation>> = self.incarnations.drain().collect();
        for incarnation in &mut incarnations {
            incarnation.note_stop(ExitCause::SupervisorEnd);
        }
        let orphans = incarnations.iter().filter(|incarnation| !incarnation.spec.is_attached());
        let orphans: Vec<_> = orphans.map(|incarnation| Arc::clone(&incarnation.process)).collect();
        let mut reaped = self.spawner.kill_and_reap_all(&orphans).into_iter();
        for mut incarnation in incarnations {
            let is_attached = incarnation.spec.is_attached();
            let reaped = if is_attached { None } else { reaped.next().flatten() };
            let mut exit = incarnation.exit(reaped, self.reactor.clock.now());
            if reaped.is_none() {
                exit.status = if is_attached { ExitStatus::Detached } else { ExitStatus::Unkillable };
            }
            self.report_exit(incarnation.shared.id(), Arc::new(exit));
        }
        for fact in mem::take(&mut self.pending.facts) {
            if let Fact::Finished { worker, exit, .. } = fact {
                self.report_exit(worker, exit);
            }
        }
    }

    fn report_exit(&mut self, worker: WorkerId, exit: Arc<Exit>) {
        let Some(record) = self.supervision.workers.get_mut(&worker) else { return };
        let shared = Arc::clone(&record.shared);
        shared.route_calls(|calls| calls.ended(&exit));
        shared.incarnation_exited(&exit);
        record.last = Some((Arc::clone(&exit), now()));
        let next = AfterExit::Finished;
        record.send_final(Event::of(&shared, shared.incarnation(), EventKind::Exited { exit, next }), &mut self.sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{commands::CommandSender, event_loop::EventLoopConfig};
    use crate::{
        guard::program::Guard,
        launch::{context::OpenMode, spawn::prepare},
        supervisor::{
            events::sink::EventSink, flow_control::FlowControl, spawner::Spawner, spec::WorkerSpec,
            worker::registry::WorkerRegistry,
        },
        sys::{deferred_close::DropInBackground, eventfd::Waker},
    };
    use std::time::Duration;

    #[test]
    fn drop_unregistered_worker_kills_it() {
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (event_sender, events) = crossbeam_channel::unbounded();
        let commands = CommandSender { commands, waker: Arc::new(Waker::new().unwrap()) };
        let window = Arc::new(FlowControl::of_supervisor(1 << 20, Arc::clone(&commands.waker)));
        let registry = Arc::new(WorkerRegistry::new(Arc::clone(&window)));
        let spawner = Arc::new(Spawner::new(commands.clone(), registry, Guard::default()).unwrap());
        let config = EventLoopConfig {
            inbox,
            sink: EventSink::new(event_sender),
            commands,
            window,
            grace_period: Duration::ZERO,
            adopts: false,
            spawner: Arc::clone(&spawner),
        };
        let event_loop = EventLoop::new(config).unwrap();
        let spec = WorkerSpec::new("sleep").arg("1000");
        let prepared = prepare(&spec.plan, OpenMode::Nonblocking).unwrap();
        let worker =
            spawner.start_on_this_thread(WorkerId(1), Arc::new(DropInBackground::new(spec)), prepared).unwrap();
        drop(event_loop);
        let exit = worker.wait_ended(Some(now())).expect("ended").0;
        assert_eq!(exit.status, ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false });
        assert!(worker.child(|child| child.signal(0)).is_err(), "the process is reaped");
        assert!(events.try_iter().map(|event| event.kind.is_final()).eq([true]));
    }
}
