//! System calls that tests need and the library does not expose.
#![expect(unsafe_code, reason = "tests look at the kernel from outside the library")]

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    mem::{self, MaybeUninit},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A file descriptor that is readable once the process has ended; `None` if it is gone.
pub(crate) fn pidfd_open(pid: u32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number = RawFd::try_from(number).ok().filter(|&number| number >= 0)?;
    // SAFETY: just opened, without another owner.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

pub(crate) fn poll_readable(fd: &impl AsFd, timeout: Duration) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap();
    // SAFETY: poll(2) reads and writes one pollfd.
    (unsafe { libc::poll(&raw mut polled, 1, timeout) }) > 0
}

/// Waits until the peer of a socket has shut down its writing, whatever data is unread.
pub(crate) fn poll_end(fd: &impl AsFd, timeout: Duration) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap();
    // SAFETY: poll(2) reads and writes one pollfd.
    (unsafe { libc::poll(&raw mut polled, 1, timeout) }) > 0
}

/// prctl(2) for options that set one number.
pub(crate) fn prctl(option: i32, value: i32) {
    // SAFETY: the caller's option takes a number.
    assert_eq!(unsafe { libc::prctl(option, value, 0, 0, 0) }, 0);
}

/// The process group; `None` if the process is gone.
pub(crate) fn group_of(pid: u32) -> Option<u32> {
    // SAFETY: getpgid(2) takes a number.
    u32::try_from(unsafe { libc::getpgid(pid.cast_signed()) }).ok()
}

/// The effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Permanently changes the user of this process, which runs as root.
pub(crate) fn become_user(id: u32) {
    // SAFETY: setgroups(2) reads no list of no groups.
    assert_eq!(unsafe { libc::setgroups(0, std::ptr::null()) }, 0);
    // SAFETY: setresgid(2) takes three numbers.
    assert_eq!(unsafe { libc::setresgid(id, id, id) }, 0);
    // SAFETY: setresuid(2) takes three numbers.
    assert_eq!(unsafe { libc::setresuid(id, id, id) }, 0);
    // A process that changes its user is no longer dumpable, and could not read its own /proc files.
    prctl(libc::PR_SET_DUMPABLE, 1);
}

/// Gives the calling thread, and threads that it starts, a separate mount namespace.
pub(crate) fn unshare_mounts() {
    // SAFETY: unshare(2) takes flags.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
    let nothing = std::ptr::null();
    // SAFETY: mount(2) reads one C string; this call takes no other.
    let set = unsafe { libc::mount(nothing, c"/".as_ptr(), nothing, libc::MS_REC | libc::MS_PRIVATE, nothing.cast()) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Mounts an empty directory over `/proc`.
pub(crate) fn hide_proc() {
    mount_over_proc(c"tmpfs");
}

/// Mounts the `/proc` of this PID namespace.
pub(crate) fn mount_proc() {
    mount_over_proc(c"proc");
}

fn mount_over_proc(kind: &CStr) {
    let (name, place) = (kind.as_ptr(), c"/proc".as_ptr());
    // SAFETY: mount(2) reads three C strings.
    let mounted = unsafe { libc::mount(name, place, name, 0, std::ptr::null()) };
    assert_eq!(mounted, 0, "{}", io::Error::last_os_error());
}

/// Makes the next child of this process process 1 of a new PID namespace.
pub(crate) fn unshare_numbers() {
    // SAFETY: unshare(2) takes flags.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0, "{}", io::Error::last_os_error());
}

/// 1: the process may be dumped, and traced by its own user.
pub(crate) fn dumpable() -> i32 {
    // SAFETY: PR_GET_DUMPABLE takes no argument.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }
}

/// The parent-death signal; the kernel clears it when the ids of a thread change.
pub(crate) fn death_signal() -> i32 {
    let mut signal = 0;
    // SAFETY: PR_GET_PDEATHSIG writes one int.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    signal
}

/// CPU time of the calling thread.
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// A local socket that is bound and does not listen.
pub(crate) fn bind_only(path: &Path) -> OwnedFd {
    // SAFETY: socket(2) takes numbers.
    let number = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(number >= 0);
    // SAFETY: just opened, without another owner.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap();
    let mut address = libc::sockaddr_un { sun_family: family, sun_path: [0; 108] };
    for (slot, byte) in address.sun_path.iter_mut().zip(path.as_os_str().as_encoded_bytes()) {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: bind(2) reads as many bytes as the structure has.
    assert_eq!(unsafe { libc::bind(number, (&raw const address).cast(), length) }, 0);
    socket
}

pub(crate) fn listen(socket: &OwnedFd) {
    // SAFETY: listen(2) takes two numbers.
    assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 8) }, 0);
}

