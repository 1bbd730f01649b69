//! Cost of starting a process from a small parent and from a large one.
//!
//! Every peer starts `/bin/true --messages N`: the start-up of a Rust program takes half a millisecond, which would hide the
//! differences. (With one argument, coreutils' `true` loads the locale for a translated `--help`, which takes 150 microseconds;
//! with two it does not.) Standard input is `/dev/null`, the other two streams are inherited. Measured times:
//!
//! * `us_median`: inside the call that starts the process. The `WorkerSpec` or `Command` is built before.
//! * `us_to_exit`: from the start of that call until the child is reaped.
//!
//! | peer | starts with | passed to the child | reaped by |
//! |---|---|---|---|
//! | `pipewright` | `Supervisor::spawn`, on the main thread | a message pipe | the `Exited` event |
//! | `pipewright-launch` | `WorkerSpec::spawn_unsupervised` | a message pipe | `Process::wait` |
//! | `std` | `std::process::Command` | nothing | `Child::wait` |
//! | `command-fds` | `std::process::Command` with `preserved_fds`; the call includes creating the pipe | a pipe | `Child::wait` |
//! | `tokio` | `tokio::process::Command` on a current-thread runtime | nothing | `Child::wait` |
//!
//! Limits: `std` and `tokio` pass no fd, so they use the C library's `posix_spawn`; with an fd they fork like `command-fds`. The
//! parent's size is ballast of 4 KiB pages in one mapping; see `memory`. The peer that forks runs after the others: each fork
//! write-protects the parent's whole memory, and the page faults would be charged to the next peer.

use crate::{
    Done, Options,
    figures::{median, now, ratio, tell},
    memory::Ballast,
};
use command_fds::CommandFdExt;
use pipewright::{EventKind, Pass, Supervisor, WorkerSpec};
use serde::Serialize;
use std::{
    error::Error,
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::runtime::{self, Runtime};

const PROGRAM: &str = "/bin/true";

/// Passes over all sizes, each with a part of the rounds, so that other load on the machine affects all sizes.
const PASSES: usize = 3;

/// Size of the parent and number of rounds.
struct Case {
    parent_rss_mib: usize,
    rounds: usize,
    /// The forking peer runs once in `fork_every` rounds: copying the page tables takes a thousand times as long.
    fork_every: usize,
}

const CASES: [Case; 3] = [
    Case { parent_rss_mib: 0, rounds: 300, fork_every: 1 },
    Case { parent_rss_mib: 1024, rounds: 300, fork_every: 5 },
    Case { parent_rss_mib: 4096, rounds: 300, fork_every: 15 },
];
const QUICK_CASES: [Case; 3] = [
    Case { parent_rss_mib: 0, rounds: 30, fork_every: 1 },
    Case { parent_rss_mib: 64, rounds: 30, fork_every: 1 },
    Case { parent_rss_mib: 256, rounds: 30, fork_every: 5 },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    Pipewright,
    PipewrightLaunch,
    Std,
    CommandFds,
    Tokio,
}

const PEERS: [Peer; 5] = [Peer::Pipewright, Peer::PipewrightLaunch, Peer::Std, Peer::CommandFds, Peer::Tokio];
/// Peers whose child shares the parent's memory until exec.
const SHARING: [Peer; 4] = [Peer::Pipewright, Peer::PipewrightLaunch, Peer::Std, Peer::Tokio];
const FORKING: Peer = Peer::CommandFds;

/// Times of one start.
struct Start {
    began: Instant,
    returned: Instant,
    reaped: Instant,
}

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: Peer,
    parent_rss_mib: usize,
    us_median: f64,
    us_to_exit: f64,
}

/// Ratios of `us_median`; `small` and `large` are sizes of the parent.
#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    small_mib: usize,
    large_mib: usize,
    pipewright_large_over_small: f64,
    pipewright_launch_large_over_small: f64,
    pipewright_over_std_small: f64,
    pipewright_launch_over_std_small: f64,
    command_fds_over_pipewright_large: f64,
    command_fds_over_pipewright_launch_large: f64,
}

