//! The first line of a worker and its answer.

use super::{
    encode,
    error::RpcError,
    message::{RequestId, RpcMessage, whole_number},
    protocol::{HELLO, VERSION},
};
use crate::wire::framing::BYTE_ORDER_MARK;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The parameters of `hello`, as this library sends them.
#[derive(Debug, Serialize)]
pub(crate) struct Hello<'a> {
    key: &'a str,
    version: u64,
}

impl<'a> Hello<'a> {
    pub(crate) fn new(key: &'a str) -> Self {
        Self { key, version: VERSION }
    }
}

/// The first line of a peer.
#[derive(Debug)]
pub(crate) struct FirstLine {
    /// The id of a request. A notification has none, and gets no answer unless it is refused.
    pub(crate) id: Option<RequestId>,
    /// What a `hello` says; `None` if it is something else.
    pub(crate) hello: Option<ReceivedHello>,
}

/// The parameters of a `hello`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReceivedHello {
    pub(crate) key: String,
    pub(crate) version: u64,
}

#[derive(Deserialize)]
struct Params<'a> {
    key: String,
    #[serde(borrow, default)]
    version: Option<&'a RawValue>,
}

/// The result of an accepted `hello`, as this library sends it.
#[derive(Serialize)]
struct HelloAnswer {
    version: u64,
    max_message_size: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    messages: bool,
}

/// The result of an accepted `hello`, as this library reads it. A parent may send any other result.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct AcceptedHello {
    /// Whether the parent takes messages as notifications.
    #[serde(default)]
    pub(crate) messages: bool,
}

impl AcceptedHello {
    pub(crate) fn from_result(result: &RawValue) -> Self {
        serde_json::from_str(result.get()).unwrap_or_default()
    }
}

impl FirstLine {
    pub(crate) fn parse(line: &[u8]) -> Self {
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        let (id, method, params) = match RpcMessage::parse(line) {
            Some(RpcMessage::Request { id, method, params }) => (Some(id), method, params),
            Some(RpcMessage::Notification { method, params }) => (None, method, params),
            Some(RpcMessage::Response { .. } | RpcMessage::UnidentifiedError(_)) | None => {
                return Self { id: None, hello: None };
            }
        };
        let params = params.as_deref().filter(|_| method == HELLO);
        Self { id, hello: params.and_then(ReceivedHello::from_params) }
    }

    /// Whether the received bytes can be the beginning of a first line, which is an object. Other protocols need not be read to a
    /// line end.
    pub(crate) fn may_begin_with(received: &[u8]) -> bool {
        let text = received.strip_prefix(BYTE_ORDER_MARK).unwrap_or(received);
        match text.trim_ascii_start().first() {
            Some(first) => *first == b'{' || BYTE_ORDER_MARK.starts_with(received),
            None => true,
        }
    }
}

impl ReceivedHello {
    fn from_params(params: &RawValue) -> Option<Self> {
        let Params { key, version } = serde_json::from_str(params.get()).ok()?;
        let version = version.map_or(Some(VERSION_IF_ABSENT), |version| whole_number(version.get()))?;
        Some(Self { key, version })
    }

    pub(crate) fn is_supported(&self) -> bool {
        self.version == VERSION
    }
}

/// The version of a worker that names none.
const VERSION_IF_ABSENT: u64 = 1;

/// The answer to an accepted `hello` that is a request. `messages` is whether messages are taken as notifications.
pub(crate) fn accepted(id: &RequestId, max_message_size: usize, messages: bool) -> Option<Vec<u8>> {
    encode::response(id, &HelloAnswer { version: VERSION, max_message_size, messages }).ok()
}

/// The answer to a first line that is refused.
pub(crate) fn refused(id: Option<&RequestId>, error: &RpcError) -> Option<Vec<u8>> {
    id.map_or_else(|| encode::error_without_id(error), |id| encode::error_response(id, error)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::jsonrpc::error::INVALID_REQUEST;

    fn hello(line: &str) -> Option<(String, u64)> {
        FirstLine::parse(line.as_bytes()).hello.map(|hello| (hello.key, hello.version))
    }

    #[test]
    fn p12_hello_names_a_key_and_a_version() {
        let with =
            |version: &str| hello(&format!(r#"{{"jsonrpc":"2.0","method":"hello","params":{{"key":"k"{version}}}}}"#));
        for (version, expected) in [
            ("", Some(1)),
            (r#","version":null"#, Some(1)),
            (r#","version":1"#, Some(1)),
            (r#","version":1.0"#, Some(1)),
            (r#","version":2,"other":[]"#, Some(2)),
            (r#","version":"1""#, None),
            (r#","version":-1"#, None),
            (r#","version":1.5"#, None),
        ] {
            assert_eq!(with(version), expected.map(|version| ("k".to_owned(), version)), "{version}");
        }
        let line = r#"{"jsonrpc":"2.0","id":"a","method":"hello","params":{"key":"k"}}"#;
        assert_eq!(FirstLine::parse(line.as_bytes()).id.unwrap().text(), "\"a\"");
        assert!(hello(&format!("\u{feff}{line}")).is_some());
        for other in
            ["{}", r#"{"jsonrpc":"2.0","method":"hello"}"#, r#"{"jsonrpc":"2.0","method":"hello","params":{}}"#]
        {
            assert_eq!(hello(other), None, "{other}");
        }
        // The error of another request has its id.
        let first = FirstLine::parse(br#"{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"key":"k"}}"#);
        assert_eq!((first.id.unwrap().text(), first.hello), ("7", None));
    }

    #[test]
    fn p15_other_protocols_are_recognized_by_their_first_byte() {
        for begin in ["", "{", " \t{\"", "\u{feff}", "\u{feff} {", "\n"] {
            assert!(FirstLine::may_begin_with(begin.as_bytes()), "{begin:?}");
        }
        assert!([&b"\xef"[..], b"\xef\xbb"].into_iter().all(FirstLine::may_begin_with));
        for begin in [&b"G"[..], b"\x16\x03\x01", b" x", b"[", b"\xef{", b"\xef\xbb\xbf[", b"\xef\xbb\xbf\xef"] {
            assert!(!FirstLine::may_begin_with(begin), "{begin:?}");
        }
    }

    #[test]
    fn p12_answers_have_the_id_of_the_hello() {
        let text = |line: Option<Vec<u8>>| String::from_utf8(line.unwrap()).unwrap();
        let id = FirstLine::parse(br#"{"jsonrpc":"2.0","id":"a","method":"hello"}"#).id.unwrap();
        for (messages, member) in [(false, ""), (true, r#","messages":true"#)] {
            let result = format!(r#"{{"version":1,"max_message_size":9{member}}}"#);
            assert_eq!(
                text(accepted(&id, 9, messages)),
                format!("{{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"result\":{result}}}\n")
            );
            assert_eq!(AcceptedHello::from_result(&RawValue::from_string(result).unwrap()).messages, messages);
        }
        for other in ["null", "{}", r#"{"messages":1}"#, "[]"] {
            assert!(!AcceptedHello::from_result(&RawValue::from_string(other.into()).unwrap()).messages, "{other}");
        }
        let error = RpcError::new(INVALID_REQUEST, "no");
        let answer = |id: &str| {
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32600,\"message\":\"no\"}}}}\n")
        };
        assert_eq!([text(refused(Some(&id), &error)), text(refused(None, &error))], [answer("\"a\""), answer("null")]);
    }
}
