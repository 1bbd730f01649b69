//! The control connection of a worker: over a pipe, or over its standard streams.

use crate::{
    launch::{
        error::SpecError,
        pass::Pass,
        plan::{FdSource, MESSAGES},
    },
    policy::readiness_call::ReadinessAnswer,
    supervisor::spec::{MessageSource, WorkerSpec, control_source::ControlSource, readiness::Readiness},
    wire::{
        framing::Framing,
        jsonrpc::stdio_protocol::StdioProtocol,
        node_channel::{CHANNEL_VARIABLE, SERIALIZATION, SERIALIZATION_VARIABLE},
    },
};
use serde::de::IgnoredAny;
use serde_json::{json, value::RawValue};
use std::time::Duration;

/// Control.
impl WorkerSpec {
    /// Adds a control pipe for calls in both directions. Its address replaces the `{}` of `Pass::arg("--control={}")` or
    /// `Pass::env("PIPEWRIGHT_CONTROL")`, the places that [`Parent::from_args`](crate::Parent::from_args) reads. An argument contains only
    /// the path, and the variable `PIPEWRIGHT_CONTROL_KEY` the key; a variable contains `PATH?KEY`.
    pub fn control(mut self, pass: Pass) -> Self {
        self.plan.pass_control(pass);
        self.control_by(ControlSource::Pipe)
    }

    /// Calls the worker over its standard input and output: for programs that speak JSON-RPC 2.0 and were not written for this library, such
    /// as servers of the Language Server Protocol and of the Model Context Protocol.
    ///
    /// [`Worker::call`](crate::Worker::call), [`start_call`](crate::Worker::start_call) and [`notify`](crate::Worker::notify) write to its
    /// standard input. Requests and notifications that it writes to its standard output are the events
    /// [`Request`](crate::EventKind::Request) and [`Notification`](crate::EventKind::Notification), and other output there is an
    /// [`InvalidFrame`](crate::EventKind::InvalidFrame). Both streams are sockets, as under Node's `child_process`. The connection exists
    /// from the start of the process, so there is no [`ControlConnected`](crate::EventKind::ControlConnected).
    /// [`ControlDisconnected`](crate::EventKind::ControlDisconnected) says that the worker has closed its standard output; calls to one that
    /// has closed its standard input fail.
    ///
    /// Conflicts with [`control`](Self::control), [`stdin`](Self::stdin), [`stdout`](Self::stdout) and
    /// [`messages_on_stdout`](Self::messages_on_stdout). Standard error stays free, for example for
    /// [`OutputMode::Lines`](crate::OutputMode::Lines).
    ///
    /// ```
    /// use pipewright::{Framing, OutputMode, StdioProtocol, WorkerSpec};
    ///
    /// WorkerSpec::new("json-rpc-server").control_on_stdio(StdioProtocol::new(Framing::Lines)).stderr(OutputMode::Lines);
    /// ```
    #[doc(alias = "lsp")]
    #[doc(alias = "mcp")]
    pub fn control_on_stdio(mut self, protocol: StdioProtocol) -> Self {
        self.plan.stdio_sockets = true;
        self.control_by(ControlSource::Stdio(protocol))
    }

    /// Connects the worker by the channel of Node's `child_process.fork`: for unmodified scripts of Node.
    ///
    /// What the script sends by `process.send` arrives as [`EventKind::Message`](crate::EventKind::Message), and
    /// [`Worker::send`](crate::Worker::send) sends what its `process.on("message")` receives. The channel has no calls:
    /// [`Worker::call`](crate::Worker::call) and [`notify`](crate::Worker::notify) fail with
    /// [`CallError::Unsupported`](crate::CallError::Unsupported). Messages of Node itself (`{"cmd": "NODE_…"}`) are skipped, and a handle that
    /// the script sends ends the channel. When the script calls `process.disconnect()`,
    /// [`ControlDisconnected`](crate::EventKind::ControlDisconnected) follows, unless it exits.
    ///
    /// The script is started by its path, since `node` is its program. By default it is stopped by the end of the channel (its event
    /// `disconnect`), SIGTERM after 2 s, and SIGKILL after 5 s more.
    ///
    /// Node drops messages that do not fit into the channel when the script calls `process.exit()`. So the channel has room for 4 MiB;
    /// without `CAP_NET_ADMIN` the kernel limits this to twice `/proc/sys/net/core/wmem_max`.
    ///
    /// Conflicts with other sources of messages, and with [`control`](Self::control) and [`control_on_stdio`](Self::control_on_stdio).
    ///
    /// ```
    /// use pipewright::WorkerSpec;
    ///
    /// WorkerSpec::new("node").arg("worker.js").node_channel();
    /// ```
    #[doc(alias = "fork")]
    #[doc(alias = "NODE_CHANNEL_FD")]
    pub fn node_channel(mut self) -> Self {
        self.plan.add_fd(MESSAGES, FdSource::Channel, Pass::env(CHANNEL_VARIABLE));
        self.env(SERIALIZATION_VARIABLE, SERIALIZATION)
            .messages_from(MessageSource::Pipe)
            .control_by(ControlSource::NodeChannel)
    }

