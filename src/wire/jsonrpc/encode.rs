//! Writes messages as lines.
//!
//! They are written member by member: their names need no escapes, which a serializer of the whole message would look for.

use super::{error::RpcError, message::RequestId};
use crate::wire::framing::encode::end_line;
use serde::{Serialize, ser::Error as _};

/// Begins a message.
fn begin() -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    line
}

/// Appends a member. `name` includes the punctuation around it.
fn append<T: Serialize + ?Sized>(line: &mut Vec<u8>, name: &[u8], value: &T) -> Result<(), serde_json::Error> {
    line.extend_from_slice(name);
    serde_json::to_writer(line, value)
}

/// Appends the parameters. JSON-RPC allows an array, an object, or no member.
fn append_params<P: Serialize + ?Sized>(line: &mut Vec<u8>, params: &P) -> Result<(), serde_json::Error> {
    const NAME: &[u8] = b",\"params\":";
    let start = line.len();
    append(line, NAME, params)?;
    match line.get(start.saturating_add(NAME.len())..).unwrap_or_default() {
        b"null" => line.truncate(start),
        [b'[' | b'{', ..] => {}
        _ => {
            let text = "JSON-RPC allows an array, an object, or no parameters: pass a single value in an array";
            return Err(serde_json::Error::custom(text));
        }
    }
    Ok(())
}

fn end(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'}');
    end_line(&mut line, 0);
    line
}

pub(crate) fn request<P: Serialize + ?Sized>(id: u64, method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = begin();
    append(&mut line, b",\"id\":", &id)?;
    append(&mut line, b",\"method\":", method)?;
    append_params(&mut line, params)?;
    Ok(end(line))
}

pub(crate) fn notification<P: Serialize + ?Sized>(method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = begin();
    append(&mut line, b",\"method\":", method)?;
    append_params(&mut line, params)?;
    Ok(end(line))
}

pub(crate) fn response<R: Serialize + ?Sized>(id: &RequestId, result: &R) -> Result<Vec<u8>, serde_json::Error> {
    answer(id.text(), b",\"result\":", result)
}

pub(crate) fn error_response(id: &RequestId, error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    answer(id.text(), b",\"error\":", error)
}

/// The answer to a line that is not a request, or whose id is unknown: an error whose id is null.
pub(crate) fn error_without_id(error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    answer("null", b",\"error\":", error)
}

fn answer<T: Serialize + ?Sized>(id: &str, name: &[u8], value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = begin();
    line.extend_from_slice(b",\"id\":");
    line.extend_from_slice(id.as_bytes());
    append(&mut line, name, value)?;
    Ok(end(line))
}
