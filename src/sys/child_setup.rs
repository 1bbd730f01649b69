//! Setup of a child between fork and exec: group, limits, signals, file descriptors. Every function is async-signal-safe: raw system
//! calls, no allocation, no lock. Used by both ways to spawn.

use super::{pidfd::PidfdHandover, signals::SignalSet, this_process};
use std::{
    io,
    os::{fd::RawFd, unix::process::CommandExt},
    process::Command,
    ptr,
};

/// The step of a spawn that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SetupStep {
    Clone = 1,
    Directory,
    Descriptors,
    Group,
    DeathSignal,
    Limit,
    Nice,
    IoPriority,
    Processors,
    Exec,
    Cgroup,
    Terminal,
}

impl SetupStep {
    const ALL: [Self; 12] = [
        Self::Clone,
        Self::Directory,
        Self::Descriptors,
        Self::Group,
        Self::DeathSignal,
        Self::Limit,
        Self::Nice,
        Self::IoPriority,
        Self::Processors,
        Self::Exec,
        Self::Cgroup,
        Self::Terminal,
    ];

    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.code() == code)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SetupFailure {
    pub(crate) step: SetupStep,
    pub(crate) errno: i32,
}

impl SetupFailure {
    pub(crate) fn last(step: SetupStep) -> Self {
        Self { step, errno: errno() }
    }
}

/// The change of process group and session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupChange {
    None,
    OwnGroup,
    OwnSession,
    /// As `OwnSession`, with this fd as the controlling terminal.
    OwnTerminal(RawFd),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rlimit {
    pub(crate) resource: libc::c_int,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Attributes of the child that its program inherits.
#[derive(Debug, Clone)]
pub(crate) struct ProcessAttributes {
    pub(crate) group: GroupChange,
    /// The signal sent to the child when the thread that spawned it ends, and the PID of that thread's process.
    pub(crate) death_signal: Option<(libc::c_int, libc::pid_t)>,
    pub(crate) limits: Vec<Rlimit>,
    pub(crate) nice: Option<i32>,
    /// As for `ioprio_set(2)`: the class in the highest bits, the level in the lowest.
    pub(crate) io_priority: Option<i32>,
    /// A bit mask of processors, as for `sched_setaffinity(2)`; empty for all.
    pub(crate) processors: Vec<libc::c_ulong>,
    pub(crate) umask: Option<u32>,
}

impl ProcessAttributes {
    /// Applies the attributes to the calling process, the child. Empties the signal mask last.
    pub(crate) fn apply(&self) -> Result<(), SetupFailure> {
        self.change_group()?;
        if let Some((signal, parent)) = self.death_signal {
            let signal = libc::c_ulong::from(signal.unsigned_abs());
            // SAFETY: prctl(2) PR_SET_PDEATHSIG takes a number.
            check(SetupStep::DeathSignal, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })?;
            // If the parent ended before the line above, the signal is never sent, so the spawn fails.
            // SAFETY: getppid(2) takes nothing and cannot fail.
            if unsafe { libc::getppid() } != parent {
                return Err(SetupFailure { step: SetupStep::DeathSignal, errno: libc::ESRCH });
            }
        }
        for limit in &self.limits {
            let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
            // Raw prlimit(2), since the type of `resource` differs between C libraries.
            // SAFETY: reads `value`, which outlives the call; the null pointer means that the old value is not returned.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_prlimit64,
                    0,
                    limit.resource,
                    &raw const value,
                    ptr::null_mut::<libc::rlimit64>(),
                )
            };
            check(SetupStep::Limit, result)?;
        }
        if let Some(nice) = self.nice {
            // SAFETY: raw setpriority(2), for the type of `which`: three numbers, 0 meaning this process.
            check(SetupStep::Nice, unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) })?;
        }
        if let Some(priority) = self.io_priority {
            const IOPRIO_WHO_PROCESS: libc::c_int = 1; // linux/ioprio.h
            // SAFETY: ioprio_set(2) takes three numbers, 0 meaning this thread, the only one.
            let set = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
            check(SetupStep::IoPriority, set)?;
        }
        if !self.processors.is_empty() {
            let bytes = size_of_val(self.processors.as_slice());
            // SAFETY: sched_setaffinity(2) reads `bytes` bytes at the pointer, the size of the vector's contents; 0 means this thread.
            let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, self.processors.as_ptr()) };
            check(SetupStep::Processors, set)?;
        }
        if let Some(umask) = self.umask {
            // SAFETY: umask(2) takes a number and cannot fail.
            unsafe { libc::umask(umask) };
        }
        SignalSet::empty().set_as_mask();
        Ok(())
    }

    fn change_group(&self) -> Result<(), SetupFailure> {
        // A hook of the user's `Command` may have called setsid(2), after which setpgid(2) fails; a session leader already leads its group.
        let leads_session = || this_process::session() == this_process::own_pid();
        match self.group {
            GroupChange::None => return Ok(()),
            // SAFETY: setpgid(2) takes two numbers: this process, and a new group.
            GroupChange::OwnGroup if !leads_session() => check(SetupStep::Group, unsafe { libc::setpgid(0, 0) })?,
            GroupChange::OwnSession | GroupChange::OwnTerminal(_) if !leads_session() => {
                // SAFETY: setsid(2) takes nothing. It fails if a user's `Command` has made the child a group leader.
                check(SetupStep::Group, unsafe { libc::setsid() })?;
            }
            GroupChange::OwnGroup | GroupChange::OwnSession | GroupChange::OwnTerminal(_) => {}
        }
        if let GroupChange::OwnTerminal(terminal) = self.group {
            // SAFETY: ioctl(2) TIOCSCTTY takes two numbers; 0 means that the terminal is not taken from another session.
            check(SetupStep::Terminal, unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) })?;
        }
        // A stop signal sent shortly before would stop the child as soon as it unblocks signals, before its exec, and it has left the
        // group that receives the SIGCONT.
        discard_pending_signals();
        Ok(())
    }

    /// Makes the child of a `Command` apply this and mark every other descriptor close-on-exec, instead of closing it as the direct way
    /// does. Hooks run in the order in which they were added, so a later one can still pass descriptors.
    pub(crate) fn add_to(self, command: &mut Command, handover: &PidfdHandover) {
        let child_end = handover.child_end();
        let hook = move || {
            reset_signal_handlers();
            mark_all_close_on_exec();
            PidfdHandover::send_own(child_end);
            self.apply().map_err(|failure| io::Error::from_raw_os_error(failure.errno))
        };
        // SAFETY: the hook runs between fork and exec and makes async-signal-safe calls only; an `io::Error` from an errno does not
        // allocate. `self` is dropped in the parent, with the command.
        unsafe { command.pre_exec(hook) };
    }
}

