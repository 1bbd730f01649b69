//! Tasks as calls of JSON-RPC over standard input and output.

use crate::{
    ids::WorkerId,
    pool::{
        dialect::{foreign_error::THROWN, rpc_task::RpcTask},
        workers::endpoint::{ControlEndpoint, Endpoint, Report},
    },
    supervisor::{
        events::event::EventKind,
        handles::worker::Worker,
        spec::{WorkerSpec, readiness::Readiness},
    },
    wire::{
        framing::error::FrameErrorKind,
        jsonrpc::{
            completion::Completion,
            error::{Answer, CallError, RpcError},
            stdio_protocol::StdioProtocol,
        },
    },
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The worker for Python modules, which ships with the crate.
pub(crate) const PYTHON_WORKER: &str = include_str!("worker.py");

/// A dialect whose workers answer calls.
#[derive(Debug)]
pub(crate) struct RpcEndpoint {
    pub(crate) protocol: StdioProtocol,
    pub(crate) tasks: RpcTasks,
}

/// What tasks are.
#[derive(Debug)]
pub(crate) enum RpcTasks {
    /// Methods with parameters.
    Methods,
    /// Tools of the Model Context Protocol with their arguments.
    Tools,
    /// Functions of a module with their arguments.
    PythonFunctions,
}

/// The parameters of `tools/call`.
#[derive(Serialize)]
struct ToolCall<'a> {
    name: &'a str,
    arguments: &'a RawValue,
    #[serde(rename = "_meta")]
    meta: Meta,
}

#[derive(Serialize)]
struct Meta {
    #[serde(rename = "progressToken")]
    progress_token: u64,
}

#[derive(Deserialize)]
struct ToolProgress {
    #[serde(rename = "progressToken")]
    token: u64,
}

/// The result of `tools/call`.
#[derive(Deserialize)]
struct ToolResult {
    #[serde(rename = "isError", default)]
    is_error: bool,
    #[serde(default)]
    content: Vec<ToolContent>,
}

#[derive(Deserialize)]
struct ToolContent {
    #[serde(default)]
    text: Option<String>,
}

impl Endpoint for RpcEndpoint {
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec {
        let spec = match self.tasks {
            RpcTasks::PythonFunctions => spec.args(["-c", PYTHON_WORKER]),
            RpcTasks::Methods | RpcTasks::Tools => spec,
        };
        let spec = spec.control_on_stdio(self.protocol.clone());
        // With a handshake the worker is ready when it has answered.
        if self.protocol.handshake.is_some() { spec } else { spec.ready_if_none(Readiness::started()) }
    }

    fn send(&self, worker: &Worker, (id, request): (u64, &RawValue), completion: Completion) -> Result<(), CallError> {
        let caller = worker.caller()?;
        let task: RpcTask<'_> = serde_json::from_str(request.get()).map_err(CallError::Encode)?;
        match self.tasks {
            RpcTasks::Methods => {
                // All are checked before the first is sent.
                task.check().map_err(CallError::Encode)?;
                for (method, params) in &task.before {
                    caller.notify(method, params)?;
                }
                caller.send_call(id, (&task.method, &task.params), completion)?;
                // Should one not be sent, the connection has ended, and with it the call.
                task.after.iter().for_each(|(method, params)| drop(caller.notify(method, params)));
                Ok(())
            }
            RpcTasks::Tools => {
                let meta = Meta { progress_token: id };
                let params = ToolCall { name: &task.method, arguments: task.params, meta };
                caller.send_call(id, ("tools/call", &params), completion)
            }
            RpcTasks::PythonFunctions => caller.send_call(id, ("call", &(&task.method, task.params)), completion),
        }
    }

    fn interpret(&self, answer: Answer) -> Answer {
        match (&self.tasks, answer) {
            (RpcTasks::Tools, Ok(result)) => tool_result(result),
            (_, answer) => answer,
        }
    }

    fn receive(&self, worker: WorkerId, event: &EventKind) -> Option<Report> {
        match (event, &self.tasks) {
            // The exit, which follows, says more.
            (EventKind::InvalidFrame(frame), _) if frame.kind == FrameErrorKind::Truncated => None,
            (EventKind::InvalidFrame(frame), _) => Some(Report::Invalid(frame.to_string().into())),
            (EventKind::Notification(_), RpcTasks::PythonFunctions) => ControlEndpoint.receive(worker, event),
            (EventKind::Notification(notification), RpcTasks::Tools)
                if notification.method() == "notifications/progress" =>
            {
                let params: Box<RawValue> = notification.params().ok()?;
                let ToolProgress { token } = serde_json::from_str(params.get()).ok()?;
                Some(Report::Progress(token, params))
            }
            _ => None,
        }
    }
}

/// A tool reports its failure as a result.
fn tool_result(result: Box<RawValue>) -> Answer {
    // The parts of an unknown shape are left to the caller.
    let Ok(ToolResult { is_error: true, content }) = serde_json::from_str(result.get()) else { return Ok(result) };
    let texts: Vec<String> = content.into_iter().filter_map(|content| content.text).collect();
    Err(CallError::Rpc(Box::new(RpcError { code: THROWN, message: texts.join("\n"), data: Some(result) })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, value::to_raw_value};

    #[test]
    fn p16_tool_that_fails_is_a_failure() {
        let result = |value| tool_result(to_raw_value(&value).unwrap());
        assert!(result(json!({"content": [{"type": "text", "text": "fine"}]})).is_ok());
        assert!(result(json!({"isError": false})).is_ok());
        assert!(result(json!([1])).is_ok() && result(json!({"isError": 5})).is_ok());
        let content = json!([{"type": "text", "text": "no such file"}, {"type": "image", "data": ""}]);
        let CallError::Rpc(error) = result(json!({"isError": true, "content": content})).unwrap_err() else { panic!() };
        assert_eq!((error.code, &*error.message), (THROWN, "no such file"));
        assert!(error.data.unwrap().get().contains("image"));
    }
}
