//! Named pipes of another machine, through the system's ssh.

mod deadline;
pub(crate) mod error;
mod mux;
mod remote_shell;
mod ssh;

use self::{deadline::Until, error::TunnelError, mux::Absent, remote_shell::Far, ssh::Ssh};
use super::plan::{Argument, LaunchPlan, Program};
use crate::{
    exit::Exit,
    pipe::named::{
        connect::{ConnectError, ConnectOptions},
        name::{NameError, PipeName},
        private_directory::PrivateDirectory,
        stream::Stream,
    },
    sys::{fifo, poll::Deadline, socket},
};
use crossbeam_channel::{Receiver, Sender};
use std::{
    ffi::{OsStr, OsString},
    fs, io, mem,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long a tunnel may take to open, by default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call waits at most for ssh to stop listening for a connection that has been made.
const CLOSE_TIME: Duration = Duration::from_secs(2);

// ssh makes its control socket under a name that is 17 bytes longer first.
const _: () = assert!("control".len() + 17 <= PrivateDirectory::FILE_BYTES_MAX);

/// What stands here wins over every configuration.
const OPTIONS: [&str; 13] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "ControlPersist=no",      // it would go into the background, out of our sight
    "LogLevel=INFO",          // its last words, and why a connection was refused
    "ServerAliveInterval=15", // a machine that has vanished is noticed after a minute
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "StreamLocalBindMask=0177",
];

/// A way to the named pipes of another machine: one `ssh`, and any number of connections over it.
///
/// It is the system's OpenSSH client (6.7 or later on both sides), with the user's configuration, agent and jump hosts. It is
/// never asked for a password, and never goes to a machine whose key it does not know. What this needs on the other machine:
/// a login with a POSIX `sh`, and stream forwarding allowed (`AllowStreamLocalForwarding`, which is the default); nothing of
/// ours.
///
/// The server there sees a process of the user that ssh logged in as: that is its `peer()`, and `run_as_client` acts with the
/// rights of that user. The client's own `peer()` is our ssh. What the two ends lose by not being on one machine: messages of
/// [`PipeMode::Message`](crate::pipe::PipeMode::Message) ([`Framed`](crate::pipe::PipeMode::Framed) goes through), passed
/// descriptors, and `wait_drained` tells what ssh has read.
///
/// When ssh ends, every stream ends with [`TunnelError::Ended`] in its error. Dropping the tunnel ends ssh.
///
/// ```no_run
/// use pipewright::Tunnel;
/// use std::{io::{Read, Write}, time::Duration};
///
/// let tunnel = Tunnel::ssh("builder@host-7")?;
/// let mut stream = tunnel.connect("jobs", Duration::from_secs(5))?;
/// stream.write_all(b"how many?\n")?;
/// let mut answer = String::new();
/// stream.read_to_string(&mut answer)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a tunnel ends it"]
pub struct Tunnel {
    // Dropped in this order: first who uses ssh, then ssh, then the directory.
    /// A place for one: whoever takes the shell out and puts it back has its turn.
    far: (Sender<Far>, Receiver<Far>),
    ssh: Ssh,
    private: PrivateDirectory,
    far_directory: PathBuf,
    count: AtomicU64,
    /// Where ssh still listens and shall not, because it did not answer in time: here, and there.
    open_forwards: Mutex<Vec<(PathBuf, PathBuf)>>,
}

shown_as!(Tunnel, |tunnel| { ssh: tunnel.ssh.shared.pid() });

/// How to open a [`Tunnel`]; [`Tunnel::builder`] makes it.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before open()"]
pub struct TunnelBuilder {
    destination: String,
    config: Option<PathBuf>,
    port: Option<u16>,
    identity: Option<PathBuf>,
    connect_timeout: Duration,
}

impl TunnelBuilder {
    /// A configuration file in place of the user's and the system's (`ssh -F`).
    pub fn config(mut self, file: impl Into<PathBuf>) -> Self {
        self.config = Some(file.into());
        self
    }

    /// The port (`ssh -p`).
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A file with a private key, to be tried beside those of the configuration (`ssh -i`).
    pub fn identity(mut self, file: impl Into<PathBuf>) -> Self {
        self.identity = Some(file.into());
        self
    }

