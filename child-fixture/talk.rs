//! Workers that use their control connection correctly or incorrectly.

use crate::{Options, Outcome, inspect, kernel};
use pipewright::{Parent, ParentMessage, Request, RpcError};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, Read, Write},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers `add`, `echo`, `read`, `fail`, `wait` until `release`, `ask back`, `notes`, `pour`, `chatter`, and `until cancelled`, on `--threads N`.
pub(crate) fn serve(options: &Options) -> Outcome {
    let parent = Parent::from_args()?;
    if options.has("inspect") {
        parent.send(&inspect::everything()?)?;
    }
    let released = (Mutex::new(HashSet::<String>::new()), Condvar::new());
    let notes = Mutex::new(Vec::<Value>::new());
    let threads = options.number_or("threads", 1)?;
    if options.has("no-more-memory") {
        kernel::allow_no_more_memory()?;
    }
    let answer = |request: &Request| -> Result<Value, RpcError> {
        match request.method() {
            "add" => Ok(request.params::<Vec<i64>>()?.iter().sum::<i64>().into()),
            "echo" => Ok(request.params()?),
            // Appends a line to a file.
            "record" => {
                let (file, line): (String, String) = request.params()?;
                File::options().append(true).create(true).open(file)?.write_all(format!("{line}\n").as_bytes())?;
                Ok(line.into())
            }
            "read" => Ok(std::fs::read_to_string(request.params::<[String; 1]>()?.concat())?.into()),
            "fail" => {
                let params: Value = request.params()?;
                let code = params["code"].as_i64().unwrap_or(-1);
                Err(RpcError::new(code, "as you wish").with_data(&params).unwrap_or_else(|_| RpcError::new(0, "")))
            }
            "wait" => {
                let [line]: [String; 1] = request.params()?;
                let lines = released.0.lock().unwrap_or_else(PoisonError::into_inner);
                drop(released.1.wait_timeout_while(lines, PATIENCE, |lines| !lines.contains(&line)));
                Ok(line.into())
            }
            "release" => {
                released.0.lock().unwrap_or_else(PoisonError::into_inner).extend(request.params::<[String; 1]>()?);
                released.1.notify_all();
                Ok(Value::Null)
            }
            "until cancelled" => {
                while !request.is_cancelled() {
                    kernel::wait_for_nothing(Duration::from_millis(10));
                }
                Ok(Value::Null)
            }
            "note" if request.is_notification() => {
                notes.lock().unwrap_or_else(PoisonError::into_inner).push(request.params()?);
                Ok(Value::Null)
            }
            "notes" => Ok(notes.lock().unwrap_or_else(PoisonError::into_inner).clone().into()),
            // Sends this many messages, or notifications, before it answers.
            method @ ("pour" | "chatter") => {
                let [count]: [u32; 1] = request.params()?;
                for n in 0..count {
                    if method == "pour" { parent.send(&[n])? } else { parent.notify("progress", &[n])? }
                }
                Ok(count.into())
            }
            // Sends a notification and a request of its own before it answers.
            "ask back" => {
                let question: Value = request.params()?;
                parent.notify("asking", &question)?;
                Ok(parent.call("back", &question, PATIENCE)?)
            }
            "panic" => std::panic::resume_unwind(Box::new("as asked")),
            "drop" => Err(RpcError::new(-32603, "not answered")),
            other => Err(RpcError::method_not_found(other)),
        }
    };
    parent.serve(threads, answer);
    Ok(())
}

/// Holds the requests `hold`, answers `count` with how many it holds and how many of those are cancelled, and on `release` answers each
/// with its parameters.
pub(crate) fn hold() -> Outcome {
    let parent = Parent::from_args()?;
    let mut held: Vec<Request> = Vec::new();
    for message in parent.incoming() {
        let ParentMessage::Request(request) = message else { continue };
        match request.method() {
            "hold" => held.push(request),
            "count" => request.reply(&(held.len(), held.iter().filter(|held| held.is_cancelled()).count()))?,
            "release" => {
                for request in held.drain(..) {
                    let params: Value = request.params()?;
                    request.reply(&params)?;
                }
                request.reply(&())?;
            }
            _ => request.reply_method_not_found()?,
        }
    }
    Ok(())
}

