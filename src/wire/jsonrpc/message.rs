//! Parses one line.

use super::{batch_reply::BatchReply, error::RpcFailure};
use crate::wire::decode::decode;
use memchr::memchr2;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, sync::Arc};

/// The id of a request: any JSON that its sender chose, returned unchanged.
#[derive(Debug, Clone)]
pub(crate) struct RequestId {
    pub(super) raw: Box<RawValue>,
    /// Where the answer goes if the request is part of a batch.
    pub(super) batch: Option<Arc<BatchReply>>,
}

impl RequestId {
    pub(super) fn new(raw: Box<RawValue>) -> Self {
        Self { raw, batch: None }
    }

    pub(crate) fn text(&self) -> &str {
        self.raw.get()
    }
}

/// One line, parsed.
#[derive(Debug)]
pub(crate) enum RpcMessage {
    Request {
        id: RequestId,
        method: String,
        params: Option<Box<RawValue>>,
    },
    Notification {
        method: String,
        params: Option<Box<RawValue>>,
    },
    /// The answer to a request of this side. Those have numeric ids.
    Response {
        id: u64,
        outcome: Result<Box<RawValue>, RpcFailure>,
    },
    /// An error without an id: the peer could not parse a request of this side.
    UnidentifiedError(RpcFailure),
}

#[derive(Deserialize)]
struct RpcLine<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl RpcMessage {
    /// Parses one line. Returns `None` if it is not JSON-RPC 2.0.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        Self::parse_compact(line).or_else(|| Self::parse_any(line))
    }

    /// Parses a request or a result that is written as this library writes it: without spaces, with a whole number as id, and with its
    /// members in this order. That takes a third of the time. Returns `None` for any other line.
    fn parse_compact(line: &[u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"{\"jsonrpc\":\"2.0\",\"id\":")?;
        let (id, rest) = rest.split_at_checked(rest.iter().position(|byte| !byte.is_ascii_digit())?)?;
        let id = str::from_utf8(id).ok().filter(|id| *id == "0" || !id.starts_with('0'))?;
        if let Some(result) = rest.strip_prefix(b",\"result\":") {
            return Some(Self::Response { id: id.parse().ok()?, outcome: Ok(last_member(result)?) });
        }
        let rest = rest.strip_prefix(b",\"method\":\"")?;
        let (method, rest) = rest.split_at_checked(memchr2(b'"', b'\\', rest)?)?;
        let is_plain = method.iter().all(|byte| (b' '..=b'~').contains(byte));
        let params = match rest.strip_prefix(b"\",\"params\":") {
            // Null counts as missing.
            Some(params) => Some(last_member(params).filter(|params| params.get() != "null")?),
            None if rest == b"\"}" => None,
            None => return None,
        };
        let method = str::from_utf8(method).ok().filter(|_| is_plain)?.to_owned();
        Some(Self::Request { id: RequestId::new(RawValue::from_string(id.to_owned()).ok()?), method, params })
    }

    fn parse_any(line: &[u8]) -> Option<Self> {
        if !line.trim_ascii_start().starts_with(b"{") {
            // serde would also take an array for the structure.
            return None;
        }
        let line: RpcLine<'_> = serde_json::from_slice(line).ok()?;
        // Some peers omit the member in responses; their callers still wait for them.
        let may_lack_version = line.method.is_none() && line.jsonrpc.is_none();
        if line.jsonrpc.as_deref() != Some("2.0") && !may_lack_version {
            return None;
        }
        let params = line.params.map(ToOwned::to_owned);
        match (line.method, line.id) {
            (Some(method), Some(id)) => {
                // Neither a number nor a string.
                if id.get().starts_with(['{', '[', 't', 'f']) {
                    return None;
                }
                Some(Self::Request { id: RequestId::new(id.to_owned()), method: method.into_owned(), params })
            }
            (Some(method), None) => Some(Self::Notification { method: method.into_owned(), params }),
            (None, Some(id)) => {
                let id = own_id(id.get()).unwrap_or(NO_CALL);
                let outcome = match (line.result, line.error) {
                    (_, Some(error)) => Err(refused(error)),
                    (Some(result), None) => Ok(result.to_owned()),
                    // serde does not distinguish `"result": null` from a missing member; JSON-RPC requires one of the two.
                    (None, None) => Ok(RawValue::NULL.to_owned()),
                };
                Some(Self::Response { id, outcome })
            }
            (None, None) => line.error.map(|error| Self::UnidentifiedError(refused(error))),
        }
    }
}

