//! An sshd with its keys and its user, for the duration of one test.

use crate::{kernel, support::DEADLINE};
use pipewright::{
    OutputMode, Process, WorkerSpec,
    pipe::named::{Access, Listener, ListenerOptions, PipeName},
    tunnel::{Tunnel, TunnelBuilder},
};
use std::{
    fs, io,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// The user database has one lock, and `useradd` fails while it is held.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A user of this machine, removed on drop.
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
}

impl User {
    fn new(home: &Path) -> Self {
        let mut user = Self { name: format!("pipewright{}", std::process::id()), uid: u32::MAX };
        run(Command::new("useradd")
            .args(["--no-create-home", "--shell", "/bin/sh", "--home-dir"])
            .arg(home)
            .arg(&user.name));
        // No password matches, and the account is not locked: sshd refuses locked accounts.
        run(Command::new("usermod").args(["--password", "*", &user.name]));
        user.uid = run(Command::new("id").args(["-u", &user.name])).trim().parse().unwrap();
        user
    }
}

impl User {
    /// Kills its processes: sessions of sshd, which are in sessions of their own.
    pub(super) fn end_processes(&self) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let uid =
                status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
            if uid == Some(self.uid) {
                kernel::kill(pid, libc::SIGKILL);
            }
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.end_processes();
        drop(fs::remove_dir_all(format!("/tmp/pipewright-{}", self.uid)));
        // Forced: a process of the user may not have exited yet.
        drop(Command::new("userdel").args(["--force", &self.name]).output());
    }
}

/// A running sshd.
pub(super) struct Sshd {
    process: Option<Process>,
    pub(super) port: u16,
    pub(super) user: User,
    pub(super) place: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Sshd {
    pub(super) fn start() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let place = tempfile::Builder::new().prefix("pipewright-sshd-").tempdir_in("/tmp").unwrap();
        // The user needs access to the pipes in it.
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        let user = User::new(place.path());
        for key in ["host_key", "user_key"] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(place.path().join(key)));
        }
        fs::rename(place.path().join("user_key.pub"), place.path().join("authorized_keys")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host_key = fs::read_to_string(place.path().join("host_key.pub")).unwrap();
        fs::write(place.path().join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        let known = place.path().join("known_hosts");
        let config = format!("UserKnownHostsFile {}\nGlobalKnownHostsFile none\nIdentitiesOnly yes\n", known.display());
        fs::write(place.path().join("ssh_config"), config).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host_key\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nUseDNS no\nLogLevel INFO\n",
            place.path().display()
        );
        fs::write(place.path().join("sshd_config"), config).unwrap();
        let mut sshd = Self { process: None, port, user, place, _turn: turn };
        sshd.process = Some(sshd.start_process());
        sshd
    }

    fn start_process(&self) -> Process {
        let spec = WorkerSpec::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(self.path("sshd_config"));
        let mut process = spec.stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
        let log = process.take_stderr().unwrap();
        let (mut log_text, mut part) = (Vec::new(), [0; 1024]);
        while !String::from_utf8_lossy(&log_text).contains("Server listening") {
            let bytes = log.read_timeout(&mut part, DEADLINE).unwrap();
            assert!(bytes > 0, "sshd: {}", String::from_utf8_lossy(&log_text));
            log_text.extend_from_slice(&part[..bytes]);
        }
        // Drain the log until the last process of sshd has exited.
        thread::spawn(move || io::copy(&mut { log }, &mut io::sink()));
        process
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.place.path().join(file)
    }

    pub(super) fn builder(&self) -> TunnelBuilder {
        Tunnel::builder(format!("{}@127.0.0.1", self.user.name))
            .port(self.port)
            .config(self.path("ssh_config"))
            .identity(self.path("user_key"))
            .connect_timeout(DEADLINE)
    }

    pub(super) fn tunnel(&self) -> Tunnel {
        self.builder().open().unwrap()
    }

    pub(super) fn server(&self, file: &str, options: &ListenerOptions) -> (PathBuf, Listener) {
        let path = self.path(file);
        let listener = options.clone().access(Access::Anyone).listen(&PipeName::new(&path).unwrap()).unwrap();
        (path, listener)
    }
}

#[track_caller]
pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
