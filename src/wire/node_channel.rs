//! The messages of Node's `child_process.fork`: a JSON value a line, both ways. Node does not document the format; these rules are those of
//! `lib/internal/child_process.js`.

use super::framing::{Framing, encode::encode};
use memchr::memmem;
use serde::{Deserialize, Serialize, ser::Error as _};
use std::borrow::Cow;

/// The variable with the number of the channel's file descriptor.
pub(crate) const CHANNEL_VARIABLE: &str = "NODE_CHANNEL_FD";
/// The variable with the serialization of messages.
pub(crate) const SERIALIZATION_VARIABLE: &str = "NODE_CHANNEL_SERIALIZATION_MODE";
pub(crate) const SERIALIZATION: &str = "json";

/// Node keeps messages to itself whose `cmd` begins with this and is longer.
const INTERNAL_PREFIX: &str = "NODE_";

#[derive(Deserialize)]
struct Command<'a> {
    #[serde(borrow)]
    cmd: Cow<'a, str>,
}

/// Whether a message is one of Node's own.
pub(crate) fn is_internal(message: &[u8]) -> bool {
    // serde would also take an array for the structure.
    message.trim_ascii_start().starts_with(b"{")
        && memmem::find(message, INTERNAL_PREFIX.as_bytes()).is_some()
        && serde_json::from_slice::<Command<'_>>(message)
            .is_ok_and(|command| command.cmd.len() > INTERNAL_PREFIX.len() && command.cmd.starts_with(INTERNAL_PREFIX))
}

/// Writes a message as a line. Node would not pass an internal one to its program, so that is an error.
pub(crate) fn message<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = Vec::with_capacity(256);
    encode(Framing::Lines, value, &mut line)?;
    if is_internal(&line) {
        return Err(serde_json::Error::custom("Node reserves messages whose `cmd` begins with NODE_"));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn p02_only_internal_messages_are_internal() {
        for (text, expected) in [
            (r#"{"cmd":"NODE_HANDLE_ACK"}"#, true),
            (r#"{"a":["NODE_"],"cmd":"NODE_x"}"#, true),
            (r#"{"cmd":"NODE_"}"#, false),
            (r#"{"cmd":"node_x"}"#, false),
            (r#"{"cmd":["NODE_x"]}"#, false),
            (r#"{"args":{"cmd":"NODE_x"}}"#, false),
            (r#"["NODE_x"]"#, false),
            (r#""NODE_x""#, false),
            (r#"{"cmd":"NODE_x""#, false),
        ] {
            assert_eq!(is_internal(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(message(&json!([1, "a\nb"])).unwrap(), b"[1,\"a\\nb\"]\n");
        assert!(message(&json!({"cmd": "NODE_secret"})).is_err());
    }
}
