//! Supervision of child processes on Linux: spawning, messages and output in one channel, calls, restarts, and the clean-up of every
//! descendant.
//!
//! ```
//! use pipewright::{EventKind, OutputMode, Supervisor, WorkerSpec};
//!
//! let supervisor = Supervisor::new()?;
//! supervisor.spawn(WorkerSpec::new("sh").args(["-c", "echo hello; exit 3"]).stdout(OutputMode::Lines))?;
//! supervisor.close(); // no more workers: the channel closes after the last event
//! for event in supervisor.events() {
//!     match event.kind {
//!         EventKind::Line { line, .. } => println!("{}: {}", event.worker, line.text()), // #1: hello
//!         EventKind::Exited { exit, .. } => println!("{}: {exit}", event.worker),        // #1: exit code 3
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The nouns
//!
//! * A [`WorkerSpec`] describes a child process: program, arguments, pipes, readiness, restarts, stop.
//! * The [`Supervisor`] spawns workers from specs. It runs one event loop and sends every [`Event`] of every worker to one crossbeam
//!   channel, [`Supervisor::events`].
//! * A [`Worker`] is the parent's handle: wait, stop, restart, signal, [call](Worker::call). An *incarnation* is one process of a
//!   worker; each restart begins the next one.
//! * A [`Message`] is one frame, by default one JSON line, that a worker writes to the pipe named on its command line. A [`Line`] is a line of its
//!   captured standard output or error; [`OutputBytes`] are what it wrote there, undivided.
//! * A [`Request`] or [`Notification`] arrives from a worker over its control connection, which carries JSON-RPC 2.0 both ways: as an
//!   event, or in a handler ([`Supervisor::serve`]).
//! * [`Parent`] is the worker's side of all this. Linking it is optional: any program that takes a file descriptor number can be a worker.
//! * A [`WorkerGroup`] starts workers in the order of their dependencies, stops them in reverse, and restarts them by a [`Strategy`], as in OTP.
//! * A [`Job`](pool::Job) is a worker whose start waits: for a slot of its queue, [`pool::Jobs`], and for other jobs.
//! * A [`Process`] is one child without a supervisor ([`WorkerSpec::spawn_unsupervised`]).
//!
//! [`pipe`] has anonymous and named pipes that are useful without a supervisor.
//!
//! # A build tool
//!
//! Four workers run at a time. Each reports progress through its message pipe. `{}` is replaced by the number of the file descriptor.
//!
//! ```no_run
//! use pipewright::{EventKind, Pass, Supervisor, WorkerSpec, pool::Jobs};
//!
//! let supervisor = Supervisor::new()?;
//! let jobs = Jobs::new(&supervisor, 4);
//! let compiler = WorkerSpec::new("./compile-worker").messages(Pass::arg("--messages={}"));
//! for file in ["a.c", "b.c"] {
//!     jobs.submit(compiler.clone().arg(file))?;
//! }
//! supervisor.close();
//! for event in supervisor.events() {
//!     if let EventKind::Message(message) = event.kind {
//!         println!("{}: {}", event.worker, message.as_str()?);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A test harness
//!
//! Each test is a worker with a time limit. A test that hangs is stopped together with its process group. A daemon that a test leaves
//! behind with the test's output open delays nothing, and is reported. Both outputs are one stream, in the order in which they were written.
//!
//! ```
//! use pipewright::{EventKind, OutputMode, Supervisor, SurvivorPolicy, WorkerSpec};
//! use std::{collections::HashMap, time::Duration};
//!
//! let supervisor = Supervisor::new()?;
//! for script in ["echo tested; exit 3", "echo begun >&2; exec sleep 1000"] {
//!     let test = WorkerSpec::new("sh").args(["-c", script]).runtime_max(Duration::from_secs(1));
//!     supervisor.spawn(test.stdout(OutputMode::Bytes).stderr(OutputMode::ToStdout).survivors(SurvivorPolicy::Report))?;
//! }
//! supervisor.close();
//! let (mut outputs, mut codes) = (HashMap::<_, Vec<u8>>::new(), Vec::new());
//! for event in supervisor.events() {
//!     match event.kind {
//!         EventKind::Output { bytes, .. } => outputs.entry(event.worker).or_default().extend(bytes.as_bytes()),
//!         EventKind::RuntimeExceeded { after } => eprintln!("{}: stopped after {after:.1?}", event.worker),
//!         EventKind::Exited { exit, .. } => {
//!             exit.survivors.iter().for_each(|survivor| eprintln!("{survivor}"));
//!             let output = outputs.remove(&event.worker).unwrap_or_default();
//!             codes.push((exit.code(), String::from_utf8_lossy(&output).into_owned()));
//!         }
//!         _ => {}
//!     }
//! }
//! codes.sort(); // the test that was stopped has no code
//! assert_eq!(codes, [(None, "begun\n".into()), (Some(3), "tested\n".into())]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! For one program, [`Process::wait_with_output`] has a timeout, too. With [`OutputMode::Pty`] a program that behaves differently without a
//! terminal has one.
//!
//! # A pool
//!
//! ```no_run
//! use pipewright::{Supervisor, WorkerSpec, pool::Pool};
//!
//! let supervisor = Supervisor::new()?;
//! let pool = Pool::<String, usize>::builder(&supervisor, WorkerSpec::new("./count-words")).workers(1..=8).retries(2).build()?;
//! for words in pool.map(["a.txt", "b.txt"].map(String::from)) {
//!     println!("{}", words?); // in this order; a task whose worker dies is sent to another one
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The worker's side is [`pool::worker`]; [`pool::init`] lets it be a function of the same program.
//!
//! # A plugin host
//!
//! ```no_run
//! use pipewright::{Pass, Supervisor, WorkerSpec};
//! use std::time::Duration;
//!
//! let supervisor = Supervisor::new()?;
//! let plugin = supervisor.spawn(WorkerSpec::new("./plugin").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
//! let formatted: String = plugin.call("format", &["fn main(){}"], Duration::from_secs(5))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A worker
//!
//! ```no_run
//! let parent = pipewright::Parent::from_args()?;
//! parent.send(&"started")?;
//! parent.serve(1, |request| match request.method() {
//!     "format" => Ok(request.params::<[String; 1]>()?.concat()), // wrong parameters are the caller's error
//!     other => Err(pipewright::RpcError::method_not_found(other)),
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Developing a plugin
//!
//! A worker that is started in a shell fails with a [`ParentError`] that says what the program is; print it. With
//! `PIPEWRIGHT_STANDALONE=1`, [`Parent`] uses standard input and output instead, so that the worker can be
//! [tried by hand](Parent#trying-a-worker-by-hand):
//!
//! ```text
//! $ PIPEWRIGHT_STANDALONE=1 ./plugin
//! "started"
//! {"jsonrpc":"2.0","id":1,"method":"format","params":["fn main(){}"]}     <- typed
//! {"jsonrpc":"2.0","id":1,"result":"fn main(){}"}
//! ```
//!
//! In the host, [`Supervisor::attach`] creates a worker whose process is started elsewhere, for example in a debugger, and connects with
//! the variable of the [`Attachment`]:
//!
//! ```no_run
//! use pipewright::{Pass, Supervisor, WorkerSpec};
//!
//! let supervisor = Supervisor::new()?;
//! let spec = WorkerSpec::new("./plugin").control(Pass::env("PIPEWRIGHT_CONTROL"));
//! let plugin = if std::env::var_os("DEBUG_PLUGIN").is_some() {
//!     let attachment = supervisor.attach(spec)?;
//!     eprintln!("start the plugin: {attachment} gdb ./plugin");
//!     attachment.into_worker()
//! } else {
//!     supervisor.spawn(spec)?
//! };
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What blocks
//!
//! * [`Supervisor::spawn`] blocks until the child has executed its program.
//! * [`Worker::call`], [`Worker::wait_timeout`] and all other waits take a timeout; only [`Worker::wait`] and [`WorkerGroup::wait`] do
//!   not.
//! * The event loop never blocks. A slow consumer delays only the workers whose [window](WorkerSpec::window) is used up: by default a
//!   worker is paused while 1 MiB of its messages is in the channel or held by the consumer. Dropping a message returns its bytes. A
//!   consumer that keeps its messages but has received all of them does not stall the worker.
//! * An answer to a call arrives behind the requests and notifications that the worker sent before it. The event loop reads up to
//!   [`control_window`](WorkerSpec::control_window) of them ahead of the consumer, by default 8 MiB. If that is full and no event was
//!   received for 100 ms, calls of this worker fail with [`CallError::EventsUnreceived`]. It is also the error at the timeout of a call
//!   of the thread that receives the events, if the worker calls back meanwhile or cannot go on writing messages. With a handler ([`Supervisor::serve`], [`Worker::serve`]) no call
//!   depends on the consumer of events.
//!
//! # What dropping does
//!
//! | dropped | effect |
//! |---|---|
//! | [`Supervisor`] | Stops all workers and everything they started, within its grace period (2 s, which cuts the default [stop policy](StopPolicy) short) and six more seconds. [`shutdown`](Supervisor::shutdown) does the same with a timeout and returns a report. |
//! | [`Worker`], [`WorkerGroup`], [`Jobs`](pool::Jobs), [`Job`](pool::Job) | Nothing. |
//! | [`Message`], [`Line`], [`OutputBytes`] | Returns its bytes to the worker's window. |
//! | [`Request`] | Answers with an error. |
//! | [`Task`](pool::Task), [`Pool`](pool::Pool) | Cancels the task; ends the tasks and stops the workers. |
//! | [`PendingCall`], [`CallSet`] | Cancels the call, or the open calls. |
//! | [`ServeGuard`] | Ends the handling of requests and notifications, and waits up to 5 s for handlers that run. |
//! | [`Process`] | Kills it. |
//! | [`Tunnel`](tunnel::Tunnel) | Ends its ssh. |
//!
//! If the supervisor's process is killed, its [guard] kills all workers and their descendants.
//!
//! # Features
//!
//! `async`, off by default, adds a stream of events and futures of calls, readiness and exits, for any runtime: see [in an async
//! program](docs::async_programs).
//!
//! `tracing`, off by default, reports to [tracing](https://docs.rs/tracing) under the target `pipewright`. Each incarnation is a span
//! `worker` with the fields `id`, `name`, `incarnation` and `pid`; each [event](EventKind) is a tracing event in that span, reported
//! just before it is sent. Durations are numbers: `after_ms`, `duration_ms`.
//!
//! | level | events |
//! |---|---|
//! | `ERROR` | giving up, an [unkillable](ExitStatus::Unkillable) process |
//! | `WARN` | failures, and exits other than a success or a requested stop |
//! | `INFO` | starts, readiness, restarts, expected exits |
//! | `DEBUG` | steps of a [stop policy](StopPolicy); completed calls with `method`, `outcome` and `took_us`, in the caller's span |
//! | `TRACE` | messages, lines, requests: their length or method only |
//!
//! The content of messages and output, parameters, results, arguments and environments are never reported, since they may contain
//! secrets.
//!
//! The subscriber runs on the event loop's thread, so only the global subscriber receives these events, and a slow one delays all
//! workers. A panic in it goes to the panic hook and is caught. It may use a [`Worker`] handle, but must not block on the
//! supervisor: not on a call, an exit, a [status](Supervisor::status) or the consumer of the events.
//!
//! # Documents
//!
//! [architecture](docs::architecture), [in an async program](docs::async_programs), [gotchas](docs::gotchas), [protocol](docs::protocol).

