//! Runs the steps of a plan.

use crate::{
    build_log::{BuildLog, NEVER, Record},
    explain::explain,
    options::Options,
    output,
    plan::{Plan, Step},
    records::{Ended, Records},
    report::{Finished, Report},
    signal_channel::signal_channel,
};
use pipewright::{
    Event, EventKind, Exit, OutputMode, Supervisor, SurvivorPolicy, WorkerId, WorkerSpec,
    jobserver::{JobserverClient, JobserverServer},
    pool::{Job, JobSpec, Jobs, OnFailure},
};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    error::Error,
    fs,
    path::Path,
    thread,
    time::Duration,
};

/// How long an interrupted build waits for compilers that handle SIGTERM.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

/// How many commands run below a jobserver, which has fewer tokens as a rule.
const TOKENS_MAX: usize = 128;

pub(crate) enum Outcome {
    /// Everything is built.
    Built,
    Failed,
    Interrupted(i32),
}

/// Runs the needed steps of `plan`.
pub(crate) fn run(
    plan: &Plan,
    (log, records): (&mut BuildLog, Records),
    report: Report,
    options: &Options,
) -> Result<Outcome, Box<dyn Error>> {
    let interrupts = signal_channel([libc::SIGINT, libc::SIGTERM])?;
    let supervisor = Supervisor::builder().grace_period(GRACE_PERIOD).build()?;
    let started = log.file_time()?;
    let mut build =
        Build { plan, log, options, report, records, started, tokens: Tokens::None, pending: HashMap::new() };
    let jobs = build.queue(&supervisor)?;
    build.submit(&jobs);
    while !build.pending.is_empty() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => build.handle(event?),
            recv(interrupts) -> signal => {
                // Kills every compiler and what it has started.
                drop(supervisor);
                build.pending.values().filter(|pending| pending.is_started).for_each(|pending| remove_outputs(pending.step));
                build.close();
                output::print_error(&"interrupted; no compiler is left running");
                return Ok(Outcome::Interrupted(signal?));
            }
        }
    }
    Ok(if build.close() { Outcome::Built } else { Outcome::Failed })
}

struct Build<'a> {
    plan: &'a Plan,
    log: &'a mut BuildLog,
    options: &'a Options,
    report: Report,
    records: Records,
    /// The file system's time.
    started: i128,
    tokens: Tokens,
    /// Steps that have not ended.
    pending: HashMap<WorkerId, Pending<'a>>,
}

/// Tokens for commands that run several jobs themselves, such as make and `gcc -flto=jobserver`.
enum Tokens {
    None,
    OfMake,
    /// For rules, which run alone: one token less than there are slots.
    Own(JobserverServer),
}

struct Pending<'a> {
    step: &'a Step,
    index: usize,
    job: Job,
    is_started: bool,
    output_bytes: usize,
}

