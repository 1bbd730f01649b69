//! All plugins: what happens when a file, a process or a command changes something.

use crate::{
    callbacks::Store,
    calls::{Call, CallId, Caller, Calls, NewCall},
    directory::{self, Change, Files, Settling},
    handshake,
    options::Options,
    plugin::{Instance, Plugin, Role},
    prompt::{self, Command},
    screen::Screen,
};
use crossbeam_channel::Receiver;
use pipewright::{
    CallError, Event, EventKind, Exit, ExitCause, FinishedCall, RpcError, Supervisor, Worker, WorkerId,
    events::{AfterExit, DisconnectReason},
    printable,
};
use serde_json::{Value, value::RawValue};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// How many lines of standard error are shown after a crash.
const STDERR_LINES: usize = 10;

pub(crate) struct Host<'a> {
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) options: &'a Options,
    pub(crate) screen: Screen,
    pub(crate) plugins: BTreeMap<String, Plugin>,
    /// Workers that are replaced or removed, and finish their calls.
    retiring: HashMap<WorkerId, Retiring>,
    pub(crate) calls: Calls,
    pub(crate) store: Store,
    settling: Settling,
    pub(crate) has_failures: bool,
    is_quitting: bool,
    is_waiting: bool,
}

struct Retiring {
    worker: Worker,
    is_stopped: bool,
}

impl<'a> Host<'a> {
    pub(crate) fn new(supervisor: &'a Supervisor, options: &'a Options, files: Files) -> Self {
        let names: Vec<String> = files.keys().cloned().collect();
        let mut host = Self {
            supervisor,
            options,
            screen: Screen::new(),
            plugins: BTreeMap::new(),
            retiring: HashMap::new(),
            calls: Calls::default(),
            store: Store::default(),
            settling: Settling::new(options.settle_time, files),
            has_failures: false,
            is_quitting: false,
            is_waiting: false,
        };
        if names.is_empty() {
            host.screen.note(&format!("{}: no executable file yet", options.directory.display()));
        }
        for name in names {
            host.load(&name);
        }
        host
    }

    pub(crate) fn is_done(&self, is_input_open: bool) -> bool {
        self.is_quitting || (!is_input_open && self.calls.is_empty())
    }

    /// Whether the next command is to be read.
    pub(crate) fn reads_commands(&self) -> bool {
        !self.is_waiting
    }

    pub(crate) fn finished_calls(&self) -> &Receiver<FinishedCall<CallId>> {
        self.calls.finished()
    }

    /// Cancels the open calls. Returns whether any call has failed.
    pub(crate) fn close(mut self) -> bool {
        self.calls.cancel_all();
        while let Ok(finished) = self.calls.finished().try_recv() {
            self.call_finished(finished);
        }
        self.has_failures
    }

    // Time.

