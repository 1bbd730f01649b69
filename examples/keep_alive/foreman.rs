//! Runs the workers of the file and reports what happens.

use crate::{
    explain::explain,
    file::Plan,
    recipe::Recipe,
    screen::{Screen, Text, open_log},
    table::{Row, table},
};
use crossbeam_channel::Receiver;
use pipewright::{
    Event, EventKind, GroupError, GroupPolicy, Restart, Supervisor, Worker, WorkerGroup, WorkerSpec,
    events::{AfterExit, ReadinessError},
    printable,
    status::{SupervisorStatus, WorkerState},
};
use std::{
    collections::HashSet,
    iter,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How many lines of the recent output of a failed worker are repeated.
const OUTPUT_LINES: usize = 3;

pub(crate) struct Foreman<'a> {
    supervisor: &'a Supervisor,
    plan: Plan,
    /// Each after its dependencies.
    members: Vec<Member>,
    screen: Screen,
    /// All workers are to be stopped.
    is_stopping: Arc<AtomicBool>,
    has_reported_stop: bool,
    is_done: bool,
}

struct Member {
    name: String,
    recipe: Recipe,
    /// A group of its own: a worker that gives up ends its group, which must not concern the others.
    group: WorkerGroup,
    worker: Worker,
    /// The log file of its lines; `None` for the screen.
    log: Option<Arc<Path>>,
    /// It was removed from the file, or is being replaced.
    leaves: bool,
    /// It has failed, and stays so unless it is started again.
    has_failed: bool,
    last_line: String,
}

impl<'a> Foreman<'a> {
    pub(crate) fn new(
        supervisor: &'a Supervisor,
        plan: Plan,
        screen: Screen,
        is_stopping: Arc<AtomicBool>,
    ) -> Result<Self, GroupError> {
        let mut foreman = Self {
            supervisor,
            plan,
            members: Vec::new(),
            screen,
            is_stopping,
            has_reported_stop: false,
            is_done: false,
        };
        foreman.add_missing()?;
        Ok(foreman)
    }

    /// No worker is left to run.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether all workers were stopped or have succeeded.
    pub(crate) fn close(self) -> bool {
        let is_well = self.is_stopping() || !self.members.iter().any(|member| member.has_failed);
        self.screen.close();
        is_well
    }

    /// The event channel; one that never yields while output is queued, which pauses the workers.
    pub(crate) fn events(&self) -> Receiver<Event> {
        if self.screen.is_behind() { crossbeam_channel::never() } else { self.supervisor.events().clone() }
    }

    /// Notifies that the screen has room again: then call [`advance`](Self::advance).
    pub(crate) fn progress(&self) -> Receiver<()> {
        self.screen.progress()
    }

    pub(crate) fn advance(&mut self) {
        self.screen.advance();
    }

    /// Notifies that the output is not read during the shutdown: then call [`drop_output`](Self::drop_output).
    pub(crate) fn output_stuck(&self) -> Receiver<Instant> {
        let is_stuck = self.is_stopping() && self.screen.is_behind();
        if is_stuck { crossbeam_channel::at(self.screen.stuck_deadline()) } else { crossbeam_channel::never() }
    }

    pub(crate) fn drop_output(&mut self) {
        self.screen.drop_queue();
    }

    /// The terminal was closed: stops all workers, as after SIGTERM.
    pub(crate) fn hang_up(&mut self) {
        if !self.is_stopping.swap(true, Ordering::SeqCst) {
            self.note("terminal closed");
            self.supervisor.close();
            drop(self.supervisor.stop_all());
        }
        self.report_stop();
    }

    /// Reports a stop once: the exit of a worker may be received before the signal that caused it.
    pub(crate) fn report_stop(&mut self) {
        if self.is_stopping() && !self.has_reported_stop {
            self.has_reported_stop = true;
            self.note("stopping all workers; repeat to kill them");
        }
    }

    pub(crate) fn handle(&mut self, event: Event) -> Result<(), GroupError> {
        if self.report(event) { self.catch_up() } else { Ok(()) }
    }

    /// Reads the file again.
    pub(crate) fn reload(&mut self, path: &Path) -> Result<(), GroupError> {
        if self.is_stopping() {
            self.note("stopping all workers, file not reloaded");
            return Ok(());
        }
        match Plan::load(path) {
            Ok(plan) => self.apply(plan),
            Err(error) => {
                self.screen.write(Text::Complaint(format!("keep_alive: {error}; keeping the old file")));
                Ok(())
            }
        }
    }

    fn apply(&mut self, plan: Plan) -> Result<(), GroupError> {
        // Workers that have failed until now are started again.
        self.catch_up()?;
        self.plan = plan;
        self.screen.write(Text::Reopen);
        self.note("file reloaded");
        self.remove_outdated()?;
        self.catch_up()
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.screen.write(Text::Line(format!("keep_alive: {text}")));
    }

