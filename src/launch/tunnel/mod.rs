//! Named pipes of a remote machine, through the system's ssh.

mod deadline;
pub(crate) mod error;
mod mux;
mod remote_shell;
mod ssh;

use self::{
    deadline::TunnelDeadline, error::TunnelError, mux::MissingSocket, remote_shell::RemoteShell, ssh::SshProcess,
};
use super::plan::{Argument, LaunchPlan, Program};
use crate::{
    deadline::Deadline,
    exit::Exit,
    pipe::named::{
        connect::{ConnectError, ConnectOptions},
        name::{NameError, PipeName},
        private_directory::PrivateDirectory,
        stream::Stream,
    },
    sys::{fifo, socket},
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

/// Default timeout for opening a tunnel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time that a call waits for ssh to close the forwarding of an established connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

// ssh first creates its control socket under a name that is 17 bytes longer.
const _: () = assert!("control".len() + 17 <= PrivateDirectory::FILE_BYTES_MAX);

/// These options override every configuration file.
const OPTIONS: [&str; 13] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "ControlPersist=no",      // keeps ssh in the foreground, as our child
    "LogLevel=INFO",          // errors and refused connections appear on standard error
    "ServerAliveInterval=15", // a lost connection is detected after a minute
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "StreamLocalBindMask=0177",
];

/// Connects to named pipes of a remote machine: one `ssh` process carries any number of connections.
///
/// Runs the system's OpenSSH client (6.7 or later on both sides) with the user's configuration, agent and jump hosts. It never
/// asks for a password and refuses unknown host keys. The remote machine needs a login with a POSIX `sh`, and stream forwarding
/// (`AllowStreamLocalForwarding`, on by default); pipewright need not be installed there.
///
/// The remote server sees a process of the user that ssh logged in as: its `peer()` is that process, and `run_as_client` acts with
/// that user's rights. The client's own `peer()` is the local ssh. Not available through a tunnel: messages of
/// [`PipeMode::Message`](crate::pipe::PipeMode::Message) ([`Framed`](crate::pipe::PipeMode::Framed) works) and passing file
/// descriptors; `wait_drained` reports what ssh has read, not the server.
///
/// When ssh exits, reads and writes of every stream fail with [`TunnelError::Ended`]. Dropping the tunnel terminates ssh.
///
/// ```no_run
/// use pipewright::tunnel::Tunnel;
/// use std::{io::{Read, Write}, time::Duration};
///
/// let tunnel = Tunnel::ssh("builder@host-7")?;
/// let mut stream = tunnel.connect("jobs", Duration::from_secs(5))?;
/// stream.write_all(b"how many?\n")?;
/// let mut answer = String::new();
/// stream.read_to_string(&mut answer)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a tunnel closes it"]
pub struct Tunnel {
    // Fields are dropped in this order: the user of ssh, ssh, its directory.
    /// A channel of capacity one, as a lock with a timeout: a call takes the shell out and puts it back.
    shell: (Sender<RemoteShell>, Receiver<RemoteShell>),
    ssh: SshProcess,
    private: PrivateDirectory,
    remote_directory: PathBuf,
    count: AtomicU64,
    /// Forwardings that ssh did not close in time: local and remote path.
    open_forwards: Mutex<Vec<(PathBuf, PathBuf)>>,
}

impl_debug!(Tunnel, |tunnel| { ssh: tunnel.ssh.shared.pid() });

