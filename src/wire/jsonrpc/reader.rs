//! The lines of a connection as messages.

use super::{
    batch_reply::BatchReply,
    encode,
    error::{INVALID_REQUEST, PARSE_ERROR, RpcError},
    message::{RequestId, RpcMessage},
};
use crate::wire::framing::{
    Framing,
    batch::{FrameBatch, FrameChunk},
    deframer::Deframer,
    error::{FrameError, FrameErrorKind},
};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::sync::Arc;

/// Splits the bytes of a connection into messages, whatever pieces they arrive in.
#[derive(Debug)]
pub(crate) struct RpcReader {
    deframer: Deframer,
    batch: FrameBatch,
}

/// One line, parsed.
#[derive(Debug)]
pub(crate) enum RpcInput {
    /// With the length of the line in bytes.
    Message(RpcMessage, usize),
    Error(FrameError),
}

/// The bytes of a line, and their offset in the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RpcLine<'a> {
    bytes: &'a [u8],
    offset: u64,
}

impl RpcReader {
    /// Messages longer than `max` bytes become errors.
    pub(crate) fn new(framing: Framing, max: usize) -> Self {
        Self { deframer: Deframer::new(framing, max), batch: FrameBatch::default() }
    }

    /// Counts offsets from `position`: the bytes before it were read elsewhere.
    pub(crate) fn starting_at(self, position: u64) -> Self {
        Self { deframer: self.deframer.starting_at(position), ..self }
    }

    /// Calls `receive` for each message that `bytes` complete, in their order. The members of a batch are messages of their own.
    /// No bytes are the end of the connection.
    pub(crate) fn read(&mut self, bytes: &[u8], mut receive: impl FnMut(RpcInput, RpcLine<'_>)) {
        let Self { deframer, batch } = self;
        if let Some((bytes, offset)) = deframer.whole_line(bytes) {
            return RpcLine { bytes, offset }.for_each_member(receive);
        }
        if bytes.is_empty() {
            deframer.finish(batch);
        } else {
            deframer.feed(bytes, batch);
        }
        for chunk in batch.drain() {
            match chunk {
                FrameChunk::Error(error) => receive(RpcInput::Error(error), RpcLine::NONE),
                FrameChunk::Frames { bytes, offset, spans } => {
                    for span in spans {
                        let offset = offset.saturating_add(span.start() as u64);
                        RpcLine { bytes: span.of(&bytes), offset }.for_each_member(&mut receive);
                    }
                }
            }
        }
    }
}

impl RpcInput {
    fn request_id(&mut self) -> Option<&mut RequestId> {
        match self {
            Self::Message(RpcMessage::Request { id, .. }, _) => Some(id),
            Self::Message(..) | Self::Error(_) => None,
        }
    }
}

impl RpcLine<'_> {
    /// No bytes, for a message whose line is no longer available.
    pub(crate) const NONE: RpcLine<'static> = RpcLine { bytes: &[], offset: 0 };

    /// The error of a line that is not JSON-RPC 2.0.
    fn not_rpc(self) -> FrameError {
        self.error(FrameErrorKind::NotRpc)
    }

    /// The error of a line that answers no open request.
    pub(crate) fn unexpected_answer(self) -> FrameError {
        self.error(FrameErrorKind::UnexpectedAnswer)
    }

    fn error(self, kind: FrameErrorKind) -> FrameError {
        FrameError::new(kind, self.offset, self.bytes.len() as u64, self.bytes)
    }

    /// The answer to a line that is [`not_rpc`](Self::not_rpc): what is wrong, without an id.
    pub(crate) fn refusal(self) -> serde_json::Result<Vec<u8>> {
        encode::error_without_id(&match serde_json::from_slice::<IgnoredAny>(self.bytes) {
            Err(error) => RpcError::new(PARSE_ERROR, format!("the line is not JSON: {error}")),
            Ok(_) => RpcError::new(
                INVALID_REQUEST,
                "the line is not JSON-RPC 2.0: a request is an object whose jsonrpc is \"2.0\", with a method and an id",
            ),
        })
    }

    fn for_each_member(self, mut receive: impl FnMut(RpcInput, RpcLine<'_>)) {
        let is_array = self.bytes.trim_ascii_start().starts_with(b"[");
        let members: Option<Vec<&RawValue>> = if is_array { serde_json::from_slice(self.bytes).ok() } else { None };
        match members {
            Some(members) if !members.is_empty() => {
                let lines = members.iter().map(|one| RpcLine { bytes: one.get().as_bytes(), offset: self.offset });
                let mut inputs: Vec<_> = lines.map(|line| (line.parse(), line)).collect();
                let mut ids: Vec<_> = inputs.iter_mut().filter_map(|(input, _)| input.request_id()).collect();
                let batch = Arc::new(BatchReply::new(ids.len()));
                for id in &mut ids {
                    id.batch = Some(Arc::clone(&batch));
                }
                for (input, line) in inputs {
                    receive(input, line);
                }
            }
            _ => receive(self.parse(), self),
        }
    }

    fn parse(self) -> RpcInput {
        match RpcMessage::parse(self.bytes) {
            Some(message) => RpcInput::Message(message, self.bytes.len()),
            None => RpcInput::Error(self.not_rpc()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p02_members_of_a_batch_are_messages_and_other_lines_are_errors() {
        let mut reader = RpcReader::new(Framing::Lines, 100).starting_at(1000);
        let mut seen = Vec::new();
        let stream = concat!(
            "[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":1},7]\n",
            "[]\n",
            "{\"jsonrpc\":\"2.0\",\"method\":\"m\"}\n",
        );
        for bytes in stream.as_bytes().chunks(7) {
            reader.read(bytes, |input, _| {
                seen.push(match input {
                    RpcInput::Message(RpcMessage::Response { id, .. }, _) => format!("response {id}"),
                    RpcInput::Message(RpcMessage::Notification { method, .. }, length) => format!("{method} {length}"),
                    RpcInput::Message(other, _) => format!("{other:?}"),
                    RpcInput::Error(error) => error.offset.to_string(),
                });
            });
        }
        let second = 1000 + stream.find("[]").unwrap();
        assert_eq!(seen, ["response 1".to_owned(), "1000".into(), second.to_string(), "m 30".into()]);
    }
}
