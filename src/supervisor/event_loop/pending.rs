//! What incarnations and supervision have for each other, until the event loop passes it on.

use crate::{
    policy::lifecycle::StopRequest,
    supervisor::{incarnation::context::Fact, reactor::arena::Key},
};
use std::collections::VecDeque;

/// What incarnations and supervision have for each other.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) facts: VecDeque<Fact>,
    pub(crate) stops: VecDeque<(Key, StopRequest)>,
}