/// Options for opening a [`Tunnel`], from [`Tunnel::builder`].
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
    /// Sets a configuration file that replaces the user's and the system's (`ssh -F`).
    pub fn config(mut self, file: impl Into<PathBuf>) -> Self {
        self.config = Some(file.into());
        self
    }

    /// Sets the port (`ssh -p`).
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Adds a file with a private key to those of the configuration (`ssh -i`).
    pub fn identity(mut self, file: impl Into<PathBuf>) -> Self {
        self.identity = Some(file.into());
        self
    }

    /// Sets the timeout for opening, including the login; 30 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Starts ssh and waits until it has logged in.
    ///
    /// # Errors
    ///
    /// [`TunnelError`]; a failed attempt leaves no process and no file.
    pub fn open(&self) -> Result<Tunnel, TunnelError> {
        check_destination(&self.destination)?;
        let private = PrivateDirectory::new()?;
        let control = PipeName::new(private.path().join("control"))?;
        let deadline = Deadline::after_now(self.connect_timeout);
        let ssh = SshProcess::start(self.plan(&private.path().join("control")), control)?;
        let until = TunnelDeadline { deadline, ended: &ssh.shared.ended };
        // ssh creates the control socket after the login.
        mux::handshake(&ssh.shared.control, MissingSocket::Wait, &until)
            .map_err(|error| ssh.shared.explain(error, &until))?;
        let shell = RemoteShell::open(&private.path().join("control"), &until).map_err(|error| match error {
            TunnelError::Os(error) => ssh.shared.explain(error, &until),
            other => other,
        })?;
        let remote_directory = shell.directory.clone();
        let (put, take) = crossbeam_channel::bounded(1);
        // The channel is empty, so this cannot fail.
        drop(put.try_send(shell));
        let (count, open_forwards) = (AtomicU64::new(0), Mutex::default());
        Ok(Tunnel { shell: (put, take), ssh, private, remote_directory, count, open_forwards })
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
    /// Opens a tunnel to `host`, `user@host` or `ssh://user@host:port` with default options.
    ///
    /// # Errors
    ///
    /// [`TunnelError`].
    pub fn ssh(destination: impl Into<String>) -> Result<Self, TunnelError> {
        Self::builder(destination).open()
    }

    /// Returns a builder for a tunnel with other options.
    pub fn builder(destination: impl Into<String>) -> TunnelBuilder {
        TunnelBuilder {
            destination: destination.into(),
            config: None,
            port: None,
            identity: None,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// Connects to a named pipe of the remote machine. A plain name resolves as [`PipeName::new`] resolves it there, for the user
    /// that ssh logged in as, and must not begin with a `-`; an absolute path of up to 107 bytes is used as it is.
    ///
    /// # Errors
    ///
    /// [`TunnelError::Unreachable`] if no server listens at the path. Does not wait for a server to appear.
    pub fn connect(&self, name: impl AsRef<OsStr>, timeout: Duration) -> Result<Stream, TunnelError> {
        self.connect_with(&ConnectOptions::new(), name, timeout)
    }

    /// As [`connect`](Self::connect), with options: framed messages, a direction, a handshake. The option that restricts the
    /// server's user has no effect, since the server is a process of the remote machine.
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
        let remote = self.remote_path(name.as_ref())?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let forward = Forward { tunnel: self, until, local: self.private.path().join(number.to_string()), remote };
        mux::open_forward(&shared.control, &forward.local, &forward.remote, &until).map_err(|error| match error {
            TunnelError::Os(error) => shared.explain(error, &until),
            other => other,
        })?;
        let not_reached =
            || TunnelError::Unreachable { path: forward.remote.clone().into(), stderr: shared.stderr_tail() };
        let local = PipeName::new(&forward.local)?;
        let stream = options.clone().no_wait().connect(&local, until.wait()).map_err(|error| match error {
            ConnectError::NoServer { .. } => match shared.exit_if_ending(&until.begun()) {
                Ok(Some(exit)) => TunnelError::Ended { exit },
                Ok(None) => not_reached(),
                Err(_) => TunnelError::TimedOut { stderr: shared.stderr_tail() },
            },
            ConnectError::Busy { .. } | ConnectError::Cancelled | ConnectError::Os(_) => {
                shared.explain(error.into(), &until)
            }
            other => TunnelError::Connect(other),
        })?;
        self.confirm_connection(&until).map_err(|error| shared.explain(error, &until))?;
        if !stream.is_connected() && fifo::unread(stream.as_fd())? == 0 {
            return Err(not_reached());
        }
        stream.set_transport(Arc::new(ssh::SshConnection::new(shared)));
        Ok(stream)
    }

    /// Returns when ssh has either established a connection made before or closed it.
    ///
    /// ssh does not report success; it only closes a connection that failed. A first hello shows that ssh has accepted the
    /// connection and sent its request. An echo of the remote shell, which ssh sends after that, shows that the reply to the
    /// request has arrived. A second hello shows that ssh has acted on the reply.
    fn confirm_connection(&self, until: &TunnelDeadline<'_>) -> io::Result<()> {
        let control = &self.ssh.shared.control;
        mux::handshake(control, MissingSocket::Fail, until)?;
        let (put, take) = &self.shell;
        let mut shell = take.recv_timeout(until.remaining()).map_err(|_| io::ErrorKind::TimedOut)?;
        let answered = shell.round_trip(until);
        // The channel is empty, so this cannot fail.
        drop(put.try_send(shell));
        answered?;
        mux::handshake(control, MissingSocket::Fail, until).map(drop)
    }

    fn open_forwards(&self) -> MutexGuard<'_, Vec<(PathBuf, PathBuf)>> {
        self.open_forwards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remote_path(&self, name: &OsStr) -> Result<PathBuf, NameError> {
        check_name(name)?;
        // An absolute path replaces the directory.
        let path = self.remote_directory.join(name);
        let bytes = path.as_os_str().len();
        if bytes > socket::PATH_BYTES_MAX {
            return Err(NameError::TooLong { bytes, limit: socket::PATH_BYTES_MAX });
        }
        Ok(path)
    }

    /// The exit of ssh; `None` while it runs.
    pub fn exit(&self) -> Option<Arc<Exit>> {
        self.ssh.shared.exit()
    }

    /// The last bytes of ssh's standard error, at most 8 KiB.
    pub fn stderr_tail(&self) -> String {
        self.ssh.shared.stderr_tail().into()
    }

    /// The process id of ssh.
    pub fn pid(&self) -> u32 {
        self.ssh.shared.pid()
    }
}

/// A socket at which ssh listens for one connection, closed on drop.
struct Forward<'a> {
    tunnel: &'a Tunnel,
    until: TunnelDeadline<'a>,
    local: PathBuf,
    remote: PathBuf,
}

