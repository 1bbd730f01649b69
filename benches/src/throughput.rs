//! Messages received per second from children that write as fast as their pipes accept.
//!
//! A message is a line of the given size (line feed included) like `{"n":12,"file":"src/a.c","done":true,"pad":"xxx"}`. The
//! children write prepared blocks of 64 KiB, so that they are not the bottleneck. They are the same for all peers, and the library
//! passes their pipes in all cases: only the receiving side differs.
//!
//! | peer | reads | `decoded` |
//! |---|---|---|
//! | `raw` | blocks of 64 KiB and counts line feeds: the upper bound. On the main thread for one child, on one thread per child for more | `false` |
//! | `pipewright` | `Supervisor::events` on the main thread | `false`: received and dropped; `true`: `Message::json` |
//! | `threads` | one thread per child with `BufRead::lines`, into one unbounded crossbeam channel, received on the main thread | `true`: `serde_json::from_str` on the main thread |
//!
//! Messages are decoded into a struct of the first three fields with an owned string, the same for both. The clock starts when the
//! waiting children are released, and stops when the last message has been received.
//!
//! Limits:
//!
//! * The children compete with the parent for the processors. On two processors, this and the writes to the pipe are part of every
//!   figure.
//! * Other load on the machine changes the figures more than anything else. Observed on two processors with one worker and 100 bytes:
//!   next to other busy programs `raw` reached six times and `threads` twice its figure of an idle machine, and `pipewright` about the
//!   same. Probably a reader on an idle processor is woken for each small write, while otherwise the pipe fills up meanwhile.
//!   Compare runs on an idle machine only.
//! * `threads` does not bound its memory, which is to its advantage.

use crate::{
    Done, Options,
    figures::{median, now, ratio, tell},
    flood,
};
use crossbeam_channel::unbounded;
use pipewright::{EventKind, Pass, Process, StdinMode, Supervisor, WorkerSpec, pipe::anonymous::PipeReader};
use serde::{Deserialize, Serialize};
use std::{
    env,
    error::Error,
    hint::black_box,
    io::{self, BufRead, BufReader, PipeWriter, Read},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const RUNS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    workers: usize,
    bytes: usize,
    /// Of all workers together.
    messages: usize,
}

/// All sizes with all numbers of workers. The number of messages is chosen so that a run takes about half a second.
fn cases(options: &Options) -> Vec<Case> {
    let sizes = [(100, 2_000_000), (4 << 10, 256_000), (64 << 10, 16_000)];
    let pairs = [1, 8, 64].into_iter().flat_map(|workers| sizes.map(|(bytes, messages)| (workers, bytes, messages)));
    let wanted = pairs.filter(|(workers, bytes, _)| {
        options.workers.is_none_or(|only| only == *workers) && options.bytes.is_none_or(|only| only == *bytes)
    });
    let share = if options.quick { 50 } else { 1 };
    wanted.map(|(workers, bytes, messages)| Case { workers, bytes, messages: messages / share }).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Peer {
    Raw,
    Pipewright,
    Threads,
}

/// A peer and whether it decodes.
type Way = (Peer, bool);

const WAYS: [Way; 5] = [
    (Peer::Raw, false),
    (Peer::Pipewright, false),
    (Peer::Pipewright, true),
    (Peer::Threads, false),
    (Peer::Threads, true),
];

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: Peer,
    workers: usize,
    bytes: usize,
    msgs_per_s: f64,
    decoded: bool,
}

/// The throughput of `pipewright` divided by that of `threads`, for one worker and the smallest messages.
#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    workers: usize,
    bytes: usize,
    delivered_over_threads: f64,
    decoded_over_threads: f64,
}

/// The fields that a consumer decodes.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "decoding it is measured")]
struct Progress {
    n: u64,
    file: String,
    done: bool,
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) fn run(options: &Options) -> Done {
    let cases = cases(options);
    let Some(first) = cases.first().copied() else {
        return Err("unknown case: 1, 8 or 64 workers, 100, 4096 or 65536 bytes".into());
    };
    let runs = if options.quick { 1 } else { RUNS };
    let mut verdict = None;
    for case in cases {
        let mut rates = WAYS.map(|_| Vec::new());
        for _ in 0..runs {
            for (way, rates) in WAYS.iter().zip(&mut rates) {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52 messages")]
                rates.push(case.messages as f64 / receive(*way, case)?.as_secs_f64());
            }
        }
        let rates = rates.map(|rates| median(rates).round());
        for ((peer, decoded), msgs_per_s) in WAYS.into_iter().zip(rates) {
            let Case { workers, bytes, messages: _ } = case;
            tell(&Line { bench: "throughput", peer, workers, bytes, msgs_per_s, decoded })?;
        }
        if case == first {
            verdict = Some(self::verdict(case, rates));
        }
    }
    Ok(tell(&verdict)?)
}

