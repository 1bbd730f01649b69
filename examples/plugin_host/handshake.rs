//! What the host and a plugin agree on before the first call, and how a plugin is started.
//!
//! The host calls `initialize` with `{"host": "plugin_host", "versions": [1, 2], "capabilities": ["call", "log", "store"]}`. The plugin
//! answers with the version that it chooses, its methods, and the capabilities of the host that it needs:
//! `{"version": 2, "methods": ["count"], "capabilities": ["store"]}`. Version 1 has no capabilities.

use crate::options::Options;
use pipewright::{OutputMode, Pass, Readiness, ReadinessAnswer, Restart, Watchdog, WorkerSpec};
use serde::Deserialize;
use serde_json::json;
use std::{path::Path, time::Duration};

const VERSIONS: [u32; 2] = [1, 2];
/// For a call of a plugin in a debugger, and for its handshake.
pub(crate) const ATTACHED_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a plugin may ask of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    /// `call`: calls a method of another plugin.
    Call,
    /// `log`: shows a line.
    Log,
    /// `store/get`, `store/set`: values that the host keeps while the plugin is restarted or reloaded.
    Store,
}

impl Capability {
    const ALL: [Self; 3] = [Self::Call, Self::Log, Self::Store];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Log => "log",
            Self::Store => "store",
        }
    }
}

/// The answer of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) methods: Vec<String>,
    #[serde(default)]
    capabilities: Vec<String>,
}

impl Hello {
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.version >= 2 && self.capabilities.iter().any(|name| name == capability.name())
    }

    /// Whether the plugin can be used; a plugin that cannot is not restarted.
    fn judge(&self) -> ReadinessAnswer {
        let [oldest, newest] = VERSIONS;
        if !VERSIONS.contains(&self.version) {
            let version = self.version;
            return ReadinessAnswer::Fatal(format!(
                "it speaks version {version} of the plugin protocol, this host speaks {oldest} and {newest}"
            ));
        }
        let names = Capability::ALL.map(Capability::name);
        match self.capabilities.iter().find(|name| !names.contains(&name.as_str())) {
            Some(name) => {
                ReadinessAnswer::Fatal(format!("it needs the capability {name:?}, this host has {}", names.join(", ")))
            }
            None => ReadinessAnswer::Ready,
        }
    }
}

fn readiness(timeout: Duration) -> Readiness {
    let capabilities = Capability::ALL.map(Capability::name);
    let offer = json!({"host": "plugin_host", "versions": VERSIONS, "capabilities": capabilities});
    Readiness::call("initialize", &offer, |hello: Hello| hello.judge()).timeout(timeout)
}

/// A plugin that is started elsewhere, for example in a debugger, and connects.
pub(crate) fn attached_spec(file: &Path, label: &str) -> WorkerSpec {
    // A process that is stopped in a debugger is not late.
    let ready = readiness(ATTACHED_TIMEOUT);
    WorkerSpec::new(file).name(label).control(Pass::env("PIPEWRIGHT_CONTROL")).ready(ready)
}

/// The worker of a plugin's file.
pub(crate) fn spec(file: &Path, label: &str, options: &Options) -> WorkerSpec {
    WorkerSpec::new(file)
        .name(label)
        .control(Pass::env("PIPEWRIGHT_CONTROL"))
        .stdout(OutputMode::Lines)
        .stderr(OutputMode::Lines) // its end also comes with the exit
        .ready(readiness(options.ready_timeout))
        .watchdog(Watchdog::ping(options.watchdog_period))
        .restart(Restart::Always) // after 100 ms, 200 ms, … 30 s; gives up after 5 restarts in 30 s
}
