//! Fifty workers that behave as badly as they can, killed, stopped and begun anew at random, and a consumer that is now and then slow.

use crate::support::{Chance, DEADLINE, FIXTURE, alone, carriers, children, guarded, open_descriptors, wait_gone};
use pipewright::{
    Backoff, Event, EventKind, Input, Intensity, Pass, Restart, RestartPolicy, StopPolicy, StopStep, Supervisor,
    Worker, WorkerId, WorkerSpec,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const WORKERS: usize = 50;
const KINDS: [&str; 7] = ["crash", "abort", "hang", "stubborn", "daemons", "serve", "input"];
/// What every process of this run has in its environment.
const MARK: &str = "PIPEWRIGHT_TEST_CHAOS";

#[expect(clippy::disallowed_methods, reason = "chaos for so long")]
fn now() -> Instant {
    Instant::now()
}

/// What is known of an incarnation.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Life {
    started: bool,
    messages: u64,
    /// A message that was cut off by its death: nothing comes after it.
    torn: bool,
    exited: bool,
}

#[derive(Default)]
struct Ledger {
    lives: HashMap<(WorkerId, u32), Life>,
    messages: u64,
}

impl Ledger {
    #[track_caller]
    fn note(&mut self, event: &Event) {
        let key = (event.worker, event.incarnation);
        let before = event.incarnation.checked_sub(1).filter(|number| *number > 0);
        let life = self.lives.entry(key).or_default();
        match &event.kind {
            EventKind::Started { .. } => {
                assert_eq!(*life, Life::default(), "{event:?}");
                life.started = true;
                if let Some(before) = before {
                    assert!(self.lives[&(event.worker, before)].exited, "{event:?} before the last one's exit");
                }
            }
            EventKind::Message(message) => {
                assert!(life.started && !life.exited && !life.torn, "{event:?}: {life:?}");
                assert_eq!(message.json::<u64>().unwrap(), life.messages, "{event:?}");
                life.messages += 1;
                self.messages += 1;
            }
            EventKind::Fault(_) => {
                assert!(life.started && !life.exited && !life.torn, "{event:?}: {life:?}");
                life.torn = true;
            }
            EventKind::Exited(_) => {
                assert!(life.started && !life.exited, "{event:?}: {life:?}");
                life.exited = true;
            }
            EventKind::Restarting { .. } | EventKind::GaveUp(_) => assert!(life.exited, "{event:?}: {life:?}"),
            _ => assert!(life.started && !life.exited, "{event:?}: {life:?}"),
        }
    }
}

fn spec(chance: &mut Chance, mark: &str) -> WorkerSpec {
    let policy = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::new(Duration::from_millis(1), Duration::from_millis(20)))
        .intensity(Intensity::unlimited());
    let stop = StopPolicy::kill()
        .then([StopStep::Notify("shutdown".into()), StopStep::ClosePipes], Duration::from_millis(30))
        .then([StopStep::SignalGroup(libc::SIGTERM)], Duration::from_millis(30));
    // One that floods keeps the consumer busy: two or three of them are enough.
    let kind = if chance.below(20) == 0 { "flood" } else { chance.one_of(&KINDS) };
    let spec = if chance.below(4) == 0 {
        WorkerSpec::from_command(|| std::process::Command::new(FIXTURE))
    } else {
        WorkerSpec::new(FIXTURE)
    };
    let spec = spec
        .args(["chaos", "--kind", kind, "--count"])
        .arg(chance.below(300).to_string())
        .messages(Pass::arg("--messages={}"))
        .env(MARK, mark)
        .window(64 << 10)
        .drain_time(Duration::from_millis(50))
        .restart(policy)
        .stop(stop);
    match kind {
        "serve" => spec.control(Pass::arg("--control={}")),
        "input" => spec.stdin(Input::Pipe),
        _ => spec,
    }
}

/// Receives for so long, or not at all.
fn receive(supervisor: &Supervisor, ledger: &mut Ledger, time: Duration, is_slow: bool) {
    let until = now() + time;
    while let Some(left) = until.checked_duration_since(now()) {
        if is_slow {
            // The channel is left alone; whoever has used up its window waits.
            let (_keep, never) = crossbeam_channel::bounded::<()>(0);
            assert!(never.recv_timeout(left).is_err());
        } else if let Ok(event) = supervisor.events().recv_timeout(left) {
            ledger.note(&event);
        }
    }
}

fn act(supervisor: &Supervisor, workers: &mut [Worker], chance: &mut Chance, mark: &str) {
    let at = usize::try_from(chance.below(WORKERS as u64)).unwrap();
    match chance.below(8) {
        0..=2 => drop(workers[at].kill()),
        3 => drop(workers[at].signal(libc::SIGTERM)),
        4 => drop(workers[at].restart()),
        5 => drop(workers[at].start_call("any", &())),
        6 => drop(workers[at].take_stdin()),
        _ => {
            workers[at].stop();
            workers[at] = supervisor.spawn(spec(chance, mark)).unwrap();
        }
    }
}

/// Gives a line about how much there was of it.
fn chaos(time: Duration, seed: u64) -> String {
    let mark = format!("{}-{seed}", std::process::id());
    let descriptors = open_descriptors();
    let mut chance = Chance(seed);
    let mut ledger = Ledger::default();
    // Its guard and control server come with the first workers, and go with it.
    let supervisor = guarded();
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| supervisor.spawn(spec(&mut chance, &mark)).unwrap()).collect();
    let until = now() + time;
    while now() < until {
        act(&supervisor, &mut workers, &mut chance, &mark);
        let pause = Duration::from_micros(chance.below(20_000));
        let is_slow = chance.below(50) == 0;
        receive(&supervisor, &mut ledger, if is_slow { 5 * pause } else { pause }, is_slow);
    }
    let report = supervisor.shutdown(DEADLINE);
    assert_eq!(report.blocked().count(), 0, "seed {seed}: {report}");
    for event in supervisor.events() {
        ledger.note(&event);
    }
    drop((supervisor, workers));
    for (key, life) in &ledger.lives {
        assert!(life.started && life.exited, "seed {seed}: {key:?}: {life:?}");
    }
    let summary = format!("seed {seed}: {} incarnations, {} messages", ledger.lives.len(), ledger.messages);
    assert!(ledger.lives.len() > 2 * WORKERS && ledger.messages > 1000, "it was chaos");
    assert_eq!(open_descriptors(), descriptors, "seed {seed}");
    assert_eq!(children(std::process::id()), [0; 0], "seed {seed}: no zombie");
    for pid in carriers(MARK, &mark) {
        // Whatever is still there has been killed, and is on its way.
        wait_gone(pid);
    }
    summary
}

#[test]
fn p01_p02_p08_p09_chaos_leaves_nothing_and_loses_nothing() {
    if alone("chaos::p01_p02_p08_p09_chaos_leaves_nothing_and_loses_nothing", |spec| spec) {
        println!("{}", chaos(Duration::from_secs(4), u64::from(std::process::id()) << 20 | 1));
    }
}

#[test]
#[ignore = "takes a minute"]
fn a_minute_of_chaos() {
    if alone("chaos::a_minute_of_chaos", |spec| spec) {
        println!("{}", chaos(Duration::from_secs(60), u64::from(std::process::id()) << 20 | 3));
    }
}