/// The rates are in the order of [`WAYS`].
fn verdict(case: Case, rates: [f64; WAYS.len()]) -> Verdict {
    let [_, delivered, decoded, threads_delivered, threads_decoded] = rates;
    Verdict {
        bench: "throughput-verdict",
        workers: case.workers,
        bytes: case.bytes,
        delivered_over_threads: ratio(delivered, threads_delivered),
        decoded_over_threads: ratio(decoded, threads_decoded),
    }
}

/// Returns the time of one run.
fn receive((peer, decoded): Way, case: Case) -> Outcome<Duration> {
    match peer {
        Peer::Raw => raw(case),
        Peer::Pipewright => supervised(case, decoded),
        Peer::Threads => threads(case, decoded),
    }
}

/// Dropping it releases the children.
struct Gate(PipeWriter);

impl Gate {
    /// Releases the children and starts the clock.
    fn open(self) -> Instant {
        let began = now();
        drop(self.0);
        began
    }
}

/// The spec of the children. Each sends its share of the messages.
fn spec(case: Case) -> Outcome<(WorkerSpec, Gate)> {
    let (waiting, gate) = io::pipe()?;
    let spec = WorkerSpec::new(env::current_exe()?)
        .arg(flood::COMMAND)
        .messages(Pass::arg("{}"))
        .arg(case.bytes.to_string())
        .arg((case.messages / case.workers).to_string())
        .stdin(StdinMode::Fd(Arc::new(waiting.into())));
    Ok((spec, Gate(gate)))
}

/// The children and their pipes, for the peers that read without the library.
fn launch(case: Case) -> Outcome<(Vec<Process>, Vec<PipeReader>, Gate)> {
    let (spec, gate) = spec(case)?;
    let (mut processes, mut pipes) = (Vec::new(), Vec::new());
    for _ in 0..case.workers {
        let mut process = spec.spawn_unsupervised()?;
        pipes.extend(process.take_messages());
        processes.push(process);
    }
    Ok((processes, pipes, gate))
}

fn raw(case: Case) -> Outcome<Duration> {
    let (processes, mut pipes, gate) = launch(case)?;
    if let [only] = pipes.as_mut_slice() {
        let began = gate.open();
        let received = count_lines(only)?;
        return finish(case, began, received, processes);
    }
    thread::scope(|scope| {
        let counters: Vec<_> = pipes.iter_mut().map(|pipe| scope.spawn(|| count_lines(pipe))).collect();
        let began = gate.open();
        let mut received = 0;
        for counter in counters {
            received += counter.join().map_err(|_| "a reader panicked")??;
        }
        finish(case, began, received, processes)
    })
}

fn count_lines(pipe: &mut PipeReader) -> io::Result<usize> {
    let mut block = vec![0; 64 << 10];
    let mut lines = 0;
    loop {
        match pipe.read(&mut block)? {
            0 => return Ok(lines),
            read => lines += memchr::memchr_iter(b'\n', block.get(..read).unwrap_or_default()).count(),
        }
    }
}

fn threads(case: Case, decoded: bool) -> Outcome<Duration> {
    let (processes, pipes, gate) = launch(case)?;
    let (sender, receiver) = unbounded::<(usize, io::Result<String>)>();
    thread::scope(|scope| {
        for (worker, pipe) in pipes.into_iter().enumerate() {
            let sender = sender.clone();
            scope.spawn(move || {
                for line in BufReader::new(pipe).lines() {
                    drop(sender.send((worker, line)));
                }
            });
        }
        drop(sender);
        let began = gate.open();
        let mut received = 0;
        for (worker, line) in &receiver {
            let line = line?;
            if decoded {
                black_box((worker, serde_json::from_str::<Progress>(&line)?));
            } else {
                black_box((worker, &line));
            }
            received += 1;
        }
        finish(case, began, received, processes)
    })
}

fn supervised(case: Case, decoded: bool) -> Outcome<Duration> {
    let (spec, gate) = spec(case)?;
    let supervisor = Supervisor::new()?;
    for _ in 0..case.workers {
        supervisor.spawn(spec.clone())?;
    }
    drop(spec);
    let began = gate.open();
    let mut received = 0;
    while received < expected(case) {
        let event = supervisor.events().recv()?;
        match event.kind {
            EventKind::Message(message) => {
                if decoded {
                    black_box((event.worker, message.json::<Progress>()?));
                } else {
                    black_box((event.worker, &message));
                }
                received += 1;
            }
            EventKind::InvalidFrame(fault) => return Err(fault.to_string().into()),
            _ => {}
        }
    }
    finish(case, began, received, Vec::new())
}

fn expected(case: Case) -> usize {
    case.messages / case.workers * case.workers
}

/// Stops the clock and checks that every message was received.
fn finish(case: Case, began: Instant, received: usize, processes: Vec<Process>) -> Outcome<Duration> {
    let took = now() - began;
    for mut process in processes {
        if !process.wait()?.success() {
            return Err("a child failed".into());
        }
    }
    if received == expected(case) { Ok(took) } else { Err(format!("{received} messages of {}", expected(case)).into()) }
}
