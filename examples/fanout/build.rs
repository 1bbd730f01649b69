//! Runs the steps of a plan.

use crate::{
    build_log::{BuildLog, NEVER, Record},
    options::Options,
    output,
    plan::{Plan, Step},
    report::{Finished, Report},
};
use crossbeam_channel::Receiver;
use pipewright::{Event, EventKind, Exit, OutputMode, Supervisor, SurvivorPolicy, WorkerId, WorkerSpec};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    error::Error,
    fs,
    path::Path,
    thread,
    time::Duration,
};

/// How long an interrupted build waits for compilers that handle SIGTERM.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

pub(crate) enum Outcome {
    /// Everything is built.
    Built,
    Failed,
    Interrupted(i32),
}

/// Runs the needed steps of `plan`.
pub(crate) fn run(
    plan: &Plan,
    log: &mut BuildLog,
    report: Report,
    options: &Options,
) -> Result<Outcome, Box<dyn Error>> {
    let interrupts = interrupts()?;
    let supervisor = Supervisor::builder().grace_period(GRACE_PERIOD).build()?;
    let mut build = Build {
        supervisor: &supervisor,
        steps: &plan.steps,
        log,
        options,
        report,
        queue: Queue::new(&plan.steps),
        running: HashMap::new(),
    };
    build.start_more();
    while !build.running.is_empty() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => build.handle(event?),
            recv(interrupts) -> signal => {
                let Build { report, running, .. } = build;
                let interrupted: Vec<_> = running.into_values().map(|running| running.index).collect();
                // Kills every compiler and what it has started.
                drop(supervisor);
                interrupted.into_iter().filter_map(|index| plan.steps.get(index)).for_each(remove_outputs);
                report.close();
                output::print_error(&"interrupted; no compiler is left running");
                return Ok(Outcome::Interrupted(signal?));
            }
        }
    }
    Ok(if build.report.close() { Outcome::Built } else { Outcome::Failed })
}

struct Build<'a> {
    supervisor: &'a Supervisor,
    steps: &'a [Step],
    log: &'a mut BuildLog,
    options: &'a Options,
    report: Report,
    queue: Queue,
    running: HashMap<WorkerId, Running<'a>>,
}

struct Running<'a> {
    step: &'a Step,
    index: usize,
    /// The file system's time at the start.
    started: i128,
}

impl Build<'_> {
    /// Starts steps up to the limit, unless a failure has stopped the build.
    fn start_more(&mut self) {
        while self.running.len() < self.options.jobs && (self.options.keep_going || !self.report.has_failures()) {
            let Some(index) = self.queue.pop() else { return };
            let Some(step) = self.steps.get(index) else { return };
            match self.start(step) {
                Ok((worker, started)) => {
                    self.report.started(step);
                    self.running.insert(worker, Running { step, index, started });
                }
                Err(error) => self.report.not_started(step, &explain(&*error)),
            }
        }
    }

    fn start(&self, step: &Step) -> Result<(WorkerId, i128), Box<dyn Error>> {
        for directory in step.outputs().filter_map(Path::parent) {
            fs::create_dir_all(directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        }
        let (program, arguments) = step.arguments.split_first().ok_or("the command is empty")?;
        let spec = WorkerSpec::new(program)
            .args(arguments)
            .current_dir(&step.directory)
            .name(step.name.to_string_lossy())
            // One stream, in the order in which it is written.
            .stdout(OutputMode::Bytes)
            .stderr(OutputMode::ToStdout)
            // A server that a compiler wrapper starts, such as sccache's, serves the next compilations, too.
            .survivors(SurvivorPolicy::Report);
        let started = self.log.file_time()?;
        Ok((self.supervisor.spawn(spec)?.id(), started))
    }

    fn handle(&mut self, event: Event) {
        match event.kind {
            EventKind::Output { bytes, .. } => self.report.output(event.worker, bytes.as_bytes()),
            EventKind::Exited { exit, .. } => {
                if let Some(running) = self.running.remove(&event.worker) {
                    self.finish(event.worker, &running, &exit);
                }
                self.start_more();
            }
            _ => {}
        }
    }

    fn finish(&mut self, worker: WorkerId, running: &Running<'_>, exit: &Exit) {
        let Running { step, index, started } = *running;
        let record = if exit.success() {
            self.queue.finish(index);
            Plan::record(step, self.log, started, exit.duration)
        } else {
            remove_outputs(step);
            let millis = u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX);
            Record { command: 0, state: NEVER, millis, inputs: Vec::new() }
        };
        if let Some(added) = step.added_depfile() {
            drop(fs::remove_file(added));
        }
        if let Err(error) = self.log.add(step.key(), record) {
            self.report.warn(&format!("{}: {error}", self.log.path().display()));
        }
        self.report.finished(worker, step, Finished::of(exit));
    }
}

/// Removes what a failed or interrupted step may have written in part.
fn remove_outputs(step: &Step) {
    for path in step.output.iter().map(Path::new).chain(step.added_depfile()) {
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            drop(fs::remove_file(path));
        }
    }
}

/// The steps that wait.
struct Queue {
    /// Steps that can start, the most urgent first, then in their order.
    ready: BinaryHeap<(u64, Reverse<usize>)>,
    /// For each step, its urgency, how many steps it waits for, and which steps wait for it.
    urgency: Vec<u64>,
    waits_for: Vec<usize>,
    dependents: Vec<Vec<usize>>,
}

impl Queue {
    fn new(steps: &[Step]) -> Self {
        let mut queue = Self {
            ready: BinaryHeap::new(),
            urgency: steps.iter().map(|step| step.urgency).collect(),
            waits_for: vec![0; steps.len()],
            dependents: vec![Vec::new(); steps.len()],
        };
        let is_needed = |index: &&usize| steps.get(**index).is_some_and(|step| step.is_needed);
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.is_needed) {
            let mut waits_for = 0;
            for other in step.depends_on.iter().filter(is_needed) {
                waits_for += 1;
                if let Some(dependents) = queue.dependents.get_mut(*other) {
                    dependents.push(index);
                }
            }
            if let Some(place) = queue.waits_for.get_mut(index) {
                *place = waits_for;
            }
            if waits_for == 0 {
                queue.ready.push((step.urgency, Reverse(index)));
            }
        }
        queue
    }

    fn pop(&mut self) -> Option<usize> {
        self.ready.pop().map(|(_, Reverse(index))| index)
    }

    /// A step has succeeded.
    fn finish(&mut self, index: usize) {
        for dependent in self.dependents.get_mut(index).map(std::mem::take).unwrap_or_default() {
            let (Some(waits_for), Some(urgency)) = (self.waits_for.get_mut(dependent), self.urgency.get(dependent))
            else {
                continue;
            };
            *waits_for -= 1;
            if *waits_for == 0 {
                self.ready.push((*urgency, Reverse(dependent)));
            }
        }
    }
}

/// Formats an error and its sources in one line.
fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

/// SIGINT and SIGTERM as a channel.
fn interrupts() -> Result<Receiver<i32>, Box<dyn Error>> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    let (sender, interrupts) = crossbeam_channel::bounded(1);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(interrupts)
}
