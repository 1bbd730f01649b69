//! Workers whose process is started elsewhere: their address, and what the event loop takes over when the process has connected.

use crate::{
    ids::WorkerId,
    launch::{child::ChildProcess, descriptors::ParentFds, error::SpawnError},
    policy::survivors::SurvivorPolicy,
    supervisor::{
        clock::now,
        commands::{AttachedWorker, Command, SpawnedProcess},
        containment::{process_tree::ProcessTree, token::TreeToken},
        spawner::{Spawner, queue::HandOver},
        spec::SharedSpec,
        worker::{SharedWorker, process::WorkerProcess},
    },
    sys::proc::stat,
    wire::jsonrpc::address::Address,
};
use std::sync::{Arc, Mutex};

impl Spawner {
    /// Registers a worker that waits for its process, and returns the address for that.
    pub(crate) fn attach(&self, spec: &SharedSpec) -> Result<(Arc<SharedWorker>, Address), SpawnError> {
        let permit = self.starts.permit().ok_or(SpawnError::SupervisorGone)?;
        let issued = self.address(spec)?;
        if let Some(place) = self.sockets.place() {
            self.guard.set_directory(place.path());
        }
        let address = issued.address.clone();
        let shared = self.registry.register(WorkerId(self.registry.next_id()), spec, None);
        let worker = AttachedWorker { shared: Arc::clone(&shared), spec: Arc::clone(spec), key: issued.into_key() };
        let handed_over = self.starts.hand_over(None, || Command::Attach(Box::new(worker)));
        self.starts.wake_loop();
        // The loop has the worker, and does not end before it.
        drop(permit);
        match handed_over {
            HandOver::Accepted | HandOver::Cancelled => Ok((shared, address)),
            HandOver::LoopGone => Err(SpawnError::SupervisorGone),
        }
    }

    /// The first incarnation of a worker whose process has connected.
    pub(crate) fn attached(
        &self,
        shared: Arc<SharedWorker>,
        spec: SharedSpec,
        child: ChildProcess,
    ) -> Box<SpawnedProcess> {
        let id = shared.id();
        let tree = ProcessTree {
            guard_entry: Mutex::default(),
            child,
            token: TreeToken::new(&self.run, id, 1, true),
            cgroup: Mutex::default(),
            tokens: None.into(),
            no_cgroup: Some("not for an attached process".into()),
            started_tick: stat::boot_ticks(),
            survivors: SurvivorPolicy::Ignore,
            thread: Mutex::default(),
            is_frozen: Mutex::default(),
        };
        let connection = self.connection(&spec, id);
        Box::new(SpawnedProcess {
            shared,
            process: Arc::new(WorkerProcess::new(1, tree, ParentFds::default(), connection)),
            spec,
            key: None,
            started: now(),
            starts_before: 0,
            messages: None,
            stdout: None,
            stderr: None,
            client: None,
            sockets: None,
            readiness_pipe: None,
            notify_socket: None,
        })
    }
}