    /// When to call `handle_timeout`.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.settling.poll_timeout().into_iter().chain(self.calls.poll_timeout(now)).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.calls.expire(now);
        if self.settling.poll_timeout().is_some_and(|due| due <= now) {
            self.scan(now);
        }
    }

    // Files.

    pub(crate) fn directory_changed(&mut self, now: Instant) {
        self.settling.notice(now);
    }

    fn scan(&mut self, now: Instant) {
        let found = match directory::scan(&self.options.directory) {
            Ok(found) => found,
            Err(error) => {
                self.screen.note(&format!("{}: {error}; the plugins stay", self.options.directory.display()));
                return self.settling.give_up_scan();
            }
        };
        for change in self.settling.handle(&found, now) {
            match change {
                Change::New(name) => self.load(&name),
                Change::Changed(name) => self.file_changed(&name),
                Change::Removed(name) => self.remove(&name),
            }
        }
    }

    /// A process in a debugger is not replaced.
    fn file_changed(&mut self, name: &str) {
        match self.plugins.get(name).and_then(Plugin::attached) {
            Some(attached) => {
                let label = attached.label();
                self.screen.note(&format!("{label}: its file has changed, {label} stays; `reload {name}` replaces it"));
            }
            None => self.load(name),
        }
    }

    /// Shows how to start a process that replaces the present one.
    fn attach(&mut self, name: &str) {
        let Some(plugin) = self.plugins.get_mut(name) else { return self.fail(&self.unknown(name)) };
        let label = plugin.next_label(name);
        match self.supervisor.attach(handshake::attached_spec(&plugin.path, &label)) {
            Ok(attachment) => {
                self.screen.result(&format!("{attachment} '{}'", plugin.path.display()));
                self.insert(name, Instance::attached(attachment.into_worker()));
            }
            Err(error) => self.fail(&format!("{label}: {error}")),
        }
    }

    /// Starts the present version of a file. It replaces the former one when it is ready.
    pub(crate) fn load(&mut self, name: &str) {
        let path = self.options.directory.join(name);
        let plugin = self.plugins.entry(name.to_owned()).or_insert_with(|| Plugin::new(path));
        let label = plugin.next_label(name);
        match self.supervisor.spawn(handshake::spec(&plugin.path, &label, self.options)) {
            Ok(worker) => self.insert(name, Instance::new(worker)),
            Err(error) => {
                let stays = plugin.current.as_ref().map(|current| format!("; {} stays", current.label()));
                self.screen.note(&format!("{label}: {error}{}", stays.unwrap_or_default()));
            }
        }
    }

    fn insert(&mut self, name: &str, instance: Instance) {
        let reason = format!("superseded by {}", instance.label());
        for instance in self.plugins.get_mut(name).map(|plugin| plugin.insert(instance)).into_iter().flatten() {
            self.retire(instance, &reason);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(plugin) = self.plugins.remove(name) {
            for instance in plugin.into_instances() {
                self.retire(instance, "its file was removed");
            }
        }
    }

    /// Stops a worker when its calls have ended, which have deadlines.
    fn retire(&mut self, instance: Instance, reason: &str) {
        let worker = instance.worker;
        let waits = if self.calls.is_calling(worker.id()) { "stops after its calls" } else { "stops" };
        self.screen.note(&format!("{}: {reason}, {waits}", worker.name()));
        self.retiring.insert(worker.id(), Retiring { worker, is_stopped: false });
        self.stop_retiring();
    }

    fn stop_retiring(&mut self) {
        for Retiring { worker, is_stopped } in self.retiring.values_mut() {
            if !*is_stopped && !self.calls.is_calling(worker.id()) {
                worker.stop();
                *is_stopped = true;
            }
        }
    }

    // Processes.

    pub(crate) fn handle_event(&mut self, event: Event) {
        let label = self.supervisor.worker(event.worker).map_or_else(String::new, |worker| worker.name().to_owned());
        let id = event.worker;
        match event.kind {
            EventKind::Ready { after } => self.ready(id, after),
            EventKind::NotReady { reason, recent_output } => {
                self.screen.note(&format!("{label}: {reason}{}", indent(&recent_output)));
                self.give_up_candidate(id);
            }
            EventKind::Exited { exit, next } => self.exited((id, &label), &exit, next),
            EventKind::SpawnFailed { error, next } => {
                self.screen.note(&format!("{label}: {error}, {next}"));
                self.give_up_candidate(id);
                self.ended(id, next);
            }
            EventKind::NotStarted { next } => self.ended(id, next),
            // It answers nothing more. Its exit is handled as any other.
            EventKind::ControlDisconnected(DisconnectReason::Closed) if self.role(id).is_some() => {
                self.screen.note(&format!("{label}: {}, killed", DisconnectReason::Closed));
                if let Some(worker) = self.supervisor.worker(id) {
                    drop(worker.kill());
                }
            }
            EventKind::WatchdogTimeout => self.screen.note(&format!("{label}: hangs: it answers no pings, replaced")),
            EventKind::InvalidFrame(error) => self.screen.note(&format!("{label}: sent {error}")),
            EventKind::Warning(warning) => self.screen.note(&format!("warning: {warning}")),
            EventKind::Line { line, .. } if self.options.is_verbose => {
                self.screen.note(&format!("{label}| {}", printable(&*line.text())));
            }
            EventKind::Request(request) => self.requested(id, request),
            EventKind::Notification(notification) => self.notified(id, &label, &notification),
            _ => {}
        }
        self.check_wait();
    }

    /// The plugin of a worker, unless it is retiring.
    pub(crate) fn role(&self, id: WorkerId) -> Option<(&str, Role)> {
        self.plugins.iter().find_map(|(name, plugin)| Some((name.as_str(), plugin.role(id)?)))
    }

    fn ready(&mut self, id: WorkerId, after: Duration) {
        let Some((name, role)) = self.role(id).map(|(name, role)| (name.to_owned(), role)) else { return };
        let Some(plugin) = self.plugins.get_mut(&name) else { return };
        let Some(instance) = plugin.instance_mut(role) else { return };
        instance.hello = instance.worker.handshake().ok().flatten();
        let hello = instance.hello.as_ref();
        let methods = hello.map_or_else(String::new, |hello| hello.methods.join(", "));
        let label = instance.label().to_owned();
        self.screen.note(&format!("{label}: ready after {after:.1?}: {}", printable(&methods)));
        if role == Role::Candidate
            && let Some(old) = plugin.promote()
        {
            self.retire(old, &format!("replaced by {label}"));
        }
    }

    /// A new version that does not become ready replaces nothing, and is not tried again.
    fn give_up_candidate(&mut self, id: WorkerId) {
        let Some((name, Role::Candidate)) = self.role(id).map(|(name, role)| (name.to_owned(), role)) else { return };
        let Some(plugin) = self.plugins.get_mut(&name) else { return };
        let stays = plugin.current.as_ref().map_or_else(String::new, |current| format!("{} stays", current.label()));
        if let Some(candidate) = plugin.candidate.take() {
            self.retire(candidate, &stays);
        }
    }

    fn exited(&mut self, (id, label): (WorkerId, &str), exit: &Exit, next: AfterExit) {
        if exit.cause == ExitCause::SupervisorEnd {
            // By a signal, which ends the program.
            return;
        }
        if self.role(id).is_some() {
            self.screen.note(&format!("{label}: {exit}, {next}{}", indent(&last_lines(&exit.stderr_text()))));
        } else {
            self.screen.note(&format!("{label}: ended: {exit}"));
        }
        for survivor in &exit.survivors {
            self.screen.note(&format!("{label}: {survivor}"));
        }
        self.give_up_candidate(id);
        self.ended(id, next);
    }

    fn ended(&mut self, id: WorkerId, next: AfterExit) {
        if let Some(retiring) = self.retiring.get_mut(&id) {
            if next.is_final() {
                self.retiring.remove(&id);
            } else {
                retiring.worker.stop();
                retiring.is_stopped = true;
            }
        } else if next.is_final()
            && let Some((name, _)) = self.role(id)
        {
            let name = name.to_owned();
            let ended = self.plugins.get_mut(&name).and_then(|plugin| plugin.current.take());
            if ended.is_some_and(|ended| ended.is_attached) {
                self.load(&name);
            } else {
                let how = format!("it is started when its file changes, or by `reload {name}`");
                self.screen.note(&format!("{name}: does not run; {how}"));
            }
        }
    }

    // Commands and calls.

    pub(crate) fn handle_line(&mut self, line: Result<String, String>, now: Instant) {
        match line.and_then(|line| Command::parse(&line)) {
            Ok(command) => self.execute(command, now),
            Err(error) => self.fail(&error),
        }
        self.check_wait();
        self.screen.prompt();
    }

    fn execute(&mut self, command: Command, now: Instant) {
        match command {
            Command::Nothing => {}
            Command::Call { plugin, method, params, timeout } => {
                if let Err((_, error)) = self.call((&plugin, method, params), timeout, Caller::Prompt, now) {
                    self.fail(&error);
                }
            }
            Command::Cancel(number) if self.calls.cancel(number) => {}
            Command::Cancel(number) => self.fail(&format!("no call {number} is open")),
            Command::List => self.list(now),
            Command::Reload(None) => {
                self.scan(now);
                let names: Vec<String> = self.plugins.keys().cloned().collect();
                for name in names {
                    self.load(&name);
                }
            }
            Command::Reload(Some(name)) if self.plugins.contains_key(&name) => self.load(&name),
            Command::Reload(Some(name)) => self.fail(&self.unknown(&name)),
            Command::Attach(name) => self.attach(&name),
            Command::Wait => self.is_waiting = true,
            Command::Help => self.screen.result(prompt::HELP),
            Command::Quit => self.is_quitting = true,
        }
    }

    /// A command that cannot be executed.
    fn fail(&mut self, error: &str) {
        self.has_failures = true;
        self.screen.note(&format!("plugin_host: {error}"));
    }

    fn unknown(&self, name: &str) -> String {
        let names: Vec<&str> = self.plugins.keys().map(String::as_str).collect();
        format!("no plugin {name:?}; there are: {}", names.join(", "))
    }

    /// Starts a call, by default with the timeout of the options. Returns the caller and the reason if that fails.
    pub(crate) fn call(
        &mut self,
        (plugin, method, params): (&str, String, Value),
        timeout: Option<Duration>,
        caller: Caller,
        now: Instant,
    ) -> Result<(), (Caller, String)> {
        let Some(found) = self.plugins.get(plugin) else { return Err((caller, self.unknown(plugin))) };
        let Some(current) = &found.current else { return Err((caller, format!("{plugin} does not run"))) };
        let worker = current.worker.clone();
        let default = if current.is_attached { handshake::ATTACHED_TIMEOUT } else { self.options.timeout };
        let timeout = timeout.unwrap_or(default);
        self.calls.start(NewCall { worker, method, params, timeout, caller }, now)
    }

    pub(crate) fn call_finished(&mut self, finished: FinishedCall<CallId>) {
        if let Some((call, result)) = self.calls.finish(finished) {
            self.report(call, result);
        }
        self.stop_retiring();
        self.check_wait();
    }

    fn report(&mut self, call: Call, result: Result<Box<RawValue>, CallError>) {
        let outcome = result.map_err(|error| call.failure(&error));
        let (id, target) = (call.id, call.target());
        match (call.caller, outcome) {
            (Caller::Prompt, Ok(result)) => self.screen.result(&format!("{id} {}", printable(result.get()))),
            (Caller::Prompt, Err(error)) => {
                self.has_failures = true;
                self.screen.result(&format!("{id} {target} failed: {error}"));
            }
            // A plugin that has exited needs no answer.
            (Caller::Plugin(request), Ok(result)) => drop(request.reply(&result)),
            (Caller::Plugin(request), Err(error)) => drop(request.reply_error(&RpcError::new(1, error))),
        }
    }

    /// Ends the wait of the command `wait` when there is nothing to wait for.
    fn check_wait(&mut self) {
        let is_busy = || !self.calls.is_empty() || self.plugins.values().any(Plugin::is_starting);
        self.is_waiting = self.is_waiting && is_busy();
    }

    fn list(&self, now: Instant) {
        let plugins = self.plugins.iter().map(|(name, plugin)| plugin.describe(name));
        let calls = self.calls.open().map(|call| call.describe(now));
        let lines: Vec<String> = plugins.chain(calls).collect();
        self.screen.result(&lines.join("\n"));
    }
}

/// The last lines of a text.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(STDERR_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// The lines of a text below a note.
fn indent(text: &str) -> String {
    let lines: Vec<&str> = std::iter::once("").chain(text.lines()).collect();
    lines.join("\n    ")
}
