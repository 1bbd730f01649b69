//! Which system calls are made to fail, with which errors, and which calls of the sources that covers.

use super::injector::clone3_flags;
use libc::{EAGAIN, EBUSY, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOLCK, ENOMEM, ENOSPC, EPERM, c_int, c_long};

/// A kind of system call that can fail temporarily.
pub(super) struct Call {
    pub(super) name: &'static str,
    /// The system call numbers.
    pub(super) numbers: &'static [c_long],
    /// Selects calls by their arguments.
    pub(super) is_meant: fn(&[u64; 6]) -> bool,
    /// The errors of a machine that is short of a resource.
    pub(super) errnos: &'static [c_int],
}

const ALL: fn(&[u64; 6]) -> bool = |_| true;
/// The only getsockopt option for which the kernel allocates.
const SO_PEERPIDFD: u64 = 77;
const CLONE_THREAD: u64 = 0x10000;

macro_rules! calls {
    ($($name:literal $numbers:expr, $is_meant:expr, $errnos:expr;)*) => {
        &[$(Call { name: $name, numbers: &$numbers, is_meant: $is_meant, errnos: &$errnos }),*]
    };
}

/// Calls that have older equivalents on one of the two architectures.
#[cfg(target_arch = "x86_64")]
mod old {
    pub(super) use libc::{
        SYS_chmod as CHMOD, SYS_dup2 as DUP2, SYS_epoll_wait as EPOLL_WAIT, SYS_link as LINK, SYS_lstat as LSTAT,
        SYS_mkdir as MKDIR, SYS_open as OPEN, SYS_poll as POLL, SYS_readlink as READLINK, SYS_rmdir as RMDIR,
        SYS_stat as STAT, SYS_unlink as UNLINK,
    };
}
#[cfg(not(target_arch = "x86_64"))]
mod old {
    pub(super) use libc::{
        SYS_dup3 as DUP2, SYS_epoll_pwait as EPOLL_WAIT, SYS_fchmodat as CHMOD, SYS_linkat as LINK,
        SYS_mkdirat as MKDIR, SYS_newfstatat as LSTAT, SYS_newfstatat as STAT, SYS_openat as OPEN, SYS_ppoll as POLL,
        SYS_readlinkat as READLINK, SYS_unlinkat as RMDIR, SYS_unlinkat as UNLINK,
    };
}

fn command(arguments: &[u64; 6]) -> c_int {
    c_int::try_from(arguments[1] & 0xffff_ffff).unwrap_or(-1)
}