impl Drop for Forward<'_> {
    /// Closes the forwarding, and those that earlier calls had no time to close, until the deadline.
    fn drop(&mut self) {
        drop(fs::remove_file(&self.local));
        let mut open = mem::take(&mut *self.tunnel.open_forwards());
        open.push((mem::take(&mut self.local), mem::take(&mut self.remote)));
        let until =
            TunnelDeadline { deadline: self.until.deadline.or(Deadline::after_now(CLOSE_TIMEOUT)), ..self.until };
        while let Some((local, remote)) = open.last() {
            match mux::close_forward(&self.tunnel.ssh.shared.control, local, remote, &until) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                // Closed, or ssh has exited, which closes it.
                Ok(()) | Err(_) => drop(open.pop()),
            }
        }
        self.tunnel.open_forwards().append(&mut open);
    }
}

/// Rejects destinations that ssh would take for an option, or that its configuration could place into a shell's command line
/// (`ProxyCommand`).
fn check_destination(destination: &str) -> Result<(), TunnelError> {
    const SHELL_METACHARACTERS: &str = "'\"`$\\;&<>|(){}";
    let refused = |reason| Err(TunnelError::InvalidDestination { destination: destination.into(), reason });
    let bare = destination.strip_prefix("ssh://").unwrap_or(destination);
    let (user, host) = bare.rsplit_once('@').map_or((None, bare), |(user, host)| (Some(user), host));
    if host.is_empty() {
        return refused("it has no host name");
    }
    if destination.starts_with('-') || host.starts_with('-') || user.is_some_and(|user| user.starts_with('-')) {
        return refused("user and host must not begin with '-'");
    }
    if destination.chars().any(|c| c.is_control() || c.is_whitespace() || SHELL_METACHARACTERS.contains(c)) {
        return refused("it contains a space, a control character or a shell metacharacter");
    }
    Ok(())
}

/// Applies the rules for local names, and rejects options.
fn check_name(name: &OsStr) -> Result<(), NameError> {
    if name.as_bytes().starts_with(b"-") {
        return Err(NameError::LeadingDash);
    }
    PipeName::new(name).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_is_an_option_is_rejected() {
        for good in ["jobs", "a-b", "/run/-jobs"] {
            check_name(good.as_ref()).unwrap();
        }
        for bad in ["-jobs", "-", "-oProxyCommand=x"] {
            assert!(matches!(check_name(bad.as_ref()), Err(NameError::LeadingDash)), "{bad}");
        }
        assert!(matches!(check_name("a/b".as_ref()), Err(NameError::Slash)));
    }

    #[test]
    fn destination_that_is_an_option_or_shell_text_is_rejected() {
        for good in ["host", "user@host", "ssh://user@host:2222", "user@[::1]", "DOMAIN@user@host", "a-b.c_d"] {
            check_destination(good).unwrap();
        }
        for bad in
            ["", "user@", "ssh://", "-oProxyCommand=x", "user@-x", "ssh://-x", "-u@host", "a b", "$(x)", "a\nb", "a;b"]
        {
            let error = check_destination(bad).unwrap_err();
            assert!(matches!(error, TunnelError::InvalidDestination { .. }), "{bad:?}: {error}");
        }
        assert!(size_of::<TunnelError>() <= 64);
    }
}
