//! Small tasks over a pool of persistent worker processes: tasks per second. Each task sends a string and gets the same string back.
//!
//! | peer | how |
//! |---|---|
//! | `raw` | the limit: one thread for each worker writes a length and bytes to a socket, and reads them back; one task at a time |
//! | `pipewright` | `Pool::map`, with eight tasks in flight for each worker; the worker runs them one by one |
//! | `procspawn` | `procspawn::Pool` |
//! | `python` | `ProcessPoolExecutor.map` |
//! | `jest-worker` | `Promise.all` over the calls of its `Worker` |
//!
//! All have one worker for each core. Every peer does all tasks of a round before the next one begins; workers are warm. The programs of
//! Python and Node are in `benches/peers`.

use crate::{
    Done, Failed, Options,
    figures::{median, now, ratio, tell},
};
use pipewright::{
    OutputMode, Process, StdinMode, Supervisor, WorkerSpec,
    pool::{self, Pool},
};
use serde::Serialize;
use std::{
    collections::VecDeque,
    env,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// The command that runs this program as a worker.
pub(crate) const COMMAND: &str = "pool-child";

const PEERS: [&str; 5] = ["raw", "pipewright", "procspawn", "python", "jest-worker"];
/// Bytes of a task and its answer, and tasks of a round.
const SIZES: [(usize, usize); 3] = [(0, 20_000), (1024, 20_000), (100 * 1024, 2_000)];
const ROUNDS: usize = 5;
/// Tasks that are sent to a worker before its answers; of the other pools, Python's alone sends one ahead.
const IN_FLIGHT: usize = 8;
/// Tasks of `procspawn` that are open at a time.
const OPEN_TASKS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(100);

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: &'static str,
    bytes: usize,
    tasks_per_s: f64,
    /// The slowest and the fastest round.
    spread: [f64; 2],
}

#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    bytes: usize,
    over_raw: f64,
    over_procspawn: f64,
    over_python: f64,
    over_jest_worker: f64,
}

pub(crate) fn run(options: &Options) -> Done {
    let peers = Peers::new()?;
    let rounds = if options.quick { 1 } else { ROUNDS };
    for (bytes, tasks) in SIZES {
        let tasks = if options.quick { tasks / 10 } else { tasks };
        let mut rates = vec![Vec::new(); PEERS.len()];
        for _ in 0..rounds {
            for (peer, rates) in PEERS.iter().zip(&mut rates) {
                rates.push(peers.tasks_per_second(peer, tasks, bytes).map_err(|error| format!("{peer}: {error}"))?);
            }
        }
        let mut medians = Vec::new();
        for (peer, rates) in PEERS.into_iter().zip(rates) {
            let spread = [f64::INFINITY, 0.0];
            let spread = rates.iter().fold(spread, |[low, high], rate| [rate.min(low).round(), rate.max(high).round()]);
            let tasks_per_s = median(rates).round();
            tell(&Line { bench: "pool", peer, bytes, tasks_per_s, spread })?;
            medians.push(tasks_per_s);
        }
        let [raw, ours, procspawn, python, jest_worker] = medians[..] else { continue };
        tell(&Verdict {
            bench: "pool-verdict",
            bytes,
            over_raw: ratio(ours, raw),
            over_procspawn: ratio(ours, procspawn),
            over_python: ratio(ours, python),
            over_jest_worker: ratio(ours, jest_worker),
        })?;
    }
    Ok(())
}

/// The pools that live during the whole bench. Those of Python and Node are started for each round.
struct Peers {
    workers: usize,
    sockets: Vec<UnixStream>,
    pool: Pool<String, String>,
    procspawn: procspawn::Pool,
    _supervisor: Supervisor,
    _processes: Vec<Process>,
}

