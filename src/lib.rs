//! Supervisor of worker processes: pipes, messages, calls.
//!
//! A parent starts [workers](Worker) from [specs](WorkerSpec) and hears everything they say, and all that happens to them, as
//! [events](Event) in one crossbeam channel. A worker sends [messages](Message) through a pipe whose number stands on its command
//! line, and can be [called](Worker::call) over a named pipe.
//!
//! # A build tool
//!
//! ```no_run
//! use pipewright::{EventKind, Pass, Supervisor, WorkerSpec};
//!
//! let supervisor = Supervisor::new()?;
//! let compiler = WorkerSpec::new("./compile-worker").messages(Pass::arg("--messages={}"));
//! for file in ["a.c", "b.c"] {
//!     supervisor.spawn(compiler.clone().arg(file))?;
//! }
//! supervisor.close(); // no more workers: the events end with the last one
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
//! Each test is a worker with a time limit: one that hangs is ended with its process group, and one that leaves a daemon behind that
//! holds its output delays nothing, and is reported.
//!
//! ```
//! use pipewright::{EventKind, OutputMode, Supervisor, SurvivorPolicy, WorkerSpec};
//! use std::time::Duration;
//!
//! let supervisor = Supervisor::new()?;
//! let test = WorkerSpec::new("sh").args(["-c", "echo tested; exit 3"]).runtime_max(Duration::from_secs(10));
//! supervisor.spawn(test.stdout(OutputMode::Lines).stderr(OutputMode::Lines).survivors(SurvivorPolicy::Report))?;
//! supervisor.close(); // no more workers: the events end with the last one
//! let (mut text, mut code) = (String::new(), None);
//! for event in supervisor.events() {
//!     match event.kind {
//!         EventKind::Line { line, .. } => text.push_str(&line.text()),
//!         EventKind::Exited(exit) => {
//!             exit.survivors.iter().for_each(|survivor| eprintln!("{survivor}"));
//!             code = exit.code();
//!         }
//!         _ => {}
//!     }
//! }
//! assert_eq!((text.as_str(), code), ("tested", Some(3)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One process without a supervisor is [`WorkerSpec::spawn_unsupervised`]: you read its pipes, with deadlines, and wait for it.
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
//! # In a worker
//!
//! ```no_run
//! let parent = pipewright::Parent::from_args()?;
//! parent.send(&"started")?;
//! parent.serve(1, |request| match request.method() {
//!     "format" => Ok(request.params::<[String; 1]>()?.concat()), // what is no string is the caller's error
//!     other => Err(pipewright::RpcError::method_not_found(other)),
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What blocks, and what waits
//!
//! [`Supervisor::spawn`] returns when the program runs. Receiving an event, [`Worker::wait`] and [`Worker::call`] wait as long as
//! you say. A worker waits when its [window](WorkerSpec::window) is used up: 1 MiB of its messages are in the channel or in your
//! hands. Dropping messages gives their bytes back. Whoever keeps what it received, but has received everything, is not stalled.
//!
//! # What dropping does
//!
//! Dropping a [`Worker`] changes nothing. Dropping the [`Supervisor`] ends all workers with all they have started, within its grace
//! period (2 s, which cuts the default stop ladder short) and five seconds; [`shutdown`](Supervisor::shutdown) does so too, and
//! tells how. When its process is killed, so are they.
//! Dropping a [`Process`] kills it, and dropping a [`Tunnel`] ends its ssh. Dropping a [`Request`] answers it with an error, and a
//! [`PendingCall`] cancels it.
//!
//! # Features
//!
//! `tracing`, off by default, tells [tracing](https://docs.rs/tracing) what happens, all of it under the target `pipewright`. Each
//! incarnation is a span `worker` with the fields `id`, `name`, `incarnation` and `pid`, and each [event](EventKind) of it is one in
//! that span, told just before it is sent. What fails is a warning, giving up an error, starts, readiness and restarts are
//! information; an exit is a warning unless it succeeded or the worker was being stopped, and an error where the worker is
//! [unkillable](ExitStatus::Unkillable). The rungs of a stop ladder are at `DEBUG`, and so is each call when it has ended: its `method`, its
//! `outcome`, and how long it `took_us`, in the span of its caller. Times are numbers: `after_ms`, `duration_ms`.
//!
//! What a worker says is told at `TRACE` alone, and by its length: it may hold secrets, and so may what it is asked and answers, its
//! arguments and its environment. Of control the names of the methods are told.
//!
//! Subscribers run on the supervisor's loop, where only the global one is heard: a slow one delays all workers. A panic of it is
//! told by the panic hook and goes no further: workers are looked after, and the next thing is told, as if nothing had been. It may
//! use a [`Worker`] that it holds, but must not wait there: not for an answer, an end or a [status](Supervisor::status), and not
//! for whoever receives the events.
//!
//! The documents: [architecture](docs::architecture), [gotchas](docs::gotchas) and
//! [protocol](docs::protocol).

