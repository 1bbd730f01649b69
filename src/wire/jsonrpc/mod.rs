//! JSON-RPC 2.0, one object a line: requests, notifications and responses as values, and the address at which a worker finds
//! its parent. The specification: <https://www.jsonrpc.org/specification>.

pub(crate) mod pending; // which call waits for which answer; CallError
pub(crate) mod request; // a request of the other side, to be answered

use crate::text::printable;
use crate::wire::{
    framing::{FrameError, FrameErrorKind, Framing, encode},
    message::{DecodeError, decode},
};
use memchr::memmem;
use serde::{
    Deserialize, Deserializer as _, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
    ser::Error as _,
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// The method that the library answers by itself, on either side, with `null`.
pub(crate) const PING: &str = "ping";
/// The first notification of a worker: it shows its key.
pub(crate) const HELLO: &str = "hello";
/// The notification that takes a request back, as in the Language Server Protocol.
pub(crate) const CANCEL: &str = "$/cancelRequest";

/// The notification by which a worker asks for more time to become ready, or to end.
pub(crate) const EXTEND: &str = "$/extend";
/// The notification by which a parent asks its worker to end.
pub(crate) const SHUTDOWN: &str = "shutdown";

pub(crate) const INVALID_REQUEST: i64 = -32600;
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
pub(crate) const INVALID_PARAMS: i64 = -32602;
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// Of the Language Server Protocol: a request that was taken back.
pub(crate) const REQUEST_CANCELLED: i64 = -32800;

/// What the other side answered instead of a result: the `error` object of JSON-RPC 2.0.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{} (code {code})", printable(message))]
#[non_exhaustive]
pub struct RpcError {
    /// What kind of error; -32768 to -32000 are JSON-RPC's own.
    pub code: i64,
    /// One sentence.
    pub message: String,
    /// Anything more, as the method defines it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// An error of a method's own; codes of -32000 and below are JSON-RPC's.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The error of JSON-RPC 2.0 for a method that nobody knows.
    pub fn method_not_found(method: &str) -> Self {
        Self::new(METHOD_NOT_FOUND, format!("there is no method {method:?}"))
    }

    /// Adds data.
    ///
    /// # Errors
    ///
    /// When it does not turn into JSON.
    pub fn with_data(mut self, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        self.data = Some(serde_json::value::to_raw_value(data)?);
        Ok(self)
    }
}

/// The error of JSON-RPC 2.0 for parameters that a method does not understand: what `?` makes of
/// [`Request::params`](crate::Request::params).
impl From<DecodeError> for RpcError {
    fn from(error: DecodeError) -> Self {
        Self::new(INVALID_PARAMS, error.to_string())
    }
}

/// The name of a request: whatever JSON its sender chose, to be sent back as it is.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(Box<RawValue>);

impl RequestId {
    pub(crate) fn text(&self) -> &str {
        self.0.get()
    }
}

/// One line, understood.
#[derive(Debug)]
pub(crate) enum Packet {
    Request {
        id: RequestId,
        method: String,
        params: Option<Box<RawValue>>,
    },
    Notification {
        method: String,
        params: Option<Box<RawValue>>,
    },
    /// To a request of ours, which are numbered.
    Response {
        id: u64,
        outcome: Result<Box<RawValue>, Refusal>,
    },
    /// To a request of ours that the other side did not understand, or whose id it did not see: an error whose id is null.
    Refused(Refusal),
}

/// What a response has instead of a result.
#[derive(Debug)]
pub(crate) enum Refusal {
    Told(RpcError),
    /// Its `error` is not what JSON-RPC 2.0 says: the call it answers ends all the same.
    NotUnderstood(DecodeError),
}

/// A line that is no JSON-RPC 2.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotRpc {
    pub(crate) reason: &'static str,
}

#[derive(Deserialize)]
struct Line<'a> {
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

