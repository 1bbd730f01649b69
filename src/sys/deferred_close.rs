//! A thread for what may not close at once (docs/gotchas.md, "Closing can block").

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

/// How many threads may be closing before nobody new is let in who could make it more.
const CLOSERS: usize = 256;
/// How often what a panic left may panic when it is dropped, before it is leaked.
const NESTED_PANICS: u32 = 4;
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Drops something on a thread of its own; here where none is to be had.
pub(crate) fn close_in_background(what: impl Send + 'static) {
    // In this order: it counts until it is dropped.
    let closing = (what, UnderWay::new());
    let close = move || {
        signals::block_all();
        drop(closing);
    };
    drop(thread::Builder::new().name("pipewright-close".into()).spawn(close));
}

/// Values that wait for a thread which drops them.
static RELEASED: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());

/// Drops a value whose end may block or panic, on a thread of its own. The panic ends there; the panic hook has reported it by
/// then. Where no thread can be had, the value waits for the next one.
pub(crate) fn drop_in_background(value: impl Send + 'static) {
    let released = || RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    released().push(Box::new(value));
    let drop_all = move || {
        signals::block_all();
        // Each is taken out before it is dropped: its own code may come here again.
        while let Some(value) = { released().pop() } {
            contain(|| drop(value));
        }
    };
    drop(thread::Builder::new().name("pipewright-drop".into()).spawn(drop_all));
}

/// Runs code that is not ours, where a panic ends. What it panicked with can panic again when it is dropped.
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

/// A value that may hold something of the host's.
pub(crate) trait MayBlock: Send + 'static {
    /// Whether its end runs code, or closes descriptors, that are not ours.
    fn may_block(&self) -> bool;
}

/// A value that is dropped by [`drop_in_background`] where its end may block or panic, whoever drops it.
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
        // SAFETY: this is the end of it, and nothing else takes the value out.
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

/// Too much does not close: whoever lets strangers in waits with that.
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

/// A socket in which others may have left descriptors that nobody has taken: unless it is empty it is closed elsewhere.
#[derive(Debug)]
pub(crate) struct DeferredClose {
    socket: ManuallyDrop<OwnedFd>,
    /// A fork of this process has a copy. Shut down there, the socket would end here too.
    owner: libc::pid_t,
}

impl DeferredClose {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket: ManuallyDrop::new(socket), owner: own_pid() }
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        let mut kept = ManuallyDrop::new(self);
        // SAFETY: `kept` is not dropped, so nobody else takes it.
        unsafe { ManuallyDrop::take(&mut kept.socket) }
    }
}

impl Drop for DeferredClose {
    fn drop(&mut self) {
        // SAFETY: this is the end of it; `into_descriptor`, the other one that takes it, does not come here.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        if self.owner != own_pid() {
            return;
        }
        // Nobody can send any more. Fails where the other side is gone, and nobody could.
        drop(socket::shutdown(socket.as_fd(), Shutdown::Read));
        if !is_empty(socket.as_fd()) {
            close_in_background(socket);
        }
    }
}

/// Whether nothing is there that nobody has read, nor anybody whom nobody has accepted.
fn is_empty(socket: BorrowedFd<'_>) -> bool {
    match socket::peek(socket, &mut [0], RecvMode::Nonblocking, 0) {
        // An empty datagram would look like the end; but those who take datagrams take their senders, for whom there is no room.
        Ok(seen) => seen == Some(0),
        Err(error) => match error.raw_os_error() {
            // No datagram.
            Some(libc::EAGAIN) => true,
            // It listens.
            Some(libc::EINVAL) => is_left_by_all(socket),
            _ => false,
        },
    }
}

/// Those who stand before the door are closed one by one.
fn is_left_by_all(listener: BorrowedFd<'_>) -> bool {
    loop {
        match socket::accept(listener) {
            Ok(Some(client)) => drop(DeferredClose::new(client)),
            Ok(None) => return true,
            // As it is shut down; anything else is a shortage.
            Err(error) => return error.raw_os_error() == Some(libc::EINVAL),
        }
    }
}

impl AsFd for DeferredClose {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
