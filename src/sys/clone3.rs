//! clone3(2) into a cgroup, on a separate stack.
//!
//! The C library's clone(3) has no argument for a cgroup, and syscall(3) cannot be used with another stack: the child would return
//! into a frame that does not exist on that stack. So the call is written in assembly. Moving a child afterwards, by writing to
//! `cgroup.procs`, would leave time for a fork.

use super::pidfd::PidFd;
use std::{
    arch::asm,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// The child's function, which does not return.
pub(super) type Entry = extern "C" fn(*mut libc::c_void) -> libc::c_int;

/// The child's stack. Its top, `base` plus `bytes`, is a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub(super) struct StackRange {
    pub(super) base: *mut libc::c_void,
    pub(super) bytes: usize,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000; // linux/sched.h; Linux 5.7

/// `struct clone_args` of linux/sched.h up to `cgroup`: its third version, 88 bytes.
#[repr(C, align(8))]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<Arguments>() == 88, "CLONE_ARGS_SIZE_VER2");

/// Clones a child as `clone::clone` does, into the cgroup. Returns its PID and pidfd.
///
/// Errors of a kernel or sandbox without support: `ENOSYS`, `EPERM`, `E2BIG`, `EINVAL`. Errors of the cgroup: `EACCES` (not delegated),
/// `EBUSY` (controllers are enabled for its children), `ENODEV` (removed), `EOPNOTSUPP` (its domain is invalid).
///
/// # Safety
///
/// `entry` must be async-signal-safe and must not return; `context` must be valid for it; the stack must be writable and not in use;
/// every signal must be blocked.
pub(super) unsafe fn spawn_into(
    cgroup: RawFd,
    stack: StackRange,
    entry: Entry,
    context: *mut libc::c_void,
) -> io::Result<(libc::pid_t, PidFd)> {
    let mut pidfd: RawFd = -1;
    let arguments = Arguments {
        flags: flags(libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) | CLONE_INTO_CGROUP,
        pidfd: address((&raw mut pidfd).cast()),
        child_tid: 0,
        parent_tid: 0,
        exit_signal: flags(libc::SIGCHLD),
        stack: address(stack.base),
        stack_size: stack.bytes as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(cgroup.unsigned_abs()),
    };
    debug_assert!(stack.base.addr().wrapping_add(stack.bytes).is_multiple_of(16), "both ABIs ask for that");
    // SAFETY: the caller guarantees what `enter` requires; `arguments` and `pidfd` outlive the call.
    let result = unsafe { enter(&raw const arguments, entry, context) };
    let pid = match libc::pid_t::try_from(result) {
        Ok(pid @ 1..) => pid,
        // The kernel returns errors as -1 to -4095.
        negative => return Err(io::Error::from_raw_os_error(negative.map_or(libc::EINVAL, i32::wrapping_neg))),
    };
    // SAFETY: the kernel has just opened it, close-on-exec: CLONE_INTO_CGROUP is newer than CLONE_PIDFD, so a kernel that accepts
    // the call writes it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid, PidFd::from(pidfd)))
}

fn flags(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn address(pointer: *mut libc::c_void) -> u64 {
    pointer.expose_provenance() as u64
}

/// Makes the call. The child continues with `entry(context)` on the new, empty and aligned stack; in the parent this returns the kernel's
/// result.
///
/// # Safety
///
/// As `spawn_into`; `arguments` must be complete and specify a new stack.
#[cfg(target_arch = "x86_64")]
unsafe fn enter(arguments: *const Arguments, entry: Entry, context: *mut libc::c_void) -> i64 {
    let result: i64;
    // SAFETY: syscall changes only rax, rcx and r11, in the parent and in the child (Intel SDM, syscall; psABI A.2). Only the child,
    // where rax is 0, runs the lines up to `2:`, on its own stack: `call` pushes there, and the parent's frame is not touched. The
    // frame pointer of 0 ends a backtrace.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<Arguments>(),
            in("r8") context,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// As above.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn enter(arguments: *const Arguments, entry: Entry, context: *mut libc::c_void) -> i64 {
    let result: i64;
    // SAFETY: svc #0 changes only x0, in the parent and in the child (arm64 syscall ABI). Only the child, where x0 is 0, runs the lines
    // up to `2:`; what it changes there is its own copy.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x2",
            "blr x3",
            "brk #1",
            "2:",
            inlateout("x0") arguments => result,
            in("x1") size_of::<Arguments>(),
            in("x2") context,
            in("x3") entry,
            in("x8") libc::SYS_clone3,
            options(nostack),
        );
    }
    result
}

/// Not implemented for other machines: a child cannot be cloned into a cgroup there.
///
/// # Safety
///
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn enter(_: *const Arguments, _: Entry, _: *mut libc::c_void) -> i64 {
    -i64::from(libc::ENOSYS)
}