/// Sends one datagram with descriptors (`SCM_RIGHTS`).
pub(crate) fn send_descriptors(socket: &impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    try_send_descriptors(socket, bytes, descriptors, 0).unwrap();
}

/// As above, with flags for sendmsg(2); can fail.
pub(crate) fn try_send_descriptors(
    socket: &impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: i32,
) -> io::Result<()> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        numbers: [RawFd; 253],
    }
    let mut numbers = [-1; 253];
    for (slot, descriptor) in numbers.iter_mut().zip(descriptors) {
        *slot = descriptor.as_raw_fd();
    }
    let length = size_of::<libc::cmsghdr>() + size_of_val(descriptors);
    // SAFETY: all-zero bytes are a valid value of both structures, which have private padding with musl.
    let mut header = unsafe { mem::zeroed::<libc::cmsghdr>() };
    // SAFETY: all-zero bytes are a valid value of both structures, which have private padding with musl.
    let mut message = unsafe { mem::zeroed::<libc::msghdr>() };
    // The lengths are `usize` with glibc and `u32` with musl.
    (header.cmsg_len, header.cmsg_level, header.cmsg_type) = (length as _, libc::SOL_SOCKET, libc::SCM_RIGHTS);
    let mut control = Control { header, numbers };
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), length as _);
    // SAFETY: sendmsg(2) reads the bytes, and as much of the control buffer as `length` says.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

/// A connection with unread data, so that closing its end blocks for 40 seconds: longer than any test. Returns the other end, and it.
pub(crate) fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut writer, _) = listener.accept().unwrap();
    writer.set_nonblocking(true).unwrap();
    let bytes = vec![0; 64 << 10];
    while writer.write(&bytes).is_ok() {}
    linger(&writer, 40);
    (reader, writer)
}

