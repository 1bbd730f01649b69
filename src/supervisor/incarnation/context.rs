//! What an incarnation uses of the event loop, and what it reports to it.

use crate::{
    exit::Exit,
    ids::WorkerId,
    supervisor::{
        commands::CommandSender,
        control::server::ControlServer,
        events::sink::EventSink,
        flow_control::FlowControl,
        process_trees::ProcessTrees,
        reactor::{Reactor, arena::Key},
        spawner::Spawner,
    },
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// How often, at first and at last, the loop looks whether the consumer has emptied the channel while it keeps what was in it.
/// Only while somebody is paused: a channel does not tell when something is received.
pub(crate) const FIRST_CHECK: Duration = Duration::from_millis(1);
pub(crate) const LAST_CHECK: Duration = Duration::from_millis(128);

/// The parts of the event loop that an incarnation uses while it handles something.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) reactor: &'a mut Reactor,
    pub(crate) sink: &'a mut EventSink,
    pub(crate) trees: &'a mut ProcessTrees,
    pub(crate) reading: &'a mut ReadState,
    pub(crate) server: &'a mut Option<ControlServer>,
    pub(crate) spawner: &'a Arc<Spawner>,
    pub(crate) commands: &'a CommandSender,
    pub(crate) facts: &'a mut VecDeque<Fact>,
}

/// What supervision has to know of an incarnation.
#[derive(Debug)]
pub(crate) enum Fact {
    Ready(WorkerId),
    Finished {
        worker: WorkerId,
        exit: Arc<Exit>,
        /// The supervisor ended it without a request: it was not ready in time, gave no sign of life, or had its time.
        unhealthy: bool,
    },
}

/// How incarnations share reading: the buffer, the supervisor's window, and who is paused.
#[derive(Debug)]
pub(crate) struct ReadState {
    /// What streams are read into.
    pub(crate) scratch: Vec<u8>,
    /// The window of the supervisor.
    pub(crate) window: Arc<FlowControl>,
    /// Incarnations whose output is not read for now.
    pub(crate) paused: Vec<Key>,
    /// Incarnations whose control connection is not read for now.
    pub(crate) paused_control: Vec<Key>,
    /// When the loop checks next whether a paused one may go on; see `FIRST_CHECK`.
    pub(crate) next_check: Duration,
}