impl Build<'_> {
    /// Makes the queue. Below `make -jN` each command also takes a token of its jobserver.
    fn queue(&mut self, supervisor: &Supervisor) -> Result<Jobs, Box<dyn Error>> {
        let (default, client) = match JobserverClient::from_env() {
            Ok(None) => (thread::available_parallelism().map_or(1, usize::from), None),
            Ok(client) => (TOKENS_MAX, client),
            Err(error) => {
                self.report.warn(&format!("warning: {}; running one command at a time", explain(&error)));
                (1, None)
            }
        };
        let limit = self.options.jobs.unwrap_or(default);
        let on_failure = if self.options.keep_going { OnFailure::KeepGoing } else { OnFailure::FinishRunning };
        let jobs = Jobs::new(supervisor, limit).on_failure(on_failure);
        if let Some(client) = client {
            self.tokens = Tokens::OfMake;
            return Ok(jobs.jobserver(&client));
        }
        if limit > 1 && !self.options.rules.is_empty() {
            self.tokens = Tokens::Own(JobserverServer::new(limit - 1)?);
        }
        Ok(jobs)
    }

    /// Hands all needed steps to the queue, which starts them at once: the most urgent first. A step is at least as urgent as those that
    /// depend on it, which are later in the plan.
    fn submit(&mut self, jobs: &Jobs) {
        let mut submitted: HashMap<usize, Job> = HashMap::new();
        let mut created = HashSet::new();
        let mut order: Vec<_> = self.plan.steps.iter().enumerate().filter(|(_, step)| step.is_needed).collect();
        order.sort_by_key(|(_, step)| Reverse(step.urgency));
        for (index, step) in order {
            let needed = |other: &&usize| self.plan.steps.get(**other).is_some_and(|other| other.is_needed);
            let dependencies: Option<Vec<_>> =
                step.depends_on.iter().filter(needed).map(|other| submitted.get(other)).collect();
            // Without one of them it cannot be built.
            let Some(dependencies) = dependencies else { continue };
            let urgency = i32::try_from(step.urgency).unwrap_or(i32::MAX);
            let submit = || {
                create_directories(step, &mut created)?;
                let job = JobSpec::new(self.spec(step)?).priority(urgency).retries(self.options.retries);
                Ok(jobs.submit(dependencies.into_iter().fold(job, JobSpec::after))?)
            };
            match submit() {
                Ok(job) => {
                    let pending = Pending { step, index, job: job.clone(), is_started: false, output_bytes: 0 };
                    self.pending.insert(job.id(), pending);
                    submitted.insert(index, job);
                }
                Err::<_, Box<dyn Error>>(error) => {
                    self.report.not_started(step, &explain(&*error));
                    if !self.options.keep_going {
                        jobs.cancel_all();
                        return;
                    }
                }
            }
        }
    }

    fn spec(&self, step: &Step) -> Result<WorkerSpec, Box<dyn Error>> {
        let (program, arguments) = step.arguments.split_first().ok_or("the command is empty")?;
        let mut spec = WorkerSpec::new(program)
            .args(arguments)
            .current_dir(&step.directory)
            .name(step.name.to_string_lossy())
            // One stream, in the order in which it is written.
            .stdout(OutputMode::Bytes)
            .stderr(OutputMode::ToStdout)
            // A server that a compiler wrapper starts, such as sccache's, serves the next compilations, too.
            .survivors(SurvivorPolicy::Report);
        spec = match &self.tokens {
            Tokens::OfMake => spec.inherit_jobserver(),
            Tokens::Own(server) if step.is_rule() => spec.jobserver(server),
            Tokens::Own(_) | Tokens::None => spec,
        };
        if let Some(timeout) = self.options.timeout {
            spec = spec.runtime_max(timeout);
        }
        Ok(spec)
    }

    fn handle(&mut self, event: Event) {
        let Some(pending) = self.pending.get_mut(&event.worker) else { return };
        let is_final = event.kind.is_final();
        match event.kind {
            EventKind::Started { .. } => {
                pending.is_started = true;
                self.report.started(pending.step);
            }
            EventKind::Output { bytes, .. } => {
                pending.output_bytes += bytes.as_bytes().len();
                self.report.output(event.worker, bytes.as_bytes());
            }
            EventKind::Exited { exit, .. } => {
                pending.is_started = false;
                self.exited(event.worker, &exit, is_final);
            }
            EventKind::SpawnFailed { error, .. } if is_final => {
                self.report.not_started(pending.step, &explain(&*error));
            }
            _ => {}
        }
        if is_final {
            self.pending.remove(&event.worker);
        }
    }

    fn exited(&mut self, worker: WorkerId, exit: &Exit, is_final: bool) {
        let Some(Pending { step, index, job, output_bytes, .. }) = self.pending.get(&worker) else { return };
        let finished = Finished::of(exit, *output_bytes);
        let record = if exit.success() {
            self.plan.record(step, self.log, self.started, exit.duration)
        } else {
            remove_outputs(step);
            let millis = u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX);
            Record { command: 0, state: NEVER, millis, inputs: Vec::new() }
        };
        if let Some(added) = step.added_depfile() {
            drop(fs::remove_file(added));
        }
        let logged = self.log.add(step.key(), record);
        let slot = job.slot().unwrap_or_default();
        let ended = Ended { step, index: *index, finished: &finished, slot, end: self.report.elapsed() };
        let mut errors = self.records.add(&ended);
        errors.extend(logged.err().map(|error| format!("{}: {error}", self.log.path().display())));
        for error in &errors {
            self.report.warn(error);
        }
        if is_final {
            self.report.finished(worker, step, finished);
        } else {
            self.report.retried(worker, step, &finished);
        }
    }

    /// Prints the summary. Returns whether everything is built.
    fn close(mut self) -> bool {
        if let Some(error) = self.records.close() {
            self.report.warn(&error);
        }
        self.report.close()
    }
}

/// Creates the directories of what a step writes, unless they are in `created`.
fn create_directories<'a>(step: &'a Step, created: &mut HashSet<&'a Path>) -> Result<(), String> {
    for directory in step.outputs().filter_map(Path::parent) {
        if created.insert(directory) {
            fs::create_dir_all(directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        }
    }
    Ok(())
}

/// Removes what a failed or interrupted step may have written in part.
fn remove_outputs(step: &Step) {
    for path in step.output.iter().map(Path::new).chain(step.added_depfile()) {
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            drop(fs::remove_file(path));
        }
    }
}
