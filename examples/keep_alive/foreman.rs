//! Has that run which the file wants, and tells what happens.

use crate::{
    explain,
    file::Plan,
    recipe::Recipe,
    screen::{Screen, Text, open_log},
    table::{Row, table},
};
use crossbeam_channel::Receiver;
use pipewright::{
    Event, EventKind, Exit, GroupError, GroupPolicy, Restart, Supervisor, Worker, WorkerGroup, WorkerSpec,
    events::ReadinessError,
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

/// How many of a failed worker's last words are repeated.
const LAST_WORDS: usize = 3;

pub(crate) struct Foreman<'a> {
    supervisor: &'a Supervisor,
    plan: Plan,
    /// Each behind those that it comes after.
    members: Vec<Member>,
    screen: Screen,
    /// Somebody wants all of it to end.
    is_stopping: Arc<AtomicBool>,
    has_told_stop: bool,
    is_done: bool,
}

struct Member {
    name: String,
    recipe: Recipe,
    /// Of it alone: a worker that gives up ends its group, and the others have nothing to do with that.
    group: WorkerGroup,
    worker: Worker,
    /// The file that its lines go to; none for the screen.
    log: Option<Arc<Path>>,
    /// The file does not want it any more, or not so.
    leaves: bool,
    /// It did not do what it had to, and unless it is tried again that stays so.
    has_failed: bool,
    /// Its end, as long as it is not known what comes of it.
    ended: Option<Arc<Exit>>,
    last_line: String,
}

impl<'a> Foreman<'a> {
    pub(crate) fn new(
        supervisor: &'a Supervisor,
        plan: Plan,
        screen: Screen,
        is_stopping: Arc<AtomicBool>,
    ) -> Result<Self, GroupError> {
        let mut foreman =
            Self { supervisor, plan, members: Vec::new(), screen, is_stopping, has_told_stop: false, is_done: false };
        foreman.hire()?;
        Ok(foreman)
    }

    /// Nobody is left to run.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// True if all is well: they were to end, or have done what they had to.
    pub(crate) fn close(self) -> bool {
        let is_well = self.is_stopping() || !self.members.iter().any(|member| member.has_failed);
        self.screen.close();
        is_well
    }

    /// What is to be heard next: nothing while what was heard could not be written, so that workers wait for our reader.
    pub(crate) fn events(&self) -> Receiver<Event> {
        if self.screen.is_behind() { crossbeam_channel::never() } else { self.supervisor.events().clone() }
    }

    /// Reports that the screen has room again: time for [`advance`](Self::advance).
    pub(crate) fn progress(&self) -> Receiver<()> {
        self.screen.progress()
    }

    pub(crate) fn advance(&mut self) {
        self.screen.advance();
    }

    /// Reports that all are to end, and that nothing of what is told of it is read.
    pub(crate) fn patience(&self) -> Receiver<Instant> {
        let is_stuck = self.is_stopping() && self.screen.is_behind();
        if is_stuck { crossbeam_channel::at(self.screen.patience_ends()) } else { crossbeam_channel::never() }
    }

    pub(crate) fn give_up_screen(&mut self) {
        self.screen.give_up();
    }

    /// The terminal is gone: all are to end as after SIGTERM.
    pub(crate) fn hang_up(&mut self) {
        if !self.is_stopping.swap(true, Ordering::SeqCst) {
            self.note("the terminal is gone");
            self.supervisor.close();
            drop(self.supervisor.stop_all());
        }
        self.tell_stop();
    }

    /// Once, however it is noticed: the first that has ended of it may be heard of before the signal is.
    pub(crate) fn tell_stop(&mut self) {
        if self.is_stopping() && !self.has_told_stop {
            self.has_told_stop = true;
            self.note("stopping all; once more to kill them");
        }
    }

    pub(crate) fn hear(&mut self, event: Event) -> Result<(), GroupError> {
        if self.tell(event) { self.catch_up() } else { Ok(()) }
    }

