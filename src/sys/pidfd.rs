//! `pidfd_open(2)` and related calls: a reference to one process, unaffected by the reuse of PIDs.

use super::{
    cvt, fd, kill, retry,
    socket::{self, RecvAction},
    this_process::own_pid,
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, WaitOptions},
};
use std::{
    fs,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

/// A pidfd; readable once the process has ended.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

/// How a reaped process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitStatus {
    Code(i32),
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    /// Other code took the status, or the host ignores SIGCHLD, and the kernel is too old to return the status twice.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    pub(crate) ending: WaitStatus,
    /// `None` if other code took the status.
    pub(crate) usage: Option<RawUsage>,
}

/// The fields of getrusage(2) that Linux fills in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawUsage {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_bytes: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

impl PidFd {
    /// Opens a child that is not reaped.
    pub(crate) fn open(pid: libc::pid_t) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
        Ok(Self::from(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends a signal; `ESRCH` if the process is gone. If the call itself is denied, see [`is_send_denied`].
    pub(crate) fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        send(self.0.as_raw_fd(), signal, 0)
    }

    /// Sends a signal to the process group that this child leads; `ESRCH` if it leads none.
    ///
    /// Since Linux 6.9 the kernel finds the group by the pidfd, even after its leader was reaped. Before that, the group is signalled
    /// by its number while the leader is not reaped.
    pub(crate) fn signal_group(&self, leader: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2; // linux/pidfd.h
        match send(self.0.as_raw_fd(), signal, PIDFD_SIGNAL_PROCESS_GROUP) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) || is_send_denied(&error) => {
                // kill(2) gives -1 and this process's own group a special meaning.
                if leader <= 1 || leader == own_pid() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                self.kill_unreaped(leader, -leader, signal)
            }
            sent => sent,
        }
    }

    /// Sends a signal to this child; by its PID if the call is denied.
    pub(crate) fn signal_child(&self, number: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        match self.signal(signal) {
            Err(error) if is_send_denied(&error) => self.kill_unreaped(number, number, signal),
            sent => sent,
        }
    }

    /// A child keeps its PID until any code of this process reaps it.
    fn kill_unreaped(&self, number: libc::pid_t, target: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        if number > 1 && self.is_unreaped() {
            kill::kill(target, signal)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }

    /// Whether the process still has its PID: it is a child that is not reaped.
    pub(crate) fn is_unreaped(&self) -> bool {
        self.waitid(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
            .is_ok_and(|reaped| reaped.is_none_or(|it| it.usage.is_some()))
    }

    /// Takes the status of an ended process; `None` while it runs. Never blocks.
    pub(crate) fn reap(&self) -> io::Result<Option<Reaped>> {
        self.waitid(libc::WEXITED | libc::WNOHANG)
    }

    /// Waits without limit for the process to end, and takes the status.
    pub(crate) fn wait_and_reap(&self) -> io::Result<Option<Reaped>> {
        self.waitid(libc::WEXITED)
    }

    fn waitid(&self, options: libc::c_int) -> io::Result<Option<Reaped>> {
        let mut info: MaybeUninit<libc::siginfo_t> = MaybeUninit::zeroed();
        let mut usage: MaybeUninit<libc::rusage> = MaybeUninit::zeroed();
        let waited = retry(|| {
            // The raw call has a fifth argument that the C library lacks: the resource usage of this child.
            // SAFETY: waitid(2) writes one siginfo and one rusage into memory of that size.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_waitid,
                    libc::P_PIDFD,
                    self.0.as_raw_fd(),
                    info.as_mut_ptr(),
                    options,
                    usage.as_mut_ptr(),
                )
            };
            cvt(i32::try_from(result).unwrap_or(-1))
        });
        match waited {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                return Ok(Some(Reaped { ending: self.recorded_status(), usage: None }));
            }
            Err(error) => return Err(error),
        }
        // SAFETY: zeroed, then possibly written by the kernel; both are valid.
        let info = unsafe { info.assume_init() };
        // SAFETY: in a siginfo of waitid(2), or one of zeroes, this field is the active one.
        let (pid, status) = (unsafe { info.si_pid() }, unsafe { info.si_status() });
        if pid == 0 {
            return Ok(None);
        }
        // SAFETY: as for `info`.
        let usage = unsafe { usage.assume_init() };
        let ending = match info.si_code {
            libc::CLD_EXITED => WaitStatus::Code(status),
            code => WaitStatus::Signal { signal: status, core_dumped: code == libc::CLD_DUMPED },
        };
        Ok(Some(Reaped { ending, usage: Some(RawUsage::from(&usage)) }))
    }

    /// `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15: returns the status of a process that was reaped, also by other code or by
    /// another process.
    pub(crate) fn recorded_status(&self) -> WaitStatus {
        const PIDFD_GET_INFO: u64 = 0xC040_FF0B; // _IOWR(0xFF, 11, 64 bytes), linux/pidfd.h
        const PIDFD_INFO_EXIT: u32 = 1 << 3; // in the lower half of the mask
        const MASK_WORD: usize = if cfg!(target_endian = "little") { 0 } else { 1 };
        const EXIT_CODE_WORD: usize = 15; // struct pidfd_info: mask u64, cgroupid u64, 11 numbers of 32 bits, then exit_code
        let mut info = [0_u32; 16];
        info[MASK_WORD] = PIDFD_INFO_EXIT;
        // SAFETY: the ioctl reads and writes 64 bytes, as its number encodes, and the array has 64.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO as _, info.as_mut_ptr()) };
        if result == -1 || info[MASK_WORD] & PIDFD_INFO_EXIT == 0 {
            return WaitStatus::Unknown;
        }
        let status = info[EXIT_CODE_WORD].cast_signed();
        if libc::WIFSIGNALED(status) {
            WaitStatus::Signal { signal: libc::WTERMSIG(status), core_dumped: libc::WCOREDUMP(status) }
        } else {
            WaitStatus::Code(libc::WEXITSTATUS(status))
        }
    }
}