#[cfg(not(target_os = "linux"))]
compile_error!("pipewright runs on Linux only: it needs pidfd, epoll and clone(2)");

// In dependency order: a module imports only modules above it. `tests/it/house.rs` has the exact table.
#[cfg(target_os = "linux")]
#[macro_use] // `impl_debug`
mod text; // escapes text of other processes

#[cfg(target_os = "linux")]
mod ids; // worker and group ids

#[cfg(target_os = "linux")]
mod deadline; // points in time; pure

#[cfg(target_os = "linux")]
mod exit; // how a process ended

#[cfg(target_os = "linux")]
mod sys; // system calls, one kernel facility per file; the only unsafe code

#[cfg(target_os = "linux")]
mod wire; // framing, JSON-RPC, sd_notify; no I/O

#[cfg(target_os = "linux")]
mod policy; // state machines: facts and the current time in, actions out; no I/O

#[cfg(target_os = "linux")]
pub mod pipe; // anonymous and named pipes

#[cfg(target_os = "linux")]
mod parent; // the worker's side; does not link the supervisor

#[cfg(target_os = "linux")]
pub mod jobserver; // tokens shared with make, cargo and ninja

#[cfg(target_os = "linux")]
mod launch; // starts one process

#[cfg(target_os = "linux")]
pub mod guard; // kills all trees when the supervisor's process is killed

