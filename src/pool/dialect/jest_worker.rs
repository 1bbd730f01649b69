//! The messages of jest-worker's `processChild.js`, as its `types.ts` defines them: arrays, each a message of Node's channel.

use crate::{
    pool::dialect::{
        codec::{Codec, Reply},
        foreign_error::{ForeignError, NOT_SET_UP, THROWN},
    },
    supervisor::spec::{WorkerSpec, readiness::Readiness},
    wire::{
        framing::{Framing, encode::encode},
        jsonrpc::error::CallError,
        message::Message,
    },
};
use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use std::path::PathBuf;

/// What a worker receives.
mod to_worker {
    pub(super) const INITIALIZE: u8 = 0;
    pub(super) const CALL: u8 = 1;
    pub(super) const END: u8 = 2;
    pub(super) const CALL_SETUP: u8 = 4;
}

/// What a worker sends.
mod from_worker {
    pub(super) const OK: u64 = 0;
    pub(super) const CLIENT_ERROR: u64 = 1;
    pub(super) const SETUP_ERROR: u64 = 2;
    pub(super) const CUSTOM: u64 = 3;
}

/// A mark of jest-worker's own parent, which the worker ignores.
const NOT_PROCESSED: bool = false;

#[derive(Debug)]
pub(crate) struct JestWorker {
    module: PathBuf,
}

impl JestWorker {
    pub(crate) fn new(module: PathBuf) -> Self {
        Self { module }
    }
}

/// One message a line, since an empty line ends Node.
fn line<T: Serialize + ?Sized>(message: &T, lines: &mut Vec<u8>) -> serde_json::Result<()> {
    encode(Framing::Lines, message, lines)
}

impl Codec for JestWorker {
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec {
        // Before its answer to `CALL_SETUP` it sends nothing, unless `setup` does.
        let is_set_up = |message: &Message| message.as_bytes().starts_with(b"[0");
        spec.node_channel_if_unset().ready_if_none(Readiness::message(is_set_up))
    }

    fn in_flight_max(&self) -> Option<(usize, &'static str)> {
        // Its answers have no ids.
        Some((1, "jest-worker"))
    }

    fn greeting(&self) -> Option<serde_json::Result<Vec<u8>>> {
        let mut lines = Vec::new();
        let initialize = (to_worker::INITIALIZE, NOT_PROCESSED, &self.module, [(); 0]);
        let greeting = line(&initialize, &mut lines).and_then(|()| line(&[to_worker::CALL_SETUP], &mut lines));
        Some(greeting.map(|()| lines))
    }

    fn request(&self, _: u64, request: &RawValue) -> serde_json::Result<Vec<u8>> {
        let (function, arguments) = function_call(request)?;
        let mut lines = Vec::with_capacity(64 + arguments.get().len());
        line(&(to_worker::CALL, NOT_PROCESSED, function, arguments), &mut lines)?;
        Ok(lines)
    }

    fn cancel_request(&self, _: u64) -> Option<Vec<u8>> {
        None
    }

    fn end(&self) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        line(&(to_worker::END, NOT_PROCESSED), &mut lines).ok().map(|()| lines)
    }

    fn reply(&self, message: &[u8]) -> Result<Reply, Box<str>> {
        let fields: Vec<&RawValue> =
            serde_json::from_slice(message).map_err(|error| format!("no message of jest-worker, {error}"))?;
        let kind = fields.first().and_then(|kind| kind.get().parse::<u64>().ok());
        let value = fields.get(1).copied();
        match kind {
            Some(from_worker::OK) => Ok(Reply::Answer(None, Ok(value.map_or_else(null, ToOwned::to_owned)))),
            Some(from_worker::CUSTOM) => Ok(Reply::Progress(None, value.map_or_else(null, ToOwned::to_owned))),
            Some(from_worker::CLIENT_ERROR) => Ok(failure(&fields, THROWN)),
            Some(from_worker::SETUP_ERROR) => Ok(failure(&fields, NOT_SET_UP)),
            _ => Err("no message of jest-worker that was asked for".into()),
        }
    }
}

/// A task as the name of a function and the array of its arguments.
pub(crate) fn function_call(request: &RawValue) -> serde_json::Result<(String, &RawValue)> {
    let (function, arguments): (String, &RawValue) = serde_json::from_str(request.get())?;
    if arguments.get().starts_with('[') {
        Ok((function, arguments))
    } else {
        Err(serde_json::Error::custom("the arguments of a function are an array or a tuple"))
    }
}