fn send(descriptor: RawFd, signal: libc::c_int, flags: libc::c_uint) -> io::Result<()> {
    let info = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal(2) with a null siginfo behaves as kill(2); a descriptor that is not open is refused.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal, info, flags) };
    cvt(i32::try_from(result).unwrap_or(-1)).map(drop)
}

/// Reaps a zombie; `ECHILD` if it is not a child of this process. Uses the PID if pidfds are denied: a zombie keeps its PID.
pub(crate) fn reap_zombie(pid: libc::pid_t) -> io::Result<()> {
    match PidFd::open(pid) {
        Ok(pidfd) => pidfd.reap().map(drop),
        Err(error) if is_open_denied(&error) => {
            let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?; // `None` would be any child
            Ok(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).map(drop)?)
        }
        Err(error) => Err(error),
    }
}

/// A file descriptor that reserves a number until it is needed.
pub(crate) fn placeholder() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

/// Why `pidfd_open` is denied: a seccomp filter (older container profiles), or a kernel before 5.3. Not cached, since a filter can be
/// added at any time.
pub(crate) fn open_denial() -> Option<io::Error> {
    // Without a filter the kernel returns ESRCH: no PID is that large.
    PidFd::open(libc::pid_t::MAX).err().filter(is_denial)
}

/// Why `pidfd_send_signal` is denied.
pub(crate) fn send_denial() -> Option<io::Error> {
    // Without a filter the kernel returns EBADF.
    send(-1, 0, 0).err().filter(is_denial)
}

/// Whether `pidfd_open` failed because it is denied.
pub(crate) fn is_open_denied(error: &io::Error) -> bool {
    is_denial(error) && open_denial().is_some()
}

/// Whether a signal was refused by a filter, as opposed to the permissions of the process.
pub(crate) fn is_send_denied(error: &io::Error) -> bool {
    is_denial(error) && send_denial().is_some()
}

/// The errors that seccomp filters of container runtimes return: their default errno, or that of a missing call.
fn is_denial(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

impl From<OwnedFd> for PidFd {
    /// Moves a descriptor below 3 up, as in a host that has closed 0, 1 or 2: a child would inherit it as a standard stream. If no
    /// number is free it stays, since losing the process would be worse.
    fn from(descriptor: OwnedFd) -> Self {
        let lifted = if descriptor.as_raw_fd() < 3 { fd::duplicate(descriptor.as_fd(), 3).ok() } else { None };
        Self(lifted.unwrap_or(descriptor))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<&libc::rusage> for RawUsage {
    fn from(usage: &libc::rusage) -> Self {
        let count = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
        let time = |value: libc::timeval| {
            Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
                + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
        };
        Self {
            user: time(usage.ru_utime),
            system: time(usage.ru_stime),
            max_rss_bytes: count(usage.ru_maxrss).saturating_mul(1024), // KiB on Linux
            minor_faults: count(usage.ru_minflt),
            major_faults: count(usage.ru_majflt),
            voluntary_switches: count(usage.ru_nvcsw),
            involuntary_switches: count(usage.ru_nivcsw),
        }
    }
}

/// Transfers a pidfd from a forked child to its parent.
///
/// `pidfd_open` in the parent would be too late if the host ignores SIGCHLD: a child that ended immediately is gone, and its PID may
/// be reused. If `pidfd_open` is denied, the kernel (Linux 6.5) attaches a pidfd of the sender to the message.
#[derive(Debug)]
pub(crate) struct PidfdHandover {
    parent: UnixDatagram,
    child: UnixDatagram,
}

impl PidfdHandover {
    pub(crate) fn new() -> io::Result<Self> {
        let (parent, child) = UnixDatagram::pair()?;
        if open_denial().is_some() {
            // Older kernels refuse this: then the child cannot be pinned, and its start fails.
            drop(socket::receive_pidfd(parent.as_fd()));
        }
        Ok(Self { parent, child })
    }

    /// The descriptor that the child uses.
    pub(crate) fn child_end(&self) -> RawFd {
        self.child.as_raw_fd()
    }

    /// Called in the child between fork and exec: async-signal-safe. The parent notices a failure.
    pub(crate) fn send_own(child_end: RawFd) {
        // SAFETY: until exec the forked child has the parent's descriptors, this one among them.
        let child_end = unsafe { BorrowedFd::borrow_raw(child_end) };
        let byte = [IoSlice::new(&[0])];
        let sent = match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
            Ok(own) => socket::send(child_end, &byte, &[own.as_fd()]),
            Err(_) => socket::send(child_end, &byte, &[]),
        };
        drop(sent);
    }

    /// Called in the parent once the child has executed its program. `None` if the child could not send.
    pub(crate) fn receive(&self) -> Option<PidFd> {
        let received = socket::receive_message(self.parent.as_fd(), &mut [0], RecvAction::Descriptors).ok()?;
        received.descriptors.into_iter().next().map(PidFd::from)
    }
}
