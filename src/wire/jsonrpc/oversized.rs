//! Finds the id of a line that is too long.

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

/// A message that is too long, identified by the start of its line, so that its call can end before the timeout.
#[derive(Debug)]
pub(crate) enum OversizedMessage {
    Request(RequestId, RpcError),
    Response(u64, RpcFailure),
}

impl OversizedMessage {
    /// The request or response that an error stands for, if its `id` precedes the long member.
    pub(crate) fn of(error: &FrameError) -> Option<Self> {
        let FrameErrorKind::TooLong { limit } = error.kind else { return None };
        let mut header = PartialHeader::default();
        // Parsing fails at the end of the excerpt.
        drop(serde_json::Deserializer::from_slice(&error.excerpt).deserialize_map(&mut header));
        let id = header.id?;
        let text = format!("a line longer than the {limit} bytes allowed");
        if header.is_request {
            return Some(Self::Request(RequestId::new(id), RpcError::new(INVALID_REQUEST, text)));
        }
        let refusal = RpcFailure::Invalid(DecodeError::json(&error.excerpt, serde::de::Error::custom(text)));
        Some(Self::Response(own_id(id.get())?, refusal))
    }
}

/// The members of a line before its long one.
#[derive(Default)]
struct PartialHeader {
    id: Option<Box<RawValue>>,
    is_request: bool,
}

impl<'de> Visitor<'de> for &mut PartialHeader {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut id = None;
        while let Some(name) = members.next_key::<String>()? {
            // Another member follows the id, so it is complete.
            self.id = id.take().or(self.id.take());
            match name.as_str() {
                "id" => id = Some(members.next_value()?),
                name => {
                    // Recorded before the value, which may be the long one.
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
    fn line_beyond_the_limit_is_identified_by_its_start() {
        let beginning = |text: &str| {
            let mut fault = FrameError::new(FrameErrorKind::TooLong { limit: 9 }, 0, 70, text.as_bytes());
            let message = OversizedMessage::of(&fault);
            fault.kind = FrameErrorKind::Truncated;
            assert!(OversizedMessage::of(&fault).is_none(), "only a line beyond the limit is identified");
            message
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
