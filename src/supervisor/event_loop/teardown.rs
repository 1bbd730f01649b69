//! The end of the loop. Usually nobody is left by then; where it comes first, by a panic of ours or since the kernel refuses to
//! wait, whoever is left ends with it, and is told.

use crate::{
    exit::ExitStatus,
    supervisor::{
        clock::now, commands::Command, event_loop::EventLoop, events::event::EventKind, incarnation::Incarnation,
        worker::group::GroupEndReason,
    },
};
use std::{mem, sync::Arc};

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.spawner.abandon();
        // Whoever asks something from now on finds that nobody hears, and whoever has asked already gets no answer.
        let inbox = mem::replace(&mut self.inbox, crossbeam_channel::never());
        for command in inbox.try_iter() {
            if let Command::Spawned(arrival) = command {
                self.spawner.kill_unregistered(&arrival.shared, &arrival.process);
            }
        }
        drop(inbox);
        self.end_those_who_live();
        for record in self.supervision.workers.values().filter(|record| !record.is_stopped) {
            record.shared.set_ended(record.last_exit());
        }
        for group in self.supervision.group_handles.values() {
            group.end_at_last(GroupEndReason::SupervisorGone);
        }
    }
}

impl EventLoop {
    fn end_those_who_live(&mut self) {
        let lives: Vec<Box<Incarnation>> = self.incarnations.drain().collect();
        let orphans: Vec<_> = lives.iter().map(|incarnation| Arc::clone(&incarnation.process)).collect();
        for (mut incarnation, reaped) in lives.into_iter().zip(self.spawner.kill_and_reap_all(&orphans)) {
            let mut exit = incarnation.exit(reaped, self.reactor.clock.now());
            if reaped.is_none() {
                exit.status = ExitStatus::Unkillable;
            }
            let exit = Arc::new(exit);
            incarnation.process.close_connection(Some(&exit));
            self.sink.send(incarnation.event(EventKind::Exited(Arc::clone(&exit))));
            if let Some(record) = self.supervision.workers.get_mut(&incarnation.shared.id()) {
                record.last = Some((exit, now()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkerId;
    use crate::supervisor::{commands::CommandSender, event_loop::EventLoopConfig};
    use crate::{
        guard::program::Guard,
        launch::{context::OpenMode, spawn::prepare},
        supervisor::{flow_control::FlowControl, spawner::Spawner, spec::WorkerSpec, worker::registry::WorkerRegistry},
        sys::{deferred_close::DropInBackground, eventfd::Waker},
    };
    use std::time::Duration;

    #[test]
    fn one_that_was_handed_over_and_not_taken_ends() {
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (told, events) = crossbeam_channel::unbounded();
        let commands = CommandSender { commands, waker: Arc::new(Waker::new().unwrap()) };
        let window = Arc::new(FlowControl::of_supervisor(1 << 20, Arc::clone(&commands.waker)));
        let registry = Arc::new(WorkerRegistry::new(Arc::clone(&window)));
        let spawner = Arc::new(Spawner::new(commands.clone(), registry, Guard::default()).unwrap());
        let parts = EventLoopConfig {
            inbox,
            events: told,
            commands,
            window,
            grace_period: Duration::ZERO,
            adopts: false,
            spawner: Arc::clone(&spawner),
        };
        let driver = EventLoop::new(parts).unwrap();
        let spec = WorkerSpec::new("sleep").arg("1000");
        let prepared = prepare(&spec.plan, OpenMode::Nonblocking).unwrap();
        let worker =
            spawner.start_on_this_thread(WorkerId(1), Arc::new(DropInBackground::new(spec)), prepared).unwrap();
        drop(driver);
        let exit = worker.wait_ended(Some(now())).expect("its end").0;
        assert_eq!(exit.status, ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false });
        assert!(worker.child(|child| child.signal(0)).is_err(), "it is reaped");
        assert_eq!(events.len(), 0, "its start was not told either");
    }
}
