//! One living incarnation as the loop sees it: its streams, its window, its last words.

pub(crate) mod context;
pub(crate) mod control;
pub(crate) mod delivery;
pub(crate) mod health;
pub(crate) mod health_checks;
pub(crate) mod message_probe;
pub(crate) mod output;
pub(crate) mod probe;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod transitions;
pub(crate) mod tree;
pub(crate) mod tree_exit;

use crate::{
    exit::{Exit, ExitStatus},
    launch::child::{exit_status, usage},
    policy::{
        backpressure::WindowState,
        lifecycle::{Lifecycle, LifecycleInput, StreamId, Timeouts},
    },
    supervisor::{
        commands::SpawnedProcess,
        containment::{cgroup_pool::WorkerCgroup, teardown::KILL_TIMEOUT},
        events::{
            event::{Event, EventKind},
            sink::EventSink,
            warning::Warning,
        },
        incarnation::{
            context::Context,
            health::{Health, Notifications},
            output::{Listener, OutputStreams, never_wait},
            session::ControlSession,
            tree::TreeExit,
        },
        reactor::{arena::Key, token::Token},
        spec::SharedSpec,
        worker::{SharedWorker, process::WorkerProcess},
    },
    sys::{fd, pidfd::Reaped},
    text::printable,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// How much longer a worker can make its stop by asking for it.
const MAX_STOP_EXTENSION: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Incarnation {
    /// Its place in the arena of the event loop.
    pub(crate) key: Key,
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) process: Arc<WorkerProcess>,
    pub(crate) spec: SharedSpec,
    pub(crate) started: Instant,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) output: OutputStreams,
    /// The control connection, while there is one.
    pub(crate) session: Option<ControlSession>,
    pub(crate) health: Health,
    pub(crate) tree: TreeExit,
    /// It is stopped or killed by its supervisor.
    pub(crate) is_being_stopped: bool,
    /// Its last event has been sent.
    pub(crate) is_over: bool,
}

impl Incarnation {
    pub(crate) fn new(key: Key, arrival: SpawnedProcess) -> Self {
        let SpawnedProcess {
            shared,
            process,
            spec,
            started,
            starts_before,
            messages,
            stdout,
            stderr,
            readiness_pipe,
            notify_socket,
            key: _,
        } = arrival;
        let streams = [
            messages.map(|pipe| Listener::new(StreamId::Messages, pipe, &spec)),
            stdout.map(|pipe| Listener::new(StreamId::Stdout, pipe, &spec)),
            stderr.map(|pipe| Listener::new(StreamId::Stderr, pipe, &spec)),
        ];
        let timeouts = Timeouts {
            drain_timeout: spec.drain_timeout,
            grace_periods: spec.stop.stages().iter().map(|stage| stage.grace_period).collect(),
            max_extension: MAX_STOP_EXTENSION,
            kill_timeout: KILL_TIMEOUT,
        };
        let open = streams.iter().flatten().map(|listener| listener.id);
        let health = Health {
            readiness_pipe: readiness_pipe.inspect(never_wait),
            notifications: Notifications { socket: notify_socket, ..Notifications::default() },
            searched: Some(0),
            ..Health::default()
        };
        Self {
            key,
            shared,
            process,
            started,
            lifecycle: Lifecycle::new(open, timeouts),
            output: OutputStreams::new(streams, spec.stderr_tail),
            session: None,
            health,
            tree: TreeExit { starts_before, ..TreeExit::default() },
            spec,
            is_being_stopped: false,
            is_over: false,
        }
    }

    /// Whether its last event has been sent: nothing may be sent of it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Has the kernel report this descriptor. One that it refuses for want of something is tried again by timer: what happens
    /// meanwhile is reported then, since epoll is level-triggered.
    pub(crate) fn register(&mut self, token: Token, cx: &mut Context<'_>) {
        let added = if let Token::Control(_) = token {
            // A connection that has ended is open for a while still.
            self.session.as_ref().and_then(|_| self.process.connection()?.register())
        } else {
            self.with_descriptor(token, |descriptor| cx.reactor.poller.add(&descriptor, token.as_u64()))
        };
        let Some(refusal) = cx.reactor.note_registration(token, added) else { return };
        let is_final = refusal.is_final;
        cx.sink.send(Event::warning(Warning::from(refusal)));
        if is_final && matches!(token, Token::Process(_) | Token::Stream(..)) {
            // Its end, or its output, would never be noticed.
            self.input(LifecycleInput::WatchFailed, cx);
        }
    }

    /// Does something with what a token of this incarnation stands for; `None` where that is gone.
    pub(crate) fn with_descriptor<T>(
        &self,
        token: Token,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match token {
            Token::Process(_) => return self.process.with_process(run),
            Token::Stream(..) if self.output.paused => return None,
            Token::Stream(_, stream) => self.listeners().find(|listener| listener.id == stream)?.as_fd(),
            Token::ReadinessPipe(_) => self.health.readiness_pipe.as_ref()?.as_fd(),
            Token::NotifySocket(_) => self.health.notifications.socket.as_ref()?.as_fd(),
            Token::Control(_) => self.session.as_ref()?.as_fd(),
            // The first is looked for again by `wait_for`; the others are not of incarnations.
            Token::Orphan(_)
            | Token::Waker
            | Token::Listener
            | Token::Handshake(_)
            | Token::Unkillable(_)
            | Token::Guard => return None,
        };
        Some(run(descriptor))
    }

    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event::of(&self.shared, self.process.number(), kind)
    }

    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.output.readers.iter().flatten()
    }

    /// The pipes that may be held by others, by their inodes.
    pub(crate) fn pipes(&self) -> Vec<(u64, &'static str)> {
        let open =
            self.output.readers.iter().flatten().filter_map(|one| Some((fd::inode(one.as_fd()).ok()?, one.id.name())));
        let mut pipes: Vec<_> = open.chain(self.output.abandoned.iter().copied()).collect();
        pipes.sort_unstable();
        pipes.dedup();
        pipes
    }

    pub(crate) fn close(&mut self, stream: StreamId) -> Option<Listener> {
        self.output.readers.get_mut(stream.index())?.take()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.output.paused || self.session.as_ref().is_some_and(ControlSession::is_paused)
    }

    pub(crate) fn levels(&self, sink: &EventSink) -> WindowState {
        sink.levels_of(&self.shared)
    }

    /// What it said last, before it was ready.
    pub(crate) fn take_last_words(&mut self) -> Box<str> {
        let words = self.output.recent.take();
        match &self.health.notifications.status {
            Some(status) if words.is_empty() => status.clone(),
            _ => printable(&words).lines().to_string().into(),
        }
    }

    pub(crate) fn exit(&mut self, reaped: Option<Reaped>, now: Instant) -> Exit {
        Exit {
            status: reaped.map_or(ExitStatus::Unknown, |reaped| exit_status(reaped.ending)),
            usage: reaped.and_then(|reaped| reaped.usage).map(usage),
            duration: now.saturating_duration_since(self.started),
            stderr_tail: self.output.stderr.take(),
            leaked_streams: std::mem::take(&mut self.output.leaked),
            oom_killed: self.process.tree().with_cgroup(WorkerCgroup::oom_killed).unwrap_or(false),
            survivors: std::mem::take(&mut self.tree.survivors),
            uninspected: self.tree.scan.uninspected,
        }
    }
}
