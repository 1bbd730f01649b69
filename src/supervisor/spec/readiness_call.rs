//! The call that makes a worker ready.

use crate::{
    launch::error::SpecError,
    policy::readiness_call::ReadinessAnswer,
    wire::{
        decode::decode,
        jsonrpc::{encode, error::CallError},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use std::{fmt, sync::Arc};

/// The call of [`Readiness::call`](crate::Readiness::call).
#[derive(Clone)]
pub(crate) struct CallSpec {
    request: MethodCall,
    judge: ReadinessJudge,
    /// The notification that is sent once the worker is ready.
    then: Option<MethodCall>,
}

/// What a result means, by the host's own code.
pub(crate) type ReadinessJudge = Arc<dyn Fn(&RawValue) -> ReadinessAnswer + Send + Sync>;

/// A method and its parameters.
#[derive(Debug, Clone)]
pub(crate) struct MethodCall {
    pub(crate) method: Box<str>,
    /// Or why they cannot be sent.
    params: Result<Box<RawValue>, Box<str>>,
}

impl CallSpec {
    pub(crate) fn new<P, R>(
        method: &str,
        params: &P,
        judge: impl Fn(R) -> ReadinessAnswer + Send + Sync + 'static,
    ) -> Self
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let judge = move |result: &RawValue| match decode(result.get()) {
            Ok(result) => judge(result),
            Err(error) => ReadinessAnswer::Fatal(CallError::InvalidResult(Box::new(error)).to_string()),
        };
        Self { request: MethodCall::new(method, params), judge: Arc::new(judge), then: None }
    }

    pub(crate) fn then_notify<P: Serialize + ?Sized>(&mut self, method: &str, params: &P) {
        self.then = Some(MethodCall::new(method, params));
    }

    pub(crate) fn request(&self) -> &MethodCall {
        &self.request
    }

    pub(crate) fn judge(&self) -> &ReadinessJudge {
        &self.judge
    }

    pub(crate) fn then(&self) -> Option<&MethodCall> {
        self.then.as_ref()
    }

    pub(crate) fn check(&self) -> Result<(), SpecError> {
        let params = [Some(&self.request), self.then.as_ref()].into_iter().flatten().map(MethodCall::params);
        match params.into_iter().find_map(Result::err) {
            Some(reason) => Err(SpecError::Conflict { settings: ["ready", "call"], reason: reason.into() }),
            None => Ok(()),
        }
    }
}

impl MethodCall {
    fn new<P: Serialize + ?Sized>(method: &str, params: &P) -> Self {
        // The encoder knows which parameters JSON-RPC allows.
        let encoded = encode::notification(method, params).and_then(|_| to_raw_value(params));
        let params = encoded.map_err(|error| CallError::Encode(error).to_string().into());
        Self { method: method.into(), params }
    }

    /// The parameters, or why they cannot be sent, which [`CallSpec::check`] refuses.
    pub(crate) fn params(&self) -> Result<&RawValue, &str> {
        self.params.as_deref().map_err(|error| &**error)
    }
}

impl fmt::Debug for CallSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an answer to {:?}", self.request.method)
    }
}