/// Understands one line.
pub(crate) fn parse(line: &[u8]) -> Result<Packet, NotRpc> {
    let not = |reason| NotRpc { reason };
    let line: Line<'_> = serde_json::from_slice(line).map_err(|_| not("not a JSON object of JSON-RPC"))?;
    // Responses of peers that leave the member out are still the answers that our callers wait for.
    let may_lack_version = line.method.is_none() && line.jsonrpc.is_none();
    if line.jsonrpc.as_deref() != Some("2.0") && !may_lack_version {
        return Err(not("`jsonrpc` is not \"2.0\""));
    }
    let params = line.params.map(ToOwned::to_owned);
    match (line.method, line.id) {
        (Some(method), Some(id)) => {
            if id.get().starts_with(['{', '[', 't', 'f']) {
                return Err(not("`id` is neither a number nor a string"));
            }
            Ok(Packet::Request { id: RequestId(id.to_owned()), method: method.into_owned(), params })
        }
        (Some(method), None) => Ok(Packet::Notification { method: method.into_owned(), params }),
        (None, Some(id)) => {
            let id = own_id(id.get()).ok_or_else(|| not("a response to a request that was not made"))?;
            let outcome = match (line.result, line.error) {
                (_, Some(error)) => Err(refused(error)),
                (Some(result), None) => Ok(result.to_owned()),
                // `"result": null` and none at all read the same; JSON-RPC requires one of the two members.
                (None, None) => Ok(RawValue::NULL.to_owned()),
            };
            Ok(Packet::Response { id, outcome })
        }
        (None, None) => {
            line.error.map(|error| Packet::Refused(refused(error))).ok_or_else(|| not("neither `method` nor `id`"))
        }
    }
}

fn refused(error: &RawValue) -> Refusal {
    decode(error.get()).map_or_else(Refusal::NotUnderstood, Refusal::Told)
}

/// The id of a request of ours, as it came back: a whole number, or as a string.
fn own_id(text: &str) -> Option<u64> {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
        None => whole_number(text),
    }
}

/// A JSON number that is whole, however it is written: `7`, `7.0` and `7e0` are one number.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    // Up to here, every whole number is one of f64.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        let is_whole = number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number);
        // Written without a fraction, it can be parsed as what it is.
        is_whole.then(|| format!("{number:.0}").parse().ok())?
    })
}

/// A line that was too long to be kept, as far as its beginning tells: whoever waits for it, or for its answer, need not wait on.
#[derive(Debug)]
pub(crate) enum TooLong {
    Request(RequestId, RpcError),
    Response(u64, Refusal),
}

/// What a fault stands for, if it is a request or a response whose `id` comes before what made it long.
pub(crate) fn too_long(fault: &FrameError) -> Option<TooLong> {
    let FrameErrorKind::TooLong { limit } = fault.kind else { return None };
    let mut head = Head::default();
    // It fails where the line is cut.
    drop(serde_json::Deserializer::from_slice(&fault.excerpt).deserialize_map(&mut head));
    let id = head.id?;
    let text = format!("a line longer than the {limit} bytes allowed");
    if head.is_request {
        return Some(TooLong::Request(RequestId(id), RpcError::new(INVALID_REQUEST, text)));
    }
    let refusal = Refusal::NotUnderstood(DecodeError::json(&fault.excerpt, serde::de::Error::custom(text)));
    Some(TooLong::Response(own_id(id.get())?, refusal))
}

/// The members of a line that come before its long one.
#[derive(Default)]
struct Head {
    id: Option<Box<RawValue>>,
    is_request: bool,
}

