//! Workers of mixed behaviour for the chaos test: which one is the seed's choice.

use crate::{Options, Outcome, kernel};
use pipewright::Parent;
use std::{
    env,
    error::Error,
    io::{self, Read},
    process,
    time::Duration,
};

/// Numbers its messages from 0; then it behaves as `--kind` says.
pub(crate) fn run(options: &Options) -> Result<u8, Box<dyn Error>> {
    let parent = Parent::from_args()?;
    let count: u64 = options.number("count")?;
    match options.get("kind") {
        Some("crash") => {
            say(&parent, count);
            return Ok(3);
        }
        Some("abort") => {
            say(&parent, count);
            process::abort();
        }
        Some("hang") => {
            say(&parent, count);
            kernel::wait_for_nothing(Duration::from_secs(1000));
        }
        Some("stubborn") => {
            kernel::ignore(libc::SIGTERM);
            say(&parent, count);
            kernel::wait_for_nothing(Duration::from_secs(1000));
        }
        Some("flood") => say(&parent, u64::MAX),
        Some("daemons") => {
            daemon()?;
            say(&parent, count);
            return Ok(4);
        }
        Some("serve") => {
            say(&parent, count);
            parent.serve(1, |request| Ok(request.method().len()));
        }
        Some("input") => {
            say(&parent, count);
            io::stdin().read_to_end(&mut Vec::new())?;
        }
        other => return Err(format!("--kind {other:?}").into()),
    }
    Ok(0)
}

fn say(parent: &Parent, count: u64) {
    for n in 0..count {
        // The parent may end it in the middle.
        if parent.send(&n).is_err() {
            break;
        }
    }
}

/// Leaves a process of its own session behind, which holds nothing of ours.
#[expect(clippy::disallowed_methods, reason = "a worker that nobody adapted starts processes as it likes")]
fn daemon() -> Outcome {
    let null = process::Stdio::null;
    process::Command::new("setsid")
        .args(["sleep", "1000"])
        .envs(env::vars_os())
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn()?;
    Ok(())
}
