//! A plugin in Rust: factors numbers, and shows its progress by the host's `log`.

use pipewright::{Parent, Request, RpcError};
use serde_json::{Value, json};
use std::process::ExitCode;

/// The error for a number that has no factors.
const NOT_FACTORABLE: i64 = 1;
/// How many divisors are tried before the program looks for a cancellation.
const STRIDE: u64 = 1 << 24;

fn main() -> ExitCode {
    match Parent::from_args() {
        Ok(parent) => {
            // Two threads: one answers pings while the other factors a large number.
            parent.serve(2, |request| answer(&parent, request));
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Started in a shell.
            drop(std::io::Write::write_all(&mut std::io::stderr(), format!("{error}\n").as_bytes()));
            ExitCode::FAILURE
        }
    }
}

fn answer(parent: &Parent, request: &Request) -> Result<Value, RpcError> {
    match request.method() {
        "initialize" => Ok(json!({"version": 2, "methods": ["factor"], "capabilities": ["log"]})),
        "factor" => {
            let [number] = request.params::<[u64; 1]>()?;
            factor(parent, request, number)
        }
        other => Err(RpcError::method_not_found(other)),
    }
}

fn factor(parent: &Parent, request: &Request, number: u64) -> Result<Value, RpcError> {
    if number < 2 {
        return Err(RpcError::new(NOT_FACTORABLE, format!("{number} has no prime factors")));
    }
    let (mut rest, mut divisor, mut factors) = (number, 2_u64, Vec::new());
    while divisor.checked_mul(divisor).is_some_and(|square| square <= rest) {
        if rest % divisor == 0 {
            factors.push(divisor);
            rest /= divisor;
            continue;
        }
        divisor += 1;
        if divisor % STRIDE == 0 {
            if request.is_cancelled() {
                return Err(RpcError::new(-32800, "cancelled"));
            }
            parent.notify("log", &json!({"text": format!("{number}: no divisor up to {divisor}")}))?;
        }
    }
    factors.push(rest);
    Ok(json!(factors))
}