impl<'de> Visitor<'de> for &mut Head {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut id = None;
        while let Some(name) = members.next_key::<String>()? {
            // Something follows it, so it is whole.
            self.id = id.take().or(self.id.take());
            match name.as_str() {
                "id" => id = Some(members.next_value()?),
                name => {
                    // Known before its value, which may be the long one.
                    self.is_request |= name == "method" || name == "params";
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Outgoing<'a, P: ?Sized, R: ?Sized> {
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

/// Of a request of ours, or of one that came.
#[derive(Serialize)]
#[serde(untagged)]
enum OutgoingId<'a> {
    Ours(u64),
    Theirs(&'a RawValue),
}

impl<P: ?Sized, R: ?Sized> Outgoing<'_, P, R> {
    const EMPTY: Self = Self { jsonrpc: "2.0", id: None, method: None, params: None, result: None, error: None };
}

fn line<P: Serialize + ?Sized, R: Serialize + ?Sized>(
    outgoing: &Outgoing<'_, P, R>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = Vec::with_capacity(256);
    encode(Framing::Lines, outgoing, &mut line)?;
    if line.ends_with(NO_PARAMS) {
        line.truncate(line.len().saturating_sub(NO_PARAMS.len()));
        line.extend_from_slice(b"}\n");
    } else if outgoing.params.is_some() {
        // The name stands in no string before them, where its quotes would be escaped.
        let start = memmem::find(&line, PARAMS).map(|at| at.saturating_add(PARAMS.len()));
        if !matches!(start.and_then(|start| line.get(start)), Some(b'[' | b'{')) {
            let text = "the parameters of JSON-RPC are an array, an object, or none: a single value goes into an array";
            return Err(serde_json::Error::custom(text));
        }
    }
    Ok(line)
}

const PARAMS: &[u8] = b",\"params\":";

/// The end of a line whose parameters are none: JSON-RPC wants an array, an object, or nothing at all. They stand last.
const NO_PARAMS: &[u8] = b",\"params\":null}\n";

/// A request as a line.
pub(crate) fn request<P: Serialize + ?Sized>(id: u64, method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    let id = Some(OutgoingId::Ours(id));
    line::<P, ()>(&Outgoing { id, method: Some(method), params: Some(params), ..Outgoing::EMPTY })
}

/// A notification as a line.
pub(crate) fn notification<P: Serialize + ?Sized>(method: &str, params: &P) -> Result<Vec<u8>, serde_json::Error> {
    line::<P, ()>(&Outgoing { method: Some(method), params: Some(params), ..Outgoing::EMPTY })
}

/// The notification that takes a request of ours back, as a line.
pub(crate) fn cancellation(id: u64) -> Result<Vec<u8>, serde_json::Error> {
    notification(CANCEL, &Cancel { id: serde_json::value::to_raw_value(&id)? })
}

/// Which request the other side takes back, from the parameters of [`CANCEL`].
pub(crate) fn cancelled(params: Option<&RawValue>) -> Option<RequestId> {
    let cancel = serde_json::from_str::<Cancel>(params?.get()).ok()?;
    Some(RequestId(cancel.id))
}

/// A good answer as a line.
pub(crate) fn response<R: Serialize + ?Sized>(id: &RequestId, result: &R) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), R>(&Outgoing { id: Some(OutgoingId::Theirs(&id.0)), result: Some(result), ..Outgoing::EMPTY })
}

/// A bad answer as a line.
pub(crate) fn refusal(id: &RequestId, error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), ()>(&Outgoing { id: Some(OutgoingId::Theirs(&id.0)), error: Some(error), ..Outgoing::EMPTY })
}

/// An answer to a line that is no request, or cannot be told from one: an error whose id is null, as a line.
pub(crate) fn refusal_of_unknown(error: &RpcError) -> Result<Vec<u8>, serde_json::Error> {
    line::<(), ()>(&Outgoing { id: Some(OutgoingId::Theirs(RawValue::NULL)), error: Some(error), ..Outgoing::EMPTY })
}

/// The parameters of [`CANCEL`].
#[derive(Debug, Serialize, Deserialize)]
struct Cancel {
    id: Box<RawValue>,
}

/// The parameters of [`EXTEND`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Extend {
    /// From now.
    pub(crate) ms: u64,
}

