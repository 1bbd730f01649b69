//! Messages between incarnations and supervision.

use crate::{
    policy::lifecycle::StopRequest,
    supervisor::{incarnation::context::Fact, reactor::arena::Key},
};
use std::collections::VecDeque;

/// The messages between incarnations and supervision that the event loop has not passed on yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) facts: VecDeque<Fact>,
    pub(crate) stops: VecDeque<(Key, StopRequest)>,
}
