//! clone3(2) into a cgroup, with a stack of the child's own.
//!
//! The C library's clone(3) has no place for a cgroup, and its syscall(3) cannot be used with another stack: the child
//! would return into a frame that its stack does not have. So the few instructions around the call stand here. To move a
//! child afterwards instead, by writing into `cgroup.procs`, would leave it a moment in which to fork.

use super::pidfd::PidFd;
use std::{
    arch::asm,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// What the child runs; it never comes back.
pub(super) type Entry = extern "C" fn(*mut libc::c_void) -> libc::c_int;

/// The child's stack, whose top is `base` plus `bytes`, a multiple of 16.
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

/// Makes a child that shares our memory until it execs or exits, as `clone::clone` does, but is born in the cgroup. Tells
/// its pid and its pidfd.
///
/// The errors of a kernel or a sandbox that does not know this: `ENOSYS`, `EPERM`, `E2BIG`, `EINVAL`. Those of the cgroup:
/// `EACCES` (not ours), `EBUSY` (it passes controllers on), `ENODEV` (removed), `EOPNOTSUPP` (its domain is invalid).
///
/// # Safety
///
/// `entry` must be async-signal-safe and must not return; `order` must be what it expects; the stack must belong to this
/// call alone and be writable; every signal must be blocked.
pub(super) unsafe fn spawn_into(
    cgroup: RawFd,
    stack: StackRange,
    entry: Entry,
    order: *mut libc::c_void,
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
    // SAFETY: what this function's caller promises is what `enter` asks for; `arguments` and `pidfd` live until it returns.
    let result = unsafe { enter(&raw const arguments, entry, order) };
    let pid = match libc::pid_t::try_from(result) {
        Ok(pid @ 1..) => pid,
        // The kernel's own form of errors: -1 to -4095.
        negative => return Err(io::Error::from_raw_os_error(negative.map_or(libc::EINVAL, i32::wrapping_neg))),
    };
    // SAFETY: the kernel has just opened it for us, close-on-exec: CLONE_INTO_CGROUP is younger than CLONE_PIDFD, so a
    // kernel that has let the call pass has written it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid, PidFd::from(pidfd)))
}

fn flags(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn address(pointer: *mut libc::c_void) -> u64 {
    pointer.expose_provenance() as u64
}

/// The call itself. In the child it goes on with `entry(order)` on the new stack, which is empty and aligned; in the parent
/// it returns the kernel's answer.
///
/// # Safety
///
/// As `spawn_into`; `arguments` must be a whole `Arguments` that ask for a new stack.
#[cfg(target_arch = "x86_64")]
unsafe fn enter(arguments: *const Arguments, entry: Entry, order: *mut libc::c_void) -> i64 {
    let result: i64;
    // SAFETY: syscall changes rax, rcx and r11 and leaves everything else as it is, in the parent and in the child (Intel
    // SDM, syscall; psABI A.2). Only the child, where rax is 0, runs the lines up to `2:`, on its own stack: `call` pushes
    // there, and the parent's frame is not touched. The frame pointer of 0 ends a debugger's walk.
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
            in("r8") order,
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
unsafe fn enter(arguments: *const Arguments, entry: Entry, order: *mut libc::c_void) -> i64 {
    let result: i64;
    // SAFETY: svc #0 changes x0 and leaves every other register as it is, in the parent and in the child (arm64 syscall
    // ABI). Only the child, where x0 is 0, runs the lines up to `2:`; what it changes there is its own copy.
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
            in("x2") order,
            in("x3") entry,
            in("x8") libc::SYS_clone3,
            options(nostack),
        );
    }
    result
}

/// On other machines there is no cgroup from birth.
///
/// # Safety
///
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn enter(_: *const Arguments, _: Entry, _: *mut libc::c_void) -> i64 {
    -i64::from(libc::ENOSYS)
}
