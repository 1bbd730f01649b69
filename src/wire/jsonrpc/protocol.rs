//! The methods of this library, and their parameters.

use super::message::RequestId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

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

/// The parameters of [`CANCEL`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cancel {
    pub(super) id: Box<RawValue>,
}

/// Which request the other side takes back, from the parameters of [`CANCEL`].
pub(crate) fn cancelled_id(params: Option<&RawValue>) -> Option<RequestId> {
    let cancel = serde_json::from_str::<Cancel>(params?.get()).ok()?;
    Some(RequestId(cancel.id))
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