    /// A line about a worker.
    fn note_of(&mut self, name: &str, text: &str) {
        self.screen.write(Text::Line(format!("{}: {}", printable(name), printable(text))));
    }

    pub(crate) fn show(&mut self) {
        if self.screen.is_live() {
            self.show_as(&self.supervisor.status());
        }
    }

    fn show_as(&mut self, status: &SupervisorStatus) {
        // The next refresh will do.
        if !self.screen.is_live() || self.screen.is_behind() {
            return;
        }
        let rows = self.members.iter().map(|Member { name, worker, has_failed, last_line, .. }| {
            let status = status.workers.iter().find(|status| status.worker == worker.id());
            Row { name, has_failed: *has_failed, status, last_line }
        });
        let text = table(&rows.collect::<Vec<_>>());
        self.screen.write(Text::Table(text));
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Checks the state of all workers after an event.
    ///
    /// No event says that a worker will not be restarted, since its policy says so: the status shows it. All events sent before the
    /// status are handled before it is evaluated.
    fn catch_up(&mut self) -> Result<(), GroupError> {
        let mut is_news = true;
        while is_news {
            let status = self.supervisor.status();
            is_news = false;
            for event in self.supervisor.events().try_iter().take(status.events_waiting) {
                is_news |= self.report(event);
            }
            self.evaluate(&status)?;
        }
        Ok(())
    }

    fn evaluate(&mut self, status: &SupervisorStatus) -> Result<(), GroupError> {
        let known: HashSet<_> = status.workers.iter().map(|status| status.worker).collect();
        self.members.retain(|member| !member.leaves || known.contains(&member.worker.id()));
        let has_added = !self.is_stopping() && self.add_missing()?;
        let is_over = status.workers.iter().all(|status| status.state == WorkerState::Ended);
        self.is_done =
            is_over && !has_added && (self.is_stopping() || !self.members.iter().any(|member| member.leaves));
        self.show_as(status);
        Ok(())
    }

    /// Removes the workers that the file does not contain any more or contains differently, and those that have failed for good:
    /// after repairing the cause, a user has no other way to start them. Their dependents are removed too, and start again with them.
    fn remove_outdated(&mut self) -> Result<(), GroupError> {
        let mut outdated: HashSet<String> = HashSet::new();
        let mut notes = Vec::new();
        for member in self.members.iter().filter(|member| !member.leaves) {
            let wanted = self.plan.workers.iter().find(|(name, _)| *name == member.name).map(|(_, recipe)| recipe);
            let why = if wanted.is_none() {
                "removed from the file, stopping".to_owned()
            } else if wanted != Some(&member.recipe) {
                "changed, restarting".to_owned()
            } else if let Some(first) = member.recipe.after.0.keys().find(|name| outdated.contains(*name)) {
                format!("depends on {first}, restarting with it")
            } else if member.has_failed && member.worker.wait_timeout(Duration::ZERO).is_some() {
                "failed, trying again".to_owned()
            } else {
                continue;
            };
            outdated.insert(member.name.clone());
            notes.push((member.name.clone(), why));
        }
        for (name, why) in notes {
            self.note_of(&name, &why);
        }
        for member in self.members.iter_mut().rev().filter(|member| outdated.contains(&member.name) && !member.leaves) {
            member.group.remove_all()?;
            member.leaves = true;
        }
        Ok(())
    }

    /// Adds missing workers once the workers removed from the file have ended: a worker with a new name may need the port of the old
    /// one. A worker that replaces one that is still being stopped waits for its end, and so do its dependents. Returns whether
    /// workers were added.
    fn add_missing(&mut self) -> Result<bool, GroupError> {
        let is_wanted = |name: &String| self.plan.workers.iter().any(|(wanted, _)| wanted == name);
        if self.members.iter().any(|member| member.leaves && !is_wanted(&member.name)) {
            return Ok(false);
        }
        let before = self.members.len();
        for (name, recipe) in &self.plan.workers {
            let is_there = |on: &String| self.members.iter().any(|member| member.name == *on && !member.leaves);
            if self.members.iter().any(|member| member.name == *name) || !recipe.after.0.keys().all(is_there) {
                continue;
            }
            let (mut spec, log) = logged(recipe, name);
            for member in &self.members {
                if let Some(stage) = recipe.after.0.get(&member.name) {
                    spec = spec.depends_on(&member.worker, (*stage).into());
                }
            }
            let group = self.supervisor.group(GroupPolicy::default().unlimited_restarts())?;
            // In a batch, a failed start is an event, and concerns no other worker.
            let mut batch = group.batch();
            let worker = batch.add(spec)?;
            batch.start()?;
            self.members.push(Member {
                name: name.clone(),
                recipe: recipe.clone(),
                group,
                worker,
                log,
                leaves: false,
                has_failed: false,
                last_line: String::new(),
            });
        }
        if self.is_stopping() {
            // Workers added after the stop of all workers are not part of it.
            self.members.iter().skip(before).for_each(|member| drop(member.worker.stop()));
        }
        Ok(self.members.len() > before)
    }

    /// Reports the exits that nothing followed from: a restart or a failure would be the next event.
    /// Returns whether the state of workers may have changed.
    fn report(&mut self, event: Event) -> bool {
        self.report_stop();
        if let EventKind::Warning(warning) = &event.kind {
            self.note(&warning.to_string());
            return false;
        }
        let name_of_other = match event.kind {
            EventKind::DependencyFailed { on } => self.members.iter().find(|member| member.worker.id() == on),
            _ => None,
        };
        let name_of_other = name_of_other.map(|other| other.name.clone()).unwrap_or_default();
        // Group events name the worker that ended last, which may be removed already.
        let Some(member) = self.members.iter_mut().find(|member| member.worker.id() == event.worker) else {
            return true;
        };
        let name = member.name.clone();
        if let EventKind::Line { line, .. } = &event.kind {
            let text = printable(line.as_bytes()).lines().to_string();
            member.last_line.clone_from(&text);
            let text = format!("{} | {text}", printable(&name));
            let text = member.log.clone().map_or(Text::Line(text.clone()), |path| Text::Log(path, text));
            self.screen.write(text);
            return false;
        }
        for text in member.handle(event.kind, &name_of_other) {
            self.note_of(&name, &text);
        }
        true
    }
}

/// The spec of a worker, and the log file that this program writes its lines to. If the file cannot be opened, the spec names it: the
/// library then fails to start the worker, reports why, and tries again.
fn logged(recipe: &Recipe, name: &str) -> (WorkerSpec, Option<Arc<Path>>) {
    match recipe.log() {
        Some(path) if open_log(path).is_err() => (recipe.without_log().spec(name), None),
        log => (recipe.spec(name), log.map(Arc::from)),
    }
}

impl Member {
    /// The lines to report about an event.
    fn handle(&mut self, event: EventKind, name_of_other: &str) -> Vec<String> {
        match event {
            EventKind::Started { pid } => {
                self.has_failed = false;
                vec![format!("started (pid {pid})")]
            }
            EventKind::Ready { after } => vec![format!("ready after {}", show(after))],
            EventKind::ReadinessDelayed { waited } => vec![format!("still not ready after {}", show(waited))],
            EventKind::NotReady { reason: why, recent_output: words } => {
                // Whatever its exit status is.
                self.has_failed = true;
                let how = match why {
                    ReadinessError::TimedOut { waited, .. } => format!("not ready after {}", show(waited)),
                    _ => "will never be ready".to_owned(),
                };
                iter::once(how).chain(last_lines(&words)).collect()
            }
            EventKind::RuntimeExceeded { after } => {
                self.has_failed = true;
                vec![format!("stopped after {}, its run time limit", show(after))]
            }
            EventKind::SpawnFailed { error, next } => {
                self.has_failed = !matches!(next, AfterExit::Restart { .. });
                iter::once(explain(&*error)).chain(follow_up(next)).collect()
            }
            EventKind::DependencyFailed { .. } => {
                self.has_failed = true;
                vec![format!("not started: {name_of_other} has failed")]
            }
            EventKind::Exited { exit, next } => {
                self.has_failed |= self.recipe.restart_mode() == Restart::Never && self.recipe.is_failure(exit.code());
                let survivors = exit.survivors.iter().map(ToString::to_string);
                let mut lines: Vec<_> = survivors.collect();
                lines.push([exit.to_string()].into_iter().chain(follow_up(next)).collect::<Vec<_>>().join(", "));
                match next {
                    AfterExit::Restart { .. } => self.has_failed = false,
                    AfterExit::GaveUp(_) => {
                        self.has_failed = true;
                        lines.extend(last_lines(&exit.stderr_text()));
                    }
                    _ => {}
                }
                lines
            }
            EventKind::NotStarted { next: next @ AfterExit::GaveUp(_) } => {
                self.has_failed = true;
                follow_up(next).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What follows an exit, unless that is the end.
fn follow_up(next: AfterExit) -> Option<String> {
    match next {
        AfterExit::Restart { after } => Some(format!("restarting in {}", show(after))),
        AfterExit::GaveUp(why) => Some(format!("gave up: {why}")),
        _ => None,
    }
}

/// The last lines of a text.
fn last_lines(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<_> = text.lines().collect();
    let start = lines.len().saturating_sub(OUTPUT_LINES);
    lines.into_iter().skip(start).map(|line| format!("  {line}"))
}

/// A duration in milliseconds.
fn show(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}