/// How much more time the other side asks for, from the parameters of [`EXTEND`].
pub(crate) fn extension(params: Option<&RawValue>) -> Option<Duration> {
    serde_json::from_str::<Extend>(params?.get()).ok().map(|extend| Duration::from_millis(extend.ms))
}

/// The parameters of [`HELLO`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) key: String,
}

/// Where a worker whose arguments name the path of its control pipe finds the key. An argument list can be read by every user of the
/// machine, an environment by its owner only.
pub(crate) const KEY_VARIABLE: &str = "PIPEWRIGHT_CONTROL_KEY";

/// Where a worker finds its parent's control pipe, and the key that says which incarnation of which worker it is:
/// `/run/user/1000/pipewright-0f1e2d3c4b5a6978/control?4f1d…`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) path: String,
    pub(crate) key: String,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}?{}", self.path, self.key)
    }
}

/// Without the key, which is a secret.
impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Address").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FromStr for Address {
    type Err = NotRpc;

    fn from_str(text: &str) -> Result<Self, NotRpc> {
        let (path, key) = text.rsplit_once('?').ok_or(NotRpc { reason: "no `?` between the path and the key" })?;
        Self::new(path, key)
    }
}

impl Address {
    pub(crate) fn new(path: &str, key: &str) -> Result<Self, NotRpc> {
        if !path.starts_with('/') || key.is_empty() {
            return Err(NotRpc { reason: "not an absolute path and a key" });
        }
        Ok(Self { path: path.to_owned(), key: key.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn round_trip(line: Result<Vec<u8>, serde_json::Error>) -> Packet {
        let line = line.unwrap();
        let (end, text) = line.split_last().unwrap();
        assert_eq!(*end, b'\n');
        assert!(!text.contains(&b'\n'), "one object a line");
        parse(text).unwrap()
    }

    #[test]
    fn requests_and_notifications_come_through() {
        match round_trip(request(7, "build", &json!({"file": "a\nb"}))) {
            Packet::Request { id, method, params } => {
                assert_eq!((id.text(), method.as_str()), ("7", "build"));
                assert_eq!(serde_json::from_str::<Value>(params.unwrap().get()).unwrap(), json!({"file": "a\nb"}));
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(round_trip(notification("tick", &[1])), Packet::Notification { method, .. } if method == "tick")
        );
        let bare = String::from_utf8(request(7, "ping", &()).unwrap()).unwrap();
        assert_eq!(bare, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\n");
        for scalar in [json!(5), json!("text"), json!(true), json!(",\"params\":[")] {
            let error = request(7, "m,\"params\":[", &scalar).unwrap_err();
            assert!(error.to_string().contains("a single value goes into an array"), "{error}");
            assert!(notification("m", &[scalar]).is_ok());
        }
        let within = String::from_utf8(notification("tick", &json!({"params": null})).unwrap()).unwrap();
        assert!(within.ends_with(",\"params\":{\"params\":null}}\n"), "{within}");
    }

    #[test]
    fn answers_go_back_under_the_id_they_came_with() {
        let Packet::Request { id, .. } = parse(br#"{"jsonrpc":"2.0","id":"a-1","method":"m"}"#).unwrap() else {
            panic!()
        };
        let text = String::from_utf8(response(&id, &1).unwrap()).unwrap();
        assert_eq!(text, "{\"jsonrpc\":\"2.0\",\"id\":\"a-1\",\"result\":1}\n");
        let text = String::from_utf8(refusal(&id, &RpcError::new(5, "no")).unwrap()).unwrap();
        assert_eq!(text, "{\"jsonrpc\":\"2.0\",\"id\":\"a-1\",\"error\":{\"code\":5,\"message\":\"no\"}}\n");
        for (line, expected) in [
            (r#"{"jsonrpc":"2.0","id":3,"result":null}"#, "null"),
            (r#"{"jsonrpc":"2.0","id":3,"result":{"x":[1]}}"#, r#"{"x":[1]}"#),
        ] {
            let Packet::Response { id: 3, outcome: Ok(result) } = parse(line.as_bytes()).unwrap() else {
                panic!("{line}")
            };
            assert_eq!(result.get(), expected);
        }
        let line = br#"{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"x","data":[2]}}"#;
        let Packet::Response { id: 3, outcome: Err(Refusal::Told(error)) } = parse(line).unwrap() else { panic!() };
        assert_eq!((error.code, error.data.unwrap().get()), (-1, "[2]"));
        let line = br#"{"jsonrpc":"2.0","id":3,"error":"no"}"#;
        let Packet::Response { id: 3, outcome: Err(Refusal::NotUnderstood(error)) } = parse(line).unwrap() else {
            panic!()
        };
        assert!(error.excerpt().contains("no"), "{error}");
    }

    #[test]
    fn p15_ids_of_other_writers_are_recognized() {
        let id = |id: &str| match parse(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":1}}"#).as_bytes()) {
            Ok(Packet::Response { id, .. }) => Some(id),
            Err(_) => None,
            other => panic!("{other:?}"),
        };
        for same in ["7", "7.0", "7e0", "70e-1", "\"7\""] {
            assert_eq!(id(same), Some(7), "{same}");
        }
        for other in ["7.5", "-7", "\"7.0\"", "\"+7\"", "\"\"", "1e300", "[7]", "true"] {
            assert_eq!(id(other), None, "{other}");
        }
        let line = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#;
        assert!(matches!(parse(line), Ok(Packet::Refused(Refusal::Told(error))) if error.code == -32700));
    }

    #[test]
    fn a_line_that_is_too_long_is_known_by_its_beginning() {
        let beginning = |text: &str| {
            let mut fault = FrameError::new(FrameErrorKind::TooLong { limit: 9 }, 0, 70, text.as_bytes());
            let told = too_long(&fault);
            fault.kind = FrameErrorKind::Truncated;
            assert!(too_long(&fault).is_none(), "nobody waits for it any more");
            told
        };
        for text in [r#"{"jsonrpc":"2.0","id":7,"result":"xx"#, r#"{ "id" : 7, "error": {"code": 1, "message": "xé"#] {
            let Some(TooLong::Response(7, Refusal::NotUnderstood(error))) = beginning(text) else { panic!("{text}") };
            assert!(error.to_string().ends_with(": a line longer than the 9 bytes allowed"), "{error}");
        }
        for text in [r#"{"jsonrpc":"2.0","id":"a","method":"m","params":["#, r#"{"method":"m","id":"a","params":"x"#] {
            let Some(TooLong::Request(id, error)) = beginning(text) else { panic!("{text}") };
            assert_eq!((id.text(), error.code), ("\"a\"", INVALID_REQUEST));
        }
        for text in
            ["", "{", "[7", r#"{"id":7"#, r#"{"result":"xx","id"#, r#"{"method":"m","params":{"id":7,"x"#, "\u{1}"]
        {
            assert!(beginning(text).is_none(), "{text}");
        }
        assert!(beginning(r#"{"id":"not ours","result":"xx"#).is_none());
    }

    #[test]
    fn parameters_that_are_not_understood_are_an_error_of_the_caller() {
        let error = RpcError::from(decode::<u32>("\"x\"").unwrap_err());
        assert_eq!(error.code, -32602);
        assert!(error.message.contains("expected u32"), "{error}");
    }

    #[test]
    fn everything_else_is_told() {
        for line in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"jsonrpc":"1.0","method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":"not ours","result":1}"#,
            r#"{"jsonrpc":"2.0","method":1}"#,
        ] {
            parse(line.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(line in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&line));
        }

        #[test]
        fn addresses_come_through(path in "/[a-z?/ ]{1,30}", key in "[0-9a-f]{1,32}") {
            let address = Address { path, key };
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }
}
