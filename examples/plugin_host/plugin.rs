//! One plugin: the process that answers its calls, and the one that is going to replace it.

use crate::handshake::Hello;
use pipewright::{Worker, WorkerId, printable};
use std::path::PathBuf;

#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) path: PathBuf,
    /// How often its file was loaded.
    loads: u32,
    /// Answers the calls. `None` if it has ended for good.
    pub(crate) current: Option<Instance>,
    /// Started, but not ready. It replaces `current` when it is.
    pub(crate) candidate: Option<Instance>,
}

/// A worker that runs one version of the file.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) worker: Worker,
    /// `None` until it was ready once.
    pub(crate) hello: Option<Hello>,
    /// Its process is started elsewhere.
    pub(crate) is_attached: bool,
}

impl Instance {
    pub(crate) fn new(worker: Worker) -> Self {
        Self { worker, hello: None, is_attached: false }
    }

    pub(crate) fn attached(worker: Worker) -> Self {
        Self { is_attached: true, ..Self::new(worker) }
    }

    /// Name and number of the load, such as `words.py#2`.
    pub(crate) fn label(&self) -> &str {
        self.worker.name()
    }
}

/// Which part a worker plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Current,
    Candidate,
}

impl Plugin {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, loads: 0, current: None, candidate: None }
    }

    pub(crate) fn next_label(&mut self, name: &str) -> String {
        self.loads += 1;
        format!("{name}#{}", self.loads)
    }

    pub(crate) fn role(&self, worker: WorkerId) -> Option<Role> {
        let is = |instance: &Option<Instance>| instance.as_ref().is_some_and(|one| one.worker.id() == worker);
        match () {
            () if is(&self.current) => Some(Role::Current),
            () if is(&self.candidate) => Some(Role::Candidate),
            () => None,
        }
    }

    pub(crate) fn instance_mut(&mut self, role: Role) -> Option<&mut Instance> {
        match role {
            Role::Current => self.current.as_mut(),
            Role::Candidate => self.candidate.as_mut(),
        }
    }

    fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.current.iter().chain(&self.candidate)
    }

    /// Whether a process is not ready yet that this program has started.
    pub(crate) fn is_starting(&self) -> bool {
        self.instances().any(|instance| instance.hello.is_none() && !instance.is_attached)
    }

    /// The process that is started elsewhere, or is awaited.
    pub(crate) fn attached(&self) -> Option<&Instance> {
        self.instances().find(|instance| instance.is_attached)
    }

    /// Adds a worker. Returns those that it replaces at once: `current` stays if it has ever been ready.
    pub(crate) fn insert(&mut self, instance: Instance) -> Vec<Instance> {
        let superseded = self.candidate.take();
        let useless = self.current.take_if(|current| current.hello.is_none());
        let place = if self.current.is_some() { &mut self.candidate } else { &mut self.current };
        *place = Some(instance);
        superseded.into_iter().chain(useless).collect()
    }

    /// The candidate is ready. Returns the one that it replaces.
    pub(crate) fn promote(&mut self) -> Option<Instance> {
        let candidate = self.candidate.take()?;
        self.current.replace(candidate)
    }

    /// For `list`.
    pub(crate) fn describe(&self, name: &str) -> String {
        let Some(current) = &self.current else { return format!("{name}: does not run") };
        let pid = current.worker.pid().map_or_else(String::new, |pid| format!(", process {pid}"));
        let restarts = match current.worker.incarnation() {
            0 | 1 => String::new(),
            number => format!(", restarted {} times", number - 1),
        };
        let state = match &current.hello {
            None if current.is_attached => "has not connected".to_owned(),
            None => "starts".to_owned(),
            Some(hello) => format!("version {}: {}", hello.version, printable(&hello.methods.join(", "))),
        };
        let label = current.label();
        let next = self.candidate.as_ref().map_or_else(String::new, |candidate| {
            let state = if candidate.is_attached { "has not connected" } else { "starts" };
            format!("\n{} {state}, and replaces {label} when it is ready", candidate.label())
        });
        format!("{label}{pid}{restarts}, {state}{next}")
    }

    pub(crate) fn into_instances(self) -> impl Iterator<Item = Instance> {
        self.current.into_iter().chain(self.candidate)
    }
}
