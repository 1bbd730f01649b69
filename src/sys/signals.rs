//! Signal sets, the signal mask of a thread, and the action of a process on a signal. Every function except [`stop_by`] is
//! async-signal-safe.

use super::{cvt, retry};
use std::{io, mem::MaybeUninit, ptr};

/// A set of signals. The C library keeps its own two signals out of every set.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    pub(crate) fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset(3) initialises the set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above, which cannot fail.
        Self(unsafe { set.assume_init() })
    }

    pub(crate) fn all() -> Self {
        let mut set = Self::empty();
        // SAFETY: sigfillset(3) writes an initialised set.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    pub(crate) fn only(signal: libc::c_int) -> Self {
        let mut set = Self::empty();
        // SAFETY: sigaddset(3) changes an initialised set. It fails for what is not a signal, and then the set stays empty.
        unsafe { libc::sigaddset(&raw mut set.0, signal) };
        set
    }

    /// The signals that are blocked and pending, for the calling thread and for its process.
    pub(crate) fn pending() -> Self {
        let mut set = Self::empty();
        // SAFETY: sigpending(2) writes one set.
        unsafe { libc::sigpending(&raw mut set.0) };
        set
    }

    pub(crate) fn contains(&self, signal: libc::c_int) -> bool {
        // SAFETY: sigismember(3) reads an initialised set.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }

    /// Adds the signals to the calling thread's mask. Returns the previous mask.
    pub(crate) fn block(&self) -> Self {
        self.change_mask(libc::SIG_BLOCK)
    }

    /// Removes the signals from the calling thread's mask. Those that are pending are delivered before this returns.
    pub(crate) fn unblock(&self) {
        self.change_mask(libc::SIG_UNBLOCK);
    }

    /// Makes this set the calling thread's mask. Returns the previous mask.
    pub(crate) fn set_as_mask(&self) -> Self {
        self.change_mask(libc::SIG_SETMASK)
    }

    fn change_mask(&self, how: libc::c_int) -> Self {
        let mut previous = Self::empty();
        // SAFETY: pthread_sigmask(3) reads one set and writes the other; it fails only for another `how` than these three.
        unsafe { libc::pthread_sigmask(how, &raw const self.0, &raw mut previous.0) };
        previous
    }

    /// Consumes one pending signal of the set, if there is one.
    pub(crate) fn take_pending(&self) {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: sigtimedwait(2) reads the set and the time; a null pointer means that the details are not needed.
        let taken = retry(|| cvt(unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), &raw const now) }));
        // EAGAIN: none is pending.
        drop::<io::Result<_>>(taken);
    }
}

/// Blocks every signal for the calling thread: the host's handlers run on the host's threads. Returns the previous mask.
pub(crate) fn block_all() -> SignalSet {
    SignalSet::all().set_as_mask()
}

/// Whether the process has neither a handler for the signal nor ignores it.
pub(crate) fn has_default_action(signal: libc::c_int) -> bool {
    change_action(signal, None).is_some_and(|action| action.sa_sigaction == libc::SIG_DFL)
}

/// Sets the action if one is given. Returns the previous one, and `None` for what is not a signal.
fn change_action(signal: libc::c_int, action: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    let mut previous = MaybeUninit::uninit();
    let action = action.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: sigaction(2) reads one structure, or none at a null pointer, and writes the other.
    let changed = unsafe { libc::sigaction(signal, action, previous.as_mut_ptr()) };
    // SAFETY: sigaction(2) has written it, since it returned 0.
    (changed == 0).then(|| unsafe { previous.assume_init() })
}

/// Stops this process as the default action of a job-control signal would if the signal were not caught, and returns after
/// SIGCONT. Returns at once in an orphaned process group, which the kernel does not stop since no shell would continue it.
pub(crate) fn stop_by(signal: libc::c_int) {
    let stop = SignalSet::only(signal);
    let mask = stop.block();
    // Raised before the action is the default one: a second signal could otherwise stop the process first, and the SIGCONT that
    // continues it discards every pending stop signal, this one too.
    // SAFETY: raise(3) takes a number; the signal goes to this thread, which has blocked it.
    unsafe { libc::raise(signal) };
    // SAFETY: all zero is SIG_DFL without flags and with an empty mask.
    let default = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    let previous = change_action(signal, Some(&default));
    stop.unblock();
    mask.set_as_mask();
    change_action(signal, previous.as_ref());
}
