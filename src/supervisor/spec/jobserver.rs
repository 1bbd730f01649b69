//! The jobserver of a worker.

use crate::{
    jobserver::{client, server::JobserverServer},
    launch::error::SpecError,
    supervisor::spec::WorkerSpec,
};

impl WorkerSpec {
    /// Gives the worker and its descendants tokens of a jobserver of ours: a pipe for each incarnation, and `MAKEFLAGS` and
    /// `CARGO_MAKEFLAGS` that name it, with `-jN` in place of another one. What they hold when all of them have ended is there again.
    /// Conflicts with [`inherit_jobserver`](Self::inherit_jobserver).
    ///
    /// A [`Process`](crate::Process) without a supervisor returns its tokens when it is dropped.
    pub fn jobserver(mut self, server: &JobserverServer) -> Self {
        self.plan.serve_jobserver(server.clone());
        self
    }

    /// Passes the [jobserver](crate::jobserver) on that this process was started with: the descriptors of its pipe or the path of its FIFO,
    /// and `MAKEFLAGS` and `CARGO_MAKEFLAGS` that name it. Without one, nothing changes. If one is named that cannot be used,
    /// [`validate`](Self::validate) and every start return [`SpecError::Jobserver`].
    ///
    /// The worker is another client: it has an implicit token of its own, and should run under a token of this process. Tokens that it holds
    /// when it is killed are lost to all.
    pub fn inherit_jobserver(mut self) -> Self {
        match client::inherited() {
            Ok(Some(address)) => self.plan.inherit_jobserver(address),
            Ok(None) => {}
            Err(error) => {
                let reason = error.to_string().into();
                self.plan.first_error.get_or_insert(SpecError::Jobserver { reason });
            }
        }
        self
    }
}