/// Checks the result of a system call in the child.
pub(crate) fn check(step: SetupStep, result: impl Into<i64>) -> Result<(), SetupFailure> {
    if result.into() == -1 { Err(SetupFailure::last(step)) } else { Ok(()) }
}

pub(crate) fn errno() -> i32 {
    // Reads errno without allocating.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Resets all signals to their default action. exec(2) resets caught signals but keeps ignored ones, and before exec no handler of the
/// host must run in the child.
pub(crate) fn reset_signal_handlers() {
    const SIGNALS: libc::c_int = 64;
    const SET_BYTES: usize = 8;
    // The kernel's structure, at most this large on the supported machines; all zero is SIG_DFL without flags.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // Raw, since the C library refuses its own two signals, which glibc's posix_spawn(3) leaves ignored: the host may have
        // inherited that. SIGKILL and SIGSTOP are refused and need no reset.
        // SAFETY: rt_sigaction(2) reads `default`; the null pointer means that the old action is not returned.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), SET_BYTES);
        }
    }
}

/// Discards blocked signals that were sent to this process or to its former group.
fn discard_pending_signals() {
    const SET_BYTES: usize = 8;
    let (all, at_once) = (u64::MAX, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    loop {
        // Raw: the C library excludes its own two signals.
        // SAFETY: rt_sigtimedwait(2) reads the set and the time; the null pointer means that the details are not returned.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const all,
                ptr::null_mut::<u8>(),
                &raw const at_once,
                SET_BYTES,
            )
        };
        if signal <= 0 {
            return;
        }
    }
}

/// Duplicates a descriptor to `least` or above.
pub(crate) fn duplicate_above(descriptor: RawFd, least: RawFd) -> Result<RawFd, ()> {
    // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes numbers.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, least) };
    if copy == -1 { Err(()) } else { Ok(copy) }
}

