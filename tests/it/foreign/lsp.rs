//! Language servers.

use super::program;
use crate::support::{DEADLINE, Story};
use pipewright::{CallError, EventKind, OutputMode, StdioProtocol, StopPolicy, StopStep, Worker, WorkerSpec};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// A language server in a workspace of its own.
struct Workspace {
    story: Story,
    worker: Worker,
    directory: TempDir,
    language: &'static str,
}

/// Starts the server, and waits until it has answered `initialize`.
fn opened(server: &str, language: &'static str) -> Option<Workspace> {
    let directory = tempfile::tempdir().unwrap();
    // The steps of `StdioProtocol::lsp`, with more time: the machine may be loaded.
    let stop = StopPolicy::kill()
        .step([StopStep::Call("shutdown".into())], DEADLINE)
        .step([StopStep::Notify("exit".into()), StopStep::ClosePipes], DEADLINE);
    let root = format!("file://{}", directory.path().display());
    let params = json!({"processId": std::process::id(), "rootUri": root, "capabilities": {}});
    let spec = WorkerSpec::new(program(server)?)
        .current_dir(directory.path())
        .control_on_stdio(StdioProtocol::lsp().initialize(&params))
        .stop(stop)
        .stderr(OutputMode::Lines);
    let story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.wait_ready(DEADLINE).unwrap();
    let answer: Value = worker.handshake().unwrap().unwrap();
    assert!(answer["capabilities"].is_object(), "{answer}");
    Some(Workspace { story, worker, directory, language })
}

impl Workspace {
    fn open(&mut self, name: &str, text: &str) -> Value {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        let document = json!({
            "uri": format!("file://{}", path.display()), "languageId": self.language, "version": 1, "text": text,
        });
        self.worker.notify("textDocument/didOpen", &json!({"textDocument": document})).unwrap();
        document["uri"].clone()
    }

    /// Waits for the diagnostics of a document, and returns them as text.
    fn diagnostics(&mut self, uri: &Value) -> String {
        self.story.find(|event| match event.kind {
            EventKind::Notification(notification) if notification.method() == "textDocument/publishDiagnostics" => {
                let params: Value = notification.params().unwrap();
                (params["uri"] == *uri && params["diagnostics"] != json!([])).then(|| params["diagnostics"].to_string())
            }
            EventKind::Request(request) => {
                request.reply(&()).unwrap();
                None
            }
            _ => None,
        })
    }
}

fn reports_diagnostics_and_stops(server: &str, language: &'static str, (name, text, fault): (&str, &str, &str)) {
    let Some(mut workspace) = opened(server, language) else { return };
    let uri = workspace.open(name, text);
    let diagnostics = workspace.diagnostics(&uri);
    assert!(diagnostics.contains(fault), "{diagnostics}");
    let place = json!({"textDocument": {"uri": uri}, "position": {"line": 0, "character": 5}});
    workspace.worker.call::<_, Value>("textDocument/hover", &place, DEADLINE).unwrap();
    workspace.worker.stop();
    let exit = workspace.story.exit();
    // It exits with 1 if `exit` comes without `shutdown`.
    assert!(exit.success(), "{exit:?}");
}

fn that_is_killed_ends_its_calls(server: &str, language: &'static str, (name, text): (&str, &str)) {
    let Some(mut workspace) = opened(server, language) else { return };
    let uri = workspace.open(name, text);
    // It does not answer before it is killed.
    workspace.worker.signal(libc::SIGSTOP).unwrap();
    let call =
        workspace.worker.start_call("textDocument/documentSymbol", &json!({"textDocument": {"uri": uri}})).unwrap();
    workspace.worker.kill().unwrap();
    match call.wait::<Value>(DEADLINE) {
        Err(CallError::WorkerExited { exit: Some(exit), .. }) => assert_eq!(exit.signal(), Some(libc::SIGKILL)),
        other => panic!("{other:?}"),
    }
    workspace.story.exit();
}

#[test]
fn foreign_pylsp_reports_diagnostics_and_stops_by_its_protocol() {
    reports_diagnostics_and_stops("pylsp", "python", ("a.py", "print(undefined_name)\n", "undefined name"));
}

#[test]
fn foreign_pylsp_that_is_killed_ends_its_calls() {
    that_is_killed_ends_its_calls("pylsp", "python", ("a.py", "x = 1\n"));
}

#[test]
fn foreign_clangd_reports_diagnostics_and_stops_by_its_protocol() {
    let (text, fault) = ("int f(void) { return undeclared; }\n", "undeclared identifier");
    reports_diagnostics_and_stops("clangd", "c", ("a.c", text, fault));
}

#[test]
fn foreign_clangd_that_is_killed_ends_its_calls() {
    that_is_killed_ends_its_calls("clangd", "c", ("a.c", "int x;\n"));
}