/// The value of the last member of an object, from the bytes behind its colon.
fn last_member(rest: &[u8]) -> Option<Box<RawValue>> {
    serde_json::from_slice::<&RawValue>(rest.strip_suffix(b"}")?).ok().map(ToOwned::to_owned)
}

fn refused(error: &RawValue) -> RpcFailure {
    decode(error.get()).map_or_else(RpcFailure::Invalid, RpcFailure::Error)
}

/// An id of the peer's own making in a response: no call has it.
const NO_CALL: u64 = u64::MAX;

/// The id of a request of this side as the peer returned it: a whole number, possibly as a string.
pub(super) fn own_id(text: &str) -> Option<u64> {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
        None => whole_number(text),
    }
}

/// Parses a whole number in any notation of JSON: `7`, `7.0` and `7e0` are the same number.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    // f64 represents every whole number up to this one.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        let is_whole = number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number);
        // A cast could truncate: the number is printed without a fraction and parsed again.
        is_whole.then(|| format!("{number:.0}").parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::jsonrpc::{
        encode::{error_response, notification, request, response},
        error::RpcError,
    };
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn lines_of_this_library_are_compact() {
        let id = RequestId::new(RawValue::from_string("7".into()).unwrap());
        for line in [request(7, "m", &[1]), request(7, "m", &()), response(&id, &json!({"a": "}"}))] {
            let line = line.unwrap();
            assert!(RpcMessage::parse_compact(line.trim_ascii_end()).is_some(), "{}", line.escape_ascii());
        }
    }

    fn round_trip(line: Result<Vec<u8>, serde_json::Error>) -> RpcMessage {
        let line = line.unwrap();
        let (end, text) = line.split_last().unwrap();
        assert_eq!(*end, b'\n');
        assert!(!text.contains(&b'\n'), "one object a line");
        RpcMessage::parse(text).unwrap()
    }

    #[test]
    fn requests_and_notifications_round_trip() {
        match round_trip(request(7, "build", &json!({"file": "a\nb"}))) {
            RpcMessage::Request { id, method, params } => {
                assert_eq!((id.text(), method.as_str()), ("7", "build"));
                assert_eq!(serde_json::from_str::<Value>(params.unwrap().get()).unwrap(), json!({"file": "a\nb"}));
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(round_trip(notification("tick", &[1])), RpcMessage::Notification { method, .. } if method == "tick")
        );
        let bare = String::from_utf8(request(7, "ping", &()).unwrap()).unwrap();
        assert_eq!(bare, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\n");
        for scalar in [json!(5), json!("text"), json!(true), json!(",\"params\":[")] {
            let error = request(7, "m,\"params\":[", &scalar).unwrap_err();
            assert!(error.to_string().contains("pass a single value in an array"), "{error}");
            assert!(notification("m", &[scalar]).is_ok());
        }
        let within = String::from_utf8(notification("tick", &json!({"params": null})).unwrap()).unwrap();
        assert!(within.ends_with(",\"params\":{\"params\":null}}\n"), "{within}");
    }

    #[test]
    fn responses_carry_the_id_of_their_request() {
        let RpcMessage::Request { id, .. } =
            RpcMessage::parse(br#"{"jsonrpc":"2.0","id":"a-1","method":"m"}"#).unwrap()
        else {
            panic!()
        };
        let text = String::from_utf8(response(&id, &1).unwrap()).unwrap();
        assert_eq!(text, "{\"jsonrpc\":\"2.0\",\"id\":\"a-1\",\"result\":1}\n");
        let text = String::from_utf8(error_response(&id, &RpcError::new(5, "no")).unwrap()).unwrap();
        assert_eq!(text, "{\"jsonrpc\":\"2.0\",\"id\":\"a-1\",\"error\":{\"code\":5,\"message\":\"no\"}}\n");
        for (line, expected) in [
            (r#"{"jsonrpc":"2.0","id":3,"result":null}"#, "null"),
            (r#"{"jsonrpc":"2.0","id":3,"result":{"x":[1]}}"#, r#"{"x":[1]}"#),
        ] {
            let RpcMessage::Response { id: 3, outcome: Ok(result) } = RpcMessage::parse(line.as_bytes()).unwrap()
            else {
                panic!("{line}")
            };
            assert_eq!(result.get(), expected);
        }
        let line = br#"{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"x","data":[2]}}"#;
        let RpcMessage::Response { id: 3, outcome: Err(RpcFailure::Error(error)) } = RpcMessage::parse(line).unwrap()
        else {
            panic!()
        };
        assert_eq!((error.code, error.data.unwrap().get()), (-1, "[2]"));
        let line = br#"{"jsonrpc":"2.0","id":3,"error":"no"}"#;
        let RpcMessage::Response { id: 3, outcome: Err(RpcFailure::Invalid(error)) } = RpcMessage::parse(line).unwrap()
        else {
            panic!()
        };
        assert!(error.excerpt().contains("no"), "{error}");
    }

    #[test]
    fn p15_ids_in_other_notations_are_recognized() {
        let id = |id: &str| match RpcMessage::parse(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":1}}"#).as_bytes()) {
            Some(RpcMessage::Response { id, .. }) => Some(id),
            other => panic!("{other:?}"),
        };
        for same in ["7", "7.0", "7e0", "70e-1", "\"7\""] {
            assert_eq!(id(same), Some(7), "{same}");
        }
        for other in ["7.5", "-7", "\"7.0\"", "\"+7\"", "\"\"", "1e300", "[7]", "true"] {
            assert_eq!(id(other), Some(NO_CALL), "{other}");
        }
        let line = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
        assert!(
            matches!(RpcMessage::parse(line), Some(RpcMessage::UnidentifiedError(RpcFailure::Error(error))) if error.code == -32700)
        );
    }

    #[test]
    fn lines_that_are_not_jsonrpc_are_rejected() {
        for line in [
            "",
            "1",
            "[]",
            r#"["2.0",1,"x"]"#,
            "{}",
            r#"{"jsonrpc":"1.0","method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","method":1}"#,
        ] {
            assert!(RpcMessage::parse(line.as_bytes()).is_none(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn p02_compact_lines_mean_what_they_mean_to_the_parser_of_any_line(
            id in "0|[1-9][0-9]{0,3}|0[0-9]|[0-9]{18,22}|-1|7\\.0|\"7\"|",
            method in prop::option::of(prop_oneof!["[a-z/$]{0,5}", "[ -~]{0,4}", "\\PC{0,3}", Just("\u{1}\u{7f}".to_owned())]),
            name in "params|result|error|other",
            value in "null|[0-9]{1,2}| 1 |\\[1,\"[a-z}]{0,3}\"\\]|\\{\"a\":[0-9]\\}|1,\"error\":[0-9]|\\[|\\{\"code\":1,\"message\":\"\"\\}",
            end in "\\}|\\} |\\}\\}||,\"result\":1\\}",
        ) {
            let method = method.map_or(String::new(), |method| format!(",\"method\":\"{method}\""));
            let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id}{method},\"{name}\":{value}{end}");
            if let Some(message) = RpcMessage::parse_compact(line.as_bytes()) {
                prop_assert_eq!(format!("{message:?}"), format!("{:?}", RpcMessage::parse_any(line.as_bytes()).unwrap()), "{}", line);
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_rejected(line in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(RpcMessage::parse(&line));
        }
    }
}
