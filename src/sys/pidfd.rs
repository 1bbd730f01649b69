//! pidfd: a process that cannot be mistaken for another, however often its number is used again. See `pidfd_open(2)`.

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

/// A descriptor of one process; readable once the process has ended.
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
    /// Somebody else took the status, or the host ignores SIGCHLD, and the kernel is too old to tell it twice.
    Unknown,
}

/// What the kernel tells of a process that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    pub(crate) ending: WaitStatus,
    /// Nothing where the status was taken by somebody else.
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
    /// Opens a child that is not reaped yet.
    pub(crate) fn open(pid: libc::pid_t) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
        Ok(Self::from(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends a signal; ESRCH when the process is gone. Where the call itself is refused, see [`is_send_denied`].
    pub(crate) fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        send(self.0.as_raw_fd(), signal, 0)
    }

    /// Sends a signal to the process group that this child leads; ESRCH when it leads none.
    ///
    /// The kernel (Linux 6.9) keeps the group's identity in the descriptor: it finds the group also when its leader was reaped, and
    /// never another one. Before that, the group is signalled by its number, while the leader is not reaped.
    pub(crate) fn signal_group(&self, leader: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2; // linux/pidfd.h
        match send(self.0.as_raw_fd(), signal, PIDFD_SIGNAL_PROCESS_GROUP) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) || is_send_denied(&error) => {
                // kill(2) gives -1 and our own group a meaning of their own.
                if leader <= 1 || leader == own_pid() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                self.kill_unreaped(leader, -leader, signal)
            }
            sent => sent,
        }
    }

    /// Sends a signal to this child; by its number where the call is denied.
    pub(crate) fn signal_child(&self, number: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        match self.signal(signal) {
            Err(error) if is_send_denied(&error) => self.kill_unreaped(number, number, signal),
            sent => sent,
        }
    }

    /// A child keeps its number until it is reaped, by whatever part of this program.
    fn kill_unreaped(&self, number: libc::pid_t, target: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        if number > 1 && self.is_unreaped() {
            kill::kill(target, signal)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }

    /// Whether this process still has its number: it is a child that is not reaped.
    pub(crate) fn is_unreaped(&self) -> bool {
        self.waitid(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
            .is_ok_and(|reaped| reaped.is_none_or(|it| it.usage.is_some()))
    }

    /// Takes the status of an ended process, or `None` while it runs. Never blocks.
    pub(crate) fn reap(&self) -> io::Result<Option<Reaped>> {
        self.waitid(libc::WEXITED | libc::WNOHANG)
    }

    /// Waits for the end, however long, and takes the status.
    pub(crate) fn wait_and_reap(&self) -> io::Result<Option<Reaped>> {
        self.waitid(libc::WEXITED)
    }

    fn waitid(&self, options: libc::c_int) -> io::Result<Option<Reaped>> {
        let mut info: MaybeUninit<libc::siginfo_t> = MaybeUninit::zeroed();
        let mut usage: MaybeUninit<libc::rusage> = MaybeUninit::zeroed();
        let waited = retry(|| {
            // The raw call has a fifth argument that the C library hides: the resource use of this child alone.
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
                return Ok(Some(Reaped { ending: self.status_taken_by_others(), usage: None }));
            }
            Err(error) => return Err(error),
        }
        // SAFETY: zeroed, then perhaps written by the kernel: both are valid.
        let info = unsafe { info.assume_init() };
        // SAFETY: for a siginfo of waitid(2), or one of zeroes, this field is the one in use.
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

    /// `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15: the wait status, also after somebody else took it.
    fn status_taken_by_others(&self) -> WaitStatus {
        const PIDFD_GET_INFO: u64 = 0xC040_FF0B; // _IOWR(0xFF, 11, 64 bytes), linux/pidfd.h
        const PIDFD_INFO_EXIT: u32 = 1 << 3; // in the lower half of the mask
        const MASK_WORD: usize = if cfg!(target_endian = "little") { 0 } else { 1 };
        const EXIT_CODE_WORD: usize = 15; // struct pidfd_info: mask u64, cgroupid u64, 11 numbers of 32 bits, then exit_code
        let mut info = [0_u32; 16];
        info[MASK_WORD] = PIDFD_INFO_EXIT;
        // SAFETY: the ioctl reads and writes the 64 bytes that its number names, and the array has 64.
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

/// Takes the status of a zombie: ECHILD where it is not this process's. By its number where pidfds are denied: a zombie keeps that.
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

/// A descriptor to be closed when others are needed.
pub(crate) fn placeholder() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

/// Why `pidfd_open` cannot be used: a seccomp filter (older container profiles), or a kernel before 5.3. It is asked again each time:
/// no answer is kept, since a filter can be added at any time.
pub(crate) fn open_denial() -> Option<io::Error> {
    // The kernel itself says ESRCH: no number of a process is as large.
    PidFd::open(libc::pid_t::MAX).err().filter(is_denial)
}

/// The same of `pidfd_send_signal`.
pub(crate) fn send_denial() -> Option<io::Error> {
    // The kernel itself refuses this descriptor with EBADF.
    send(-1, 0, 0).err().filter(is_denial)
}

/// Whether a process could not be opened since that is denied.
pub(crate) fn is_open_denied(error: &io::Error) -> bool {
    is_denial(error) && open_denial().is_some()
}

/// Whether a refused signal was refused by a filter, and not since the process belongs to another user.
pub(crate) fn is_send_denied(error: &io::Error) -> bool {
    is_denial(error) && send_denial().is_some()
}

/// What seccomp filters answer, as container runtimes write them: their default errno, or that of a call that does not exist.
fn is_denial(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

impl From<OwnedFd> for PidFd {
    /// In a host that has closed them, 0, 1 and 2 are free; a child that inherits them must not find this. Where there is no
    /// other number left it stays: a process without its pidfd would be worse.
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

/// A way for a forked child to hand its parent a pidfd of itself.
///
/// `pidfd_open` by the parent would be too late in a host that ignores SIGCHLD: a child that ended at once is gone, and its
/// number may be somebody else's. Where `pidfd_open` is denied the kernel (Linux 6.5) adds a pidfd of the sender to the message.
#[derive(Debug)]
pub(crate) struct PidfdHandover {
    parent: UnixDatagram,
    child: UnixDatagram,
}

impl PidfdHandover {
    pub(crate) fn new() -> io::Result<Self> {
        let (parent, child) = UnixDatagram::pair()?;
        if open_denial().is_some() {
            // Refused by older kernels: then the child cannot be held at all, and its start fails.
            drop(socket::receive_pidfd(parent.as_fd()));
        }
        Ok(Self { parent, child })
    }

    /// What the child needs of it.
    pub(crate) fn child_end(&self) -> RawFd {
        self.child.as_raw_fd()
    }

    /// In the child, between fork and exec: async-signal-safe. A failure is for the parent to notice.
    pub(crate) fn send_own(child_end: RawFd) {
        // SAFETY: the forked child has the parent's descriptors, this one among them, until exec.
        let child_end = unsafe { BorrowedFd::borrow_raw(child_end) };
        let byte = [IoSlice::new(&[0])];
        let sent = match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
            Ok(own) => socket::send(child_end, &byte, &[own.as_fd()]),
            Err(_) => socket::send(child_end, &byte, &[]),
        };
        drop(sent);
    }

    /// In the parent, once the child runs its program. Nothing where the child could not send.
    pub(crate) fn receive(&self) -> Option<PidFd> {
        let received = socket::receive_message(self.parent.as_fd(), &mut [0], RecvAction::Descriptors).ok()?;
        received.descriptors.into_iter().next().map(PidFd::from)
    }
}
