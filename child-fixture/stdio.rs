//! A JSON-RPC server on standard input and output that knows nothing of the library.

use crate::{Options, kernel};
use serde_json::{Value, json};
use std::{
    error::Error,
    io::{self, BufRead, Read, Write},
};

/// The framing, spoken by hand.
#[derive(Clone, Copy)]
enum Wire {
    Lines,
    Nul,
    LengthPrefixed,
    ContentLength,
}

impl Wire {
    fn read(self, input: &mut impl BufRead) -> io::Result<Option<Value>> {
        let mut body = Vec::new();
        match self {
            Self::Lines => drop(input.read_until(b'\n', &mut body)?),
            Self::Nul => {
                input.read_until(0, &mut body)?;
                body.pop();
            }
            Self::LengthPrefixed => {
                let mut size = [0; 4];
                if input.read_exact(&mut size).is_ok() {
                    body.resize(u32::from_be_bytes(size) as usize, 0);
                    input.read_exact(&mut body)?;
                }
            }
            Self::ContentLength => {
                let mut header = String::new();
                input.read_line(&mut header)?;
                if let Some(size) = header.strip_prefix("Content-Length: ") {
                    body.resize(size.trim().parse().map_err(io::Error::other)?, 0);
                    input.read_exact(&mut [0; 2])?;
                    input.read_exact(&mut body)?;
                }
            }
        }
        if body.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&body)?)) }
    }

    fn write(self, value: &Value) {
        let text = value.to_string();
        let size = text.len();
        let framed = match self {
            Self::Lines => format!("{text}\n").into_bytes(),
            Self::Nul => format!("{text}\0").into_bytes(),
            Self::LengthPrefixed => [&u32::try_from(size).unwrap_or(0).to_be_bytes(), text.as_bytes()].concat(),
            Self::ContentLength => format!("Content-Length: {size}\r\n\r\n{text}").into_bytes(),
        };
        // A reader that is gone ends the worker by the end of its input.
        drop(io::stdout().write_all(&framed).and_then(|()| io::stdout().flush()));
    }
}

/// Answers `echo`, `die`, `log`, `ask`, `burst N`, `stray`, `close input`, `close output`, `held` until the next message, and `seen`: all
/// messages so far.
pub(crate) fn serve(options: &Options) -> Result<u8, Box<dyn Error>> {
    let wire = match options.get("framing") {
        Some("nul") => Wire::Nul,
        Some("length-prefixed") => Wire::LengthPrefixed,
        Some("content-length") => Wire::ContentLength,
        _ => Wire::Lines,
    };
    let mut input = io::stdin().lock();
    let mut seen = Vec::new();
    while let Some(message) = wire.read(&mut input)? {
        seen.push(message.clone());
        match message["method"].as_str().unwrap_or_default() {
            "$/logged" => eprintln!("seen {message}"),
            // As the Language Server Protocol says.
            "exit" => return Ok(u8::from(!seen.iter().any(|message| message["method"] == "shutdown"))),
            _ => {}
        }
        let Some(id) = message.get("id").filter(|_| message.get("method").is_some()) else { continue };
        let answer = |result: Value| wire.write(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
        match message["method"].as_str().unwrap_or_default() {
            "echo" => answer(message["params"].clone()),
            "die" => kernel::raise(libc::SIGKILL),
            "log" => {
                eprintln!("{}", message["params"][0]);
                answer(Value::Null);
            }
            "ask" => {
                wire.write(&json!({"jsonrpc": "2.0", "method": "asking", "params": []}));
                wire.write(&json!({"jsonrpc": "2.0", "id": "q", "method": "question", "params": [6]}));
                let reply = wire.read(&mut input)?.unwrap_or_default();
                answer(reply["result"].clone());
            }
            "burst" => {
                for number in 0..message["params"][0].as_u64().unwrap_or_default() {
                    wire.write(&json!({"jsonrpc": "2.0", "method": "progress", "params": [number]}));
                }
                answer(Value::Null);
            }
            "burst and leave" => {
                for number in 0..message["params"][0].as_u64().unwrap_or_default() {
                    wire.write(&json!({"jsonrpc": "2.0", "method": "progress", "params": [number]}));
                }
                // Not before the supervisor has more to send than its socket takes.
                input.fill_buf()?;
                kernel::close(1);
                kernel::pause();
            }
            "stray" => {
                println!("a print that was left in");
                answer(Value::Null);
            }
            "close input" => {
                // Also what the buffer of `stdin` holds is not read.
                kernel::close(0);
                answer(Value::Null);
                kernel::pause();
            }
            "close output" => {
                answer(Value::Null);
                kernel::close(1);
                input.read_to_end(&mut Vec::new())?;
            }
            "held" => {}
            "shutdown" => answer(Value::Null),
            "initialize" => answer(json!({"capabilities": {}, "params": message["params"]})),
            "seen" => answer(seen.clone().into()),
            _ => wire.write(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}})),
        }
    }
    eprintln!("end of input");
    if options.has("linger") {
        kernel::pause();
    }
    Ok(0)
}