    /// How long opening may take, with the login; by default 30 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Logs in.
    ///
    /// # Errors
    ///
    /// [`TunnelError`]; nothing is left of the attempt.
    pub fn open(&self) -> Result<Tunnel, TunnelError> {
        check_destination(&self.destination)?;
        let private = PrivateDirectory::new()?;
        let control = PipeName::new(private.path().join("control"))?;
        let deadline = Deadline::after(self.connect_timeout);
        let ssh = Ssh::start(self.plan(&private.path().join("control")), control)?;
        let until = Until { deadline, ended: &ssh.shared.ended };
        // The control socket appears when ssh has logged in.
        mux::greet(&ssh.shared.control, Absent::Wait, &until).map_err(|error| ssh.shared.explain(error, &until))?;
        let far = Far::ask(&private.path().join("control"), &until).map_err(|error| match error {
            TunnelError::Os(error) => ssh.shared.explain(error, &until),
            other => other,
        })?;
        let far_directory = far.directory.clone();
        let (put, take) = crossbeam_channel::bounded(1);
        // There is room for one.
        drop(put.try_send(far));
        let (count, open_forwards) = (AtomicU64::new(0), Mutex::default());
        Ok(Tunnel { far: (put, take), ssh, private, far_directory, count, open_forwards })
    }