pub(super) const CALLS: &[Call] = calls! {
    "accept4" [libc::SYS_accept4], ALL, [EMFILE, ENFILE, ENOMEM, ECONNABORTED, EINTR];
    "bind" [libc::SYS_bind], ALL, [ENOMEM, ENOSPC];
    "chdir" [libc::SYS_chdir], ALL, [ENOMEM];
    "chmod" [old::CHMOD, libc::SYS_fchmodat, libc::SYS_fchmod], ALL, [ENOMEM];
    "chown" [libc::SYS_fchownat, libc::SYS_fchown], ALL, [ENOMEM];
    "clone" [libc::SYS_clone], |arguments| arguments[0] & CLONE_THREAD == 0, [EAGAIN, ENOMEM];
    "clone of a thread" [THREAD_CLONE], starts_thread, [EAGAIN];
    "clone3" [libc::SYS_clone3], |arguments| clone3_flags(arguments[0]) & CLONE_THREAD == 0, [EAGAIN, ENOMEM];
    "close_range" [libc::SYS_close_range], ALL, [ENOMEM, EMFILE];
    "connect" [libc::SYS_connect], ALL, [EAGAIN, ENOMEM, EINTR];
    "dup2" [old::DUP2, libc::SYS_dup3], ALL, [EBUSY, EMFILE];
    "epoll_create1" [libc::SYS_epoll_create1], ALL, [EMFILE, ENFILE, ENOMEM];
    "epoll_ctl" [libc::SYS_epoll_ctl], |arguments| command(arguments) != libc::EPOLL_CTL_DEL, [ENOMEM, ENOSPC];
    "epoll_wait" [old::EPOLL_WAIT, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2], ALL, [EINTR];
    "eventfd" [libc::SYS_eventfd2], ALL, [EMFILE, ENFILE, ENOMEM];
    "execve" [libc::SYS_execve], ALL, [EAGAIN, ENOMEM, EMFILE];
    "fcntl(F_DUPFD)" [libc::SYS_fcntl],
        |arguments| matches!(command(arguments), libc::F_DUPFD | libc::F_DUPFD_CLOEXEC), [EMFILE];
    "fcntl(F_SETPIPE_SZ)" [libc::SYS_fcntl], |arguments| command(arguments) == libc::F_SETPIPE_SZ, [EPERM, ENOMEM];
    "flock" [libc::SYS_flock], ALL, [ENOLCK, EINTR];
    "getdents64" [libc::SYS_getdents64], ALL, [ENOMEM];
    "getrandom" [libc::SYS_getrandom], ALL, [EINTR];
    "getsockopt" [libc::SYS_getsockopt], |arguments| arguments[2] == SO_PEERPIDFD, [EMFILE, ENFILE, ENOMEM];
    "inotify_add_watch" [libc::SYS_inotify_add_watch], ALL, [ENOMEM, ENOSPC];
    "inotify_init1" [libc::SYS_inotify_init1], ALL, [EMFILE, ENFILE];
    "ioctl" [libc::SYS_ioctl], ALL, [ENOMEM];
    "ioprio_set" [libc::SYS_ioprio_set], ALL, [ENOMEM];
    "link" [old::LINK, libc::SYS_linkat], ALL, [ENOSPC, ENOMEM];
    "listen" [libc::SYS_listen], ALL, [ENOMEM];
    "memfd_create" [libc::SYS_memfd_create], ALL, [EMFILE, ENFILE, ENOMEM];
    "mkdir" [old::MKDIR, libc::SYS_mkdirat], ALL, [ENOSPC, ENOMEM];
    "mmap of a stack" [libc::SYS_mmap], is_stack, [ENOMEM];
    "open" [old::OPEN, libc::SYS_openat], ALL, [EMFILE, ENFILE, ENOMEM, EINTR];
    "pidfd_open" [libc::SYS_pidfd_open], ALL, [EMFILE, ENFILE, ENOMEM];
    "pidfd_send_signal" [libc::SYS_pidfd_send_signal], ALL, [ENOMEM];
    "pipe2" [libc::SYS_pipe2], ALL, [EMFILE, ENFILE];
    "poll" [old::POLL, libc::SYS_ppoll], ALL, [EINTR, ENOMEM];
    "pread" [libc::SYS_pread64], ALL, [EINTR, ENOMEM];
    "prctl" [libc::SYS_prctl], ALL, [ENOMEM];
    "prlimit64" [libc::SYS_prlimit64], ALL, [ENOMEM];
    "pwritev2" [libc::SYS_pwritev2], ALL, [EINTR];
    "pwrite64" [libc::SYS_pwrite64], ALL, [EINTR, ENOSPC];
    "read" [libc::SYS_read], ALL, [EINTR, ENOMEM];
    "readlink" [old::READLINK, libc::SYS_readlinkat], ALL, [ENOMEM];
    "recv" [libc::SYS_recvfrom], ALL, [EINTR, ENOMEM];
    "recvmsg" [libc::SYS_recvmsg], ALL, [EINTR, ENOMEM];
    "rmdir" [old::RMDIR], is_rmdir, [EBUSY, ENOMEM];
    "sched_setaffinity" [libc::SYS_sched_setaffinity], ALL, [ENOMEM];
    "send" [libc::SYS_sendto], ALL, [EINTR, ENOBUFS, ENOMEM];
    "sendmsg" [libc::SYS_sendmsg], ALL, [EINTR, ENOBUFS, ENOMEM];
    "setpgid" [libc::SYS_setpgid], ALL, [ENOMEM];
    "setpriority" [libc::SYS_setpriority], ALL, [ENOMEM];
    "setsid" [libc::SYS_setsid], ALL, [ENOMEM];
    "socket" [libc::SYS_socket], ALL, [EMFILE, ENFILE, ENOBUFS, ENOMEM];
    "socketpair" [libc::SYS_socketpair], ALL, [EMFILE, ENFILE];
    "stat" [old::STAT, old::LSTAT, libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx], ALL, [ENOMEM];
    "unlink" [old::UNLINK], ALL, [ENOMEM, EINTR];
    "waitid" [libc::SYS_waitid], ALL, [EINTR];
    "write" [libc::SYS_write], ALL, [EINTR];
};

