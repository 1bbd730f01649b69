//! Workers whose process is started elsewhere: the wait for its connection, and the start of its incarnation.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::AttachedWorker,
        control::server::{AuthenticatedClient, KeyOwner},
        event_loop::EventLoop,
        reactor::timers::Timer,
    },
};
use std::sync::Arc;

impl EventLoop {
    /// Takes over a worker that waits for its process.
    pub(crate) fn await_process(&mut self, worker: AttachedWorker) {
        let AttachedWorker { shared, spec, key } = worker;
        let id = shared.id();
        self.supervision.add_attached(&shared, &spec);
        if let Some(limit) = spec.control_connect_timeout {
            self.reactor.set_timer_after(limit, Timer::AttachTimeout(id));
        }
        let expected =
            self.server.as_mut().map(|server| server.expect_key(key, KeyOwner::Attached(id), spec.peer_user));
        if let Some(client) = expected.flatten() {
            drop(self.reactor.poller.remove(&client.socket));
            self.attach(id, client);
        }
        self.stop_if_ending(id);
    }

    /// Begins the incarnation of a worker whose process has connected.
    pub(crate) fn attach(&mut self, worker: WorkerId, mut client: AuthenticatedClient) {
        let Some(record) = self.supervision.workers.get(&worker) else { return };
        let Some(process) = client.process.take() else { return };
        self.reactor.timers.cancel(Timer::AttachTimeout(worker));
        let mut arrival = self.spawner.attached(Arc::clone(&record.shared), Arc::clone(&record.spec), process);
        arrival.client = Some(client);
        self.spawned(*arrival);
    }
}
