//! Writes messages as lines.

use super::{error::RpcError, message::RequestId};
use crate::wire::framing::{Framing, encode::encode};
use memchr::memmem;
use serde::{Serialize, ser::Error as _};
use serde_json::value::RawValue;

#[derive(Serialize)]
struct OutgoingMessage<'a, P: ?Sized, R: ?Sized> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<OutgoingId<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a P>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

/// The id of a request of this side, or of the peer.
#[derive(Serialize)]
#[serde(untagged)]
enum OutgoingId<'a> {
    Own(u64),
    Peer(&'a RawValue),
}

impl<P: ?Sized, R: ?Sized> OutgoingMessage<'_, P, R> {
    const EMPTY: Self = Self { jsonrpc: "2.0", id: None, method: None, params: None, result: None, error: None };
}

fn line<P: Serialize + ?Sized, R: Serialize + ?Sized>(
    outgoing: &OutgoingMessage<'_, P, R>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = Vec::with_capacity(256);
    encode(Framing::Lines, outgoing, &mut line)?;
    if line.ends_with(NO_PARAMS) {
        line.truncate(line.len().saturating_sub(NO_PARAMS.len()));
        line.extend_from_slice(b"}\n");
    } else if outgoing.params.is_some() {
        // The first match is the member: in a string its quotes would be escaped.
        let start = memmem::find(&line, PARAMS).map(|at| at.saturating_add(PARAMS.len()));
        if !matches!(start.and_then(|start| line.get(start)), Some(b'[' | b'{')) {
            let text = "JSON-RPC allows an array, an object, or no parameters: pass a single value in an array";
            return Err(serde_json::Error::custom(text));
        }
    }
    Ok(line)
}

const PARAMS: &[u8] = b",\"params\":";

/// The end of a line without parameters, which are the last member. JSON-RPC allows an array, an object, or no member.
const NO_PARAMS: &[u8] = b",\"params\":null}\n";

pub(crate) fn request<P: Serialize + ?Sized>(id: u64, method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    let id = Some(OutgoingId::Own(id));
    line::<P, ()>(&OutgoingMessage { id, method: Some(method), params: Some(params), ..OutgoingMessage::EMPTY })
}

pub(crate) fn notification<P: Serialize + ?Sized>(method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    line::<P, ()>(&OutgoingMessage { method: Some(method), params: Some(params), ..OutgoingMessage::EMPTY })
}

pub(crate) fn response<R: Serialize + ?Sized>(id: &RequestId, result: &R) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), R>(&OutgoingMessage {
        id: Some(OutgoingId::Peer(&id.raw)),
        result: Some(result),
        ..OutgoingMessage::EMPTY
    })
}

pub(crate) fn error_response(id: &RequestId, error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), ()>(&OutgoingMessage {
        id: Some(OutgoingId::Peer(&id.raw)),
        error: Some(error),
        ..OutgoingMessage::EMPTY
    })
}

/// The answer to a line that is not a request, or whose id is unknown: an error whose id is null.
pub(crate) fn error_without_id(error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), ()>(&OutgoingMessage {
        id: Some(OutgoingId::Peer(RawValue::NULL)),
        error: Some(error),
        ..OutgoingMessage::EMPTY
    })
}