impl Peers {
    fn new() -> Result<Self, Failed> {
        install_foreign()?;
        let workers = thread::available_parallelism()?.get();
        let (mut sockets, mut processes) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (ours, theirs) = UnixStream::pair()?;
            let stdin = StdinMode::Fd(Arc::new(OwnedFd::from(theirs)));
            processes.push(child("raw")?.stdin(stdin).spawn_unsupervised()?);
            sockets.push(ours);
        }
        let supervisor = Supervisor::new()?;
        let pool = Pool::builder(&supervisor, child("pipewright")?).workers(workers).in_flight(IN_FLIGHT).build()?;
        let procspawn = procspawn::Pool::new(workers)?;
        Ok(Self { workers, sockets, pool, procspawn, _supervisor: supervisor, _processes: processes })
    }

    fn tasks_per_second(&self, peer: &str, tasks: usize, bytes: usize) -> Result<f64, Failed> {
        let foreign = foreign_directory();
        match peer {
            "python" => self.program(WorkerSpec::new("python3").arg(peers_directory().join("pool.py")), tasks, bytes),
            "jest-worker" => {
                let node = WorkerSpec::new("node").arg(peers_directory().join("pool.cjs")).arg(foreign);
                self.program(node, tasks, bytes)
            }
            _ => {
                let payload = "x".repeat(bytes);
                self.once(peer, 10 * self.workers, &payload)?; // warm-up
                let began = now();
                self.once(peer, tasks, &payload)?;
                Ok(per_second(tasks, now() - began))
            }
        }
    }

    /// Runs a peer that is a program of its own, and prints its tasks per second.
    fn program(&self, spec: WorkerSpec, tasks: usize, bytes: usize) -> Result<f64, Failed> {
        let spec = spec.args([tasks, bytes, self.workers].map(|number| number.to_string()));
        let output = spec.stdout(OutputMode::Bytes).spawn_unsupervised()?.wait_with_output(PATIENCE)?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().map_err(|_| format!("{}: {text}", output.exit).into())
    }

    fn once(&self, peer: &str, tasks: usize, payload: &str) -> Done {
        match peer {
            "raw" => self.raw(tasks, payload),
            "procspawn" => {
                // Each open task has descriptors of its own.
                let mut open = VecDeque::new();
                for _ in 0..tasks {
                    open.push_back(self.procspawn.spawn(payload.to_owned(), |text| text));
                    if open.len() > OPEN_TASKS
                        && let Some(oldest) = open.pop_front()
                    {
                        check(&oldest.join()?, payload)?;
                    }
                }
                open.into_iter().try_for_each(|handle| check(&handle.join()?, payload))
            }
            _ => {
                for answer in self.pool.map((0..tasks).map(|_| payload.to_owned())) {
                    check(&answer?, payload)?;
                }
                Ok(())
            }
        }
    }

    fn raw(&self, tasks: usize, payload: &str) -> Done {
        let begun = AtomicUsize::new(0);
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .sockets
                .iter()
                .map(|mut socket| {
                    let begun = &begun;
                    scope.spawn(move || -> Done {
                        let mut answer = vec![0; payload.len()];
                        while begun.fetch_add(1, Ordering::Relaxed) < tasks {
                            write_frame(socket, payload.as_bytes())?;
                            socket.read_exact(&mut [0; 4])?;
                            socket.read_exact(&mut answer)?;
                            if answer != payload.as_bytes() {
                                return Err("the answer differs from the request".into());
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })
    }
}

/// Writes the length and the bytes with one system call.
fn write_frame(mut socket: &UnixStream, bytes: &[u8]) -> Done {
    let mut frame = u32::try_from(bytes.len())?.to_le_bytes().to_vec();
    frame.extend(bytes);
    Ok(socket.write_all(&frame)?)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_second(tasks: usize, duration: Duration) -> f64 {
    tasks as f64 / duration.as_secs_f64()
}

fn check(answer: &str, payload: &str) -> Done {
    if answer == payload { Ok(()) } else { Err("the answer differs from the request".into()) }
}

/// A worker of this program.
pub(crate) fn child(peer: &str) -> Result<WorkerSpec, Failed> {
    Ok(WorkerSpec::new(env::current_exe()?).args([COMMAND, peer]))
}

fn peers_directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))
}

fn foreign_directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/foreign"))
}

/// Installs jest-worker. Does nothing if it is there.
#[expect(clippy::disallowed_methods, reason = "a program of the developer's machine, not a worker")]
fn install_foreign() -> Done {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/install-foreign");
    let status = Command::new(&script).status()?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", script.display()).into()) }
}

/// The worker.
pub(crate) fn serve(words: &[String]) -> Done {
    match words.first().map(String::as_str) {
        Some("raw") => {
            let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            let mut length = [0; 4];
            let mut bytes = Vec::new();
            while socket.read_exact(&mut length).is_ok() {
                bytes.resize(usize::try_from(u32::from_le_bytes(length))?, 0);
                socket.read_exact(&mut bytes)?;
                write_frame(&socket, &bytes)?;
            }
            Ok(())
        }
        Some("pipewright") => Ok(pool::worker(|text: String| Ok::<_, std::convert::Infallible>(text))?),
        other => Err(format!("unknown peer {other:?}").into()),
    }
}