/// Closing the last descriptor of a socket waits this long for its data to be read.
fn linger(socket: &impl AsFd, seconds: i32) {
    let linger = libc::linger { l_onoff: 1, l_linger: seconds };
    let length = libc::socklen_t::try_from(size_of_val(&linger)).unwrap();
    let number = socket.as_fd().as_raw_fd();
    // SAFETY: setsockopt(2) reads one structure of that length.
    let set =
        unsafe { libc::setsockopt(number, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

pub(crate) fn close(number: RawFd) {
    // SAFETY: the caller's process uses the number for nothing else.
    unsafe { libc::close(number) };
}

/// A duplicate without close-on-exec, as a careless library in the host would make it.
pub(crate) fn leaky_duplicate(number: RawFd) -> RawFd {
    // SAFETY: dup(2) takes a number.
    unsafe { libc::dup(number) }
}

pub(crate) fn ignore_signal(signal: i32) {
    // SAFETY: signal(2) with SIG_IGN takes two numbers.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Forks; the child runs `then` and exits with its result as code, without returning to the test harness.
pub(crate) fn fork(then: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only runs `then` and leaves by _exit(2).
    match unsafe { libc::fork() } {
        0 => {
            let code = then();
            // SAFETY: _exit(2) never returns.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

/// The wait status of a child made by [`fork`].
pub(crate) fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one number.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

pub(crate) fn block_signal(signal: i32) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: pthread_sigmask(3) reads the initialised set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
}

/// The largest resident set that this process has had, in bytes.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The number of page faults of this process, including those of its own memory after a fork.
pub(crate) fn page_faults() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage(2) writes one structure.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) }, 0);
    // SAFETY: written above.
    unsafe { usage.assume_init() }.ru_minflt.unsigned_abs()
}

/// Memory of this size in small pages, all of them resident.
pub(crate) fn small_pages(bytes: usize) -> Vec<u8> {
    let mut memory: Vec<u8> = Vec::with_capacity(bytes);
    // SAFETY: madvise(2) is a hint about whole pages of this allocation; refused if there are no large pages.
    unsafe {
        libc::madvise(
            memory.as_mut_ptr().map_addr(|at| at.next_multiple_of(4096)).cast(),
            bytes - 4096,
            libc::MADV_NOHUGEPAGE,
        )
    };
    memory.resize(bytes, 1);
    memory
}

pub(crate) fn restore(copy: RawFd, number: RawFd) {
    // SAFETY: dup2(2) takes two numbers.
    unsafe { libc::dup2(copy, number) };
    close(copy);
}

pub(crate) fn kill(pid: u32, signal: i32) -> i32 {
    // SAFETY: kill(2) takes two numbers.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }
}

/// Sends a signal to a whole process group.
pub(crate) fn kill_group(leader: u32, signal: i32) -> i32 {
    // SAFETY: kill(2) takes two numbers.
    unsafe { libc::kill(-leader.cast_signed(), signal) }
}

pub(crate) fn make_fifo(path: &Path) -> i32 {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: mkfifo(3) reads a C string.
    unsafe { libc::mkfifo(path.as_ptr(), 0o600) }
}

/// The number of bytes in a pipe.
pub(crate) fn unread(pipe: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2) FIONREAD writes one int to the pointer, which is valid for that.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
    usize::try_from(bytes).unwrap()
}

/// Whether reads and writes of this open file wait, in all processes that share it.
pub(crate) fn is_blocking(file: BorrowedFd<'_>) -> bool {
    // SAFETY: fcntl(2) F_GETFL takes a number.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0 }
}

/// The client of the crate `jobserver` for what the environment names.
pub(crate) fn client_of_crate() -> jobserver::Client {
    // SAFETY: the crate checks that the numbers are those of a pipe, which the test has passed for this purpose.
    unsafe { jobserver::Client::from_env_ext(true) }.client.unwrap()
}

/// Makes every later system call with this number fail in every thread of this process and in its children; optionally only those with
/// this argument at this position, counted from 0.
pub(crate) fn refuse(call: libc::c_long, argument: Option<(u32, u32)>, errno: i32) {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const LOW_HALF: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = vec![
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, if argument.is_some() { 3 } else { 1 }, u32::try_from(call).unwrap()),
    ];
    if let Some((place, value)) = argument {
        filter.extend([step(LOAD, 0, 0, 16 + 8 * place + LOW_HALF), step(JUMP_IF_EQUAL, 0, 1, value)]);
    }
    filter.extend([
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2) PR_SET_NO_NEW_PRIVS takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: seccomp(2) reads the program, which outlives the call.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// A hook as many programs use it.
pub(crate) fn with_session(mut command: Command) -> Command {
    let hook = || {
        // SAFETY: setsid(2) takes nothing.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: the hook is one async-signal-safe call.
    unsafe { command.pre_exec(hook) };
    command
}

/// In a forked child: traces a process, reports that with a byte, and detaches when a byte is received.
pub(crate) fn trace(pid: u32, said: RawFd, answer: RawFd) -> i32 {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: ptrace(2) PTRACE_SEIZE uses no memory of this process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, i32::try_from(pid).unwrap(), nothing, nothing) };
    if seized != 0 {
        return 1;
    }
    let mut byte = 0_u8;
    // SAFETY: write(2) reads one byte of the array.
    unsafe { libc::write(said, (&raw const byte).cast(), 1) };
    // SAFETY: read(2) writes one byte of the array.
    unsafe { libc::read(answer, (&raw mut byte).cast(), 1) };
    0
}

/// A thread of this process that does not run until this is dropped: another process traces it.
pub(crate) struct Stopped {
    tracer: i32,
    release: Option<UnixStream>,
}

pub(crate) fn stop_thread(thread: i32) -> Stopped {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // Needed if the Yama module restricts tracing to parents. EINVAL: there is no Yama.
    // SAFETY: PR_SET_PTRACER takes a number.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
    // SAFETY: the child makes system calls only, and does not return from here.
    let tracer = unsafe { libc::fork() };
    if tracer == 0 {
        // SAFETY: the child does not use it, and would not see end of file on the pipe with it.
        unsafe { libc::close(ours.as_raw_fd()) };
        let result = keep_stopped(thread, theirs.as_raw_fd());
        // SAFETY: _exit(2) runs no code of the parent.
        unsafe { libc::_exit(result) };
    }
    assert!(tracer > 0, "{}", io::Error::last_os_error());
    drop(theirs);
    ours.read_exact(&mut [0]).expect("the tracer says that the thread has stopped");
    Stopped { tracer, release: Some(ours) }
}

/// In a forked child: stops a thread, reports that with a byte, and waits for the end of the stream.
fn keep_stopped(thread: i32, stream: RawFd) -> i32 {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE uses no memory of this process.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) } != 0 {
        return 1;
    }
    // SAFETY: PTRACE_INTERRUPT uses no memory of this process.
    if unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing) } != 0 {
        return 2;
    }
    let mut status = 0;
    // SAFETY: waitpid(2) writes one number.
    if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } != thread {
        return 3;
    }
    let mut byte = 0_u8;
    // SAFETY: write(2) reads one byte of the array.
    unsafe { libc::write(stream, (&raw const byte).cast(), 1) };
    // SAFETY: read(2) writes one byte of the array. The thread continues when its tracer ends.
    unsafe { libc::read(stream, (&raw mut byte).cast(), 1) };
    0
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.release.take());
        // SAFETY: waitpid(2) accepts a null pointer for the status.
        unsafe { libc::waitpid(self.tracer, std::ptr::null_mut(), 0) };
    }
}

