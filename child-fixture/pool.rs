//! A worker of a pool.
#![expect(clippy::exit, clippy::panic, clippy::unnecessary_wraps, reason = "what workers of users do")]

use crate::{Options, Outcome, kernel, talk};
use pipewright::{
    RpcError, Supervisor,
    pool::{self, Functions, Pool},
};
use serde_json::{Value, json};
use std::{
    io::{self, Read},
    time::Duration,
};

/// A task is an array: a word, and parameters. It runs tasks on `--threads N`, and exits at once with `--exit CODE`.
pub(crate) fn worker(options: &Options) -> Outcome {
    if options.get("exit").is_some() {
        eprintln!("starting");
        eprintln!("cannot start: no licence");
        std::process::exit(options.number("exit")?);
    }
    let threads = options.number_or("threads", 1)?;
    pool::worker_with(threads, |task, (word, value): (String, Value)| -> Result<Value, RpcError> {
        match &*word {
            "square" => Ok(json!(value.as_u64().unwrap_or(0).pow(2))),
            "echo" => Ok(value),
            "pid" => Ok(json!(std::process::id())),
            "fail" => Err(RpcError::new(7, value.as_str().unwrap_or_default())),
            "panic" => panic!("as requested"),
            "die" => {
                eprintln!("about to die");
                kernel::raise(i32::try_from(value.as_i64().unwrap_or(9)).unwrap_or(9));
                Ok(Value::Null)
            }
            "hang" => {
                kernel::wait_for_nothing(Duration::from_secs(600));
                Ok(Value::Null)
            }
            // Reports progress, and then waits until it is cancelled.
            "until cancelled" => {
                task.progress(&value)?;
                while !task.is_cancelled() {
                    kernel::wait_for_nothing(Duration::from_millis(5));
                }
                Ok(Value::Null)
            }
            // Waits until the file exists.
            "file" => {
                while !std::path::Path::new(value.as_str().unwrap_or_default()).exists() {
                    kernel::wait_for_nothing(Duration::from_millis(5));
                }
                Ok(json!(std::process::id()))
            }
            other => Err(RpcError::method_not_found(other)),
        }
    })?;
    Ok(())
}

fn cube(n: u64) -> Result<(u64, u32), RpcError> {
    Ok((n.pow(3), std::process::id()))
}

fn never_added(n: u64) -> Result<u64, RpcError> {
    Ok(n)
}

/// Called first in `main`.
pub(crate) fn init() {
    let twice = |n: u64| -> Result<u64, RpcError> { Ok(n) };
    pool::init(Functions::new().function(cube).function(twice).function(twice));
}

/// A program whose pool runs its own functions.
pub(crate) fn host() -> Outcome {
    let supervisor = Supervisor::new()?;
    let pool = Pool::of_function(&supervisor, cube)?.workers(2).build()?;
    let mut sum = 0;
    for result in pool.map(1..=100) {
        let (cube, pid) = result?;
        assert_ne!(pid, std::process::id(), "in another process");
        sum += cube;
    }
    println!("{sum}");
    if let Err(error) = Pool::of_function(&supervisor, never_added) {
        println!("{error}");
    }
    Ok(())
}

/// Connects without the library, closes the connection, and runs on.
pub(crate) fn closer() -> Outcome {
    drop(talk::connect()?);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
