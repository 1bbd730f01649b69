//! What the beginning of a line that is too long tells.

use super::{
    error::{INVALID_REQUEST, RpcError, RpcFailure},
    message::{RequestId, own_id},
};
use crate::wire::{
    decode::DecodeError,
    framing::error::{FrameError, FrameErrorKind},
};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

/// A line that was too long to be kept, as far as its beginning tells: whoever waits for it, or for its answer, need not wait on.
#[derive(Debug)]
pub(crate) enum OversizedMessage {
    Request(RequestId, RpcError),
    Response(u64, RpcFailure),
}

impl OversizedMessage {
    /// What a fault stands for, if it is a request or a response whose `id` comes before what made it long.
    pub(crate) fn of(fault: &FrameError) -> Option<Self> {
        let FrameErrorKind::TooLong { limit } = fault.kind else { return None };
        let mut head = Head::default();
        // It fails where the line is cut.
        drop(serde_json::Deserializer::from_slice(&fault.excerpt).deserialize_map(&mut head));
        let id = head.id?;
        let text = format!("a line longer than the {limit} bytes allowed");
        if head.is_request {
            return Some(Self::Request(RequestId(id), RpcError::new(INVALID_REQUEST, text)));
        }
        let refusal = RpcFailure::Invalid(DecodeError::json(&fault.excerpt, serde::de::Error::custom(text)));
        Some(Self::Response(own_id(id.get())?, refusal))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_known_by_its_beginning() {
        let beginning = |text: &str| {
            let mut fault = FrameError::new(FrameErrorKind::TooLong { limit: 9 }, 0, 70, text.as_bytes());
            let told = OversizedMessage::of(&fault);
            fault.kind = FrameErrorKind::Truncated;
            assert!(OversizedMessage::of(&fault).is_none(), "nobody waits for it any more");
            told
        };
        for text in [r#"{"jsonrpc":"2.0","id":7,"result":"xx"#, r#"{ "id" : 7, "error": {"code": 1, "message": "xé"#] {
            let Some(OversizedMessage::Response(7, RpcFailure::Invalid(error))) = beginning(text) else {
                panic!("{text}")
            };
            assert!(error.to_string().ends_with(": a line longer than the 9 bytes allowed"), "{error}");
        }
        for text in [r#"{"jsonrpc":"2.0","id":"a","method":"m","params":["#, r#"{"method":"m","id":"a","params":"x"#] {
            let Some(OversizedMessage::Request(id, error)) = beginning(text) else { panic!("{text}") };
            assert_eq!((id.text(), error.code), ("\"a\"", INVALID_REQUEST));
        }
        for text in
            ["", "{", "[7", r#"{"id":7"#, r#"{"result":"xx","id"#, r#"{"method":"m","params":{"id":7,"x"#, "\u{1}"]
        {
            assert!(beginning(text).is_none(), "{text}");
        }
        assert!(beginning(r#"{"id":"not ours","result":"xx"#).is_none());
    }
}
