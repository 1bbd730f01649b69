//! Without the feature: the same faces, and nothing behind them.
#![expect(clippy::unused_self, reason = "they look as they do with the feature")]

use crate::{
    policy::stop::StopPolicy,
    supervisor::{
        WorkerId,
        event::Event,
        worker::{Present, WorkerShared},
    },
    wire::jsonrpc::pending::CallError,
};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(in crate::supervisor) struct Trace {}

impl Trace {
    pub(in crate::supervisor) fn meet(&mut self, _: &Arc<WorkerShared>) {}

    pub(in crate::supervisor) fn begin(&mut self, _: &Arc<WorkerShared>, _: &Present) {}

    pub(in crate::supervisor) fn leave(&mut self, _: WorkerId) {}

    pub(in crate::supervisor) fn forget(&mut self, _: WorkerId) {}

    pub(in crate::supervisor) fn tell(&mut self, _: &Event) {}

    pub(in crate::supervisor) fn climb(&mut self, _: WorkerId, _: usize, _: &StopPolicy) {}

    pub(in crate::supervisor) fn kill(&mut self, _: WorkerId) {}
}

#[derive(Debug, Default)]
pub(in crate::supervisor) struct Asked {}

impl Asked {
    pub(in crate::supervisor) fn begin(_: WorkerId, _: &str) -> Self {
        Self {}
    }

    pub(in crate::supervisor) fn end(&mut self, _: Option<&CallError>) {}
}