    fn plan(&self, control: &Path) -> LaunchPlan {
        let mut plan = LaunchPlan::new(Program::Named("ssh".into()));
        let mut arguments: Vec<OsString> = Vec::new();
        if let Some(config) = &self.config {
            arguments.extend(["-F".into(), config.into()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(identity) = &self.identity {
            arguments.extend(["-i".into(), identity.into()]);
        }
        arguments.extend(OPTIONS.iter().flat_map(|option| ["-o".into(), (*option).into()]));
        arguments.extend(["-M", "-N", "-T", "-S"].map(OsString::from));
        arguments.extend([control.into(), "--".into(), self.destination.clone().into()]);
        plan.arguments = arguments.into_iter().map(Argument::Plain).collect();
        plan
    }
}

impl Tunnel {
    /// Logs in at `host`, `user@host` or `ssh://user@host:port`, as `ssh` would.
    ///
    /// # Errors
    ///
    /// [`TunnelError`].
    pub fn ssh(destination: impl Into<String>) -> Result<Self, TunnelError> {
        Self::builder(destination).open()
    }

    /// To say more about how.
    pub fn builder(destination: impl Into<String>) -> TunnelBuilder {
        TunnelBuilder {
            destination: destination.into(),
            config: None,
            port: None,
            identity: None,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// Connects to a named pipe of the other machine. A plain name is looked for where [`PipeName::new`] would put it there,
    /// for the user that ssh logged in as, and must not begin with a `-`; an absolute path is used as it is, up to 107 bytes.
    ///
    /// # Errors
    ///
    /// [`TunnelError::NotReached`] when nobody listens there: a server that is not there yet is not waited for.
    pub fn connect(&self, name: impl AsRef<OsStr>, timeout: Duration) -> Result<Stream, TunnelError> {
        self.connect_with(&ConnectOptions::new(), name, timeout)
    }

    /// As [`connect`](Self::connect), with options: framed messages, a direction, a handshake. Who the server may be is
    /// not checked, since it is on the other machine.
    ///
    /// # Errors
    ///
    /// As `connect`, and [`TunnelError::Connect`].
    pub fn connect_with(
        &self,
        options: &ConnectOptions,
        name: impl AsRef<OsStr>,
        timeout: Duration,
    ) -> Result<Stream, TunnelError> {
        let shared = &self.ssh.shared;
        let until = shared.until(timeout);
        let there = self.path_there(name.as_ref())?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let forward = Forward { tunnel: self, until, here: self.private.path().join(number.to_string()), there };
        mux::open_forward(&shared.control, &forward.here, &forward.there, &until).map_err(|error| match error {
            TunnelError::Os(error) => shared.explain(error, &until),
            other => other,
        })?;
        let not_reached = || TunnelError::NotReached { path: forward.there.clone().into(), said: shared.stderr_tail() };
        let here = PipeName::new(&forward.here)?;
        let stream = options.clone().fail_if_absent().connect(&here, until.wait()).map_err(|error| match error {
            ConnectError::NoServer { .. } => match shared.exit_if_ending(&until.begun()) {
                Ok(Some(exit)) => TunnelError::Ended { exit },
                Ok(None) => not_reached(),
                Err(_) => TunnelError::TimedOut { said: shared.stderr_tail() },
            },
            ConnectError::Busy { .. } | ConnectError::Cancelled | ConnectError::Os(_) => {
                shared.explain(error.into(), &until)
            }
            other => TunnelError::Connect(other),
        })?;
        self.settle(&until).map_err(|error| shared.explain(error, &until))?;
        if !stream.is_connected() && fifo::unread(stream.as_fd())? == 0 {
            return Err(not_reached());
        }
        stream.set_carrier(Arc::new(ssh::Carried::by(shared)));
        Ok(stream)
    }

    /// Returns when it is known what has become of a connection that was made to ssh before.
    ///
    /// ssh tells nobody that a connection has got through, it only closes one that has not. So: when it says hello, it has
    /// accepted the connection and has sent its request; when the far side's shell answers to what is sent after that, the
    /// answer to the request has come, too; when ssh says hello again, it has acted on that.
    fn settle(&self, until: &Until<'_>) -> io::Result<()> {
        let control = &self.ssh.shared.control;
        mux::greet(control, Absent::Fail, until)?;
        let (put, take) = &self.far;
        let mut far = take.recv_timeout(until.remaining()).map_err(|_| io::ErrorKind::TimedOut)?;
        let answered = far.round_trip(until);
        // There is room for one, and it is this one's place.
        drop(put.try_send(far));
        answered?;
        mux::greet(control, Absent::Fail, until).map(drop)
    }

    fn open_forwards(&self) -> MutexGuard<'_, Vec<(PathBuf, PathBuf)>> {
        self.open_forwards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_there(&self, name: &OsStr) -> Result<PathBuf, NameError> {
        check_name(name)?;
        // An absolute path replaces the directory.
        let path = self.far_directory.join(name);
        let bytes = path.as_os_str().len();
        if bytes > socket::PATH_BYTES_MAX {
            return Err(NameError::TooLong { bytes, limit: socket::PATH_BYTES_MAX });
        }
        Ok(path)
    }

    /// How ssh has ended; `None` while it runs.
    pub fn exit(&self) -> Option<Arc<Exit>> {
        self.ssh.shared.exit()
    }

    /// The last of what ssh has said, at most 8 KiB.
    pub fn stderr_tail(&self) -> String {
        self.ssh.shared.stderr_tail().into()
    }

    /// The process id of ssh.
    pub fn pid(&self) -> u32 {
        self.ssh.shared.pid()
    }
}

/// A place where ssh listens for one connection; after that it is of no use.
struct Forward<'a> {
    tunnel: &'a Tunnel,
    until: Until<'a>,
    here: PathBuf,
    there: PathBuf,
}

impl Drop for Forward<'_> {
    /// Closes it as far as the call has time for that, and those for which earlier calls had none.
    fn drop(&mut self) {
        drop(fs::remove_file(&self.here));
        let mut open = mem::take(&mut *self.tunnel.open_forwards());
        open.push((mem::take(&mut self.here), mem::take(&mut self.there)));
        let until = Until { deadline: self.until.deadline.or(Deadline::after(CLOSE_TIME)), ..self.until };
        while let Some((here, there)) = open.last() {
            match mux::close_forward(&self.tunnel.ssh.shared.control, here, there, &until) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                // Closed, or ssh has ended, and nobody listens any more.
                Ok(()) | Err(_) => drop(open.pop()),
            }
        }
        self.tunnel.open_forwards().append(&mut open);
    }
}

/// ssh takes options among its arguments, and its configuration may put the names into a shell's command line (`ProxyCommand`).
fn check_destination(destination: &str) -> Result<(), TunnelError> {
    const FOR_SHELLS: &str = "'\"`$\\;&<>|(){}";
    let refused = |found| Err(TunnelError::Destination { destination: destination.into(), found });
    let bare = destination.strip_prefix("ssh://").unwrap_or(destination);
    let (user, host) = bare.rsplit_once('@').map_or((None, bare), |(user, host)| (Some(user), host));
    if host.is_empty() {
        return refused("it names no machine");
    }
    if destination.starts_with('-') || host.starts_with('-') || user.is_some_and(|user| user.starts_with('-')) {
        return refused("it begins with a '-', as options do");
    }
    if destination.chars().any(|c| c.is_control() || c.is_whitespace() || FOR_SHELLS.contains(c)) {
        return refused("it has a character that a shell could take for its own");
    }
    Ok(())
}

/// The same rules as here, whatever directory comes out there; and no options.
fn check_name(name: &OsStr) -> Result<(), NameError> {
    if name.as_bytes().starts_with(b"-") {
        return Err(NameError::Dash);
    }
    PipeName::new(name).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_option() {
        for good in ["jobs", "a-b", "/run/-jobs"] {
            check_name(good.as_ref()).unwrap();
        }
        for bad in ["-jobs", "-", "-oProxyCommand=x"] {
            assert!(matches!(check_name(bad.as_ref()), Err(NameError::Dash)), "{bad}");
        }
        assert!(matches!(check_name("a/b".as_ref()), Err(NameError::Slash)));
    }

    #[test]
    fn a_destination_is_data() {
        for good in ["host", "user@host", "ssh://user@host:2222", "user@[::1]", "DOMAIN@user@host", "a-b.c_d"] {
            check_destination(good).unwrap();
        }
        for bad in
            ["", "user@", "ssh://", "-oProxyCommand=x", "user@-x", "ssh://-x", "-u@host", "a b", "$(x)", "a\nb", "a;b"]
        {
            let error = check_destination(bad).unwrap_err();
            assert!(matches!(error, TunnelError::Destination { .. }), "{bad:?}: {error}");
        }
        assert!(size_of::<TunnelError>() <= 64);
    }
}
