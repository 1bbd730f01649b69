//! A process that was started.

use crate::{
    launch::descriptors::ParentSockets,
    supervisor::{
        commands::SpawnedProcess,
        spawner::streams::Pipe,
        spec::SharedSpec,
        worker::{SharedWorker, notify_socket::NotifySocket, process::WorkerProcess},
    },
};
use std::{sync::Arc, time::Instant};

/// A new process that has no `SharedWorker` yet.
pub(super) struct StartedProcess {
    pub(super) process: Arc<WorkerProcess>,
    pub(super) key: Option<String>,
    pub(super) started: Instant,
    pub(super) starts_before: u64,
    pub(super) streams: (Pipe, Pipe, Pipe),
    pub(super) sockets: Option<ParentSockets>,
    pub(super) readiness_pipe: Pipe,
    pub(super) notify_socket: Option<NotifySocket>,
}

impl StartedProcess {
    pub(super) fn arrival(self, shared: Arc<SharedWorker>, spec: SharedSpec) -> Box<SpawnedProcess> {
        let Self {
            process,
            key,
            started,
            starts_before,
            streams: (messages, stdout, stderr),
            sockets,
            readiness_pipe,
            notify_socket,
        } = self;
        Box::new(SpawnedProcess {
            shared,
            process,
            spec,
            key,
            started,
            starts_before,
            messages,
            stdout,
            stderr,
            client: None,
            sockets,
            readiness_pipe,
            notify_socket,
        })
    }
}