#[cfg(not(target_os = "linux"))]
compile_error!("pipewright runs on Linux only: it needs pidfd, epoll and clone(2)");

// The floors, bottom to top: a module imports only from those that stand above it in this list.
#[cfg(target_os = "linux")]
#[macro_use] // `shown_as`
mod text; // foreign text made safe to show

#[cfg(target_os = "linux")]
mod ids; // the numbers of workers and groups

#[cfg(target_os = "linux")]
mod exit; // how a process ended: facts that every floor speaks of

#[cfg(target_os = "linux")]
mod sys; // the kernel, one facility a file; the only unsafe

#[cfg(target_os = "linux")]
mod wire; // bytes to values and back; pure

#[cfg(target_os = "linux")]
mod policy; // decisions: facts and the time in, actions out; pure

#[cfg(target_os = "linux")]
pub mod pipe; // the two kinds of pipes; useful alone

#[cfg(target_os = "linux")]
mod parent; // the worker's side; links nothing of what stands below

#[cfg(target_os = "linux")]
mod launch; // a recipe becomes a process

#[cfg(target_os = "linux")]
pub mod guard; // the process that ends all trees when the host is killed

#[cfg(target_os = "linux")]
mod supervisor; // the parent's side

#[cfg(target_os = "linux")]
pub use exit::{Exit, ExitStatus, LeakedStream, Survivor, Usage};
#[cfg(target_os = "linux")]
pub use ids::{GroupId, WorkerId};
#[cfg(target_os = "linux")]
pub use launch::{
    error::{SpawnError, SpawnStep, SpecError},
    limits::{CgroupLimit, IoPriority, ResourceLimit},
    pass::Pass,
    process::Process,
    stdio::{OutputMode, ProcessGroup, StdinMode},
    tunnel::{Tunnel, TunnelBuilder, error::TunnelError},
};
#[cfg(target_os = "linux")]
pub use parent::{BufferedSender, Parent, ParentError, ParentMessage, SendError};
#[cfg(target_os = "linux")]
pub use policy::{
    group::model::{AutoShutdown, DependencyCondition, Strategy},
    restart::{Backoff, ExitMatch, GiveUpReason, Restart, RestartIntensity, RestartPolicy},
    stop::{StopPolicy, StopStep},
    survivors::SurvivorPolicy,
    watchdog::Watchdog,
};
#[cfg(target_os = "linux")]
pub use supervisor::{
    Supervisor, SupervisorBuilder,
    containment::report::{Containment, ContainmentKind, KernelFeature, MissingFeature},
    control::{
        call::{CallCanceller, PendingCall},
        hello::HandshakeError,
    },
    events::{
        event::{DisconnectReason, Event, EventKind, InvalidFrame, OutputStream, ReadinessError},
        warning::Warning,
    },
    handles::{
        batch::WorkerBatch,
        group::WorkerGroup,
        signals::SignalGuard,
        stop::{RestartHandle, StopHandle, StopReport, StoppedWorker},
        worker::Worker,
    },
    spec::{
        WorkerSpec,
        group::{GroupError, GroupPolicy},
        readiness::Readiness,
    },
    worker::{
        group::{GroupEndReason, GroupState, GroupStatus},
        status::{SupervisorStatus, WorkerState, WorkerStatus},
    },
};
#[cfg(target_os = "linux")]
pub use text::{Printable, printable};
#[cfg(target_os = "linux")]
pub use wire::{
    decode::DecodeError,
    framing::{
        Framing,
        error::{FrameError, FrameErrorKind},
        line_ending::LineEnding,
    },
    jsonrpc::{
        error::{CallError, RpcError},
        request::{Notification, Request},
    },
    message::{Line, Message},
};

/// Documents that are longer than a page of a type.
pub mod docs {
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../docs/gotchas.md")]
    pub mod gotchas {}
    #[doc = include_str!("../docs/protocol.md")]
    pub mod protocol {}
}

/// The programs of the README are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
