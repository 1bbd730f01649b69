//! What plugins ask of the host: see [`Capability`].

use crate::{calls::Caller, handshake::Capability, host::Host};
use pipewright::{Notification, Request, RpcError, WorkerId, printable};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// The error for a request that needs a capability which the plugin has not named.
const NOT_PERMITTED: i64 = 2;
/// The most values that a plugin may store.
const VALUES_MAX: usize = 1000;
/// The longest value, as JSON text.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Values of all plugins, by the names of their files.
#[derive(Debug, Default)]
pub(crate) struct Store {
    values: HashMap<String, BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct LogParams {
    text: String,
}

#[derive(Deserialize)]
struct CallParams {
    plugin: String,
    method: String,
    #[serde(default)]
    params: Value,
}

#[derive(Deserialize)]
struct GetParams {
    key: String,
}

#[derive(Deserialize)]
struct SetParams {
    key: String,
    value: Value,
}

impl Store {
    fn get(&self, plugin: &str, key: &str) -> Value {
        self.values.get(plugin).and_then(|values| values.get(key)).cloned().unwrap_or_default()
    }

    fn set(&mut self, plugin: &str, SetParams { key, value }: SetParams) -> Result<Value, RpcError> {
        if key.len() + value.to_string().len() > VALUE_BYTES_MAX {
            return Err(RpcError::new(1, format!("a value has at most {VALUE_BYTES_MAX} bytes")));
        }
        let values = self.values.entry(plugin.to_owned()).or_default();
        if values.len() >= VALUES_MAX && !values.contains_key(&key) {
            return Err(RpcError::new(1, format!("a plugin has at most {VALUES_MAX} values")));
        }
        values.insert(key, value);
        Ok(Value::Null)
    }
}

impl Host<'_> {
    /// Answers a request of a plugin. Returns at once: the answer of another plugin is passed on when it arrives.
    pub(crate) fn requested(&mut self, id: WorkerId, request: Box<Request>) {
        let answer = match self.permitted(id, request.method()) {
            Err(error) => Err(error),
            Ok(_) if request.method() == "call" => return self.requested_call(request),
            Ok(plugin) => self.answer(&plugin, &request),
        };
        // A plugin that has exited needs no answer.
        drop(match answer {
            Ok(result) => request.reply(&result),
            Err(error) => request.reply_error(&error),
        });
    }

    fn answer(&mut self, plugin: &str, request: &Request) -> Result<Value, RpcError> {
        match request.method() {
            "store/get" => Ok(self.store.get(plugin, &request.params::<GetParams>()?.key)),
            "store/set" => self.store.set(plugin, request.params()?),
            other => Err(RpcError::method_not_found(other)),
        }
    }

    fn requested_call(&mut self, request: Box<Request>) {
        let CallParams { plugin, method, params } = match request.params() {
            Ok(params) => params,
            Err(error) => return drop(request.reply_error(&error.into())),
        };
        let called = self.call((&plugin, method, params), None, Caller::Plugin(request), crate::now());
        if let Err((Caller::Plugin(request), error)) = called {
            drop(request.reply_error(&RpcError::new(1, error)));
        }
    }

    pub(crate) fn notified(&self, id: WorkerId, label: &str, notification: &Notification) {
        let text = match (self.permitted(id, notification.method()), notification.params::<LogParams>()) {
            (Ok(_), Ok(LogParams { text })) => text,
            (Err(error), _) => error.message,
            (Ok(_), Err(error)) => format!("invalid {}: {error}", notification.method()),
        };
        self.screen.note(&format!("{label}: {}", printable(&text)));
    }

    /// The name of the plugin, if its handshake has named the capability for this method. A plugin that retires keeps its permissions, and
    /// one that is not ready has none.
    fn permitted(&self, id: WorkerId, method: &str) -> Result<String, RpcError> {
        let capability = match method {
            "call" => Capability::Call,
            "log" => Capability::Log,
            "store/get" | "store/set" => Capability::Store,
            other => return Err(RpcError::method_not_found(other)),
        };
        let worker = self.supervisor.worker(id);
        let hello = worker.as_ref().and_then(|worker| worker.handshake::<crate::handshake::Hello>().ok().flatten());
        match (worker, hello) {
            (Some(worker), Some(hello)) if hello.has(capability) => {
                let (name, _load) = worker.name().rsplit_once('#').unwrap_or((worker.name(), ""));
                Ok(name.to_owned())
            }
            _ => {
                let name = capability.name();
                Err(RpcError::new(NOT_PERMITTED, format!("{method}: the plugin has not named the capability {name:?}")))
            }
        }
    }
}
