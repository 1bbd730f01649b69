//! A vfork-style clone(2) straight to execve(2), from an image that is prepared before.
//!
//! The child shares our memory until it execs, while the calling thread sleeps, so its cost does not depend on the size of
//! the parent. For the same reason everything between clone and exec is a bare system call: no allocation, no lock, no
//! library state. What went wrong is written into memory that both see; no pipe is needed to tell it.

use super::child_setup::{self, ProcessAttributes, SetupFailure, SetupStep};
use super::{
    clone3::{self, StackRange},
    cvt,
    pidfd::PidFd,
    signals,
};
use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, AtomicU8, Ordering},
    },
};

/// Everything a child needs, ready to be used by bare system calls.
#[derive(Debug)]
pub(crate) struct ExecImage {
    /// The files to try, in order, as execvp(3) does with `$PATH`.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: CStringArray,
    pub(crate) environment: CStringArray,
    pub(crate) directory: Option<CString>,
    /// Which of our descriptors the child gets, at which of its numbers. Everything else is closed.
    pub(crate) descriptors: Vec<FdMapping>,
    pub(crate) attributes: ProcessAttributes,
    /// Our descriptor of the directory of the cgroup that the child is born in; ours where there is none.
    pub(crate) cgroup: Option<RawFd>,
}

/// Strings for execve(2), one behind the other in one piece of memory: an allocation for each would cost more than the rest
/// of a start's preparation.
#[derive(Debug, Default)]
pub(crate) struct CStringArray {
    /// Each with its final zero byte.
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl CStringArray {
    /// Appends a text, given in parts that contain no zero byte.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        debug_assert!(parts.iter().all(|part| !part.contains(&0)), "a text would end early");
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
    }

    /// The array that execve(2) takes. It points into this value, which must not be changed as long as it is used.
    pub(super) fn pointers(&self) -> Vec<*const libc::c_char> {
        let base = self.bytes.as_ptr();
        self.starts.iter().map(|&start| base.wrapping_add(start).cast()).chain([ptr::null()]).collect()
    }
}

/// One descriptor of ours and its number in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FdMapping {
    pub(crate) source: RawFd,
    pub(crate) target: RawFd,
}

/// A private stack for the child: sharing the caller's would let the child overwrite the frames the parent returns to.
#[derive(Debug)]
struct ChildStack {
    base: *mut libc::c_void,
}

// SAFETY: the mapping belongs to this value alone, and munmap(2) may be called from any thread.
unsafe impl Send for ChildStack {}

static SPARE: Mutex<Option<ChildStack>> = Mutex::new(None);

const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 16 * 1024; // a whole page, also where pages have 16 KiB

impl ChildStack {
    /// The one that was used last, or a new one: mapping it, faulting it in and unmapping it is a tenth of a start's cost.
    fn take() -> io::Result<Self> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(Self::new, Ok)
    }

    /// Keeps it for the next one.
    fn give_back(self) {
        *SPARE.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: mmap(2) of fresh anonymous memory at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), GUARD_BYTES + STACK_BYTES, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first pages of our own mapping; nobody uses them. An overflow now faults instead of corrupting.
        cvt(unsafe { libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) })?;
        Ok(stack)
    }

    fn top(&self) -> *mut libc::c_void {
        // Multiples of 16 from a page boundary keep the alignment that both ABIs ask for.
        self.base.wrapping_byte_add(GUARD_BYTES + STACK_BYTES)
    }

    fn lowest(&self) -> *mut libc::c_void {
        self.base.wrapping_byte_add(GUARD_BYTES)
    }
}

impl Drop for ChildStack {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no child uses it, since clone(2) with CLONE_VFORK returns after exec.
        let result = unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

/// A process that has reached its program.
#[derive(Debug)]
pub(crate) struct ClonedChild {
    pub(crate) pid: libc::pid_t,
    pub(crate) pidfd: PidFd,
}

/// What the child reads, and where it writes why it failed.
struct ChildContext<'a> {
    image: &'a ExecImage,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// As `image.descriptors`, but the child may change the sources.
    table: Vec<FdMapping>,
    failed_step: AtomicU8,
    failed_errno: AtomicI32,
}

/// Starts the image. When it fails no process is left. After a failure in `SetupStep::Cgroup` the same image without its cgroup
/// may do.
pub(crate) fn spawn(image: &ExecImage) -> Result<ClonedChild, SetupFailure> {
    let failed = |error: io::Error| failure_of_clone(image, error.raw_os_error().unwrap_or(0));
    let stack = ChildStack::take().map_err(failed)?;
    let mut order = ChildContext {
        image,
        arguments: image.arguments.pointers(),
        environment: image.environment.pointers(),
        table: image.descriptors.clone(),
        failed_step: AtomicU8::new(0),
        failed_errno: AtomicI32::new(0),
    };
    order.table.sort_unstable_by_key(|grant| grant.target);
    // A handler of the host that ran in the child would run on the host's memory: no signal until the child has reset them.
    let mask = signals::block_all();
    let cloned = clone(&mut order, &stack);
    mask.set_as_mask();
    stack.give_back();
    let cloned = cloned.map_err(failed)?;
    match SetupStep::from_code(order.failed_step.load(Ordering::Relaxed)) {
        None => Ok(cloned),
        Some(step) => {
            // Nothing to learn from the status, and ECHILD (a host that ignores SIGCHLD) means it is gone already.
            drop(cloned.pidfd.wait_and_reap());
            Err(SetupFailure { step, errno: order.failed_errno.load(Ordering::Relaxed) })
        }
    }
}

