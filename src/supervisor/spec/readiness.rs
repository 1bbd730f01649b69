//! What makes a worker ready for work.

use crate::{
    launch::{error::SpecError, pass::Pass},
    policy::readiness::ReadinessSource,
    supervisor::panics::catch,
    wire::message::{Line, Message},
};
use regex_lite::Regex;
use std::{
    fmt,
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// How long a worker has to become ready, by default.
const READINESS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of a line is matched: matching takes the loop's time, some 100 ns a byte.
const LINE_BYTES: usize = 4 << 10;
/// How much is read at once of a worker whose output is looked through.
pub(crate) const SEARCHED_BYTES: usize = 16 << 10;
/// After so much a line or a message that makes a worker ready is not looked for any more; see `weight`.
pub(crate) const SEARCH_BYTES_MAX: usize = 16 << 20;
/// The pipe on which readiness is told by a newline.
pub(crate) const BELL: &str = "readiness";

/// When a worker counts as ready, for [`WorkerSpec::ready`](crate::WorkerSpec::ready). It is told as
/// [`EventKind::Ready`](crate::EventKind::Ready). One that is not ready [in time](Self::timeout) is stopped, and started again where
/// its restart policy says so.
///
/// ```
/// use pipewright::{Readiness, WorkerSpec};
/// use std::time::Duration;
///
/// WorkerSpec::new("redis-server").args(["--supervised", "systemd"]).ready(Readiness::sd_notify());
/// WorkerSpec::new("web").ready(Readiness::log_line("listening on port [0-9]+").timeout(Duration::from_secs(5)));
/// WorkerSpec::new("postgres").ready(Readiness::connect_tcp("127.0.0.1:5432"));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Readiness {
    pub(crate) wanted: Wanted,
    pub(crate) timeout: Duration,
}

/// Whether a message makes a worker ready, by the host's own code.
pub(crate) type IsIt = Arc<dyn Fn(&Message) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Wanted {
    Started,
    Control,
    Message(IsIt),
    Line(Box<str>, Option<Regex>),
    Newline(Pass),
    Notify,
    Probe(Probe),
}

/// What is tried again and again.
#[derive(Clone)]
pub(crate) enum Probe {
    Tcp(Box<str>),
    Unix(PathBuf),
    Check(Arc<dyn Fn() -> bool + Send + Sync>),
}

impl Readiness {
    fn new(wanted: Wanted) -> Self {
        Self { wanted, timeout: READINESS_TIMEOUT }
    }

    /// As soon as its program runs.
    pub fn started() -> Self {
        Self::new(Wanted::Started)
    }

    /// When it has connected to its control pipe.
    pub fn control() -> Self {
        Self::new(Wanted::Control)
    }

