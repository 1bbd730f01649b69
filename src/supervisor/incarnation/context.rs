//! The parts of the event loop that incarnations use, and their reports to supervision.

use crate::{
    exit::Exit,
    ids::WorkerId,
    supervisor::{
        commands::CommandSender,
        control::server::ControlServer,
        events::sink::EventSink,
        flow_control::FlowControl,
        incarnation::health::HealthFailure,
        process_trees::ProcessTrees,
        reactor::{Reactor, arena::Key},
        spawner::Spawner,
    },
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// The first and the longest interval at which the loop checks whether the consumer has received events. Only while a worker is paused: a
/// channel does not notify its sender of a receive.
pub(crate) const FIRST_CHECK: Duration = Duration::from_millis(1);
pub(crate) const LAST_CHECK: Duration = Duration::from_millis(128);

/// The parts of the event loop that an incarnation uses while it handles an input.
#[derive(Debug)]
pub(crate) struct IncarnationContext<'a> {
    pub(crate) reactor: &'a mut Reactor,
    pub(crate) sink: &'a mut EventSink,
    pub(crate) trees: &'a mut ProcessTrees,
    pub(crate) reading: &'a mut ReadContext,
    pub(crate) server: &'a mut Option<ControlServer>,
    pub(crate) spawner: &'a Arc<Spawner>,
    pub(crate) commands: &'a CommandSender,
    pub(crate) facts: &'a mut VecDeque<Fact>,
}

/// A report of an incarnation to supervision.
#[derive(Debug)]
pub(crate) enum Fact {
    Ready(WorkerId),
    /// The incarnation has ended. Supervision decides what happens to the worker, and sends the last event.
    Finished {
        worker: WorkerId,
        exit: Arc<Exit>,
        /// Why the supervisor stopped it by itself.
        failure: Option<HealthFailure>,
    },
}

/// The state of reading that incarnations share: the buffer, the window of the supervisor, and the paused incarnations.
#[derive(Debug)]
pub(crate) struct ReadContext {
    /// The buffer for reads.
    pub(crate) scratch: Vec<u8>,
    /// The window of the supervisor.
    pub(crate) window: Arc<FlowControl>,
    /// Incarnations whose output streams are paused.
    pub(crate) paused: Vec<Key>,
    /// Incarnations whose control connection is paused.
    pub(crate) paused_control: Vec<Key>,
    /// The time until the next check whether paused incarnations can be resumed; see `FIRST_CHECK`.
    pub(crate) next_check: Duration,
}
