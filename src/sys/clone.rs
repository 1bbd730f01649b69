//! vfork-style clone(2) and execve(2) of a prepared image.
//!
//! The child shares the parent's memory until exec, while the calling thread is suspended, so the cost does not depend on the size of
//! the parent. For the same reason only raw system calls are made between clone and exec: no allocation, no lock, no library state. A
//! failure is reported through the shared memory, without a pipe.

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

/// Everything a child needs, prepared for raw system calls.
#[derive(Debug)]
pub(crate) struct ExecImage {
    /// The files to try in order, as execvp(3) does with `$PATH`.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: CStringArray,
    pub(crate) environment: CStringArray,
    pub(crate) directory: Option<CString>,
    /// The descriptors that the child gets. All others are closed.
    pub(crate) descriptors: Vec<FdMapping>,
    pub(crate) attributes: ProcessAttributes,
    /// The descriptor of the cgroup directory to clone into; `None` for the parent's cgroup.
    pub(crate) cgroup: Option<RawFd>,
}

/// Strings for execve(2) in one buffer: an allocation for each would cost more than the rest of the preparation.
#[derive(Debug, Default)]
pub(crate) struct CStringArray {
    /// NUL-terminated.
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl CStringArray {
    /// Appends a string, given in parts without NUL.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        debug_assert!(parts.iter().all(|part| !part.contains(&0)), "a text would end early");
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
    }

    /// The array for execve(2). It points into this value, which must not change while the array is in use.
    pub(super) fn pointers(&self) -> Vec<*const libc::c_char> {
        let base = self.bytes.as_ptr();
        self.starts.iter().map(|&start| base.wrapping_add(start).cast()).chain([ptr::null()]).collect()
    }
}

/// A descriptor of the parent and its number in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FdMapping {
    pub(crate) source: RawFd,
    pub(crate) target: RawFd,
}

/// A stack for the child: on the caller's stack the child would overwrite the frames that the parent returns to.
#[derive(Debug)]
struct ChildStack {
    base: *mut libc::c_void,
}

// SAFETY: the mapping is owned by this value, and munmap(2) may be called from any thread.
unsafe impl Send for ChildStack {}

static SPARE: Mutex<Option<ChildStack>> = Mutex::new(None);

const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 16 * 1024; // at least one page, also where pages have 16 KiB

impl ChildStack {
    /// Takes the spare stack or maps a new one: mapping, page faults and unmapping are a tenth of the cost of a spawn.
    fn take() -> io::Result<Self> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(Self::new, Ok)
    }

    /// Keeps it as the spare stack.
    fn give_back(self) {
        *SPARE.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: mmap(2) of new anonymous memory at an address chosen by the kernel affects no existing memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), GUARD_BYTES + STACK_BYTES, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the first pages of this mapping, which are not in use. An overflow faults instead of corrupting memory.
        cvt(unsafe { libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) })?;
        Ok(stack)
    }

    fn top(&self) -> *mut libc::c_void {
        // A multiple of 16 from a page boundary, as both ABIs require.
        self.base.wrapping_byte_add(GUARD_BYTES + STACK_BYTES)
    }

    fn lowest(&self) -> *mut libc::c_void {
        self.base.wrapping_byte_add(GUARD_BYTES)
    }
}

impl Drop for ChildStack {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; no child uses it, since clone(2) with CLONE_VFORK returns after exec.
        let result = unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
        debug_assert_eq!(result, 0, "munmap of the stack");
    }
}

#[derive(Debug)]
pub(crate) struct ClonedChild {
    pub(crate) pid: libc::pid_t,
    pub(crate) pidfd: PidFd,
}

/// Read by the child, which writes the reason of a failure into it.
struct ChildContext<'a> {
    image: &'a ExecImage,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// A copy of `image.descriptors` whose sources the child may change.
    table: Vec<FdMapping>,
    failed_step: AtomicU8,
    failed_errno: AtomicI32,
}

/// Spawns the image. After a failure no process is left. After a failure in `SetupStep::Cgroup` the same image without its cgroup may
/// succeed.
pub(crate) fn spawn(image: &ExecImage) -> Result<ClonedChild, SetupFailure> {
    let failed = |error: io::Error| failure_of_clone(image, error.raw_os_error().unwrap_or(0));
    let stack = ChildStack::take().map_err(failed)?;
    let mut context = ChildContext {
        image,
        arguments: image.arguments.pointers(),
        environment: image.environment.pointers(),
        table: image.descriptors.clone(),
        failed_step: AtomicU8::new(0),
        failed_errno: AtomicI32::new(0),
    };
    context.table.sort_unstable_by_key(|grant| grant.target);
    // A signal handler of the host would run in the child on the shared memory: all signals are blocked until the child has reset them.
    let mask = signals::block_all();
    let cloned = clone(&mut context, &stack);
    mask.set_as_mask();
    stack.give_back();
    let cloned = cloned.map_err(failed)?;
    match SetupStep::from_code(context.failed_step.load(Ordering::Relaxed)) {
        None => Ok(cloned),
        Some(step) => {
            // The status is irrelevant, and ECHILD (a host that ignores SIGCHLD) means that the child is already gone.
            drop(cloned.pidfd.wait_and_reap());
            Err(SetupFailure { step, errno: context.failed_errno.load(Ordering::Relaxed) })
        }
    }
}

