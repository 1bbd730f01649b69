//! Fifty misbehaving workers, killed, stopped and restarted at random, and a consumer that is slow at times.

use crate::support::{
    Chance, DEADLINE, FIXTURE, alone, carriers, cgroups_of, children, guarded, may_make_cgroups, open_descriptors,
    wait_gone,
};
use pipewright::{
    Backoff, Event, EventKind, Pass, Readiness, Restart, RestartIntensity, RestartPolicy, StdinMode, StopPolicy,
    StopStep, Supervisor, Worker, WorkerId, WorkerSpec,
};
use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const WORKERS: usize = 50;
const KINDS: [&str; 9] = ["crash", "abort", "hang", "stubborn", "daemons", "leak", "notice", "serve", "input"];
/// The padding of a message in bytes. A write of the longest is truncated if the worker is killed while its pipe is full.
const PADS: [&str; 3] = ["0", "100", "10000"];
/// In the environment of every process of this run.
const MARK: &str = "TEST_MARK_CHAOS";

#[expect(clippy::disallowed_methods, reason = "chaos for so long")]
fn now() -> Instant {
    Instant::now()
}

/// What was received from an incarnation.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Life {
    started: bool,
    messages: u64,
    /// A message truncated by the death of the incarnation: nothing follows it.
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
                assert_eq!(message.json::<(u64, &str)>().unwrap().0, life.messages, "{event:?}");
                life.messages += 1;
                self.messages += 1;
            }
            EventKind::InvalidFrame(_) => {
                assert!(life.started && !life.exited && !life.torn, "{event:?}: {life:?}");
                life.torn = true;
            }
            EventKind::Exited { .. } => {
                assert!(life.started && !life.exited, "{event:?}: {life:?}");
                life.exited = true;
            }
            EventKind::NotStarted { .. } => assert!(life.exited, "{event:?}: {life:?}"),
            _ => assert!(life.started && !life.exited, "{event:?}: {life:?}"),
        }
    }

    /// Asserts that every completed write was received, and that every incarnation that wrote was started and exited.
    #[track_caller]
    fn compare(&self, written: &BTreeMap<(u64, u32), u64>) {
        let lives: BTreeMap<_, _> =
            self.lives.iter().map(|((worker, number), life)| ((id(*worker), *number), life)).collect();
        for (key, life) in &lives {
            assert!(life.started && life.exited, "{key:?}: {life:?}");
            // One more if it was killed between the write and its note.
            let noted = written.get(key).copied().unwrap_or(0);
            assert!(life.messages == noted || life.messages == noted + 1, "{key:?}: {life:?}, {noted} written");
        }
        for key in written.keys() {
            assert!(lives.contains_key(key), "{key:?} has written, and no event was received from it");
        }
    }
}

/// A separate directory for the files of this process and of all workers.
struct Place {
    directory: PathBuf,
    /// In the environment of every process of this run.
    mark: String,
}

impl Place {
    fn tally(&self) -> PathBuf {
        self.directory.join("tally")
    }

    /// All files except the tally, sockets included.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut below = vec![self.directory.clone()];
        while let Some(directory) = below.pop() {
            let inside = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
            for path in inside.filter(|path| *path != self.tally()) {
                if path.is_dir() { below.push(path) } else { found.push(path) }
            }
        }
        found
    }
}

/// The number in `#7`.
fn id(worker: WorkerId) -> u64 {
    worker.to_string().trim_start_matches('#').parse().unwrap()
}

/// The number of messages that each incarnation has noted as written, by worker and incarnation.
fn written(tally: &Path) -> BTreeMap<(u64, u32), u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(tally).unwrap() {
        let entry = entry.unwrap();
        let worker = entry.file_name().to_str().unwrap().parse().unwrap();
        let counts = fs::read(entry.path()).unwrap();
        for (number, count) in (0..).zip(counts.as_chunks::<8>().0) {
            if u64::from_ne_bytes(*count) > 0 {
                all.insert((worker, number), u64::from_ne_bytes(*count));
            }
        }
    }
    all
}

fn spec(chance: &mut Chance, place: &Place) -> WorkerSpec {
    let policy = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20)))
        .intensity(RestartIntensity::unlimited());
    let stop = StopPolicy::kill()
        .step([StopStep::Notify("shutdown".into()), StopStep::ClosePipes], Duration::from_millis(30))
        .step([StopStep::SignalGroup(libc::SIGTERM)], Duration::from_millis(30));
    // A flooding worker keeps the consumer busy: two or three of them are enough.
    let kind = if chance.below(20) == 0 { "flood" } else { chance.one_of(&KINDS) };
    let spec = if chance.below(4) == 0 {
        WorkerSpec::from_command(|| process::Command::new(FIXTURE))
    } else {
        WorkerSpec::new(FIXTURE)
    };
    let spec = spec
        .args(["chaos", "--kind", kind, "--pad", chance.one_of(&PADS), "--count"])
        .arg(chance.below(300).to_string())
        .arg("--tally")
        .arg(place.tally())
        .messages(Pass::arg("--messages={}"))
        .env(MARK, &place.mark)
        .window(64 << 10)
        .drain_timeout(Duration::from_millis(50))
        .restart(policy)
        .stop(stop);
    match kind {
        "serve" => spec.control(Pass::arg("--control={}")),
        "input" => spec.stdin(StdinMode::Pipe),
        "notice" => spec.ready(Readiness::sd_notify()),
        _ => spec,
    }
}