/// What the kernel says when it has no room for one more process it would say without the cgroup too (though the cgroup's own
/// limit is told in the same way); everything else is about the cgroup.
fn failure_of_clone(image: &ExecImage, errno: i32) -> SetupFailure {
    let is_full = matches!(errno, libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE);
    SetupFailure { step: if image.cgroup.is_none() || is_full { SetupStep::Clone } else { SetupStep::Cgroup }, errno }
}

fn clone(order: &mut ChildContext<'_>, stack: &ChildStack) -> io::Result<ClonedChild> {
    match order.image.cgroup {
        None => clone_here(order, stack),
        Some(cgroup) => {
            let range = StackRange { base: stack.lowest(), bytes: STACK_BYTES };
            // SAFETY: as in `clone_here`; `spawn` has blocked every signal, and `child` ends in exec or _exit(2).
            let cloned = unsafe { clone3::spawn_into(cgroup, range, child, ptr::from_mut(order).cast()) };
            cloned.map(|(pid, pidfd)| ClonedChild { pid, pidfd })
        }
    }
}

fn clone_here(order: &mut ChildContext<'_>, stack: &ChildStack) -> io::Result<ClonedChild> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let order: *mut libc::c_void = ptr::from_mut(order).cast();
    // SAFETY: clone(2): the stack is ours and large enough for `child`; `order` and everything it borrows outlive the call,
    // since CLONE_VFORK returns only when the child has exec'ed or exited; `pidfd` is where CLONE_PIDFD writes.
    let pid = cvt(unsafe { libc::clone(child, stack.top(), flags, order, &raw mut pidfd) })?;
    if pidfd < 0 {
        // Before Linux 5.2 the flag was ignored. We could not look after such a child.
        // SAFETY: kill(2) takes two numbers; the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: waitpid(2) may be given a null pointer for the status.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    // SAFETY: the kernel has just opened this descriptor for us, close-on-exec, and nobody else knows its number.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(ClonedChild { pid, pidfd: PidFd::from(pidfd) })
}

extern "C" fn child(order: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone` passed a pointer to a `ChildContext` that lives, and is not touched by the parent, until we exec or exit.
    let order = unsafe { &mut *order.cast::<ChildContext<'_>>() };
    let failure = match order.prepare() {
        Ok(()) => order.exec(),
        Err(failure) => failure,
    };
    order.failed_errno.store(failure.errno, Ordering::Relaxed);
    order.failed_step.store(failure.step.code(), Ordering::Relaxed);
    // SAFETY: _exit(2) ends this process without running anything of the host's.
    unsafe { libc::_exit(127) }
}

/// The child's side. Async-signal-safe: system calls and arithmetic, nothing else.
impl ChildContext<'_> {
    fn prepare(&mut self) -> Result<(), SetupFailure> {
        child_setup::reset_signal_handlers();
        if let Some(directory) = &self.image.directory {
            // SAFETY: chdir(2) reads a C string that outlives the call; without CLONE_FS only the child moves.
            child_setup::check(SetupStep::Directory, unsafe { libc::chdir(directory.as_ptr()) })?;
        }
        self.move_descriptors().map_err(|()| SetupFailure::last(SetupStep::Descriptors))?;
        child_setup::close_all_but(&self.table.iter().map(|grant| grant.target));
        self.image.attributes.apply()
    }

    /// Puts every granted descriptor at its number. A source that stands where another one is to go moves out of the way
    /// first, so that any permutation works; to the lowest number that nobody is to have, since the highest target may be
    /// the highest number that the limit allows.
    fn move_descriptors(&mut self) -> Result<(), ()> {
        let is_target = |number| self.image.descriptors.iter().any(|grant| grant.target == number);
        for grant in &mut self.table {
            let mut least = 3;
            while grant.source != grant.target && is_target(grant.source) {
                // What is left at a target is replaced below, and what is left elsewhere is closed.
                grant.source = child_setup::duplicate_above(grant.source, least)?;
                least = grant.source.saturating_add(1);
            }
        }
        for grant in &self.table {
            child_setup::place(grant.source, grant.target)?;
        }
        Ok(())
    }

    /// Returns only when it fails. As execvp(3): a file that may not be run does not end the search, but is what is told
    /// when nothing else is found.
    fn exec(&self) -> SetupFailure {
        let mut denied = false;
        let mut errno = libc::ENOENT;
        for candidate in &self.image.candidates {
            errno = self.exec_one(candidate);
            match errno {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return SetupFailure { step: SetupStep::Exec, errno },
            }
        }
        SetupFailure { step: SetupStep::Exec, errno: if denied { libc::EACCES } else { errno } }
    }

    fn exec_one(&self, file: &CStr) -> i32 {
        // SAFETY: execve(2) reads a C string and two null-terminated arrays of them, all of which outlive the call.
        unsafe { libc::execve(file.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
        child_setup::errno()
    }
}