/// Errors for a lack of process slots, memory or descriptors would occur without the cgroup too (although the cgroup's own process
/// limit causes the same error); all others are about the cgroup.
fn failure_of_clone(image: &ExecImage, errno: i32) -> SetupFailure {
    let is_full = matches!(errno, libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE);
    SetupFailure { step: if image.cgroup.is_none() || is_full { SetupStep::Clone } else { SetupStep::Cgroup }, errno }
}

fn clone(context: &mut ChildContext<'_>, stack: &ChildStack) -> io::Result<ClonedChild> {
    match context.image.cgroup {
        None => clone_here(context, stack),
        Some(cgroup) => {
            let range = StackRange { base: stack.lowest(), bytes: STACK_BYTES };
            // SAFETY: as in `clone_here`; `spawn` has blocked every signal, and `child` ends in exec or _exit(2).
            let cloned = unsafe { clone3::spawn_into(cgroup, range, child, ptr::from_mut(context).cast()) };
            cloned.map(|(pid, pidfd)| ClonedChild { pid, pidfd })
        }
    }
}

fn clone_here(context: &mut ChildContext<'_>, stack: &ChildStack) -> io::Result<ClonedChild> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let context: *mut libc::c_void = ptr::from_mut(context).cast();
    // SAFETY: clone(2): the stack is large enough for `child` and not used otherwise; `context` and everything it borrows outlive the
    // call, since CLONE_VFORK returns only after the child's exec or exit; CLONE_PIDFD writes to `pidfd`.
    let pid = cvt(unsafe { libc::clone(child, stack.top(), flags, context, &raw mut pidfd) })?;
    if pidfd < 0 {
        // Linux before 5.2 ignored the flag. Such a child could not be supervised.
        // SAFETY: kill(2) takes two numbers; the child is not reaped, so the PID is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: waitpid(2) accepts a null pointer for the status.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    // SAFETY: the kernel has just opened this descriptor, close-on-exec, and it has no other owner.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(ClonedChild { pid, pidfd: PidFd::from(pidfd) })
}

extern "C" fn child(context: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone` passed a pointer to a `ChildContext` that is alive, and not accessed by the parent, until exec or exit.
    let context = unsafe { &mut *context.cast::<ChildContext<'_>>() };
    let failure = match context.prepare() {
        Ok(()) => context.exec(),
        Err(failure) => failure,
    };
    context.failed_errno.store(failure.errno, Ordering::Relaxed);
    context.failed_step.store(failure.step.code(), Ordering::Relaxed);
    // SAFETY: _exit(2) ends this process without running code of the host.
    unsafe { libc::_exit(127) }
}

/// The child's side. Async-signal-safe: only system calls and arithmetic.
impl ChildContext<'_> {
    fn prepare(&mut self) -> Result<(), SetupFailure> {
        child_setup::reset_signal_handlers();
        if let Some(directory) = &self.image.directory {
            // SAFETY: chdir(2) reads a C string that outlives the call; without CLONE_FS it affects the child only.
            child_setup::check(SetupStep::Directory, unsafe { libc::chdir(directory.as_ptr()) })?;
        }
        self.move_descriptors().map_err(|()| SetupFailure::last(SetupStep::Descriptors))?;
        child_setup::close_all_but(&self.table.iter().map(|grant| grant.target));
        self.image.attributes.apply()
    }

    /// Moves every descriptor to its target number. A source that occupies another one's target is moved away first, so that any
    /// permutation works: to the lowest number that is not a target, since the highest target may be the highest number that the limit
    /// allows.
    fn move_descriptors(&mut self) -> Result<(), ()> {
        let is_target = |number| self.image.descriptors.iter().any(|grant| grant.target == number);
        for grant in &mut self.table {
            let mut least = 3;
            while grant.source != grant.target && is_target(grant.source) {
                // What remains open at a target is replaced below, and what remains elsewhere is closed.
                grant.source = child_setup::duplicate_above(grant.source, least)?;
                least = grant.source.saturating_add(1);
            }
        }
        for grant in &self.table {
            child_setup::place(grant.source, grant.target)?;
        }
        Ok(())
    }

    /// Returns only on failure. As in execvp(3), a file that may not be executed does not end the search, but its error is returned if
    /// nothing else is found.
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
        // SAFETY: execve(2) reads a C string and two null-terminated arrays of them, which all outlive the call.
        unsafe { libc::execve(file.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
        child_setup::errno()
    }
}