pub(crate) fn run(options: &Options) -> Done {
    let cases = if options.quick { &QUICK_CASES } else { &CASES };
    let bench = Bench::new()?;
    let mut samples: Vec<(usize, Peer, Start)> = Vec::new();
    for _ in 0..PASSES {
        for case in cases {
            let _ballast = Ballast::new(case.parent_rss_mib)?;
            bench.start(Peer::Std)?;
            // The order changes each round: busy processors and cold caches after a start affect the next one.
            for round in 0..case.rounds / PASSES {
                for turn in 0..SHARING.len() {
                    let peer = SHARING[(round + turn * (1 + round % 3)) % SHARING.len()];
                    samples.push((case.parent_rss_mib, peer, bench.start(peer)?));
                }
            }
            for _ in 0..(case.rounds / PASSES).div_ceil(case.fork_every) {
                samples.push((case.parent_rss_mib, FORKING, bench.start(FORKING)?));
            }
        }
    }
    let mut lines = Vec::new();
    for case in cases {
        for peer in PEERS {
            let mine = || samples.iter().filter(|sample| (sample.0, sample.1) == (case.parent_rss_mib, peer));
            let line = Line {
                bench: "spawn",
                peer,
                parent_rss_mib: case.parent_rss_mib,
                us_median: microseconds(mine().map(|(_, _, start)| start.returned - start.began)),
                us_to_exit: microseconds(mine().map(|(_, _, start)| start.reaped - start.began)),
            };
            tell(&line)?;
            lines.push(line);
        }
    }
    let sizes = || cases.iter().map(|case| case.parent_rss_mib);
    Ok(tell(&verdict(&lines, sizes().min().unwrap_or(0), sizes().max().unwrap_or(0)))?)
}

fn microseconds(durations: impl Iterator<Item = Duration>) -> f64 {
    (median(durations.map(|duration| duration.as_secs_f64() * 1e6).collect()) * 10.0).round() / 10.0
}

fn verdict(lines: &[Line], small_mib: usize, large_mib: usize) -> Verdict {
    let of = |peer, size| {
        let line = lines.iter().find(|line| (line.peer, line.parent_rss_mib) == (peer, size));
        line.map_or(f64::NAN, |line| line.us_median)
    };
    let (small, large) = (|peer| of(peer, small_mib), |peer| of(peer, large_mib));
    Verdict {
        bench: "spawn-verdict",
        small_mib,
        large_mib,
        pipewright_large_over_small: ratio(large(Peer::Pipewright), small(Peer::Pipewright)),
        pipewright_launch_large_over_small: ratio(large(Peer::PipewrightLaunch), small(Peer::PipewrightLaunch)),
        pipewright_over_std_small: ratio(small(Peer::Pipewright), small(Peer::Std)),
        pipewright_launch_over_std_small: ratio(small(Peer::PipewrightLaunch), small(Peer::Std)),
        command_fds_over_pipewright_large: ratio(large(Peer::CommandFds), large(Peer::Pipewright)),
        command_fds_over_pipewright_launch_large: ratio(large(Peer::CommandFds), large(Peer::PipewrightLaunch)),
    }
}

/// State that a host keeps between starts.
struct Bench {
    supervisor: Supervisor,
    spec: WorkerSpec,
    runtime: Runtime,
}

type Started = Result<Start, Box<dyn Error + Send + Sync>>;

impl Bench {
    fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self {
            supervisor: Supervisor::new()?,
            spec: WorkerSpec::new(PROGRAM).arg("--messages").messages(Pass::arg("{}")),
            runtime: runtime::Builder::new_current_thread().enable_all().build()?,
        })
    }

    fn start(&self, peer: Peer) -> Started {
        match peer {
            Peer::Pipewright => self.pipewright(),
            Peer::PipewrightLaunch => self.launch(),
            Peer::Std => std(),
            Peer::CommandFds => command_fds(),
            Peer::Tokio => self.tokio(),
        }
    }

    fn pipewright(&self) -> Started {
        let spec = self.spec.clone();
        let began = now();
        let _worker = self.supervisor.spawn(spec)?;
        let returned = now();
        while !matches!(self.supervisor.events().recv()?.kind, EventKind::Exited { .. }) {}
        Ok(Start { began, returned, reaped: now() })
    }

    fn launch(&self) -> Started {
        let began = now();
        let mut process = self.spec.spawn_unsupervised()?;
        let returned = now();
        process.wait()?;
        Ok(Start { began, returned, reaped: now() })
    }

    fn tokio(&self) -> Started {
        self.runtime.block_on(async {
            let mut command = tokio::process::Command::new(PROGRAM);
            command.args(["--messages", "3"]).stdin(Stdio::null());
            let began = now();
            let mut child = command.spawn()?;
            let returned = now();
            child.wait().await?;
            Ok(Start { began, returned, reaped: now() })
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a peer of the comparison")]
fn std() -> Started {
    let mut command = Command::new(PROGRAM);
    command.args(["--messages", "3"]).stdin(Stdio::null());
    let began = now();
    let mut child = command.spawn()?;
    let returned = now();
    child.wait()?;
    Ok(Start { began, returned, reaped: now() })
}

#[expect(clippy::disallowed_methods, reason = "a peer of the comparison")]
fn command_fds() -> Started {
    let mut command = Command::new(PROGRAM);
    command.stdin(Stdio::null());
    let began = now();
    let (_reader, writer) = os_pipe::pipe()?;
    let writer = OwnedFd::from(writer);
    command.args(["--messages", &writer.as_raw_fd().to_string()]).preserved_fds(vec![writer]);
    let mut child = command.spawn()?;
    let returned = now();
    child.wait()?;
    Ok(Start { began, returned, reaped: now() })
}
