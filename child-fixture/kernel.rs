//! System calls of a misbehaving child.
#![expect(unsafe_code, reason = "misbehaving is done by hand")]

use std::{io, os::fd::RawFd, time::Duration};

/// Waits for a signal that ends the process.
pub(crate) fn pause() {
    // SAFETY: pause(2) takes nothing.
    unsafe { libc::pause() };
}

/// Sleeps without a file descriptor.
pub(crate) fn wait_for_nothing(time: Duration) {
    let timeout_ms = i32::try_from(time.as_millis().max(1)).unwrap_or(i32::MAX);
    // SAFETY: poll(2) of no descriptors reads nothing.
    unsafe { libc::poll(std::ptr::null_mut(), 0, timeout_ms) };
}

/// Ends the main thread; another thread runs on.
pub(crate) fn end_main_thread() {
    let other = std::thread::Builder::new().spawn(|| {
        loop {
            pause();
        }
    });
    if let Err(error) = other {
        eprintln!("no thread: {error}");
        return;
    }
    // SAFETY: raw exit(2) ends the calling thread only, which holds nothing that the other one uses.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Forks a copy of this process that waits for a signal that ends it, and does not hold standard output.
pub(crate) fn fork_that_waits() {
    // SAFETY: the child only makes the calls below, which are safe in the child of a process with threads.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: close(2) takes a number; the child does not use it.
        unsafe { libc::close(1) };
        loop {
            pause();
        }
    }
}

/// Closes a file descriptor that the program does not use any more.
pub(crate) fn close(number: RawFd) {
    // SAFETY: the caller does not use the descriptor afterwards.
    unsafe { libc::close(number) };
}

pub(crate) fn ignore(signal: i32) {
    // SAFETY: signal(2) with SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

pub(crate) fn default(signal: i32) {
    // SAFETY: signal(2) with SIG_DFL installs no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Moves from its own process group to its parent's.
pub(crate) fn leave_group() {
    // SAFETY: getppid(2) takes nothing.
    let parent = unsafe { libc::getppid() };
    // SAFETY: getpgid(2) takes a number.
    let group = unsafe { libc::getpgid(parent) };
    // SAFETY: setpgid(2) takes two numbers.
    unsafe { libc::setpgid(0, group) };
}

/// Ends by a signal, even if Rust's runtime handles it.
pub(crate) fn raise(signal: i32) {
    // SAFETY: signal(2) with SIG_DFL installs no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: raise(3) takes a number.
    unsafe { libc::raise(signal) };
}

/// Forks a grandchild that closes all descriptors but one and lives on; `alarm` ends it in any case. Returns once they are closed.
pub(crate) fn fork_holding(held: RawFd, session: bool, seconds_max: u32) -> i32 {
    let mut ready = [-1; 2];
    // SAFETY: pipe(2) writes two numbers.
    unsafe { libc::pipe(ready.as_mut_ptr()) };
    let [reader, writer] = ready;
    // SAFETY: this process has one thread, and the child makes only async-signal-safe calls.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        // SAFETY: close(2) takes a number; only the grandchild holds this end from here on.
        unsafe { libc::close(writer) };
        let mut byte = 0_u8;
        // SAFETY: read(2) writes one byte of the array; it returns at the end of the pipe.
        unsafe { libc::read(reader, (&raw mut byte).cast(), 1) };
        return pid;
    }
    if session {
        // SAFETY: setsid(2) takes nothing.
        unsafe { libc::setsid() };
    }
    for number in 0..256 {
        if number != held && number != writer {
            // SAFETY: close(2) takes a number; the grandchild does not use what it closes.
            unsafe { libc::close(number) };
        }
    }
    // SAFETY: as above; last, since it signals that the others are closed.
    unsafe { libc::close(writer) };
    // SAFETY: alarm(2) takes a number.
    unsafe { libc::alarm(seconds_max) };
    loop {
        pause();
    }
}

pub(crate) fn limit(resource: i64) -> (u64, u64) {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let old: *mut libc::rlimit64 = &raw mut limit;
    // SAFETY: prlimit(2) writes one rlimit; the null pointer sets nothing.
    unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), old) };
    (limit.rlim_cur, limit.rlim_max)
}

pub(crate) fn umask() -> u32 {
    // SAFETY: umask(2) takes a number; it is put back below.
    let mask = unsafe { libc::umask(0) };
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    mask
}

/// As returned by `ioprio_get(2)`.
pub(crate) fn io_priority() -> libc::c_long {
    // SAFETY: ioprio_get(2) takes two numbers: a process, this one.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
}

pub(crate) fn nice() -> i32 {
    // SAFETY: raw getpriority(2) returns 20 minus the nice value, which is never negative.
    let value = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    20 - i32::try_from(value).unwrap_or_default()
}

pub(crate) fn process_ids() -> (i32, i32, i32) {
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getppid() };
    // SAFETY: getpgid(2) takes a number.
    let group = unsafe { libc::getpgid(0) };
    // SAFETY: getsid(2) takes a number.
    let session = unsafe { libc::getsid(0) };
    (parent, group, session)
}

pub(crate) fn death_signal() -> i32 {
    let mut signal = 0;
    // SAFETY: PR_GET_PDEATHSIG writes one number.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    signal
}

/// The file descriptor flags and the file status flags.
pub(crate) fn flags(number: RawFd) -> (i32, i32) {
    // SAFETY: fcntl(2) F_GETFD takes numbers.
    let descriptor = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // SAFETY: fcntl(2) F_GETFL takes numbers.
    let status = unsafe { libc::fcntl(number, libc::F_GETFL) };
    (descriptor, status)
}

/// Leaves memory for small allocations, but not for the stack of a thread.
pub(crate) fn allow_no_more_memory() -> io::Result<()> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(u64::MAX >> 20);
    let limit = pages * 4096 + (1 << 20);
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: setrlimit(2) reads the structure, which outlives the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes all descriptors but the standard streams, and prevents processes of the same user from inspecting this one.
pub(crate) fn hide_for_good() {
    // SAFETY: close_range(2) takes three numbers; the program does not use what it closes.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    // SAFETY: PR_SET_DUMPABLE takes a number.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    pause();
}

/// In a setuid program: becomes its owner, whom its parent may not signal.
pub(crate) fn become_own_user() {
    // SAFETY: setresuid(2) takes three numbers.
    unsafe { libc::setresuid(0, 0, 0) };
}