/// Sends requests from three threads at once, prints the answers, and sends a notification.
pub(crate) fn ask() -> Outcome {
    let parent = Parent::from_args()?;
    thread::scope(|scope| {
        for n in 0..3 {
            let parent = &parent;
            scope.spawn(move || match parent.call::<_, String>("may I", &[n], PATIENCE) {
                Ok(answer) => println!("{n}: {answer}"),
                Err(pipewright::CallError::Rpc(error)) => println!("{n}: {error}"),
                Err(error) => println!("{n}: {error}"),
            });
        }
    });
    parent.notify("state", &["done"])?;
    Ok(())
}

/// Sends notifications on one thread and requests on another, until a request times out while the notifications are blocked.
#[expect(clippy::exit, reason = "its other thread is blocked")]
pub(crate) fn ask_in_flood() -> Outcome {
    let parent = Parent::from_args()?;
    let sent = AtomicU64::new(0);
    let text = "x".repeat(10_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            while parent.notify("flood", &[&text]).is_ok() {
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        loop {
            let before = sent.load(Ordering::SeqCst);
            let outcome = parent.call::<_, Value>("unanswered", &(), Duration::from_millis(200));
            if sent.load(Ordering::SeqCst) == before {
                std::process::exit(i32::from(!matches!(outcome, Err(pipewright::CallError::TimedOut))));
            }
        }
    })
}

/// `--say TEXT` with commas for line ends: sends it by `sd_notify(3)` and waits for the end of standard input.
pub(crate) fn notify(options: &Options) -> Outcome {
    send_datagram(&options.get("say").ok_or("--say is missing")?.replace(',', "\n"), options.number_or("times", 1)?)?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Sends this datagram by `sd_notify(3)` this many times.
pub(crate) fn send_datagram(text: &str, times: u32) -> Outcome {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.connect(std::env::var("NOTIFY_SOCKET")?)?;
    for _ in 0..times {
        socket.send(text.as_bytes())?;
    }
    Ok(())
}

/// `--ms N`: on a stop request it extends its timeout and uses the time.
pub(crate) fn slow_end(options: &Options) -> Outcome {
    let parent = Parent::from_args()?;
    while parent.incoming().recv().is_ok() {}
    let time = Duration::from_millis(options.number("ms")?);
    parent.extend(2 * time)?;
    kernel::wait_for_nothing(time);
    Ok(())
}

/// Connects, closes the connection, and waits for the end of standard input.
pub(crate) fn hang_up() -> Outcome {
    drop(Parent::from_args()?);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Connects without the library and never reads.
pub(crate) fn deaf() -> Outcome {
    let socket = connect()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(socket);
    Ok(())
}

/// Connects without the library, shuts its side down on `shutdown`, and waits until the supervisor does the same.
pub(crate) fn half_close() -> Outcome {
    let socket = connect()?;
    let mut lines = io::BufReader::new(&socket).lines();
    let request = lines.next().ok_or("the connection ended without a request")??;
    socket.shutdown(std::net::Shutdown::Write)?;
    let rest: Vec<_> = lines.collect::<Result<_, _>>()?;
    if request.contains("shutdown") && rest.is_empty() {
        Ok(())
    } else {
        Err(format!("{request}, and then {rest:?}").into())
    }
}

pub(crate) fn connect() -> Result<std::os::unix::net::UnixStream, Box<dyn std::error::Error>> {
    let address =
        control_address(std::env::args().find_map(|argument| argument.strip_prefix("--control=").map(str::to_owned)))?;
    let (path, key) = address.rsplit_once('?').ok_or("no key")?;
    let mut socket = std::os::unix::net::UnixStream::connect(path)?;
    let hello = json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": key}});
    socket.write_all(format!("{hello}\n").as_bytes())?;
    Ok(socket)
}

/// `--count N --size BYTES`: numbered notifications.
pub(crate) fn notify_flood(options: &Options) -> Outcome {
    let parent = Parent::from_args()?;
    let pad = "x".repeat(options.number("size")?);
    for n in 0..options.number("count")? {
        let n: u64 = n;
        parent.notify("flood", &(n, &pad))?;
    }
    Ok(())
}

/// `PATH?KEY`, with the path from an argument and the key from the environment.
pub(crate) fn control_address(path: Option<String>) -> Result<String, Box<dyn std::error::Error>> {
    let path = path.ok_or("--control is missing")?;
    Ok(format!("{path}?{}", std::env::var("PIPEWRIGHT_CONTROL_KEY")?))
}
