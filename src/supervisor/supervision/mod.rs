//! Workers and groups across incarnations.

pub(crate) mod groups;
pub(crate) mod membership;
pub(crate) mod restart;
pub(crate) mod worker;
