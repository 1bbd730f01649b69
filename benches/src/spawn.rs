//! What starting a process costs, from a small parent and from a huge one.
//!
//! Every peer starts `/bin/true --messages N`: a program in Rust would add half a millisecond of its own, and hide the
//! difference. (With one argument, coreutils' `true` loads the locale to tell `--help` in the user's language, which takes
//! 150 microseconds; with two it does not.) Standard input is `/dev/null`, the other two streams are inherited. What is
//! measured:
//!
//! * `us_median`: inside the call that starts it. The recipe (`WorkerSpec`, `Command`) is made before.
//! * `us_to_exit`: from the beginning of that call until the child is reaped.
//!
//! | peer | starts with | given to the child | reaped by |
//! |---|---|---|---|
//! | `pipewright` | `Supervisor::spawn`, on the main thread | a message pipe | the `Exited` event |
//! | `pipewright-launch` | `WorkerSpec::spawn_unsupervised` | a message pipe | `Process::wait` |
//! | `std` | `std::process::Command` | nothing | `Child::wait` |
//! | `command-fds` | `std::process::Command` with `preserved_fds`; the pipe is made within the call | a pipe | `Child::wait` |
//! | `tokio` | `tokio::process::Command` on a current-thread runtime | nothing | `Child::wait` |
//!
//! Limits: `std` and `tokio` pass no descriptor, which is what keeps them on the C library's `posix_spawn`; with one they fork
//! like `command-fds`. The parent's size is ballast of ordinary 4 KiB pages in one mapping; see `memory`. The peer that forks
//! runs after the others and not among them: each fork write-protects the parent's whole memory, and whoever starts a child next
//! would pay for the faults.

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

/// Every size comes up so often, a part of its rounds each time, so that what else the machine does falls on all of them.
const PASSES: usize = 3;

/// A parent's size and how often its peers run.
struct Case {
    parent_rss_mib: usize,
    rounds: usize,
    /// The peer that copies the page tables runs only every so many rounds: it takes a thousand times as long.
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
/// Those whose child shares the parent's memory until it execs.
const SHARING: [Peer; 4] = [Peer::Pipewright, Peer::PipewrightLaunch, Peer::Std, Peer::Tokio];
const FORKING: Peer = Peer::CommandFds;

/// A start: when it began, when the call returned, when the child was reaped.
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

/// The ratios of `us_median` that the peers are compared by; `small` and `large` are the parent's sizes.
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
            // In another order each time: what a start leaves behind, busy processors and cold caches, falls on its successor.
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

/// What lives as long as the peers' hosts would.
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
        while !matches!(self.supervisor.events().recv()?.kind, EventKind::Exited(_)) {}
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

#[expect(clippy::disallowed_methods, reason = "what it is compared with")]
fn std() -> Started {
    let mut command = Command::new(PROGRAM);
    command.args(["--messages", "3"]).stdin(Stdio::null());
    let began = now();
    let mut child = command.spawn()?;
    let returned = now();
    child.wait()?;
    Ok(Start { began, returned, reaped: now() })
}

#[expect(clippy::disallowed_methods, reason = "what it is compared with")]
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
