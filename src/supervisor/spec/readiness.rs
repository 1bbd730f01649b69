//! Readiness of a worker.

use crate::{
    launch::{
        error::{PatternError, SpecError},
        pass::Pass,
    },
    policy::{readiness::ReadinessSource, readiness_call::ReadinessAnswer},
    supervisor::{panics::catch, spec::readiness_call::CallSpec},
    wire::message::{Line, Message},
};
use regex_lite::Regex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Default readiness timeout.
const READINESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of one connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of a line is matched: matching takes the loop's time, some 100 ns a byte.
const LINE_BYTES: usize = 4 << 10;
/// How much is read at once of a worker whose output is looked through.
pub(crate) const SEARCHED_BYTES: usize = 16 << 10;
/// After so much a line or a message that makes a worker ready is not looked for any more; see `weight`.
pub(crate) const SEARCH_BYTES_MAX: usize = 16 << 20;
/// The name of the pipe on which a worker reports readiness by a newline.
pub(crate) const READINESS_PIPE: &str = "readiness";

/// When a worker counts as ready, for [`WorkerSpec::ready`](crate::WorkerSpec::ready). Reported as
/// [`EventKind::Ready`](crate::EventKind::Ready). A worker that is not ready within the [timeout](Self::timeout) is stopped, and
/// restarted if its restart policy says so.
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
pub(crate) type MessagePredicate = Arc<dyn Fn(&Message) -> bool + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Wanted {
    Started,
    Control,
    Message(MessagePredicate),
    Line(Box<str>, Result<Regex, PatternError>),
    Newline(Pass),
    Notify,
    Probe(Probe),
    Call(Box<CallSpec>),
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

    /// Ready when the program runs.
    pub fn started() -> Self {
        Self::new(Wanted::Started)
    }

    /// Ready when the worker has connected to its control pipe.
    pub fn control() -> Self {
        Self::new(Wanted::Control)
    }

    /// Ready when the worker sends a message for which `predicate` returns true. `predicate` is called for each message in turn, on a thread of its own:
    /// if it blocks, it delays only this worker's readiness. The messages are delivered meanwhile. After the worker's exit, pending
    /// calls are waited for up to its [`drain_timeout`](crate::WorkerSpec::drain_timeout). A panic counts as `false`, and goes to the panic hook.
    ///
    /// Only the first 16 MiB are examined (each message counts 16 bytes extra); then the worker is not ready
    /// ([`ReadinessError::OutputLimit`](crate::events::ReadinessError::OutputLimit)).
    pub fn message(predicate: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Self {
        Self::new(Wanted::Message(Arc::new(predicate)))
    }

    /// Ready when a line of the captured standard output or error matches a regular expression, in the syntax of the crate
    /// [`regex-lite`](https://docs.rs/regex-lite). Only the first 4 KiB of a line and the first 16 MiB of the output are examined (each
    /// line counts 16 bytes extra); then the worker is not ready
    /// ([`ReadinessError::OutputLimit`](crate::events::ReadinessError::OutputLimit)).
    #[doc(alias = "ready_log_line")]
    pub fn log_line(pattern: &str) -> Self {
        Self::new(Wanted::Line(pattern.into(), Regex::new(pattern).map_err(PatternError)))
    }

    /// Ready when the worker writes a newline to a file descriptor that is passed for this, as s6 programs do. Closing it first is a failure.
    #[doc(alias = "notification-fd")]
    pub fn notify_fd(pass: Pass) -> Self {
        Self::new(Wanted::Newline(pass))
    }

    /// Ready when the worker sends `READY=1` by `sd_notify`. The socket is in `NOTIFY_SOCKET`, as an absolute path. Accepted senders are
    /// processes of the worker's tree, and those of the supervisor's user and of root; others are rejected with a
    /// [`Warning`](crate::events::Warning::NotificationRejected). A worker that runs as another user can reach the socket if the supervisor runs as root, or
    /// if [`peer_user`](crate::WorkerSpec::peer_user) names that user.
    #[doc(alias = "NOTIFY_SOCKET")]
    pub fn sd_notify() -> Self {
        Self::new(Wanted::Notify)
    }

    /// Ready when a TCP connection to `host:port` succeeds.
    pub fn connect_tcp(address: impl Into<Box<str>>) -> Self {
        Self::new(Wanted::Probe(Probe::Tcp(address.into())))
    }

    /// Ready when a connection to this socket file succeeds.
    pub fn connect_unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Wanted::Probe(Probe::Unix(path.into())))
    }

    /// Ready when `is_ready` returns true. It is called repeatedly on a thread of its own, with pauses from 10 ms up to 500 ms. A panic
    /// counts as `false`, and goes to the panic hook.
    pub fn check(is_ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self::new(Wanted::Probe(Probe::Check(Arc::new(is_ready))))
    }

    /// Ready when the worker has answered this call, and `judge` accepts the result: the handshake of every incarnation.
    ///
    /// The call is sent when the worker has connected, before any other: calls and notifications of the program wait in their order until
    /// the worker is ready. `judge` runs on a thread of its own, so it may block. After [`NotYet`](ReadinessAnswer::NotYet) the call is
    /// repeated, after 10 ms at first and 500 ms at last, until the [timeout](Self::timeout). A panic counts as `NotYet`, and goes to the
    /// panic hook. The accepted result is kept: [`Worker::handshake`](crate::Worker::handshake) returns it. A call that is not answered in
    /// time is not cancelled, since protocols forbid that for their handshakes: the worker is stopped.
    ///
    /// The worker is not ready, and is stopped, in these cases:
    ///
    /// * [`Fatal`](ReadinessAnswer::Fatal), a result that is not an `R`, and an error response whose code says that the call is wrong
    ///   (-32600 invalid request, -32601 method not found, -32602 invalid parameters) end the worker, whatever its restart policy says:
    ///   [`ReadinessError::Fatal`](crate::events::ReadinessError::Fatal), and then
    ///   [`GiveUpReason::FatalAnswer`](crate::events::GiveUpReason::FatalAnswer).
    /// * After another error response, and after the end of the connection,
    ///   ([`ReadinessError::CallFailed`](crate::events::ReadinessError::CallFailed)) its restart policy decides.
    ///
    /// Requires a control connection: [`WorkerSpec::control`](crate::WorkerSpec::control) or
    /// [`control_on_stdio`](crate::WorkerSpec::control_on_stdio).
    ///
    /// ```
    /// use pipewright::{Pass, Readiness, ReadinessAnswer, WorkerSpec};
    /// use serde::Deserialize;
    /// use serde_json::json;
    ///
    /// #[derive(Deserialize)]
    /// struct Hello {
    ///     version: u32,
    /// }
    ///
    /// let ready = Readiness::call("initialize", &json!({"client": "editor"}), |hello: Hello| match hello.version {
    ///     2.. => ReadinessAnswer::Ready,
    ///     old => ReadinessAnswer::Fatal(format!("version {old} is not supported")),
    /// });
    /// WorkerSpec::new("./plugin").control(Pass::env("PIPEWRIGHT_CONTROL")).ready(ready.then_notify("initialized", &()));
    /// ```
    #[doc(alias = "initialize")]
    #[doc(alias = "handshake")]
    pub fn call<P, R>(method: &str, params: &P, judge: impl Fn(R) -> ReadinessAnswer + Send + Sync + 'static) -> Self
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        Self::new(Wanted::Call(Box::new(CallSpec::new(method, params, judge))))
    }

    /// With [`call`](Self::call): sends this notification when the worker is ready, before the calls that wait. No effect otherwise.
    pub fn then_notify<P: Serialize + ?Sized>(mut self, method: &str, params: &P) -> Self {
        if let Wanted::Call(call) = &mut self.wanted {
            call.then_notify(method, params);
        }
        self
    }

    /// Timeout from the start; by default 30 s.
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
            Wanted::Call(_) => ReadinessSource::Call,
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
        matches!(self.wanted, Wanted::Message(_) | Wanted::Probe(Probe::Check(_)) | Wanted::Call(_))
    }

    /// Whether the worker has to connect to become ready.
    pub(crate) fn needs_connection(&self) -> bool {
        matches!(self.wanted, Wanted::Control | Wanted::Call(_))
    }

    pub(crate) fn is_by_call(&self) -> bool {
        matches!(self.wanted, Wanted::Call(_))
    }

    /// The call that makes the worker ready.
    pub(crate) fn readiness_call(&self) -> Option<&CallSpec> {
        match &self.wanted {
            Wanted::Call(call) => Some(call),
            _ => None,
        }
    }

    pub(crate) fn is_by_notice(&self) -> bool {
        matches!(self.wanted, Wanted::Notify)
    }

    /// Whether what it writes is looked through.
    pub(crate) fn is_by_output(&self) -> bool {
        matches!(self.wanted, Wanted::Line(..) | Wanted::Message(_))
    }

    /// What is asked of each message.
    pub(crate) fn message_predicate(&self) -> Option<&MessagePredicate> {
        match &self.wanted {
            Wanted::Message(predicate) => Some(predicate),
            _ => None,
        }
    }

    pub(crate) fn is_line(&self, line: &Line) -> bool {
        match &self.wanted {
            Wanted::Line(_, Ok(pattern)) => {
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
            Wanted::Line(pattern, Err(source)) => {
                Err(SpecError::InvalidPattern { pattern: pattern.clone(), source: source.clone() })
            }
            Wanted::Call(call) => call.check(),
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
            Self::Call(call) => write!(formatter, "{call:?}"),
        }
    }
}
