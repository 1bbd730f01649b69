//! Threads for values whose close or drop can block (docs/gotchas.md, "Closing can block").

use std::{
    fmt,
    mem::{self, ManuallyDrop},
    net::Shutdown,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    signals,
    socket::{self, RecvMode},
    this_process::own_pid,
};

/// At this many closing threads, no new peer is accepted that could add one.
const CLOSERS: usize = 256;
/// How often the payload of a panic may panic when it is dropped before it is leaked.
const NESTED_PANICS: u32 = 4;
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Drops a value on a thread of its own; on the calling thread if none can be started.
pub(crate) fn close_in_background(what: impl Send + 'static) {
    // In this order: counted until the value is dropped.
    let closing = (what, UnderWay::new());
    let close = move || {
        signals::block_all();
        drop(closing);
    };
    drop(thread::Builder::new().name("pipewright-close".into()).spawn(close));
}

/// Values that wait for a thread to drop them.
static RELEASED: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());

/// Drops a value whose drop may block or panic on a thread of its own. The panic is caught; the panic hook has reported it. If no
/// thread can be started, the value waits for the next call.
pub(crate) fn drop_in_background(value: impl Send + 'static) {
    let released = || RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    released().push(Box::new(value));
    let drop_all = move || {
        signals::block_all();
        // The value is taken out first: its drop may call this function.
        while let Some(value) = { released().pop() } {
            contain(|| drop(value));
        }
    };
    drop(thread::Builder::new().name("pipewright-drop".into()).spawn(drop_all));
}

/// Runs user code and catches its panics, also those of dropping a panic's payload.
fn contain(run: impl FnOnce()) {
    let mut caught = catch_unwind(AssertUnwindSafe(run));
    for _ in 0..NESTED_PANICS {
        let Err(payload) = caught else { return };
        caught = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
    if let Err(payload) = caught {
        leak(payload);
    }
}

#[expect(clippy::mem_forget, reason = "each attempt to drop it has panicked")]
fn leak<T>(payload: T) {
    mem::forget(payload);
}

/// A value that may own something of the user's.
pub(crate) trait MayBlock: Send + 'static {
    /// Whether the drop runs user code or closes descriptors of a user or a peer.
    fn may_block(&self) -> bool;
}

/// A value that is dropped by [`drop_in_background`] if its drop may block or panic.
pub(crate) struct DropInBackground<T: MayBlock>(ManuallyDrop<T>);

impl<T: MayBlock> DropInBackground<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T: MayBlock> Deref for DropInBackground<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: MayBlock> Drop for DropInBackground<T> {
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, and is taken out only here.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        if value.may_block() {
            drop_in_background(value);
        }
    }
}

impl<T: MayBlock + fmt::Debug> fmt::Debug for DropInBackground<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, formatter)
    }
}

/// Whether too many closes are pending: a listener then stops accepting.
pub(crate) fn is_saturated() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) >= CLOSERS
}

struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that may hold descriptors which were not received: it is closed in the background unless it is empty.
#[derive(Debug)]
pub(crate) struct DeferredClose {
    socket: ManuallyDrop<OwnedFd>,
    /// The process that made it. A forked child must not shut the socket down, which would affect the parent.
    owner: libc::pid_t,
}

impl DeferredClose {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket: ManuallyDrop::new(socket), owner: own_pid() }
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        let mut kept = ManuallyDrop::new(self);
        // SAFETY: `kept` is never dropped, so this is the only access.
        unsafe { ManuallyDrop::take(&mut kept.socket) }
    }
}

impl Drop for DeferredClose {
    fn drop(&mut self) {
        // SAFETY: the value is being dropped; `into_descriptor`, the other place that takes it, prevents the drop.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        if self.owner != own_pid() {
            return;
        }
        // The peer cannot send after this. Fails if the peer is gone, which is equivalent.
        drop(socket::shutdown(socket.as_fd(), Shutdown::Read));
        if !is_empty(socket.as_fd()) {
            close_in_background(socket);
        }
    }
}

/// Whether the socket holds no unread data and no unaccepted connection.
fn is_empty(socket: BorrowedFd<'_>) -> bool {
    match socket::peek(socket, &mut [0], RecvMode::Nonblocking, 0) {
        // An empty datagram would look like end of file; sockets for datagrams also receive the sender, for which there is no room.
        Ok(seen) => seen == Some(0),
        Err(error) => match error.raw_os_error() {
            // No datagram is queued.
            Some(libc::EAGAIN) => true,
            // A listener.
            Some(libc::EINVAL) => is_left_by_all(socket),
            _ => false,
        },
    }
}

/// Closes the pending connections one by one.
fn is_left_by_all(listener: BorrowedFd<'_>) -> bool {
    loop {
        match socket::accept(listener) {
            Ok(Some(client)) => drop(DeferredClose::new(client)),
            Ok(None) => return true,
            // EINVAL: the listener is shut down. Anything else is a shortage.
            Err(error) => return error.raw_os_error() == Some(libc::EINVAL),
        }
    }
}

impl AsFd for DeferredClose {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
