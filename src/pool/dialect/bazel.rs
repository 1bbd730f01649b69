//! The messages of Bazel's persistent workers in JSON, as `worker_protocol.proto` and the documentation of Bazel 8 define them: one a line.

use crate::{
    pool::dialect::{
        Dialect,
        codec::{Codec, Reply},
        message_endpoint::MessageEndpoint,
    },
    supervisor::spec::{WorkerSpec, readiness::Readiness},
    wire::{
        framing::{Framing, encode::encode},
        jsonrpc::error::{CallError, REQUEST_CANCELLED, RpcError},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use std::sync::Arc;

/// The argument by which a tool becomes a worker.
const PERSISTENT_WORKER: &str = "--persistent_worker";

/// A persistent worker of [Bazel](https://bazel.build/remote/persistent) that speaks JSON (`requires-worker-protocol: json`), for
/// [`PoolBuilder::dialect`](crate::pool::PoolBuilder::dialect).
///
/// The tool of the spec gets the additional argument `--persistent_worker`, and requests on its standard input. A task is the array of the
/// arguments, or an object with the fields of a `WorkRequest`: `arguments`, `inputs`, `verbosity`, `sandboxDir`. Its result is the `output`,
/// a string. Another exit code than 0 is a [`Failed`](crate::pool::TaskErrorKind::Failed) task, with the exit code as its code and the
/// output as its message.
///
/// Standard output is for answers: a tool that prints anything else there is killed and replaced. The worker is stopped by the end of its
/// standard input, SIGTERM after 2 s, and SIGKILL after 5 s more.
///
/// ```no_run
/// use pipewright::{OutputMode, Supervisor, WorkerSpec, pool::{BazelWorker, Pool}};
///
/// let supervisor = Supervisor::new()?;
/// let compiler = WorkerSpec::new("./compiler").stderr(OutputMode::Lines);
/// let pool = Pool::<Vec<&str>, String>::builder(&supervisor, compiler)
///     .dialect(BazelWorker::new().multiplex())
///     .in_flight(8)
///     .build()?;
/// print!("{}", pool.submit(vec!["-o", "a.out", "a.src"])?.wait()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct BazelWorker {
    is_multiplex: bool,
    can_cancel: bool,
}

impl BazelWorker {
    /// A worker with one task at a time.
    pub fn new() -> Self {
        Self::default()
    }

    /// The worker takes several requests, each with an id, and answers in any order (`supports-multiplex-workers`). How many is
    /// [`in_flight`](crate::pool::PoolBuilder::in_flight).
    #[doc(alias = "supports-multiplex-workers")]
    pub fn multiplex(mut self) -> Self {
        self.is_multiplex = true;
        self
    }

    /// The worker is asked to cancel tasks that were cancelled or have timed out (`supports-worker-cancellation`). Without this it is killed
    /// after the [grace period](crate::pool::PoolBuilder::cancel_grace).
    #[doc(alias = "supports-worker-cancellation")]
    pub fn cancellation(mut self) -> Self {
        self.can_cancel = true;
        self
    }
}

impl From<BazelWorker> for Dialect {
    fn from(worker: BazelWorker) -> Self {
        Self(Arc::new(MessageEndpoint::new(worker)))
    }
}

/// What a worker sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkResponse {
    #[serde(default)]
    exit_code: i64,
    #[serde(default)]
    output: String,
    #[serde(default)]
    request_id: u64,
    #[serde(default)]
    was_cancelled: bool,
}

fn line<T: Serialize + ?Sized>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(256);
    encode(Framing::Lines, message, &mut line)?;
    Ok(line)
}

impl Codec for BazelWorker {
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec {
        spec.arg(PERSISTENT_WORKER).messages_on_stdio().ready_if_none(Readiness::started())
    }

    fn in_flight_max(&self) -> Option<(usize, &'static str)> {
        (!self.is_multiplex).then_some((1, "a Bazel worker that is not multiplex"))
    }

    fn greeting(&self) -> Option<serde_json::Result<Vec<u8>>> {
        None
    }

    fn request(&self, id: u64, request: &RawValue) -> serde_json::Result<Vec<u8>> {
        let mut message: Map<String, Value> = if request.get().starts_with('{') {
            serde_json::from_str(request.get())?
        } else {
            let arguments: Vec<String> = serde_json::from_str(request.get())?;
            Map::from_iter([("arguments".to_owned(), json!(arguments))])
        };
        message.remove("cancel");
        message.remove("requestId");
        if self.is_multiplex {
            message.insert("requestId".to_owned(), json!(id));
        }
        line(&message)
    }