/// Receives for this time, or not at all.
fn receive(supervisor: &Supervisor, ledger: &mut Ledger, time: Duration, is_slow: bool) {
    let until = now() + time;
    while let Some(left) = until.checked_duration_since(now()) {
        if is_slow {
            // The channel is not read; workers whose window is used up wait.
            let (_keep, never) = crossbeam_channel::bounded::<()>(0);
            assert!(never.recv_timeout(left).is_err());
        } else if let Ok(event) = supervisor.events().recv_timeout(left) {
            ledger.note(&event);
        }
    }
}

fn act(supervisor: &Supervisor, workers: &mut [Worker], chance: &mut Chance, place: &Place) {
    let at = usize::try_from(chance.below(WORKERS as u64)).unwrap();
    match chance.below(8) {
        0..=2 => drop(workers[at].kill()),
        3 => drop(workers[at].signal(libc::SIGTERM)),
        4 => drop(workers[at].restart()),
        5 => drop(workers[at].start_call("any", &())),
        6 => drop(workers[at].take_stdin()),
        _ => {
            workers[at].stop();
            workers[at] = supervisor.spawn(spec(chance, place)).unwrap();
        }
    }
}

/// Returns a line with the totals.
fn chaos(time: Duration, seed: u64) -> String {
    let pid = process::id();
    let place = Place { directory: env::var_os("XDG_RUNTIME_DIR").unwrap().into(), mark: format!("{pid}-{seed}") };
    fs::create_dir(place.tally()).unwrap();
    let descriptors = open_descriptors();
    let mut chance = Chance(seed);
    let mut ledger = Ledger::default();
    // The guard and the control server start with the first workers and end with the supervisor.
    let supervisor = guarded();
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| supervisor.spawn(spec(&mut chance, &place)).unwrap()).collect();
    let until = now() + time;
    // On a loaded machine it takes longer until enough has happened.
    let latest = until + DEADLINE;
    let is_enough = |ledger: &Ledger| ledger.lives.len() > 2 * WORKERS && ledger.messages > 1000;
    while now() < until || (!is_enough(&ledger) && now() < latest) {
        act(&supervisor, &mut workers, &mut chance, &place);
        let pause = Duration::from_micros(chance.below(20_000));
        let is_slow = chance.below(50) == 0;
        receive(&supervisor, &mut ledger, if is_slow { 5 * pause } else { pause }, is_slow);
    }
    assert_eq!(cgroups_of(pid).is_empty(), !may_make_cgroups(), "there is one to be left");
    // The control socket and its lock, and a notify socket for each worker that has one.
    assert!(place.files().len() >= 2, "there are some to be left: {:?}", place.files());
    let report = supervisor.shutdown(DEADLINE);
    assert_eq!(report.unfinished().count(), 0, "{report}");
    for event in supervisor.events() {
        ledger.note(&event);
    }
    drop((supervisor, workers));
    ledger.compare(&written(&place.tally()));
    let summary = format!("{} incarnations, {} messages", ledger.lives.len(), ledger.messages);
    assert!(is_enough(&ledger), "{summary}: not much of a chaos");
    leaves_nothing(&place, &descriptors);
    summary
}

#[track_caller]
fn leaves_nothing(place: &Place, descriptors: &[(RawFd, PathBuf)]) {
    assert_eq!(open_descriptors(), descriptors);
    assert_eq!(children(process::id()), [0; 0], "no zombie");
    for pid in carriers(MARK, &place.mark) {
        // Remaining processes have been killed and are about to end.
        wait_gone(pid);
    }
    assert_eq!(cgroups_of(process::id()), [""; 0]);
    assert_eq!(place.files(), [""; 0].map(PathBuf::from));
}

/// Makes a process keep its files in a separate directory.
fn at_a_place(spec: WorkerSpec, place: &mut Option<TempDir>) -> WorkerSpec {
    let place = place.insert(tempfile::tempdir().unwrap()).path();
    spec.env("XDG_RUNTIME_DIR", place).env("TMPDIR", place)
}

#[test]
fn p01_p02_p08_p09_chaos_leaves_nothing_and_loses_nothing() {
    let mut place = None;
    let prepare = |spec| at_a_place(spec, &mut place);
    if alone("chaos::p01_p02_p08_p09_chaos_leaves_nothing_and_loses_nothing", prepare) {
        let seed = u64::from(process::id()) << 20 | 1;
        println!("seed {seed}");
        println!("{}", chaos(Duration::from_secs(2), seed));
    }
}

#[test]
#[ignore = "takes a minute"]
fn one_minute_of_chaos() {
    let mut place = None;
    if alone("chaos::one_minute_of_chaos", |spec| at_a_place(spec, &mut place)) {
        let seed = u64::from(process::id()) << 20 | 3;
        println!("seed {seed}");
        println!("{}", chaos(Duration::from_secs(60), seed));
    }
}
