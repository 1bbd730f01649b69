//! One running incarnation of a worker: its streams, control connection, health and process tree.

pub(crate) mod context;
pub(crate) mod control;
pub(crate) mod delivery;
pub(crate) mod handshake;
pub(crate) mod health;
pub(crate) mod health_checks;
pub(crate) mod message_probe;
pub(crate) mod output;
pub(crate) mod probe;
pub(crate) mod session;
pub(crate) mod sockets;
pub(crate) mod stop_steps;
pub(crate) mod streams;
pub(crate) mod transitions;
pub(crate) mod tree;
pub(crate) mod tree_exit;

use crate::{
    exit::{Exit, ExitCause, ExitStatus},
    launch::child::{exit_status, usage},
    policy::{
        backpressure::WindowState,
        lifecycle::{Lifecycle, LifecycleInput, StreamId, Timeouts},
    },
    supervisor::{
        commands::SpawnedProcess,
        containment::{cgroup_pool::WorkerCgroup, teardown::KILL_TIMEOUT},
        control::internal_call::InternalCall,
        events::{
            event::{Event, EventKind},
            sink::EventSink,
            warning::Warning,
        },
        incarnation::{
            context::IncarnationContext,
            health::{Health, Notifications},
            output::{OutputReader, OutputSource, OutputStreams, set_nonblocking},
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

/// The most time by which a worker can extend its stop.
const MAX_STOP_EXTENSION: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Incarnation {
    /// The key in the arena of the event loop.
    pub(crate) key: Key,
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) process: Arc<WorkerProcess>,
    pub(crate) spec: SharedSpec,
    pub(crate) started: Instant,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) output: OutputStreams,
    /// The control connection, while it is open.
    pub(crate) session: Option<ControlSession>,
    pub(crate) health: Health,
    pub(crate) tree: TreeExit,
    /// The open call of the current stage of its stop policy.
    pub(crate) stop_call: Option<InternalCall>,
    /// The supervisor has begun to stop or kill it.
    pub(crate) is_being_stopped: bool,
    /// Why, if the process had not exited before.
    pub(crate) stop_cause: Option<ExitCause>,
    /// The last event has been sent: no other may follow.
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
            client: _,
            sockets: _,
        } = arrival;
        let streams = [
            messages.map(|pipe| OutputReader::new(StreamId::Messages, OutputSource::Pipe(pipe), &spec)),
            stdout.map(|pipe| OutputReader::new(StreamId::Stdout, OutputSource::of(pipe, &spec.plan.stdout), &spec)),
            stderr.map(|pipe| OutputReader::new(StreamId::Stderr, OutputSource::of(pipe, &spec.plan.stderr), &spec)),
        ];
        let timeouts = Timeouts {
            drain_timeout: spec.drain_timeout,
            grace_periods: spec.stop.stages().iter().map(|stage| stage.grace_period).collect(),
            max_extension: MAX_STOP_EXTENSION,
            kill_timeout: KILL_TIMEOUT,
        };
        let open = streams.iter().flatten().map(|reader| reader.id);
        let health = Health {
            readiness_pipe: readiness_pipe.inspect(set_nonblocking),
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
            stop_call: None,
            is_being_stopped: false,
            stop_cause: None,
            is_over: false,
        }
    }

    /// Whether the last event has been sent.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Registers a file descriptor with epoll. A registration that is refused because of a shortage is retried by timer; epoll is
    /// level-triggered, so no event is lost meanwhile.
    pub(crate) fn register(&mut self, token: Token, cx: &mut IncarnationContext<'_>) {
        let added = if let Token::Control(_) = token {
            // A connection that the peer has closed stays open for a grace time.
            self.session.as_ref().and_then(|_| self.process.connection()?.register())
        } else {
            self.with_descriptor(token, |descriptor| cx.reactor.poller.add(&descriptor, token.as_u64()))
        };
        let Some(refusal) = cx.reactor.note_registration(token, added) else { return };
        let is_final = refusal.is_final;
        cx.sink.send(Event::warning(Warning::from(refusal)));
        if is_final && matches!(token, Token::Process(_) | Token::Stream(..)) {
            // Its exit or its output would never be noticed.
            self.note_stop(ExitCause::Kill);
            self.input(LifecycleInput::WatchFailed, cx);
        }
    }

    /// Calls `run` with the file descriptor of a token of this incarnation; `None` if it no longer exists.
    pub(crate) fn with_descriptor<T>(
        &self,
        token: Token,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match token {
            Token::Process(_) => return self.process.with_process(run),
            Token::Stream(..) if self.output.paused => return None,
            Token::Stream(_, stream) => self.readers().find(|reader| reader.id == stream)?.as_fd(),
            Token::ReadinessPipe(_) => self.health.readiness_pipe.as_ref()?.as_fd(),
            Token::NotifySocket(_) => self.health.notifications.socket.as_ref()?.as_fd(),
            Token::Control(_) => self.session.as_ref()?.as_fd(),
            // Standard input is registered together with `Control`; orphans are found again by `wait_for_exits`; the others do not belong to incarnations.
            Token::ControlInput(_)
            | Token::Orphan(_)
            | Token::Waker
            | Token::Listener
            | Token::Handshake(_)
            | Token::Unkillable(_)
            | Token::Jobserver
            | Token::Guard => return None,
        };
        Some(run(descriptor))
    }

    pub(crate) fn event(&self, kind: EventKind) -> Event {
        Event::of(&self.shared, self.process.number(), kind)
    }

    pub(crate) fn readers(&self) -> impl Iterator<Item = &OutputReader> {
        self.output.readers.iter().flatten()
    }

    /// Returns the pipes that descendants may hold, by inode.
    pub(crate) fn pipes(&self) -> Vec<(u64, &'static str)> {
        let pipes = self.readers().filter(|reader| !matches!(reader.source, OutputSource::Terminal(_)));
        let open = pipes.filter_map(|reader| Some((fd::inode(reader.as_fd()).ok()?, reader.id.name())));
        let mut pipes: Vec<_> = open.chain(self.output.abandoned.iter().copied()).collect();
        pipes.sort_unstable();
        pipes.dedup();
        pipes
    }

    pub(crate) fn close(&mut self, stream: StreamId) -> Option<OutputReader> {
        self.output.readers.get_mut(stream.index())?.take()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.output.paused || self.session.as_ref().is_some_and(ControlSession::is_paused)
    }

    pub(crate) fn levels(&self, sink: &EventSink) -> WindowState {
        sink.levels_of(&self.shared)
    }

    /// Takes the output that was read before the worker was ready, or the last status text.
    pub(crate) fn take_recent_output(&mut self) -> Box<str> {
        let words = self.output.recent.take();
        match &self.health.notifications.status {
            Some(status) if words.is_empty() => status.clone(),
            _ => printable(&words).lines().to_string().into(),
        }
    }

    /// Records why the process is stopped, unless it is being stopped already or has exited.
    pub(crate) fn note_stop(&mut self, cause: ExitCause) {
        if self.stop_cause.is_none() && self.lifecycle.is_running() && self.process.child().is_running() {
            self.stop_cause = Some(cause);
        }
    }

    fn cause_of(&self, status: ExitStatus) -> ExitCause {
        let is_signal = |number| matches!(status, ExitStatus::Signal { signal, .. } if signal == number);
        match self.stop_cause {
            Some(cause) => cause,
            None if self.process.is_killed() && is_signal(libc::SIGKILL) => ExitCause::Kill,
            None if self.health.abort_signal.is_some_and(is_signal) => ExitCause::Watchdog,
            None => ExitCause::Itself,
        }
    }

    pub(crate) fn exit(&mut self, reaped: Option<Reaped>, now: Instant) -> Exit {
        let status = reaped.map_or(ExitStatus::Unknown, |reaped| exit_status(reaped.ending));
        let cause = self.cause_of(status);
        Exit {
            status,
            cause,
            not_ready: self.health.not_ready.take().filter(|_| cause == ExitCause::Readiness),
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
