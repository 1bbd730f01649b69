//! The status of a supervisor and its workers.

use crate::ids::WorkerId;
use serde::{Serialize, Serializer};
use std::{fmt, time::Duration};

/// A snapshot of a [`Supervisor`](crate::supervisor::Supervisor), from [`status`](crate::supervisor::Supervisor::status). It serializes to
/// JSON with times in seconds.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct SupervisorStatus {
    /// All workers that run or may run again, ordered by id.
    pub workers: Vec<WorkerStatus>,
    /// The number of events in the channel.
    pub events_waiting: usize,
    /// The number of threads that start workers. Usually one; another one is added when a start takes longer than 50 ms, and stays as long
    /// as one of its workers runs, since the kernel signals a worker when the thread that started it ends.
    pub spawner_threads: usize,
    /// False if the event loop has not answered within 5 s, as in a process that is not scheduled: no worker is then listed.
    pub is_complete: bool,
}

/// One worker in a [`SupervisorStatus`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The id that names it in events.
    pub worker: WorkerId,
    /// The name from its spec, or the file name of its program.
    pub name: Box<str>,
    /// Its state.
    pub state: WorkerState,
    /// The number of the current or last incarnation, counted from 1.
    pub incarnation: u32,
    /// The process id, if a process runs.
    pub pid: Option<u32>,
    /// The time since the start of its process.
    #[serde(serialize_with = "seconds")]
    pub uptime: Option<Duration>,
    /// The number of restarts.
    pub restarts: u32,
    /// The bytes of its messages, lines and other events that are in the channel or held by the consumer.
    pub window_used: usize,
    /// See [`WorkerSpec::window`](crate::supervisor::spec::WorkerSpec::window).
    pub window: usize,
    /// Whether it is not read, since its window is full or its control messages are not received.
    pub is_paused: bool,
    /// The bytes of calls and notifications that are queued for it.
    pub control_queue: usize,
    /// The time since its last message.
    #[serde(serialize_with = "seconds")]
    pub last_message: Option<Duration>,
    /// Its last status by `sd_notify`.
    pub status: Option<Box<str>>,
    /// The processor time of its process, without descendants.
    #[serde(serialize_with = "seconds")]
    pub cpu: Option<Duration>,
    /// The memory of its process, in bytes.
    pub rss_bytes: Option<u64>,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerState {
    /// The process runs, and is not [ready](crate::supervisor::spec::WorkerSpec::ready) yet.
    Starting,
    /// The process runs and is ready.
    Running,
    /// The process is being stopped.
    Stopping,
    /// The worker waits for its restart after its backoff, for its dependencies, or for a slot of its queue.
    Waiting,
    /// A group member that has ended, and does not run unless its group starts it.
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