#[cfg(target_os = "linux")]
mod supervisor; // the parent's side

#[cfg(target_os = "linux")]
pub mod pool; // pools of workers, job queues, and what shares the slots of a budget

#[cfg(target_os = "linux")]
pub use exit::{Exit, ExitCause, ExitStatus};
#[cfg(target_os = "linux")]
pub use ids::{GroupId, WorkerId};
#[cfg(target_os = "linux")]
pub use launch::{
    error::{PatternError, SpawnError, SpawnStep, SpecError},
    output::{OutputError, ProcessOutput},
    pass::Pass,
    process::Process,
    stdio::{OutputMode, ProcessGroup, StdinMode, TerminalSize},
};
#[cfg(target_os = "linux")]
pub use parent::{BufferedSender, Parent, ParentError, ParentMessage, SendError};
#[cfg(target_os = "linux")]
pub use policy::{
    group::model::{AutoShutdown, DependencyCondition, Strategy},
    readiness_call::ReadinessAnswer,
    restart::{Backoff, ExitMatch, Restart, RestartIntensity, RestartPolicy},
    stop::{StopPolicy, StopStep},
    survivors::SurvivorPolicy,
    watchdog::Watchdog,
};
#[cfg(target_os = "linux")]
#[cfg(feature = "async")]
pub use supervisor::handles::{event_stream::EventStream, futures::CallFuture};
#[cfg(target_os = "linux")]
pub use supervisor::{
    Supervisor, SupervisorBuilder,
    control::call::{CallCanceller, PendingCall},
    events::event::{Event, EventKind},
    handles::{
        attachment::Attachment,
        batch::WorkerBatch,
        call_set::{CallSet, FinishedCall},
        group::WorkerGroup,
        serve::ServeGuard,
        signals::SignalGuard,
        stop::{RestartHandle, StopHandle, StopReport, StoppedWorker},
        worker::Worker,
    },
    spec::{
        WorkerSpec,
        group::{GroupError, GroupPolicy},
        readiness::Readiness,
    },
    worker::wait_error::WaitError,
};
#[cfg(target_os = "linux")]
pub use text::{Printable, printable};
#[cfg(target_os = "linux")]
pub use wire::{
    decode::DecodeError,
    framing::Framing,
    jsonrpc::{
        error::{CallError, RpcError},
        request::{Notification, Request},
        stdio_protocol::StdioProtocol,
    },
    message::{Line, Message, OutputBytes},
};

