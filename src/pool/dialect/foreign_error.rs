//! Errors of other languages.

use crate::wire::jsonrpc::error::RpcError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::to_raw_value};

/// The code of an error that a function has thrown.
pub(crate) const THROWN: i64 = -32000;
/// The code of an error at the start of a worker.
pub(crate) const NOT_SET_UP: i64 = -32001;

/// An error of a worker in another language: the [`data`](crate::RpcError::data) of a [`Failed`](crate::pool::TaskErrorKind::Failed) task.
/// See [`TaskError::foreign`](crate::pool::TaskError::foreign).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ForeignError {
    /// Its type, such as `TypeError`.
    pub name: String,
    /// Its text.
    pub message: String,
    /// The stack as the language prints it.
    #[serde(default)]
    pub stack: Option<String>,
    /// Further properties.
    #[serde(default)]
    pub properties: Value,
}

impl ForeignError {
    pub(crate) fn into_rpc(self, code: i64) -> RpcError {
        let Self { name, message, stack: _, properties: _ } = &self;
        let text = if message.is_empty() { name.clone() } else { format!("{name}: {message}") };
        RpcError { code, message: text, data: to_raw_value(&self).ok() }
    }
}
