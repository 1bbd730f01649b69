//! What a supervisor looks like at one moment.

use crate::ids::WorkerId;
use serde::{Serialize, Serializer};
use std::{fmt, time::Duration};

/// A snapshot of a [`Supervisor`](crate::supervisor::Supervisor): from [`status`](crate::supervisor::Supervisor::status), and good for printing as JSON.
/// Times are in seconds there.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct SupervisorStatus {
    /// Every worker that lives or will live again, in the order of their ids.
    pub workers: Vec<WorkerStatus>,
    /// How many events wait in the channel.
    pub events_waiting: usize,
    /// How many threads start workers. Usually one; another one begins when a start takes longer than 50 ms, and stays as long as one
    /// of its workers lives, since the kernel signals a worker when the thread that started it ends.
    pub spawner_threads: usize,
    /// False where the event loop has not answered within 5 s, as in a process that is not run: then no worker is listed.
    pub is_complete: bool,
}

/// One worker in a [`SupervisorStatus`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its name in events.
    pub worker: WorkerId,
    /// What people call it.
    pub name: Box<str>,
    /// What it is doing.
    pub state: WorkerState,
    /// Which of its processes, counted from 1: the present one or the last.
    pub incarnation: u32,
    /// Of its process, where it has one.
    pub pid: Option<u32>,
    /// How long its process runs.
    #[serde(serialize_with = "seconds")]
    pub uptime: Option<Duration>,
    /// How many times it was started again.
    pub restarts: u32,
    /// How many bytes of its messages, lines and other events are in the channel or in your hands, and how many may be.
    pub window_used: usize,
    /// See [`WorkerSpec::window`](crate::supervisor::spec::WorkerSpec::window).
    pub window: usize,
    /// It is made to wait, since its window is used up, or what it says on control is not received.
    pub is_paused: bool,
    /// How many bytes of calls and notifications wait for it to read.
    pub control_queue: usize,
    /// How long ago it sent a message.
    #[serde(serialize_with = "seconds")]
    pub last_message: Option<Duration>,
    /// What it has told last of what it is doing, by `sd_notify`.
    pub status: Option<Box<str>>,
    /// The processor time of its process, without what it has started.
    #[serde(serialize_with = "seconds")]
    pub cpu: Option<Duration>,
    /// The memory of its process, in bytes.
    pub rss_bytes: Option<u64>,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerState {
    /// It runs, and is not [ready](crate::supervisor::spec::WorkerSpec::ready) yet.
    Starting,
    /// It runs, and is ready.
    Running,
    /// It runs and shall end.
    Stopping,
    /// It has ended, and is started again after its backoff; or it waits for what its group starts before it.
    Waiting,
    /// A member of a group that does not run, and will not unless its group wants it.
    Ended,
}

impl fmt::Display for WorkerState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
        })
    }
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}
