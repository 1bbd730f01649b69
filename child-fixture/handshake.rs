//! A worker whose options say how it answers `initialize`.

use crate::{Options, Outcome};
use pipewright::{Parent, ParentMessage, RpcError};
use serde_json::json;
use std::{
    fs::{self, File},
    io::Write,
};

/// `--runs FILE --answers A,B;C`: the first incarnation answers the first `initialize` by A and the others by B, later incarnations by C.
/// Each is a line in FILE. `exit` and `silent` give no answer, `error N` an error, `X and exit` an exit after the answer, and other words a
/// result that holds them.
#[expect(clippy::exit, reason = "the end of `main` would wait for requests")]
pub(crate) fn handshake(options: &Options) -> Outcome {
    let file = options.get("runs").ok_or("--runs is missing")?;
    File::options().append(true).create(true).open(file)?.write_all(b"run\n")?;
    let run = fs::read_to_string(file)?.lines().count();
    let mut scripts = options.get("answers").ok_or("--answers is missing")?.split(';');
    let script = scripts.clone().nth(run - 1).or(scripts.next_back()).unwrap_or_default();
    let mut answers = script.split(',');
    let last = answers.clone().next_back().unwrap_or_default();
    let parent = Parent::from_args()?;
    let (mut seen, mut held) = (Vec::new(), Vec::new());
    for message in parent.incoming() {
        let request = match message {
            ParentMessage::Request(request) => request,
            ParentMessage::Notification(notification) => {
                seen.push(notification.method().to_owned());
                continue;
            }
            _ => continue,
        };
        seen.push(request.method().to_owned());
        match request.method() {
            "initialize" => match answers.next().unwrap_or(last) {
                "exit" => std::process::exit(3),
                "silent" => held.push(request),
                error if error.starts_with("error ") => {
                    request.reply_error(&RpcError::new(error.replace("error ", "").parse()?, "as you wish"))?;
                }
                word => {
                    let state = word.replace(" and exit", "");
                    request.reply(&json!({"state": state, "run": run}))?;
                    if state != word {
                        std::process::exit(3);
                    }
                }
            },
            "seen" => request.reply(&seen)?,
            _ => request.reply(&run)?,
        }
    }
    Ok(())
}
