//! Thousands of jobs that end at once, one for each processor at a time: the time for a job.
//!
//! | peer | how |
//! |---|---|
//! | `pipewright` | a queue of jobs, their events received |
//! | `pool` | tasks of a pool: no process for each |
//! | `threads` | one thread for each processor: `Command::spawn` and `Child::wait` in a loop |
//! | `xargs` | `xargs -n 1 -P` |
//! | `parallel` | GNU parallel |
//! | `make` | a makefile with a target for each job, `make -j` |
//! | `ninja` | a build file with an edge for each job |
//!
//! Each job runs `true`, which `parallel` and `ninja` start by a shell. All run in turn. A peer whose program is missing is left out, and a
//! line says so.

use crate::{
    Done, Failed, Options,
    figures::{median, now, ratio, tell},
    pool,
};
use pipewright::{
    Supervisor, WorkerSpec,
    pool::{Jobs, Pool},
};
use serde::Serialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

const PEERS: [&str; 7] = ["pipewright", "pool", "threads", "xargs", "parallel", "make", "ninja"];
const JOBS: usize = 5000;
const QUICK_JOBS: usize = 300;
const ROUNDS: usize = 5;
/// With an argument, coreutils' `true` does not load a locale.
const PROGRAM: [&str; 2] = ["/bin/true", "--messages"];

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: &'static str,
    jobs: usize,
    us_per_job: f64,
    /// The fastest and the slowest round.
    spread: [f64; 2],
}

#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    pipewright_over_threads: f64,
    pipewright_over_xargs: f64,
    threads_over_pool: f64,
}

pub(crate) fn run(options: &Options) -> Done {
    let (jobs, rounds) = if options.quick { (QUICK_JOBS, 1) } else { (JOBS, ROUNDS) };
    let runner = Runner::new(jobs)?;
    let mut samples = vec![Vec::new(); PEERS.len()];
    let mut missing = Vec::new();
    for _ in 0..rounds {
        for (peer, samples) in PEERS.into_iter().zip(&mut samples) {
            if missing.contains(&peer) {
                continue;
            }
            let began = now();
            if runner.run(peer)? {
                samples.push((now() - began).as_secs_f64() * 1e6 / f64::from(u32::try_from(jobs)?));
            } else {
                tell(&json!({ "bench": "fanout", "peer": peer, "skipped": "the program is missing" }))?;
                missing.push(peer);
            }
        }
    }
    let mut medians = Vec::new();
    for (peer, samples) in PEERS.into_iter().zip(samples) {
        let spread = [f64::INFINITY, 0.0];
        let spread = samples.iter().fold(spread, |[low, high], us| [us.min(low).round(), us.max(high).round()]);
        let is_measured = !samples.is_empty();
        let us_per_job = (median(samples) * 10.0).round() / 10.0;
        if is_measured {
            tell(&Line { bench: "fanout", peer, jobs, us_per_job, spread })?;
        }
        medians.push(us_per_job);
    }
    let [ours, pool, threads, xargs, ..] = medians[..] else { return Ok(()) };
    Ok(tell(&Verdict {
        bench: "fanout-verdict",
        pipewright_over_threads: ratio(ours, threads),
        pipewright_over_xargs: ratio(ours, xargs),
        threads_over_pool: ratio(threads, pool),
    })?)
}

struct Runner {
    jobs: usize,
    processors: usize,
    supervisor: Supervisor,
    pool: Pool<String, String>,
    files: PathBuf,
}

impl Runner {
    /// Writes the files that some of the peers need.
    fn new(jobs: usize) -> Result<Self, Failed> {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-fanout");
        fs::create_dir_all(&files)?;
        let lines: Vec<_> = (0..jobs).map(|job| format!("{job}\n")).collect();
        fs::write(files.join("lines"), lines.concat())?;
        let command = PROGRAM.join(" ");
        let targets: Vec<_> = (0..jobs).map(|job| format!("job{job}")).collect();
        let all = targets.join(" ");
        fs::write(files.join("Makefile"), format!("all: {all}\n.PHONY: all {all}\n{all}:\n\t@{command} $@\n"))?;
        let edges: Vec<_> = targets.iter().map(|target| format!("build {target}: job\n")).collect();
        let rule = format!("builddir = state\nrule job\n  command = {command} $out\n");
        fs::write(files.join("build.ninja"), format!("{rule}{}", edges.concat()))?;
        let supervisor = Supervisor::new()?;
        let processors = thread::available_parallelism()?.get();
        let pool = Pool::builder(&supervisor, pool::child("pipewright")?).workers(processors).build()?;
        pool.submit(String::new())?.wait()?; // the workers are warm
        Ok(Self { jobs, processors, supervisor, pool, files })
    }

    /// Returns false if the program of the peer is missing.
    fn run(&self, peer: &str) -> Result<bool, Failed> {
        let jobs = format!("-j{}", self.processors);
        let input = Stdio::from(File::open(self.files.join("lines"))?);
        let mut program = match peer {
            "pipewright" => return self.queue().map(|()| true),
            "pool" => return self.pool().map(|()| true),
            "threads" => return self.threads().map(|()| true),
            "xargs" => {
                let mut xargs = command("xargs");
                xargs.args(["-n", "1", "-P", &self.processors.to_string()]).args(PROGRAM);
                xargs
            }
            "parallel" => {
                let mut parallel = command("parallel");
                parallel.arg(jobs).args(PROGRAM);
                parallel
            }
            "make" => {
                let mut make = command("make");
                make.arg(jobs).arg("-C").arg(&self.files);
                make
            }
            _ => {
                let mut ninja = command("ninja");
                ninja.arg(jobs).arg("-C").arg(&self.files);
                ninja
            }
        };
        match run_program(program.stdin(input)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{peer}: {error}").into()),
        }
    }

    fn queue(&self) -> Done {
        let [program, argument] = PROGRAM;
        let queue = Jobs::new(&self.supervisor, self.processors);
        let spec = WorkerSpec::new(program).arg(argument);
        for number in 0..self.jobs {
            queue.submit(spec.clone().arg(number.to_string()))?;
        }
        let mut ended = 0;
        while ended < self.jobs {
            ended += usize::from(self.supervisor.events().recv()?.kind.is_final());
        }
        Ok(())
    }

    fn pool(&self) -> Done {
        for answer in self.pool.map((0..self.jobs).map(|_| String::new())) {
            answer?;
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "the peer of the comparison")]
    fn threads(&self) -> Done {
        let begun = AtomicUsize::new(0);
        let [program, argument] = PROGRAM;
        thread::scope(|scope| {
            let work = || -> Done {
                loop {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= self.jobs {
                        return Ok(());
                    }
                    let status = Command::new(program)
                        .args([argument, &number.to_string()])
                        .stdin(Stdio::null())
                        .spawn()?
                        .wait()?;
                    if !status.success() {
                        return Err(status.to_string().into());
                    }
                }
            };
            let threads: Vec<_> = (0..self.processors).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })
    }
}

fn command(program: &str) -> Command {
    Command::new(program)
}

#[expect(clippy::disallowed_methods, reason = "the peers are measured as their users start them")]
fn run_program(program: &mut Command) -> std::io::Result<()> {
    let output = program.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(std::io::Error::other(format!("{}: {text}", output.status)))
}
