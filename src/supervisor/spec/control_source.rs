//! What carries the control connection of a worker.

use crate::{
    policy::stop::{StopPolicy, StopStep},
    wire::{
        framing::Framing,
        jsonrpc::{
            dialect::Dialect,
            stdio_protocol::{RpcProtocol, StdioProtocol, StopSequence},
        },
    },
};
use std::time::Duration;

/// The default timeout for the control connection.
pub(crate) const CONTROL_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What carries the control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ControlSource {
    Nowhere,
    /// The named pipe of the supervisor.
    Pipe,
    /// The worker's standard input and output.
    Stdio(StdioProtocol),
    /// Node's channel, which carries messages only.
    NodeChannel,
    /// Messages on standard input and output.
    StdioMessages,
}

impl ControlSource {
    /// The protocol of the connection; `None` without one.
    pub(crate) fn protocol(&self) -> Option<RpcProtocol> {
        match self {
            Self::Nowhere => None,
            Self::Pipe => Some(RpcProtocol::default()),
            Self::Stdio(protocol) => Some(protocol.rpc),
            Self::NodeChannel | Self::StdioMessages => {
                Some(RpcProtocol { framing: Framing::Lines, dialect: Dialect::Messages })
            }
        }
    }

    /// How the worker is stopped, unless its spec says otherwise.
    pub(crate) fn default_stop(&self) -> StopPolicy {
        match self {
            Self::Nowhere | Self::Pipe => StopPolicy::default(),
            // It knows nothing of the notification `shutdown`.
            Self::Stdio(protocol) if protocol.stop == StopSequence::Lsp => StopPolicy::kill()
                .step([StopStep::Call("shutdown".into())], Duration::from_secs(2))
                .step([StopStep::Notify("exit".into()), StopStep::ClosePipes], Duration::from_secs(2))
                .step([StopStep::SignalGroup(libc::SIGTERM)], Duration::from_secs(5)),
            Self::Stdio(_) | Self::NodeChannel | Self::StdioMessages => StopPolicy::kill()
                .step([StopStep::ClosePipes], Duration::from_secs(2))
                .step([StopStep::SignalGroup(libc::SIGTERM)], Duration::from_secs(5)),
        }
    }

    /// The setting, for errors.
    pub(crate) fn setting(&self) -> &'static str {
        match self {
            Self::Nowhere | Self::Pipe => "control",
            Self::Stdio(_) => "control_on_stdio",
            Self::NodeChannel => "node_channel",
            Self::StdioMessages => "messages_on_stdio",
        }
    }

    /// Whether the connection carries messages both ways, and no calls.
    pub(crate) fn is_of_messages(&self) -> bool {
        match self {
            Self::NodeChannel | Self::StdioMessages => true,
            Self::Nowhere | Self::Pipe | Self::Stdio(_) => false,
        }
    }
}
