//! The sockets of a supervisor for its workers, in a directory of their own: the control server's, and one for each worker that uses
//! `sd_notify(3)`.

use crate::{
    pipe::named::private_directory::PrivateDirectory,
    supervisor::{
        control::server::{self, AdmittedUsers, ControlListener, IssuedAddress, PendingKeys},
        spec::WorkerSpec,
        sync::lock,
        worker::notify_socket::NotifySocket,
    },
    sys::identity,
};
use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    sync::{Arc, Mutex},
};

/// Created for the first worker that needs one, and again if the directory was removed: a user's runtime directory is removed at logout.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<SocketsState>);

#[derive(Debug, Default)]
struct SocketsState {
    directory: Option<Arc<PrivateDirectory>>,
    /// The path of the control server.
    control: Option<String>,
    /// The users that may connect for control, apart from the host's own.
    admitted: AdmittedUsers,
    /// The keys of incarnations that are being started.
    keys: PendingKeys,
    /// The number of notification sockets created so far.
    notify_sockets: u64,
}

impl WorkerSpec {
    /// Declares that the process runs as user `uid` instead of the host's: it is started by `sudo`, `setpriv` or a setuid program, or drops
    /// privileges by itself. By default only processes of the host's effective user may connect for control.
    ///
    /// Control connections of this worker are then accepted from the host's user and from this one; the worker must still send its key. The
    /// directory of the sockets can then be entered by other users, and the socket file has the mode 0666, unless the host is root and can
    /// make this user its owner. So every user of the machine can connect if the path becomes known; a connection of a user that was not
    /// declared is closed at once, and the keys of other workers are not accepted from this user.
    ///
    /// [`Readiness::sd_notify`](crate::Readiness::sd_notify) and [`Watchdog::notify`](crate::Watchdog::notify) do not need this if the host
    /// is root: a datagram is checked by the process that sends it.
    #[doc(alias = "setuid")]
    #[doc(alias = "sudo")]
    pub fn peer_user(mut self, uid: u32) -> Self {
        self.peer_user = Some(uid);
        self
    }
}

impl Sockets {
    /// Issues the address of a new incarnation. Calls `start` with the listener if the control server does not run.
    pub(crate) fn address(&self, spec: &WorkerSpec, start: impl FnOnce(ControlListener)) -> io::Result<IssuedAddress> {
        let mut state = lock(&self.0);
        let directory = state.directory()?;
        // Other errors say nothing about the file, and the name of a second server would be in use.
        let is_gone =
            |path: &mut String| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        drop(state.control.take_if(is_gone));
        let path = if let Some(path) = &state.control {
            path.clone()
        } else {
            let (listener, path) = server::listen(directory.path())?;
            start(ControlListener { listener, admitted: state.admitted.clone(), keys: state.keys.clone() });
            // Before the steps that can fail: the server exists from now on.
            state.control.insert(path).clone()
        };
        if let Some(uid) = spec.peer_user {
            state.admitted.add(uid);
        }
        open_up(Path::new(&path), &directory, &state.admitted)?;
        state.keys.issue(&path)
    }

    /// Creates the notification socket of a new incarnation. Returns it with the value of `NOTIFY_SOCKET`.
    pub(crate) fn notify(&self, spec: &WorkerSpec) -> io::Result<(NotifySocket, String)> {
        let mut state = lock(&self.0);
        let directory = state.directory()?;
        state.notify_sockets += 1;
        // A worker of root may drop its privileges at any time, and continue to notify.
        let is_open = spec.peer_user.is_some() || identity::effective_uid() == 0;
        if is_open {
            directory.allow_traversal()?;
        }
        let path = directory.path().join(format!("notify-{}", state.notify_sockets));
        NotifySocket::bind(path, if is_open { 0o666 } else { 0o600 })
    }

    /// The directory of the sockets, if one was created.
    pub(crate) fn place(&self) -> Option<Arc<PrivateDirectory>> {
        lock(&self.0).directory.clone()
    }
}

impl SocketsState {
    fn directory(&mut self) -> io::Result<Arc<PrivateDirectory>> {
        if let Some(directory) = self.directory.as_ref().filter(|directory| directory.exists()) {
            return Ok(Arc::clone(directory));
        }
        self.control = None;
        Ok(Arc::clone(self.directory.insert(Arc::new(PrivateDirectory::new()?))))
    }
}

/// Makes the control server accessible to the declared users, and to others only where that cannot be avoided.
fn open_up(control: &Path, directory: &PrivateDirectory, admitted: &AdmittedUsers) -> io::Result<()> {
    let others = admitted.others();
    let mode = match others.as_slice() {
        [] => 0o600,
        // The file is given to the one user; root, which alone can do that, needs no permission.
        [uid] if chown(control, Some(*uid), None).is_ok() => 0o600,
        _ => 0o666,
    };
    fs::set_permissions(control, Permissions::from_mode(mode))?;
    if others.is_empty() { Ok(()) } else { directory.allow_traversal() }
}