/// What events carry: reasons, errors, warnings and the parts of an [`Exit`].
#[cfg(target_os = "linux")]
pub mod events {
    pub use crate::{
        exit::{LeakedStream, Survivor, Usage},
        policy::{
            readiness::{ReadinessError, ReadinessSource},
            restart::{AfterExit, GiveUpReason},
        },
        supervisor::{
            control::hello::HandshakeError,
            events::{
                event::{DisconnectReason, InvalidFrame, OutputStream},
                notification_failure::NotificationFailure,
                warning::Warning,
            },
        },
        wire::framing::{
            error::{FrameError, FrameErrorKind},
            line_ending::LineEnding,
        },
    };
}

/// Resource limits and priorities of workers, for [`WorkerSpec`].
#[cfg(target_os = "linux")]
pub mod limits {
    pub use crate::launch::limits::{CgroupLimit, IoPriority, ResourceLimit};
}

/// Snapshots of supervisors, workers and groups, and how strongly descendants are contained.
#[cfg(target_os = "linux")]
pub mod status {
    pub use crate::supervisor::{
        containment::report::{Containment, ContainmentKind, KernelFeature, MissingFeature},
        worker::{
            group::{GroupEndReason, GroupState, GroupStatus},
            status::{SupervisorStatus, WorkerState, WorkerStatus},
        },
    };
}

/// Named pipes of another machine, through ssh.
#[cfg(target_os = "linux")]
pub mod tunnel {
    pub use crate::launch::tunnel::{Tunnel, TunnelBuilder, error::TunnelError};
}

/// Longer documents.
pub mod docs {
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    #[cfg_attr(feature = "async", doc = include_str!("../docs/async.md"))]
    #[cfg_attr(
        not(feature = "async"),
        doc = "Events, calls and exits as streams and futures, with the feature `async`."
    )]
    pub mod async_programs {}
    #[doc = include_str!("../docs/gotchas.md")]
    pub mod gotchas {}
    #[doc = include_str!("../docs/protocol.md")]
    pub mod protocol {}
}

/// Compiles the programs of the README with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
