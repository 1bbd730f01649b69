//! The methods of this library and their parameters.

use super::message::RequestId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

/// The request that the library itself answers, on both sides, with `null`.
pub(crate) const PING: &str = "ping";
/// The first line of a worker, with its key: a request, or a notification.
pub(crate) const HELLO: &str = "hello";
/// The version of the control protocol: of these methods, their parameters and the limits.
pub(crate) const VERSION: u64 = 1;
/// The notification that cancels a request, as in the Language Server Protocol.
pub(crate) const CANCEL: &str = "$/cancelRequest";
/// The notification by which a worker requests more time to become ready or to exit.
pub(crate) const EXTEND: &str = "$/extend";
/// The notification with a message of a worker that has no pipe for messages. Its parameters are an array of the one value.
pub(crate) const MESSAGE: &str = "$/message";
/// The notification by which a parent requests the exit of its worker.
pub(crate) const SHUTDOWN: &str = "shutdown";

/// The request by which a pool passes a task to its worker; its parameter is an array of the task's request.
pub(crate) const TASK: &str = "task";
/// The notification by which a worker reports the progress of a request, as in the Language Server Protocol.
pub(crate) const PROGRESS: &str = "$/progress";

/// The parameters of [`PROGRESS`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Progress<V = Box<RawValue>> {
    /// The id of the request.
    pub(crate) token: u64,
    pub(crate) value: V,
}

/// The parameters of [`CANCEL`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cancel {
    pub(super) id: Box<RawValue>,
}

/// The id of the cancelled request, from the parameters of [`CANCEL`].
pub(crate) fn cancelled_id(params: Option<&RawValue>) -> Option<RequestId> {
    let cancel = serde_json::from_str::<Cancel>(params?.get()).ok()?;
    Some(RequestId::new(cancel.id))
}

/// The parameters of [`EXTEND`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Extend {
    /// Milliseconds from now.
    pub(crate) ms: u64,
}

/// The additional time, from the parameters of [`EXTEND`].
pub(crate) fn extension(params: Option<&RawValue>) -> Option<Duration> {
    serde_json::from_str::<Extend>(params?.get()).ok().map(|extend| Duration::from_millis(extend.ms))
}

/// The message, from the parameters of [`MESSAGE`].
pub(crate) fn message(params: Option<&RawValue>) -> Option<&str> {
    let [message] = serde_json::from_str::<[&RawValue; 1]>(params?.get()).ok()?;
    Some(message.get())
}