    fn control_by(mut self, source: ControlSource) -> Self {
        if self.control != ControlSource::Nowhere {
            let error = if self.control.setting() == source.setting() {
                SpecError::DuplicateControl
            } else {
                let reason = "a worker has one connection".into();
                SpecError::Conflict { settings: [self.control.setting(), source.setting()], reason }
            };
            self.plan.first_error.get_or_insert(error);
        }
        self.control = source;
        self.settle_stop().settle_ready()
    }

    /// Sets the timeout for connecting to the control pipe; 10 s by default. When it expires, the worker's events include
    /// [`ConnectTimeout`](crate::events::DisconnectReason::ConnectTimeout). If the connection makes the worker ready, the timeout is at least
    /// that of [`Readiness`](crate::Readiness::timeout).
    pub fn control_connect_timeout(mut self, timeout: Duration) -> Self {
        self.control_connect_timeout = Some(timeout);
        self
    }

    /// Sets how many bytes of requests and notifications of the worker may be unreceived or unanswered before its control connection is no
    /// longer read; by default 8 MiB. Each counts about 200 bytes more than its line.
    ///
    /// An answer that the worker sends after them is read only when there is room. So the program has to receive
    /// [`events`](crate::Supervisor::events) on another thread than those that wait for answers, or to
    /// [`serve`](crate::Supervisor::serve) them. Otherwise these calls fail with
    /// [`EventsUnreceived`](crate::CallError::EventsUnreceived).
    pub fn control_window(mut self, bytes: usize) -> Self {
        self.control_window = bytes;
        self
    }

    /// Adds a control pipe, unless the spec has a control connection.
    pub(crate) fn control_if_none(self) -> Self {
        match self.control {
            ControlSource::Nowhere => self.control(Pass::env("PIPEWRIGHT_CONTROL")),
            ControlSource::Pipe
            | ControlSource::Stdio(_)
            | ControlSource::NodeChannel
            | ControlSource::StdioMessages => self,
        }
    }

    /// Exchanges messages, one a line, over standard input and output.
    pub(crate) fn messages_on_stdio(mut self) -> Self {
        self.plan.stdio_sockets = true;
        self.messages_from(MessageSource::Pipe).control_by(ControlSource::StdioMessages)
    }

    /// Connects the worker by Node's channel, unless the spec does.
    pub(crate) fn node_channel_if_unset(self) -> Self {
        if self.control == ControlSource::NodeChannel { self } else { self.node_channel() }
    }

    /// Sets the readiness, unless the spec does.
    pub(crate) fn ready_if_none(self, ready: Readiness) -> Self {
        if self.ready_asked.is_some() { self } else { self.ready(ready) }
    }

    /// The order of `stop` and `control_on_stdio` does not matter.
    pub(crate) fn settle_stop(mut self) -> Self {
        self.stop = match (&self.stop_asked, &self.control) {
            (Some(asked), _) => asked.clone(),
            (None, control) => control.default_stop(),
        };
        self
    }

    /// The order of `ready` and `control_on_stdio` does not matter.
    pub(crate) fn settle_ready(mut self) -> Self {
        self.ready = self.ready_asked.clone();
        if let (None, ControlSource::Stdio(StdioProtocol { handshake: Some(handshake), .. })) =
            (&self.ready, &self.control)
        {
            match handshake
                .params
                .clone()
                .and_then(|text| RawValue::from_string(text.into()).map_err(|e| e.to_string().into()))
            {
                Ok(params) => {
                    let ready = Readiness::call("initialize", &params, |_: IgnoredAny| ReadinessAnswer::Ready);
                    self.ready = Some(match handshake.then {
                        Some(method) => ready.then_notify(method, &json!({})),
                        None => ready,
                    });
                }
                Err(reason) => {
                    let settings = ["control_on_stdio", "initialize"];
                    self.plan.first_error.get_or_insert(SpecError::Conflict { settings, reason });
                }
            }
        }
        self
    }

    /// Checks that no other setting uses what carries the connection.
    pub(crate) fn check_connection(&self) -> Result<(), SpecError> {
        if self.control.is_of_messages() && self.framing != Framing::Lines {
            let reason = "its messages are lines".into();
            return Err(SpecError::Conflict { settings: [self.control.setting(), "framing"], reason });
        }
        if !matches!(self.control, ControlSource::Stdio(_) | ControlSource::StdioMessages) {
            return Ok(());
        }
        let others = [
            ("stdin", self.stdin.is_some()),
            ("stdout", self.stdout.is_some()),
            ("messages_on_stdout", self.messages == MessageSource::Stdout),
        ];
        match others.into_iter().find(|(_, is_set)| *is_set) {
            Some((setting, _)) => {
                let reason = "standard input and output carry the calls".into();
                Err(SpecError::Conflict { settings: [self.control.setting(), setting], reason })
            }
            None => Ok(()),
        }
    }
}