    /// When it sends a message that `is_it` accepts. `is_it` is called with one message after the other, on a thread of its own: one
    /// that blocks keeps its own worker from becoming ready, and delays no other. The messages themselves are delivered meanwhile.
    /// After the worker's end the calls that are due are waited for up to its [`drain_timeout`](crate::WorkerSpec::drain_timeout). A panic
    /// counts as `false`, and is reported by the panic hook alone.
    ///
    /// Only the first 16 MiB are looked at (each message counts 16 bytes more than it has); then the worker is not ready for good
    /// ([`ReadinessError::OutputLimit`](crate::events::ReadinessError::OutputLimit)).
    pub fn message(is_it: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Self {
        Self::new(Wanted::Message(Arc::new(is_it)))
    }

    /// When a line of its captured standard output or error matches a regular expression, in the syntax of the crate
    /// [`regex-lite`](https://docs.rs/regex-lite). Only the first 4 KiB of a line are looked at, and only the first 16 MiB of the
    /// output (each line counts 16 bytes more than it has); then the worker is not ready for good
    /// ([`ReadinessError::OutputLimit`](crate::events::ReadinessError::OutputLimit)).
    #[doc(alias = "ready_log_line")]
    pub fn log_line(pattern: &str) -> Self {
        Self::new(Wanted::Line(pattern.into(), Regex::new(pattern).ok()))
    }

    /// When it writes a newline to a descriptor that it gets for this, as programs for s6 do. Closing it before is no readiness.
    #[doc(alias = "notification-fd")]
    pub fn notify_fd(pass: Pass) -> Self {
        Self::new(Wanted::Newline(pass))
    }

    /// When it tells so by `sd_notify`: it finds the socket in `NOTIFY_SOCKET`, as an absolute path. Processes of its tree are
    /// heard, whichever user they run as, and those of our user and of root; anything else is refused with a
    /// [`Warning`](crate::events::Warning::NotificationRejected). A worker of another user than ours reaches the socket where we are root, or
    /// where [`peer_user`](crate::WorkerSpec::peer_user) says so.
    #[doc(alias = "NOTIFY_SOCKET")]
    pub fn sd_notify() -> Self {
        Self::new(Wanted::Notify)
    }

    /// When somebody accepts connections at this TCP address: `host:port`.
    pub fn connect_tcp(address: impl Into<Box<str>>) -> Self {
        Self::new(Wanted::Probe(Probe::Tcp(address.into())))
    }

    /// When somebody accepts connections at this socket file.
    pub fn connect_unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Wanted::Probe(Probe::Unix(path.into())))
    }

    /// When this says so. It is called on a thread of its own, again and again, with pauses of 10 ms at first and 500 ms at last. A
    /// panic in it is a no, and is told by the panic hook alone.
    pub fn check(is_ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self::new(Wanted::Probe(Probe::Check(Arc::new(is_ready))))
    }

    /// How long it has, from its start; by default 30 s.
    #[doc(alias = "TimeoutStartSec")]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn source(&self) -> ReadinessSource {
        match &self.wanted {
            Wanted::Started => ReadinessSource::Started,
            Wanted::Control => ReadinessSource::Control,
            Wanted::Message(_) => ReadinessSource::Message,
            Wanted::Line(..) => ReadinessSource::LogLine,
            Wanted::Newline(_) => ReadinessSource::NotifyFd,
            Wanted::Notify => ReadinessSource::SdNotify,
            Wanted::Probe(Probe::Tcp(_) | Probe::Unix(_)) => ReadinessSource::Connect,
            Wanted::Probe(Probe::Check(_)) => ReadinessSource::Check,
        }
    }

    pub(crate) fn probe(&self) -> Option<&Probe> {
        match &self.wanted {
            Wanted::Probe(probe) => Some(probe),
            _ => None,
        }
    }

    /// Whether the host's own code is in it.
    pub(crate) fn holds_closure(&self) -> bool {
        matches!(self.wanted, Wanted::Message(_) | Wanted::Probe(Probe::Check(_)))
    }

    pub(crate) fn is_by_control(&self) -> bool {
        matches!(self.wanted, Wanted::Control)
    }

    pub(crate) fn is_by_notice(&self) -> bool {
        matches!(self.wanted, Wanted::Notify)
    }

    /// Whether what it writes is looked through.
    pub(crate) fn is_by_output(&self) -> bool {
        matches!(self.wanted, Wanted::Line(..) | Wanted::Message(_))
    }

    /// What is asked of each message.
    pub(crate) fn is_it(&self) -> Option<&IsIt> {
        match &self.wanted {
            Wanted::Message(is_it) => Some(is_it),
            _ => None,
        }
    }

    pub(crate) fn is_line(&self, line: &Line) -> bool {
        match &self.wanted {
            Wanted::Line(_, Some(pattern)) => {
                let bytes = line.as_bytes();
                pattern.is_match(&String::from_utf8_lossy(bytes.get(..LINE_BYTES).unwrap_or(bytes)))
            }
            _ => false,
        }
    }

    pub(crate) fn check_spec(&self) -> Result<(), SpecError> {
        if self.timeout.is_zero() {
            return refuse("timeout", "it has no time at all to become ready");
        }
        match &self.wanted {
            Wanted::Line(pattern, None) => Err(SpecError::InvalidPattern { pattern: pattern.clone() }),
            Wanted::Probe(Probe::Tcp(address)) if !is_host_and_port(address) => {
                refuse("connect_tcp", format!("{address:?} is not `host:port`"))
            }
            _ => Ok(()),
        }
    }
}

/// What a line or a message of so many bytes counts of [`SEARCH_BYTES_MAX`]: empty lines cost time too, and a message that waits for
/// its verdict costs memory.
pub(crate) const fn weight(length: usize) -> usize {
    length.saturating_add(size_of::<Message>())
}

fn refuse(setting: &'static str, reason: impl Into<Box<str>>) -> Result<(), SpecError> {
    Err(SpecError::Conflict { settings: ["ready", setting], reason: reason.into() })
}

/// Whether the name can be found is for later.
fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

impl Probe {
    pub(crate) fn try_once(&self) -> bool {
        match self {
            Self::Tcp(address) => address.to_socket_addrs().is_ok_and(|mut addresses| {
                addresses.any(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok())
            }),
            // A local socket answers at once, or has no room for another.
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Check(is_ready) => catch(|| is_ready()).unwrap_or(false),
        }
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => formatter.write_str("started"),
            Self::Control => formatter.write_str("control"),
            Self::Message(_) => formatter.write_str("a message"),
            Self::Line(pattern, _) => write!(formatter, "a line like {pattern:?}"),
            Self::Newline(pass) => write!(formatter, "a newline on {pass:?}"),
            Self::Notify => formatter.write_str("sd_notify"),
            Self::Probe(Probe::Tcp(address)) => write!(formatter, "connections at {address}"),
            Self::Probe(Probe::Unix(path)) => write!(formatter, "connections at {}", path.display()),
            Self::Probe(Probe::Check(_)) => formatter.write_str("a check"),
        }
    }
}