/// An error: its kind, its name, its message, its stack and its properties.
fn failure(fields: &[&RawValue], code: i64) -> Reply {
    let text = |at: usize| {
        let text = fields.get(at).and_then(|text| serde_json::from_str::<Option<String>>(text.get()).ok());
        text.flatten()
    };
    let properties = fields.get(4).and_then(|value| Value::deserialize(*value).ok());
    // Something else than an error was thrown: it is in the properties.
    let thrown = || properties.as_ref().map(ToString::to_string).unwrap_or_default();
    let error = ForeignError {
        name: text(1).unwrap_or_else(|| "Error".into()),
        message: text(2).unwrap_or_else(thrown),
        stack: text(3),
        properties: properties.clone().unwrap_or(json!(null)),
    };
    Reply::Answer(None, Err(CallError::Rpc(Box::new(error.into_rpc(code)))))
}

fn null() -> Box<RawValue> {
    to_raw_value(&()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codec() -> JestWorker {
        JestWorker::new("/srv/module.js".into())
    }

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    #[test]
    fn p02_messages_are_those_of_jest_worker() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let greeting = text(codec().greeting().unwrap().unwrap());
        assert_eq!(greeting, "[0,false,\"/srv/module.js\",[]]\n[4]\n");
        let request = |task: &str| codec().request(7, &raw(task)).map(text).map_err(|error| error.to_string());
        assert_eq!(request("[\"add\",[1,\n2]]").unwrap(), "[1,false,\"add\",[1, 2]]\n");
        assert_eq!(text(codec().end().unwrap()), "[2,false]\n");
        for wrong in ["5", "\"add\"", "[\"add\"]", "[\"add\",1]", "[[],[]]", "{}", "[\"add\",[],1]"] {
            assert!(request(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn p02_recorded_messages_of_jest_worker_are_understood() {
        // From version 30.5.1 under Node 20.
        let answer = |message: &str| match codec().reply(message.as_bytes()).unwrap() {
            Reply::Answer(None, answer) => answer,
            other => panic!("{other:?}"),
        };
        assert_eq!(answer("[0,3]").unwrap().get(), "3");
        assert_eq!(answer("[0,null]").unwrap().get(), "null");
        assert_eq!(answer("[0]").unwrap().get(), "null");
        let thrown = answer(r#"[1,"TypeError","no","TypeError: no\n    at f (/a.js:1:1)",{"code":"E"}]"#).unwrap_err();
        let CallError::Rpc(error) = thrown else { panic!("{thrown:?}") };
        assert_eq!((error.code, &*error.message), (THROWN, "TypeError: no"));
        let data: ForeignError = serde_json::from_str(error.data.unwrap().get()).unwrap();
        assert_eq!((&*data.name, &*data.message), ("TypeError", "no"));
        assert_eq!(data.stack.unwrap(), "TypeError: no\n    at f (/a.js:1:1)");
        assert_eq!(data.properties, json!({"code": "E"}));
        // `throw "text"` and `throw 5`.
        for (message, text) in
            [(r#"[1,"String",null,null,"text"]"#, "String: \"text\""), ("[1,\"Number\",null,null,5]", "Number: 5")]
        {
            assert!(answer(message).unwrap_err().to_string().ends_with(text));
        }
        let progress = codec().reply(br#"[3,{"done":1}]"#).unwrap();
        assert!(matches!(&progress, Reply::Progress(None, value) if value.get() == r#"{"done":1}"#), "{progress:?}");
        for wrong in ["[4,4751376]", "[]", "[\"0\",1]", "{}", "null", "[-1,2]", "{\"0\":1}", "[0,1"] {
            codec().reply(wrong.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn p02_any_bytes_are_a_reply_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(codec().reply(&bytes));
        }

        #[test]
        fn p02_any_request_is_one_line_or_an_error(text in r#"\[("[a-z]*"|[0-9]),\[([0-9]|"\\\\n"|\n|,){0,8}\]\]"#) {
            if let Ok(task) = RawValue::from_string(text) && let Ok(line) = codec().request(1, &task) {
                prop_assert_eq!(memchr::memchr_iter(b'\n', &line).count(), 1);
            }
        }
    }
}