/// Duplicates `source` to `target` without close-on-exec; if they are equal, clears the flag.
pub(crate) fn place(source: RawFd, target: RawFd) -> Result<(), ()> {
    let result = if source == target {
        // SAFETY: fcntl(2) F_SETFD takes numbers.
        unsafe { libc::fcntl(source, libc::F_SETFD, 0) }
    } else {
        // SAFETY: dup2(2) takes two numbers; what is open at `target` in the child is to be replaced.
        unsafe { libc::dup2(source, target) }
    };
    if result == -1 { Err(()) } else { Ok(()) }
}

/// Closes every descriptor except `keep`, which is sorted.
pub(crate) fn close_all_but(keep: &(impl Iterator<Item = RawFd> + Clone)) {
    let mut first = 0;
    for kept in keep.clone() {
        if first < kept && close_range(first, kept - 1, 0).is_err() {
            return close_each_but(keep);
        }
        first = kept + 1;
    }
    if close_range(first, RawFd::MAX, 0).is_err() {
        close_each_but(keep);
    }
}

fn mark_all_close_on_exec() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4; // Linux 5.11; musl's headers lack the name
    if close_range(3, RawFd::MAX, CLOSE_RANGE_CLOEXEC).is_err() {
        each_open_descriptor(|descriptor| {
            if descriptor > 2 {
                // SAFETY: fcntl(2) F_SETFD takes numbers.
                unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        });
    }
}

/// `close_range(2)`, Linux 5.9.
fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> Result<(), ()> {
    // SAFETY: takes three numbers; the child owns no descriptor in the range.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == -1 { Err(()) } else { Ok(()) }
}

/// The fallback for kernels without `close_range`.
fn close_each_but(keep: &(impl Iterator<Item = RawFd> + Clone)) {
    each_open_descriptor(|descriptor| {
        if !keep.clone().any(|kept| kept == descriptor) {
            close(descriptor);
        }
    });
}

fn close(descriptor: RawFd) {
    // SAFETY: close(2) takes a number; in the child no value owns the descriptor.
    unsafe { libc::close(descriptor) };
}

/// Calls `visit` for every open descriptor: those in /proc/self/fd, or every possible number if there is no /proc.
fn each_open_descriptor(mut visit: impl FnMut(RawFd)) {
    // SAFETY: open(2) reads a C string.
    let directory =
        unsafe { libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    if directory == -1 {
        // SAFETY: sysconf(3) takes a number; for this one it is getrlimit(2).
        let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        return (0..RawFd::try_from(limit).unwrap_or(1024)).for_each(visit);
    }
    let mut entries = [0_u8; 4096];
    loop {
        // SAFETY: getdents64(2) writes at most the given number of bytes, the size of the buffer.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, directory, entries.as_mut_ptr(), entries.len()) };
        let Ok(filled @ 1..) = usize::try_from(filled) else { break };
        let mut at = 0;
        // A record is ino u64, off u64, length u16, type u8, then the NUL-terminated name.
        while let Some(&[low, high]) = entries.get(at + 16..at + 18).filter(|_| at < filled) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let found = entries.get(at + 19..at + length).and_then(number);
            if let Some(number) = found.filter(|&number| number != directory) {
                visit(number);
            }
            at += length;
        }
    }
    close(directory);
}

/// The decimal number before the first NUL; `None` for `.` and `..`.
fn number(name: &[u8]) -> Option<RawFd> {
    let digits = name.split(|&byte| byte == 0).next()?;
    let mut value: RawFd = 0;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit <= 9)?;
        value = value.checked_mul(10)?.checked_add(RawFd::from(digit))?;
    }
    (!digits.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs::File, os::fd::AsRawFd};

    #[test]
    fn step_codes_round_trip() {
        for step in SetupStep::ALL {
            assert_eq!(SetupStep::from_code(step.code()), Some(step));
        }
        assert_eq!(SetupStep::from_code(0), None, "0 means no failure");
    }

    #[test]
    fn fallback_walk_finds_open_descriptors() {
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let mut found = BTreeSet::new();
        each_open_descriptor(|descriptor| {
            found.insert(descriptor);
        });
        for file in &files {
            assert!(found.contains(&file.as_raw_fd()), "{} of {found:?}", file.as_raw_fd());
        }
    }

    #[test]
    fn descriptor_names_are_numbers() {
        assert_eq!(number(b"17\0\0"), Some(17));
        assert_eq!(number(b"..\0"), None);
        assert_eq!(number(b"\0"), None);
        assert_eq!(number(b"99999999999\0"), None);
    }
}
