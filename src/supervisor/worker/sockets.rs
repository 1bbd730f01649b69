//! The sockets at which workers reach their supervisor, in a directory of their own: the control server's, and one for each
//! worker that uses `sd_notify(3)`.

use crate::{
    pipe::named::private_directory::PrivateDirectory,
    supervisor::{
        control::server::{AdmittedUsers, ControlListener, IssuedAddress, PendingKeys},
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

/// Made when the first worker needs one, and anew where the directory is gone: a user's runtime directory goes when they log out.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<SocketsState>);

#[derive(Debug, Default)]
struct SocketsState {
    directory: Option<Arc<PrivateDirectory>>,
    /// The path of the control server.
    control: Option<String>,
    /// The users whose workers may connect for control, apart from ours.
    admitted: AdmittedUsers,
    /// The keys of the incarnations that are being started.
    keys: PendingKeys,
    /// How many sockets for notifications were made.
    notify_sockets: u64,
}

impl WorkerSpec {
    /// Says that its process runs as this user, not as ours: because it is started by `sudo`, `setpriv` or a program that is
    /// setuid, or gives up privileges by itself. By default only processes of our own effective user may connect for control.
    ///
    /// Control connections of this worker are then accepted from our user and from this one; the worker must still show its key.
    /// The worker finds the sockets in a directory that others may pass, and the socket's file has the mode 0666, unless we are
    /// root and can give it to that one user. So every user of the machine can connect to it where the path becomes known; a
    /// connection of a user that was not named here is closed at once, and no other worker's key is accepted from this user.
    ///
    /// For [`Readiness::sd_notify`](crate::Readiness::sd_notify) and [`Watchdog::notify`](crate::Watchdog::notify) root need not say this: a
    /// datagram is judged by the process that sends it.
    #[doc(alias = "setuid")]
    #[doc(alias = "sudo")]
    pub fn peer_user(mut self, uid: u32) -> Self {
        self.peer_user = Some(uid);
        self
    }
}

impl Sockets {
    /// The address of a new incarnation. `start` is given the control server where there is none yet.
    pub(crate) fn address(&self, spec: &WorkerSpec, start: impl FnOnce(ControlListener)) -> io::Result<IssuedAddress> {
        let mut state = lock(&self.0);
        let directory = state.directory()?;
        // A lookup that fails for another reason says nothing about the file, and a second server would find the name in use.
        let is_gone =
            |path: &mut String| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        drop(state.control.take_if(is_gone));
        let path = if let Some(path) = &state.control {
            path.clone()
        } else {
            let (listener, path) = crate::supervisor::control::server::listen(directory.path())?;
            start(ControlListener { listener, admitted: state.admitted.clone(), keys: state.keys.clone() });
            // Before what can fail: the server is there from now on.
            state.control.insert(path).clone()
        };
        if let Some(uid) = spec.peer_user {
            state.admitted.add(uid);
        }
        open_up(Path::new(&path), &directory, &state.admitted)?;
        state.keys.issue(&path)
    }

    /// A socket for the notifications of a new incarnation, and what it finds in `NOTIFY_SOCKET`.
    pub(crate) fn notify(&self, spec: &WorkerSpec) -> io::Result<(NotifySocket, String)> {
        let mut state = lock(&self.0);
        let directory = state.directory()?;
        state.notify_sockets += 1;
        // What root starts may give up its privileges at any time, and go on notifying.
        let is_open = spec.peer_user.is_some() || identity::effective_uid() == 0;
        if is_open {
            directory.allow_traversal()?;
        }
        let path = directory.path().join(format!("notify-{}", state.notify_sockets));
        NotifySocket::bind(path, if is_open { 0o666 } else { 0o600 })
    }

    /// Where the sockets are, once one was made.
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

/// Lets the users who were admitted reach the control server, and no others where that can be had.
fn open_up(control: &Path, directory: &PrivateDirectory, admitted: &AdmittedUsers) -> io::Result<()> {
    let others = admitted.others();
    let mode = match others.as_slice() {
        [] => 0o600,
        // Its file is given to the one; root, the only one who can do that, needs no permission.
        [uid] if chown(control, Some(*uid), None).is_ok() => 0o600,
        _ => 0o666,
    };
    fs::set_permissions(control, Permissions::from_mode(mode))?;
    if others.is_empty() { Ok(()) } else { directory.allow_traversal() }
}
