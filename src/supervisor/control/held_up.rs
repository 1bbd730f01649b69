//! Calls whose answers wait until the program receives events of the worker.

use crate::{
    policy::receipts::CallOutlook,
    supervisor::control::{
        connection::{ConnectionEvent, ConnectionState, ReadOwner, RpcConnection},
        unreceived::{HeldUpCalls, Unreceived},
    },
    wire::jsonrpc::{error::CallError, request::RpcSender},
};
use std::mem;

impl RpcConnection {
    /// Ends the calls that wait in vain. Returns whether the loop has to check again.
    pub(crate) fn apply_outlook(&self, outlook: CallOutlook, unreceived: Unreceived) -> bool {
        let mut state = self.lock();
        let has_stopped = matches!(outlook, CallOutlook::Doubtful | CallOutlook::Hopeless);
        let ended = if outlook == CallOutlook::Hopeless { state.endpoint.abandon_all() } else { Vec::new() };
        let has_calls = state.is_leased() || !state.endpoint.calls.is_empty();
        let is_watched = outlook != CallOutlook::Clear && has_calls;
        let unreceived_now = has_stopped.then_some(unreceived);
        state.held_up = HeldUpCalls { is_watched, unreceived: unreceived_now, ..state.held_up };
        drop(state);
        for (call, cancellation) in ended {
            call.complete(Err(unreceived.into()));
            // If it cannot be sent, the answer is ignored.
            drop(cancellation.map(|line| self.send_line(line)));
        }
        is_watched
    }

    /// Records whether the output of the worker is not read, since its window is full.
    pub(crate) fn set_output_paused(&self, is_paused: bool) {
        self.lock().held_up.is_output_paused = is_paused;
    }

    /// Why there is no answer at the timeout of a call.
    pub(crate) fn timeout_error(&self) -> CallError {
        self.lock().held_up.unreceived.map_or(CallError::TimedOut, CallError::from)
    }
}

impl ConnectionState {
    /// Whether answers may have to wait until the program receives events. Only the loop knows whether it does.
    pub(crate) fn may_be_held_up(&self) -> bool {
        let is_paused = self.held_up.is_output_paused || matches!(self.read_owner, ReadOwner::Paused);
        is_paused || !self.endpoint.requests.is_empty()
    }

    /// A call has begun. Makes the loop check whether its answer has to wait.
    pub(crate) fn check_if_held_up(&mut self) {
        if !self.may_be_held_up() {
            self.held_up.unreceived = None;
        } else if !mem::replace(&mut self.held_up.is_watched, true) {
            self.events.report(ConnectionEvent::CallHeldUp(self.worker));
        }
    }
}
