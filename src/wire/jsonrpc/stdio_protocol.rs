//! JSON-RPC over the standard streams of programs that were not written for this library.

use super::dialect::Dialect;
use crate::wire::framing::Framing;

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
        Self { rpc: RpcProtocol { framing, dialect: Dialect::Lsp }, stop: StopSequence::EndOfInput }
    }

    /// A server of the [Language Server Protocol](https://microsoft.github.io/language-server-protocol/), 3.17: messages with
    /// `Content-Length` headers. A call whose caller no longer waits is cancelled by `$/cancelRequest`. The worker is stopped by the call
    /// `shutdown`, up to 2 s, the notification `exit` and the end of its standard input, SIGTERM after 2 s more, and SIGKILL 5 s later. Its
    /// standard error is for logs.
    pub fn lsp() -> Self {
        Self { rpc: RpcProtocol { framing: Framing::ContentLength, dialect: Dialect::Lsp }, stop: StopSequence::Lsp }
    }

    /// A server of the [Model Context Protocol](https://modelcontextprotocol.io/specification/): one message a line. A call whose caller no
    /// longer waits is cancelled by `notifications/cancelled`, and [`Watchdog::ping`](crate::Watchdog::ping) uses the `ping` of the
    /// protocol. The worker is stopped as with [`new`](Self::new), which is what the protocol says. Its standard error is for logs.
    pub fn mcp() -> Self {
        Self { rpc: RpcProtocol { framing: Framing::Lines, dialect: Dialect::Mcp }, stop: StopSequence::EndOfInput }
    }
}
