//! What the other side of a connection understands apart from JSON-RPC itself.

use super::{
    encode,
    message::RequestId,
    protocol::{self, CANCEL, Cancel, PING},
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// The methods by which a connection is checked and a request is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Dialect {
    /// This library on both sides: `ping`, `$/cancelRequest`, `$/extend`.
    #[default]
    Pipewright,
    /// `$/cancelRequest`, from the Language Server Protocol.
    Lsp,
    /// `ping` and `notifications/cancelled`, from the Model Context Protocol.
    Mcp,
    /// No JSON-RPC: JSON values both ways.
    Messages,
}

/// The cancellation of MCP.
const MCP_CANCELLED: &str = "notifications/cancelled";

/// The parameters of [`MCP_CANCELLED`].
#[derive(Debug, Serialize, Deserialize)]
struct McpCancelled {
    #[serde(rename = "requestId")]
    request_id: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Empty {}

impl Dialect {
    /// The name of the request that checks whether the peer is alive, if there is one.
    pub(crate) fn ping(self) -> Option<&'static str> {
        match self {
            Self::Pipewright | Self::Mcp => Some(PING),
            Self::Lsp | Self::Messages => None,
        }
    }

    /// The answer to a ping of the peer.
    pub(super) fn pong(self, id: &RequestId) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Pipewright | Self::Lsp | Self::Messages => encode::response(id, &()),
            Self::Mcp => encode::response(id, &Empty {}),
        }
    }

    /// The name of the notification that cancels a request.
    pub(super) fn cancel(self) -> &'static str {
        match self {
            Self::Pipewright | Self::Lsp | Self::Messages => CANCEL,
            Self::Mcp => MCP_CANCELLED,
        }
    }

    /// The notification that cancels a request of this side.
    pub(super) fn cancellation(self, id: u64) -> serde_json::Result<Vec<u8>> {
        let id = to_raw_value(&id)?;
        match self {
            Self::Pipewright | Self::Lsp | Self::Messages => encode::notification(CANCEL, &Cancel { id }),
            Self::Mcp => {
                let reason = Some("the caller no longer waits for the result".to_owned());
                encode::notification(MCP_CANCELLED, &McpCancelled { request_id: id, reason })
            }
        }
    }

    /// The id of the cancelled request, from the parameters of [`cancel`](Self::cancel).
    pub(super) fn cancelled_id(self, params: Option<&RawValue>) -> Option<RequestId> {
        match self {
            Self::Pipewright | Self::Lsp | Self::Messages => protocol::cancelled_id(params),
            Self::Mcp => {
                serde_json::from_str::<McpCancelled>(params?.get()).ok().map(|one| RequestId::new(one.request_id))
            }
        }
    }
}
