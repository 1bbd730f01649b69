//! The latency of a request to another process and its answer, one at a time, with 100 bytes in each direction.
//!
//! | peer | the other process |
//! |---|---|
//! | `raw` | reads from a socket and writes back what it read: the limit |
//! | `json` | as `raw`, line by line, each parsed and written with `serde_json` on both sides |
//! | `pipewright` | `worker.call`, answered by `Parent::serve` on one thread |
//! | `ipc-channel` | a pair of its channels |
//!
//! All four processes run during the whole bench; each in turn answers a hundred requests. Their placement by the scheduler matters most
//! (waking another core costs tens of microseconds), so both cases are measured: all processes on one core, and the caller on another
//! core than its peers.

use crate::{
    Done, Failed, Options,
    figures::{now, ratio, tell},
};
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use pipewright::{Parent, Pass, Process, Request, StdinMode, Supervisor, Worker, WorkerSpec};
use serde::Serialize;
use serde_json::Value;
use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::Duration,
};

/// The command that runs this program as the other process.
pub(crate) const COMMAND: &str = "call-child";

const PEERS: [&str; 4] = ["raw", "json", "pipewright", "ipc-channel"];
const BLOCK: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    cores: usize,
    peer: &'static str,
    us_p50: f64,
    us_p99: f64,
}

#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    cores: usize,
    pipewright_over_raw: f64,
    pipewright_over_ipc_channel: f64,
}

pub(crate) fn run(options: &Options) -> Done {
    let cores = thread::available_parallelism()?.get().min(2);
    for cores in 1..=cores {
        let mut asker = child("ask")?.arg(cores.to_string()).cpu_affinity([0]);
        if options.quick {
            asker = asker.arg("--quick");
        }
        let exit = asker.spawn_unsupervised()?.wait()?.clone();
        if !exit.success() {
            return Err(format!("the caller: {exit}").into());
        }
    }
    Ok(())
}

fn measure(cores: usize, options: &Options) -> Done {
    let blocks = if options.quick { 3 } else { 50 };
    let mut others = Others::new(cores)?;
    let mut samples = vec![Vec::new(); PEERS.len()];
    for block in 0..=blocks {
        for (peer, samples) in PEERS.iter().zip(&mut samples) {
            for _ in 0..BLOCK {
                let began = now();
                others.ask(peer)?;
                // The first block is a warm-up.
                if block > 0 {
                    samples.push((now() - began).as_secs_f64() * 1e6);
                }
            }
        }
    }
    let mut middles = Vec::new();
    for (peer, mut samples) in PEERS.into_iter().zip(samples) {
        samples.sort_by(f64::total_cmp);
        let at =
            |part: usize| samples.get(samples.len() * part / 100).map_or(f64::NAN, |us| (us * 10.0).round() / 10.0);
        tell(&Line { bench: "call", cores, peer, us_p50: at(50), us_p99: at(99) })?;
        middles.push(at(50));
    }
    let of = |wanted: &str| PEERS.iter().position(|peer| *peer == wanted).map_or(f64::NAN, |place| middles[place]);
    Ok(tell(&Verdict {
        bench: "call-verdict",
        cores,
        pipewright_over_raw: ratio(of("pipewright"), of("raw")),
        pipewright_over_ipc_channel: ratio(of("pipewright"), of("ipc-channel")),
    })?)
}

/// The other processes, with the connections to them.
struct Others {
    raw: UnixStream,
    json: BufReader<UnixStream>,
    worker: Worker,
    asks: IpcSender<String>,
    answers: IpcReceiver<String>,
    request: String,
    _supervisor: Supervisor,
    _processes: Vec<Process>,
}

impl Others {
    fn new(cores: usize) -> Result<Self, Failed> {
        let child = |peer: &str| Ok::<_, Failed>(child(peer)?.cpu_affinity([cores - 1]));
        let mut processes = Vec::new();
        let mut on_socket = |peer: &str| -> Result<UnixStream, Failed> {
            let (ours, theirs) = UnixStream::pair()?;
            processes.push(child(peer)?.stdin(StdinMode::Fd(Arc::new(OwnedFd::from(theirs)))).spawn_unsupervised()?);
            Ok(ours)
        };
        let (raw, json) = (on_socket("raw")?, BufReader::new(on_socket("json")?));
        let supervisor = Supervisor::new()?;
        let worker = supervisor.spawn(child("pipewright")?.control(Pass::env("PIPEWRIGHT_CONTROL")))?;
        let (server, name) = IpcOneShotServer::<(IpcSender<String>, IpcReceiver<String>)>::new()?;
        processes.push(child("ipc-channel")?.arg(name).spawn_unsupervised()?);
        let (_, (asks, answers)) = server.accept()?;
        let request = "x".repeat(98);
        Ok(Self { raw, json, worker, asks, answers, request, _supervisor: supervisor, _processes: processes })
    }

    fn ask(&mut self, peer: &str) -> Done {
        match peer {
            "raw" => {
                let mut answer = [0; 100];
                self.raw.write_all(&answer)?;
                self.raw.read_exact(&mut answer)?;
            }
            "json" => {
                let mut line = serde_json::to_string(&self.request)?;
                line.push('\n');
                self.json.get_mut().write_all(line.as_bytes())?;
                line.clear();
                self.json.read_line(&mut line)?;
                check(&serde_json::from_str::<String>(&line)?, &self.request)?;
            }
            "pipewright" => {
                let [answer]: [String; 1] = self.worker.call("echo", &[&self.request], PATIENCE)?;
                check(&answer, &self.request)?;
            }
            _ => {
                self.asks.send(self.request.clone())?;
                check(&self.answers.recv()?, &self.request)?;
            }
        }
        Ok(())
    }
}

fn check(answer: &str, request: &str) -> Done {
    if answer == request { Ok(()) } else { Err("the answer differs from the request".into()) }
}

fn child(peer: &str) -> Result<WorkerSpec, Failed> {
    Ok(WorkerSpec::new(env::current_exe()?).args([COMMAND, peer]))
}

/// The other process.
pub(crate) fn serve(words: &[String]) -> Done {
    match words.first().map(String::as_str) {
        Some("ask") => {
            let quick = words.iter().any(|word| word == "--quick");
            let cores = words.get(1).and_then(|cores| cores.parse().ok()).ok_or("the number of cores is missing")?;
            measure(cores, &Options { quick, ..Options::default() })?;
        }
        Some("raw") => {
            let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            let mut bytes = [0; 100];
            while socket.read_exact(&mut bytes).is_ok() {
                socket.write_all(&bytes)?;
            }
        }
        Some("json") => {
            let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            for line in BufReader::new(&socket).lines() {
                let mut answer = serde_json::to_string(&serde_json::from_str::<String>(&line?)?)?;
                answer.push('\n');
                (&socket).write_all(answer.as_bytes())?;
            }
        }
        Some("pipewright") => Parent::from_args()?.serve(1, |request: &Request| Ok(request.params::<Value>()?)),
        Some("ipc-channel") => {
            let (asks, requests) = ipc::channel::<String>()?;
            let (answers, heard) = ipc::channel::<String>()?;
            let server = words.get(1).ok_or("the server's name is missing")?;
            IpcSender::connect(server.clone())?.send((asks, heard))?;
            while let Ok(request) = requests.recv() {
                answers.send(request)?;
            }
        }
        other => return Err(format!("unknown peer {other:?}").into()),
    }
    Ok(())
}