/// The call with which the C library starts a thread.
const THREAD_CLONE: c_long = if cfg!(target_env = "musl") { libc::SYS_clone } else { libc::SYS_clone3 };

fn starts_thread(arguments: &[u64; 6]) -> bool {
    let flags = if cfg!(target_env = "musl") { arguments[0] } else { clone3_flags(arguments[0]) };
    flags & CLONE_THREAD != 0
}

/// The stack of a child, not that of a thread, nor the small one for std's signal handlers, without which no thread can start.
fn is_stack(arguments: &[u64; 6]) -> bool {
    let has = |at: usize, flags: c_int| arguments[at] & u64::from(flags.unsigned_abs()) != 0;
    arguments[1] > 16 << 10 && has(2, libc::PROT_WRITE) && has(3, libc::MAP_STACK)
}

/// Where rmdir(2) is unlinkat(2), its flag distinguishes it.
fn is_rmdir(arguments: &[u64; 6]) -> bool {
    const AT_REMOVEDIR: u64 = 0x200;
    cfg!(target_arch = "x86_64") || arguments[2] & AT_REMOVEDIR != 0
}

/// What a call in the sources (`libc::NAME(`, `libc::SYS_NAME`, `rustix::net::NAME(`, `fs::NAME(` and similar) makes.
#[derive(Debug, PartialEq)]
pub(super) enum Means {
    /// These of `CALLS`.
    Calls(Vec<&'static str>),
    /// Not made to fail, for this reason.
    Never(&'static str),
}

/// Names that differ from those in `CALLS`.
const ALIASES: &[(&str, &[&str])] = &[
    ("Builder", &["clone of a thread"]),
    ("accept_with", &["accept4"]),
    ("bind_addr", &["bind"]),
    ("child_subreaper", &["prctl"]),
    ("create_dir", &["mkdir"]),
    ("dumpable_behavior", &["prctl"]),
    ("dup2_stderr", &["dup2"]),
    ("dup2_stdin", &["dup2"]),
    ("dup2_stdout", &["dup2"]),
    ("epoll::add", &["epoll_ctl"]),
    ("epoll::create", &["epoll_create1"]),
    ("epoll::modify", &["epoll_ctl"]),
    ("epoll::wait", &["epoll_wait"]),
    ("exists", &["stat"]),
    ("fchmod", &["chmod"]),
    ("fcntl", &["fcntl(F_DUPFD)", "fcntl(F_SETPIPE_SZ)"]),
    ("fcntl_dupfd_cloexec", &["fcntl(F_DUPFD)"]),
    ("fcntl_setpipe_size", &["fcntl(F_SETPIPE_SZ)"]),
    ("fstat", &["stat"]),
    ("hard_link", &["link"]),
    ("inotify::add_watch", &["inotify_add_watch"]),
    ("inotify::init", &["inotify_init1"]),
    ("ioctl_fionread", &["ioctl"]),
    ("ioctl_tiocgptpeer", &["ioctl"]),
    ("metadata", &["stat"]),
    ("mmap", &["mmap of a stack"]),
    ("openpt", &["open"]),
    ("options", &["open"]),
    ("pipe", &["pipe2"]),
    ("ptsname", &["ioctl"]),
    ("read_dir", &["getdents64"]),
    ("read_link", &["readlink"]),
    ("read_to_string", &["open", "read"]),
    ("remove_dir", &["rmdir"]),
    ("remove_file", &["unlink"]),
    ("set_child_subreaper", &["prctl"]),
    ("set_dumpable_behavior", &["prctl"]),
    ("set_name", &["prctl"]),
    ("set_permissions", &["chmod"]),
    ("socket_with", &["socket"]),
    ("symlink_metadata", &["stat"]),
    ("tcgetattr", &["ioctl"]),
    ("tcsetattr", &["ioctl"]),
    ("tcsetwinsize", &["ioctl"]),
    ("unbound", &["socket"]),
    ("unlockpt", &["ioctl"]),
];

/// Calls that occur only if this process may make cgroups.
pub(super) const IN_CGROUPS: [&str; 2] = ["clone3", "rmdir"];

/// Calls that can be absent if this process may make cgroups: without them, descendants are searched for and inspected.
pub(super) const OUTSIDE_CGROUPS: [&str; 1] = ["readlink"];

const NEVER: &[(&str, &[&str])] = &[
    (
        "asks the kernel for nothing that it could refuse",
        &[
            "_exit",
            "getpid",
            "getppid",
            "getpgid",
            "getsid",
            "gettid",
            "geteuid",
            "getgroups",
            "getresuid",
            "getresgid",
            "getpeername",
            "sysconf",
            "umask",
            "sigaddset",
            "sigemptyset",
            "sigfillset",
            "sigismember",
            "sigpending",
            "clock_gettime",
            "current",
            "from",
            "getpgrp",
            "getuid",
            "sleep",
            "yield_now",
            "syscall",
            "epoll::delete",
            "fcntl_getfd",
            "fcntl_setfd",
            "fcntl_getfl",
            "fcntl_setfl",
            "fcntl_getpipe_size",
            "seek",
            "sockopt::socket_domain",
            "sockopt::socket_error",
            "sockopt::socket_passcred",
            "sockopt::socket_send_buffer_size",
            "sockopt::socket_type",
        ],
    ),
    (
        "fails for wrong arguments only",
        &[
            "munmap",
            "setsockopt",
            "mprotect",
            "pthread_sigmask",
            "sigaction",
            "rt_sigaction",
            "sigtimedwait",
            "rt_sigtimedwait",
            "kill",
            "waitpid",
            "test_kill_current_process_group",
            "sockopt::set_socket_oobinline",
            "sockopt::set_socket_passcred",
            "sockopt::set_socket_send_buffer_size",
            "sockopt::set_socket_send_buffer_size_force",
            "sockopt::set_socket_timeout",
        ],
    ),
    ("sets a flag of a Unix domain socket: unix_shutdown() in the kernel allocates nothing", &["shutdown"]),
    (
        "impersonation, which needs other users",
        &[
            "chown",
            "getpwuid_r",
            "getxattr",
            "set_thread_groups",
            "set_thread_res_gid",
            "set_thread_res_uid",
            "set_capabilities",
            "scope",
        ],
    ),
    ("job control, which needs a terminal", &["raise", "tgkill"]),
    ("pipes to another machine, which need ssh", &["remove_dir_all"]),
    ("tokens of a jobserver, which need one", &["splice"]),
    ("asks once a process what the kernel knows", &["pair"]),
    ("the kernel closes the descriptor whatever it returns", &["close"]),
];

pub(super) fn means(name: &str) -> Option<Means> {
    if let Some(call) = CALLS.iter().find(|call| call.name == name) {
        return Some(Means::Calls(vec![call.name]));
    }
    if let Some((_, calls)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some(Means::Calls(calls.to_vec()));
    }
    NEVER.iter().find(|(_, names)| names.contains(&name)).map(|(reason, _)| Means::Never(reason))
}
