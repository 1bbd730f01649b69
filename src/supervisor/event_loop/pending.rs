//! Messages between incarnations and supervision.

use crate::supervisor::{incarnation::context::Fact, supervision::StopOrder};
use std::collections::VecDeque;

/// The messages between incarnations and supervision that the event loop has not passed on yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) facts: VecDeque<Fact>,
    pub(crate) stops: VecDeque<StopOrder>,
}
