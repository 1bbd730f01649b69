//! JSON-RPC over the standard streams of programs that were not written for this library.

use super::dialect::Dialect;
use crate::wire::framing::Framing;
use serde::Serialize;
use serde_json::{Value, json};
use std::process;

/// How messages of a control connection are separated, and which dialect the peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RpcProtocol {
    pub(crate) framing: Framing,
    pub(crate) dialect: Dialect,
}

/// JSON-RPC 2.0 as a program speaks it on its standard input and output, for
/// [`WorkerSpec::control_on_stdio`](crate::WorkerSpec::control_on_stdio).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct StdioProtocol {
    pub(crate) rpc: RpcProtocol,
    pub(crate) stop: StopSequence,
    pub(crate) handshake: Option<Initialize>,
}

/// The handshake of a protocol: the call `initialize`, and a notification after its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Initialize {
    /// As JSON, or why they cannot be sent.
    pub(crate) params: Result<Box<str>, Box<str>>,
    pub(crate) then: Option<&'static str>,
}

/// How a protocol asks its server to exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSequence {
    EndOfInput,
    /// `shutdown`, then `exit`.
    Lsp,
}

impl StdioProtocol {
    /// JSON-RPC 2.0 in this framing, and nothing else: no request and no notification is sent by the library itself, except
    /// `$/cancelRequest` with the id of a call whose caller no longer waits. The Language Server Protocol defines it, `vscode-jsonrpc` and
    /// `StreamJsonRpc` use it, and others ignore notifications that they do not know.
    ///
    /// The worker is stopped by the end of its standard input, SIGTERM after 2 s, and SIGKILL after 5 s more.
    pub fn new(framing: Framing) -> Self {
        Self { rpc: RpcProtocol { framing, dialect: Dialect::Lsp }, stop: StopSequence::EndOfInput, handshake: None }
    }

    /// A server of the [Language Server Protocol](https://microsoft.github.io/language-server-protocol/), 3.17: messages with
    /// `Content-Length` headers.
    ///
    /// Every incarnation is [ready](crate::WorkerSpec::ready) when it has answered `initialize`; calls and notifications of the program wait
    /// for that, and the notification `initialized` precedes them. [`Worker::handshake`](crate::Worker::handshake) returns the answer. The
    /// [parameters](Self::initialize) are the host's process id, the name and version of this library, no root, and no capabilities. A
    /// [`Readiness`](crate::Readiness) of the spec replaces all of this.
    ///
    /// A call whose caller no longer waits is cancelled by `$/cancelRequest`, except `initialize` and `shutdown`. The worker is stopped by the call
    /// `shutdown`, up to 2 s, the notification `exit` and the end of its standard input, SIGTERM after 2 s more, and SIGKILL 5 s later. Its
    /// standard error is for logs.
    pub fn lsp() -> Self {
        let rpc = RpcProtocol { framing: Framing::ContentLength, dialect: Dialect::Lsp };
        let params = json!({"processId": process::id(), "clientInfo": client(), "rootUri": null, "capabilities": {}});
        Self { rpc, stop: StopSequence::Lsp, handshake: Some(Initialize::new(&params, Some("initialized"))) }
    }

    /// A server of the [Model Context Protocol](https://modelcontextprotocol.io/specification/): one message a line.
    ///
    /// `initialize` and `notifications/initialized` are sent as with [`lsp`](Self::lsp). The [parameters](Self::initialize) are the protocol
    /// version 2025-06-18, the name and version of this library, and no capabilities; which version the server has chosen is in its answer.
    ///
    /// A call whose caller no longer waits is cancelled by `notifications/cancelled`, except `initialize`, and [`Watchdog::ping`](crate::Watchdog::ping) uses the `ping` of the
    /// protocol. The worker is stopped as with [`new`](Self::new), which is what the protocol says. Its standard error is for logs.
    pub fn mcp() -> Self {
        let rpc = RpcProtocol { framing: Framing::Lines, dialect: Dialect::Mcp };
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client()});
        let handshake = Initialize::new(&params, Some("notifications/initialized"));
        Self { rpc, stop: StopSequence::EndOfInput, handshake: Some(handshake) }
    }

    /// Sets the parameters of `initialize`: who the client is, and what it can do. With [`new`](Self::new), which has no handshake, this adds
    /// the call `initialize`.
    ///
    /// Parameters that cannot be serialized as a JSON object or array are an error of the spec.
    pub fn initialize<P: Serialize + ?Sized>(mut self, params: &P) -> Self {
        let then = self.handshake.and_then(|handshake| handshake.then);
        self.handshake = Some(Initialize::new(params, then));
        self
    }
}

impl Initialize {
    fn new<P: Serialize + ?Sized>(params: &P, then: Option<&'static str>) -> Self {
        let params = serde_json::to_string(params).map(Into::into).map_err(|error| error.to_string().into());
        Self { params, then }
    }
}

/// The client in the default parameters.
fn client() -> Value {
    json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})
}