/// Sets an extended attribute of a file, as `setfattr` does.
pub(crate) fn note(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: setxattr(2) reads two NUL-terminated strings, and as many bytes of `value` as it has.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A new pseudo-terminal: its master side, and the path of the other side.
pub(crate) fn open_terminal() -> (File, PathBuf) {
    // As posix_openpt(3), but close-on-exec.
    let window = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx").unwrap();
    let (unlocked, mut number) = (0, 0_u32);
    // SAFETY: ioctl_tty(2) TIOCSPTLCK reads one int.
    assert_eq!(unsafe { libc::ioctl(window.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }, 0);
    // SAFETY: ioctl_tty(2) TIOCGPTN writes one int.
    assert_eq!(unsafe { libc::ioctl(window.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }, 0);
    (window, format!("/dev/pts/{number}").into())
}

/// Sets a local mode of a terminal, as `stty` does.
pub(crate) fn set_local_mode(window: &File, mode: libc::tcflag_t) {
    let mut modes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr(3) writes one structure.
    assert_eq!(unsafe { libc::tcgetattr(window.as_raw_fd(), modes.as_mut_ptr()) }, 0);
    // SAFETY: written above.
    let mut modes = unsafe { modes.assume_init() };
    modes.c_lflag |= mode;
    // SAFETY: tcsetattr(3) reads one structure.
    assert_eq!(unsafe { libc::tcsetattr(window.as_raw_fd(), libc::TCSANOW, &raw const modes) }, 0);
}

/// The foreground process group of the terminal.
pub(crate) fn foreground(window: &File) -> u32 {
    let mut group = 0_u32;
    // Raw, since the type of the argument of tcgetpgrp(3) differs.
    // SAFETY: ioctl_tty(2) TIOCGPGRP writes one int.
    assert_eq!(unsafe { libc::ioctl(window.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) }, 0);
    group
}