    /// The user wants the file to be read again.
    pub(crate) fn reload(&mut self, path: &Path) -> Result<(), GroupError> {
        if self.is_stopping() {
            self.note("all are being stopped, so the file is not read again");
            return Ok(());
        }
        match Plan::load(path) {
            Ok(plan) => self.follow(plan),
            Err(error) => {
                self.screen.write(Text::Complaint(format!("keep_alive: {error}; the old file stays")));
                Ok(())
            }
        }
    }

    fn follow(&mut self, plan: Plan) -> Result<(), GroupError> {
        // Those that have failed until now are tried again.
        self.catch_up()?;
        self.plan = plan;
        self.screen.write(Text::Reopen);
        self.note("the file is read again");
        self.dismiss()?;
        self.catch_up()
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.screen.write(Text::Line(format!("keep_alive: {text}")));
    }

    /// Something about a worker.
    fn note_of(&mut self, name: &str, text: &str) {
        self.screen.write(Text::Line(format!("{}: {}", printable(name), printable(text))));
    }

    pub(crate) fn show(&mut self) {
        if self.screen.is_live() {
            self.show_as(&self.supervisor.status());
        }
    }

    fn show_as(&mut self, status: &SupervisorStatus) {
        // The next one will do.
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

    /// Looks at how everybody is, after something has happened.
    ///
    /// No event says that a worker will not come back, since that is what its policy says: the snapshot shows it. Whatever had
    /// been told before the snapshot is heard before anything is concluded from it.
    fn catch_up(&mut self) -> Result<(), GroupError> {
        let mut is_news = true;
        while is_news {
            let status = self.supervisor.status();
            is_news = false;
            for event in self.supervisor.events().try_iter().take(status.events_waiting) {
                is_news |= self.tell(event);
            }
            self.conclude(&status)?;
        }
        Ok(())
    }

    fn conclude(&mut self, status: &SupervisorStatus) -> Result<(), GroupError> {
        self.tell_ends();
        let known: HashSet<_> = status.workers.iter().map(|status| status.worker).collect();
        self.members.retain(|member| !member.leaves || known.contains(&member.worker.id()));
        let is_hiring = !self.is_stopping() && self.hire()?;
        let is_over = status.workers.iter().all(|status| status.state == WorkerState::Ended);
        self.is_done =
            is_over && !is_hiring && (self.is_stopping() || !self.members.iter().any(|member| member.leaves));
        self.show_as(status);
        Ok(())
    }

    /// Takes leave of those whom the file does not want, or not so, and of those who have failed for good: a user who has mended what
    /// they lacked has no other way to say so. Whoever comes after them goes too, and comes back with them.
    fn dismiss(&mut self) -> Result<(), GroupError> {
        let mut going: HashSet<String> = HashSet::new();
        let mut notes = Vec::new();
        for member in self.members.iter().filter(|member| !member.leaves) {
            let wanted = self.plan.workers.iter().find(|(name, _)| *name == member.name).map(|(_, recipe)| recipe);
            let why = if wanted.is_none() {
                "is gone from the file, and is stopped".to_owned()
            } else if wanted != Some(&member.recipe) {
                "has changed, and is restarted".to_owned()
            } else if let Some(first) = member.recipe.after.0.keys().find(|name| going.contains(*name)) {
                format!("comes after {first}, and is restarted with it")
            } else if member.has_failed && member.worker.wait_timeout(Duration::ZERO).is_some() {
                "has failed, and is tried again".to_owned()
            } else {
                continue;
            };
            going.insert(member.name.clone());
            notes.push((member.name.clone(), why));
        }
        for (name, why) in notes {
            self.note_of(&name, &why);
        }
        for member in self.members.iter_mut().rev().filter(|member| going.contains(&member.name) && !member.leaves) {
            member.group.remove_all()?;
            member.leaves = true;
        }
        Ok(())
    }

    /// Adds those that are missing, once those that are gone from the file have ended: a worker with a new name may need the port
    /// of the old one. Those that take the place of one that still leaves wait until that has ended, and so do those that come after
    /// such a one. True if some were added.
    fn hire(&mut self) -> Result<bool, GroupError> {
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
            // In a batch: that it cannot be started is then an event, and concerns no other.
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
                ended: None,
                last_line: String::new(),
            });
        }
        if self.is_stopping() {
            // Those that came after all were told to stop have not heard of it.
            self.members.iter().skip(before).for_each(|member| drop(member.worker.stop()));
        }
        Ok(self.members.len() > before)
    }

    /// Of whose end nothing has come. What comes of an end is the next that is told, if anything is.
    fn tell_ends(&mut self) {
        let ended = |member: &mut Member| Some((member.name.clone(), member.ended.take()?));
        let ends: Vec<_> = self.members.iter_mut().filter_map(ended).collect();
        for (name, exit) in ends {
            self.note_of(&name, &exit.to_string());
        }
    }

    /// True if it can change what is to be done.
    fn tell(&mut self, event: Event) -> bool {
        self.tell_stop();
        if !matches!(event.kind, EventKind::Restarting { .. } | EventKind::GaveUp(_)) {
            self.tell_ends();
        }
        if let EventKind::Warning(warning) = &event.kind {
            self.note(&warning.to_string());
            return false;
        }
        let name_of_other = match event.kind {
            EventKind::DependencyFailed { on } => self.members.iter().find(|member| member.worker.id() == on),
            _ => None,
        };
        let name_of_other = name_of_other.map(|other| other.name.clone()).unwrap_or_default();
        // Those of a group come with the worker that was the last to end, which may be one that has been forgotten.
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
        for text in member.hear(event.kind, &name_of_other) {
            self.note_of(&name, &text);
        }
        true
    }
}

