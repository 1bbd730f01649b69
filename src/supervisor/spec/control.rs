//! The settings of the control connection.

use crate::{
    launch::{error::SpecError, pass::Pass},
    supervisor::spec::WorkerSpec,
};
use std::time::Duration;

/// The control connection.
impl WorkerSpec {
    /// Adds a control pipe for calls in both directions. Its address replaces the `{}` of `Pass::arg("--control={}")` or
    /// `Pass::env("PIPEWRIGHT_CONTROL")`, the places that [`Parent::from_args`](crate::Parent::from_args) reads. An argument contains only
    /// the path, and the variable `PIPEWRIGHT_CONTROL_KEY` the key; a variable contains `PATH?KEY`.
    pub fn control(mut self, pass: Pass) -> Self {
        if self.has_control {
            self.plan.first_error.get_or_insert(SpecError::DuplicateControl);
        }
        self.has_control = true;
        self.plan.pass_control(pass);
        self
    }

    /// Sets the timeout for connecting to the control pipe; 10 s by default. When it expires, the worker's events include
    /// [`ConnectTimeout`](crate::events::DisconnectReason::ConnectTimeout). If the connection makes the worker ready, the timeout is at least
    /// that of [`Readiness`](crate::Readiness::timeout).
    pub fn control_connect_timeout(mut self, timeout: Duration) -> Self {
        self.control_connect_timeout = timeout;
        self
    }

    /// Sets how many bytes of requests and notifications of the worker may be unreceived or unanswered before its control connection is no
    /// longer read; by default 8 MiB. Each counts about 200 bytes more than its line.
    ///
    /// An answer that the worker sends after them is read only when there is room. So the program has to receive
    /// [`events`](crate::Supervisor::events) on another thread than those that wait for answers.
    pub fn control_window(mut self, bytes: usize) -> Self {
        self.control_window = bytes;
        self
    }
}
