//! Has that run which the file wants, and tells what happens.

use crate::{
    explain,
    file::Plan,
    recipe::Recipe,
    table::{Row, Table},
};
use pipewright::{
    Event, EventKind, Exit, GroupError, GroupPolicy, NotReady, Restart, Status, Supervisor, Worker, WorkerGroup,
    WorkerState,
};
use std::{
    collections::HashSet,
    iter,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How many of a failed worker's last words are repeated.
const LAST_WORDS: usize = 3;

pub(crate) struct Foreman<'a> {
    supervisor: &'a Supervisor,
    group: WorkerGroup,
    plan: Plan,
    /// Each behind those that it comes after.
    members: Vec<Member>,
    table: Table,
    /// Somebody wants all of it to end.
    is_stopping: Arc<AtomicBool>,
    has_told_stop: bool,
    is_done: bool,
}

struct Member {
    name: String,
    recipe: Recipe,
    worker: Worker,
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
        table: Table,
        is_stopping: Arc<AtomicBool>,
    ) -> Result<Self, GroupError> {
        let group = supervisor.group(GroupPolicy::default())?;
        let mut foreman = Self {
            supervisor,
            group,
            plan,
            members: Vec::new(),
            table,
            is_stopping,
            has_told_stop: false,
            is_done: false,
        };
        foreman.hire()?;
        Ok(foreman)
    }

    /// Nobody is left to run.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// True if all is well: they were to end, or have done what they had to.
    pub(crate) fn close(self) -> bool {
        self.table.close();
        self.is_stopping() || !self.members.iter().any(|member| member.has_failed)
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
                self.table.complain(&format!("{error}; the old file stays"));
                Ok(())
            }
        }
    }

    fn follow(&mut self, plan: Plan) -> Result<(), GroupError> {
        // Whoever has failed until now is tried again.
        self.catch_up()?;
        self.plan = plan;
        self.note("the file is read again");
        self.dismiss()?;
        self.catch_up()
    }

    pub(crate) fn note(&self, text: &str) {
        self.table.note(&format!("keep_alive: {text}"));
    }

    pub(crate) fn show(&self) {
        if self.table.is_live() {
            self.show_as(&self.supervisor.status());
        }
    }

    fn show_as(&self, status: &Status) {
        let rows = self.members.iter().map(|Member { name, worker, has_failed, last_line, .. }| {
            let status = status.workers.iter().find(|status| status.worker == worker.id());
            Row { name, has_failed: *has_failed, status, last_line }
        });
        self.table.show(&rows.collect::<Vec<_>>());
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

    fn conclude(&mut self, status: &Status) -> Result<(), GroupError> {
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
            self.table.note(&format!("{}: {why}", member.name));
            going.insert(member.name.clone());
        }
        for member in self.members.iter_mut().rev().filter(|member| going.contains(&member.name) && !member.leaves) {
            self.group.remove(&member.worker)?;
            member.leaves = true;
        }
        Ok(())
    }

    /// Adds those who are missing. Whoever takes the place of one that still leaves waits until that is gone, and so does whoever
    /// comes after such a one. True if there were some.
    fn hire(&mut self) -> Result<bool, GroupError> {
        let before = self.members.len();
        for (name, recipe) in &self.plan.workers {
            let is_there = |on: &String| self.members.iter().any(|member| member.name == *on && !member.leaves);
            if self.members.iter().any(|member| member.name == *name) || !recipe.after.0.keys().all(is_there) {
                continue;
            }
            let mut spec = recipe.spec(name);
            for member in &self.members {
                if let Some(stage) = recipe.after.0.get(&member.name) {
                    spec = spec.after(&member.worker, (*stage).into());
                }
            }
            self.members.push(Member {
                name: name.clone(),
                recipe: recipe.clone(),
                worker: self.group.add(spec)?,
                leaves: false,
                has_failed: false,
                ended: None,
                last_line: String::new(),
            });
        }
        if self.is_stopping() {
            // Whoever came after all were told to stop has not heard of it.
            self.members.iter().skip(before).for_each(|member| drop(member.worker.stop()));
        }
        Ok(self.members.len() > before)
    }

    /// Of whose end nothing has come. What comes of an end is the next that is told, if anything is.
    fn tell_ends(&mut self) {
        for member in &mut self.members {
            if let Some(exit) = member.ended.take() {
                self.table.note(&format!("{}: {exit}", member.name));
            }
        }
    }

    /// True if it can change what is to be done.
    fn tell(&mut self, event: Event) -> bool {
        self.tell_stop();
        if !matches!(event.kind, EventKind::Restarting { .. } | EventKind::GaveUp(_)) {
            self.tell_ends();
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
        if let EventKind::Line { line, .. } = &event.kind {
            self.table.note(&format!("{} | {}", member.name, line.text()));
            member.last_line = line.text().into_owned();
            return false;
        }
        for text in member.hear(event.kind, &name_of_other) {
            self.table.note(&format!("{}: {text}", member.name));
        }
        true
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
            EventKind::Slow { waited } => vec![format!("still not ready after {}", show(waited))],
            EventKind::NotReady { why, last_words: words } => {
                // However it ends.
                self.has_failed = true;
                let how = match why {
                    NotReady::TimedOut { waited } => format!("not ready after {}", show(waited)),
                    _ => "will never be ready".to_owned(),
                };
                iter::once(how).chain(last_words(&words)).collect()
            }
            EventKind::TimedOut { after } => {
                self.has_failed = true;
                vec![format!("stopped after {}, its time limit", show(after))]
            }
            EventKind::NotStarted(error) => {
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
                iter::once(format!("{how}given up: {why}")).chain(last_words(&words)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The last lines of them.
fn last_words(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<_> = text.lines().collect();
    let start = lines.len().saturating_sub(LAST_WORDS);
    lines.into_iter().skip(start).map(|line| format!("  {line}"))
}

/// No user wants nanoseconds.
fn show(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}
