//! Groups of workers: nesting, dependencies, start and stop order, and restart strategies.
//!
//! `declaration` takes what users declare, `handle` takes each input and settles it, `members` decides about single members, and
//! `strategy` about groups. A group is itself a member of its parent group: it can be restarted, be significant, and fail. The terms
//! and rules are those of OTP supervisors, except where a comment says otherwise.

mod declaration;
mod dependencies;
pub(crate) mod error;
mod handle;
mod members;
pub(crate) mod model;
mod start_order;
pub(crate) mod state;
mod status;
mod strategy;
pub(crate) mod transition;

#[cfg(test)]
mod end_examples;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod otp_model;
#[cfg(test)]
mod simulation;
