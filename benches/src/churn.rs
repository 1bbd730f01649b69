//! Cost of a worker that exits at once and is restarted forever: restarts per second, and resources left in the parent.
//!
//! | peer | how |
//! |---|---|
//! | `pipewright` | one worker, `Restart::Always` without a pause, its events received |
//! | `std` | `Command::spawn` and `Child::wait` in a loop: `posix_spawn` and `waitid` |
//!
//! Both run the same program, a thousand times in turn. `churn-state` lines show the resources of the parent after the first and after
//! the last thousand.

use crate::{
    Done, Options,
    figures::{median, now, ratio, tell},
};
use pipewright::{Backoff, EventKind, Restart, RestartIntensity, RestartPolicy, StdinMode, Supervisor, WorkerSpec};
use serde::Serialize;
use std::{
    error::Error,
    fs,
    process::{Command, Stdio},
    time::Duration,
};

/// Fails at once. With two arguments, coreutils' `false` does not load a locale.
const PROGRAM: [&str; 3] = ["/bin/false", "--messages", "3"];
const BLOCK: usize = 1000;
const BLOCKS: usize = 100;
const QUICK_BLOCK: usize = 200;
const QUICK_BLOCKS: usize = 5;

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: &'static str,
    per_second: f64,
}

/// Resources of this process.
#[derive(Debug, Serialize)]
struct State {
    bench: &'static str,
    cycles: usize,
    descriptors: usize,
    threads: usize,
    rss_kib: u64,
    children: usize,
}

#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    cycles: usize,
    /// Ratio of the times.
    pipewright_over_std: f64,
    rss_growth_kib: i64,
}

pub(crate) fn run(options: &Options) -> Done {
    let (block, blocks) = if options.quick { (QUICK_BLOCK, QUICK_BLOCKS) } else { (BLOCK, BLOCKS) };
    let supervisor = Supervisor::new()?;
    let (mut ours, mut theirs, mut first) = (Vec::new(), Vec::new(), None);
    for done in 1..=blocks {
        ours.push(supervised(&supervisor, block)?);
        theirs.push(bare(block)?);
        if done == 1 || done == blocks {
            let state = State::now(done * block)?;
            tell(&state)?;
            first.get_or_insert(state.rss_kib);
        }
    }
    let last = State::now(blocks * block)?.rss_kib;
    let (ours, theirs) = (median(ours), median(theirs));
    let per_second = |seconds: f64| (f64::from(u32::try_from(block).unwrap_or(u32::MAX)) / seconds).round();
    tell(&Line { bench: "churn", peer: "pipewright", per_second: per_second(ours) })?;
    tell(&Line { bench: "churn", peer: "std", per_second: per_second(theirs) })?;
    Ok(tell(&Verdict {
        bench: "churn-verdict",
        cycles: blocks * block,
        pipewright_over_std: ratio(ours, theirs),
        rss_growth_kib: i64::try_from(last)? - i64::try_from(first.unwrap_or_default())?,
    })?)
}

/// Returns the seconds for `cycles` incarnations of one worker.
fn supervised(supervisor: &Supervisor, cycles: usize) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let policy = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(Duration::ZERO))
        .intensity(RestartIntensity::unlimited());
    let [program, arguments @ ..] = PROGRAM;
    let spec = WorkerSpec::new(program).args(arguments).stdin(StdinMode::Null).restart(policy);
    let began = now();
    let worker = supervisor.spawn(spec)?;
    let mut exits = 0;
    while exits < cycles {
        if let EventKind::Exited { .. } = supervisor.events().recv()?.kind {
            exits += 1;
        }
    }
    let seconds = (now() - began).as_secs_f64();
    worker.stop();
    worker.wait();
    while supervisor.events().try_recv().is_ok() {}
    Ok(seconds)
}

#[expect(clippy::disallowed_methods, reason = "the peer of the comparison")]
fn bare(cycles: usize) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let [program, arguments @ ..] = PROGRAM;
    let began = now();
    for _ in 0..cycles {
        Command::new(program).args(arguments).stdin(Stdio::null()).spawn()?.wait()?;
    }
    Ok((now() - began).as_secs_f64())
}

impl State {
    fn now(cycles: usize) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        let mut children = 0;
        for thread in fs::read_dir("/proc/self/task")? {
            children += fs::read_to_string(thread?.path().join("children"))?.split_whitespace().count();
        }
        Ok(Self {
            bench: "churn-state",
            cycles,
            descriptors: fs::read_dir("/proc/self/fd")?.count() - 1,
            threads: usize::try_from(number("Threads:"))?,
            rss_kib: number("VmRSS:"),
            children,
        })
    }
}