/// A worker's spec, and the log file that its lines go to through us. A file that cannot be opened is left to the library: it fails
/// to start the worker, says why, and tries again.
fn logged(recipe: &Recipe, name: &str) -> (WorkerSpec, Option<Arc<Path>>) {
    match recipe.log() {
        Some(path) if open_log(path).is_err() => (recipe.without_log().spec(name), None),
        log => (recipe.spec(name), log.map(Arc::from)),
    }
}

impl Member {
    /// What there is to be told of it, a line each.
    fn hear(&mut self, event: EventKind, name_of_other: &str) -> Vec<String> {
        match event {
            EventKind::Started { pid } => {
                self.has_failed = false;
                vec![format!("started (pid {pid})")]
            }
            EventKind::Ready { after } => vec![format!("ready after {}", show(after))],
            EventKind::ReadinessDelayed { waited } => vec![format!("still not ready after {}", show(waited))],
            EventKind::NotReady { reason: why, recent_output: words } => {
                // However it ends.
                self.has_failed = true;
                let how = match why {
                    ReadinessError::TimedOut { waited } => format!("not ready after {}", show(waited)),
                    _ => "will never be ready".to_owned(),
                };
                iter::once(how).chain(last_lines(&words)).collect()
            }
            EventKind::RuntimeExceeded { after } => {
                self.has_failed = true;
                vec![format!("stopped after {}, its time limit", show(after))]
            }
            EventKind::SpawnFailed(error) => {
                self.has_failed = true;
                vec![explain(&*error)]
            }
            EventKind::DependencyFailed { .. } => {
                self.has_failed = true;
                vec![format!("not started, since {name_of_other} has failed")]
            }
            EventKind::Exited(exit) => {
                self.has_failed |= self.recipe.comes_back() == Restart::Never && self.recipe.is_failure(exit.code());
                let lines = exit.survivors.iter().map(|survivor| format!("{survivor}, and was killed")).collect();
                self.ended = Some(exit);
                lines
            }
            EventKind::Restarting { after } => {
                self.has_failed = false;
                let exit = self.ended.take().map(|exit| format!("{exit}, ")).unwrap_or_default();
                vec![format!("{exit}again in {}", show(after))]
            }
            EventKind::GaveUp(why) => {
                self.has_failed = true;
                let exit = self.ended.take();
                let how = exit.as_ref().map(|exit| format!("{exit}, ")).unwrap_or_default();
                let words = exit.as_ref().map(|exit| exit.stderr_text()).unwrap_or_default();
                iter::once(format!("{how}given up: {why}")).chain(last_lines(&words)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The last lines of them.
fn last_lines(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<_> = text.lines().collect();
    let start = lines.len().saturating_sub(LAST_WORDS);
    lines.into_iter().skip(start).map(|line| format!("  {line}"))
}

/// No user wants nanoseconds.
fn show(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}
