//! A host of the Model Context Protocol: starts a server, lists its tools, and calls one. Run with `TOOL ARGUMENTS SERVER...`:
//! `cargo run --example mcp_host -- echo '{"message":"hello"}' npx -y @modelcontextprotocol/server-everything stdio`
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it shows what happens")]

use pipewright::{OutputMode, RpcError, StdioProtocol, Supervisor, WorkerSpec};
use serde_json::{Value, json};
use std::{env, error::Error, time::Duration};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(tool), Some(parameters), Some(program)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: mcp_host TOOL ARGUMENTS SERVER...".into());
    };
    let parameters: Value = serde_json::from_str(&parameters)?;
    let supervisor = Supervisor::new()?;
    // This host has no capabilities. Progress and changes of the server are notifications.
    let _serving = supervisor.serve(1, |server, request| {
        eprintln!("{}: {}", server.name(), request.method());
        Err::<Value, _>(RpcError::method_not_found(request.method()))
    })?;
    // `initialize` and `notifications/initialized` precede the calls. Standard error is the log of the server.
    let spec = WorkerSpec::new(program).args(arguments).control_on_stdio(StdioProtocol::mcp());
    let server = supervisor.spawn(spec.stderr(OutputMode::Inherit))?;
    let listed: Value = server.call("tools/list", &(), PATIENCE)?;
    for tool in listed["tools"].as_array().into_iter().flatten() {
        println!("tool {}", tool["name"]);
    }
    let result: Value = server.call("tools/call", &json!({"name": tool, "arguments": parameters}), PATIENCE)?;
    println!("{}", result["content"]);
    print!("{}", server.stop().wait(PATIENCE)); // closes its standard input
    Ok(())
}