    fn cancel_request(&self, id: u64) -> Option<Vec<u8>> {
        let id = if self.is_multiplex { id } else { 0 };
        let cancel = json!({"requestId": id, "cancel": true});
        line(&cancel).ok().filter(|_| self.can_cancel)
    }

    fn end(&self) -> Option<Vec<u8>> {
        None
    }

    fn reply(&self, message: &[u8]) -> Result<Reply, Box<str>> {
        let invalid = |reason: &str| format!("no answer of a Bazel worker on standard output, {reason}");
        if !message.trim_ascii_start().starts_with(b"{") {
            return Err(invalid("which is for answers only").into());
        }
        let response: WorkResponse = serde_json::from_slice(message).map_err(|error| invalid(&error.to_string()))?;
        let id = (self.is_multiplex || response.request_id != 0).then_some(response.request_id);
        let answer = if response.was_cancelled {
            Err(RpcError::new(REQUEST_CANCELLED, "cancelled"))
        } else if response.exit_code != 0 {
            Err(RpcError::new(response.exit_code, response.output))
        } else {
            to_raw_value(&response.output).map_err(RpcError::from)
        };
        Ok(Reply::Answer(id, answer.map_err(|error| CallError::Rpc(Box::new(error)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(line: serde_json::Result<Vec<u8>>) -> String {
        String::from_utf8(line.unwrap()).unwrap()
    }

    fn raw(value: &Value) -> Box<RawValue> {
        to_raw_value(value).unwrap()
    }

    #[test]
    fn p02_requests_are_those_of_bazel() {
        let (single, multiplex) = (BazelWorker::new(), BazelWorker::new().multiplex().cancellation());
        let task = raw(&json!(["--x", "@flags"]));
        assert_eq!(text(single.request(7, &task)), "{\"arguments\":[\"--x\",\"@flags\"]}\n");
        assert_eq!(text(multiplex.request(7, &task)), "{\"arguments\":[\"--x\",\"@flags\"],\"requestId\":7}\n");
        let fields = raw(&json!({"arguments": [], "verbosity": 10, "requestId": 5, "cancel": true}));
        assert_eq!(text(single.request(7, &fields)), "{\"arguments\":[],\"verbosity\":10}\n");
        assert_eq!(multiplex.cancel_request(7).unwrap(), b"{\"cancel\":true,\"requestId\":7}\n");
        assert_eq!(single.cancel_request(7), None);
        assert_eq!(single.cancellation().cancel_request(7).unwrap(), b"{\"cancel\":true,\"requestId\":0}\n");
        for wrong in [json!("--x"), json!([1]), json!(null)] {
            assert!(single.request(7, &raw(&wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn p02_answers_of_bazel_workers_are_understood() {
        let multiplex = BazelWorker::new().multiplex();
        let answer = |message: &str| match multiplex.reply(message.as_bytes()).unwrap() {
            Reply::Answer(id, answer) => (id.unwrap(), answer.map_err(|error| error.to_string())),
            other @ Reply::Progress(..) => panic!("{other:?}"),
        };
        let (id, output) = answer(r#"{"exitCode":0,"output":"done\n","requestId":7,"newField":[]}"#);
        assert_eq!((id, output.unwrap().get()), (7, "\"done\\n\""));
        let (id, failure) = answer(r#"{"exitCode":2,"output":"a.src:1: no","requestId":8}"#);
        assert_eq!((id, failure.unwrap_err()), (8, "remote error 2: a.src:1: no".to_owned()));
        assert!(answer(r#"{"requestId":9,"wasCancelled":true}"#).1.unwrap_err().contains("cancelled"));
        assert_eq!(answer("{}").0, 0, "which no task has");
        let single = BazelWorker::new();
        assert!(matches!(single.reply(b"{\"output\":\"x\"}"), Ok(Reply::Answer(None, Ok(_)))));
        assert!(matches!(single.reply(b"{\"requestId\":3}"), Ok(Reply::Answer(Some(3), Ok(_)))));
        let printed = single.reply(b"Compiling 3 files").unwrap_err();
        assert_eq!(&*printed, "no answer of a Bazel worker on standard output, which is for answers only");
        for wrong in ["{", "{\"exitCode\":\"0\"}", "{\"requestId\":-1}", "[]", "null"] {
            multiplex.reply(wrong.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn p02_any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(BazelWorker::new().reply(&bytes));
        }

        #[test]
        fn p02_any_arguments_are_one_line(arguments in proptest::collection::vec(any::<String>(), 0..4)) {
            let line = BazelWorker::new().multiplex().request(1, &raw(&json!(arguments))).unwrap();
            prop_assert_eq!(memchr::memchr_iter(b'\n', &line).count(), 1);
            let back: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&back["arguments"], &json!(arguments));
        }
    }
}
