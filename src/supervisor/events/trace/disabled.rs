//! Without the feature `tracing`: the same interface without effect.
#![expect(clippy::unused_self, reason = "they look as they do with the feature")]

use crate::{
    ids::WorkerId,
    policy::stop::StopPolicy,
    supervisor::{
        events::event::Event,
        worker::{SharedWorker, process::WorkerProcess},
    },
};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Trace {}

impl Trace {
    pub(crate) fn add_worker(&mut self, _: &Arc<SharedWorker>) {}

    pub(crate) fn begin_incarnation(&mut self, _: &Arc<SharedWorker>, _: &WorkerProcess) {}

    pub(crate) fn end_incarnation(&mut self, _: WorkerId) {}

    pub(crate) fn remove_worker(&mut self, _: WorkerId) {}

    pub(crate) fn record_event(&mut self, _: &Event) {}

    pub(crate) fn run_stop_stage(&mut self, _: WorkerId, _: usize, _: &StopPolicy) {}

    pub(crate) fn kill(&mut self, _: WorkerId) {}
}
