//! Makes a chosen system call of this process fail, whether the library, std, the C library or inline assembly makes it.
//!
//! The kernel suspends each watched call and notifies a thread of this process (`seccomp_unotify(2)`). That thread counts the call and
//! lets it continue, or returns an error instead. So the injection does not depend on how the library makes its calls.
#![expect(unsafe_code, reason = "the filter and its notifications are the kernel's interface")]

use super::{
    calls::{CALLS, Call},
    now,
};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// The call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Fault {
    /// Index in `CALLS`.
    pub(super) call: usize,
    pub(super) errno: i32,
    /// Counted from 1 since arming.
    pub(super) occurrence: u32,
    /// For this time from then on, each call of this kind fails. Zero: only that one.
    pub(super) lasts: Duration,
}

impl Fault {
    pub(super) fn describe(&self) -> String {
        let error = io::Error::from_raw_os_error(self.errno);
        let once = format!("{} #{} fails with {error}", CALLS[self.call].name, self.occurrence);
        if self.lasts.is_zero() { once } else { format!("{once}, and all for {:?}", self.lasts) }
    }
}

const NONE: usize = usize::MAX;
/// The number of calls of each kind since arming. Of a fixed size, since the counting thread must not allocate: the suspended caller may
/// hold the allocator's lock.
static COUNTS: [AtomicU32; 128] = [const { AtomicU32::new(0) }; 128];
static CALL: AtomicUsize = AtomicUsize::new(NONE);
static ERRNO: AtomicI32 = AtomicI32::new(0);
static OCCURRENCE: AtomicU32 = AtomicU32::new(0);
/// Duration of the failure in milliseconds, and its end, counted from the first call.
static LASTS: AtomicU64 = AtomicU64::new(0);
static UNTIL: AtomicU64 = AtomicU64::new(0);
static IS_ARMED: AtomicBool = AtomicBool::new(false);
static HAS_FIRED: AtomicBool = AtomicBool::new(false);
/// The executable of this process: a child that still runs it has not executed its program yet.
static OWN_EXECUTABLE: OnceLock<Path> = OnceLock::new();

/// Resets the counts and arms this fault.
pub(super) fn arm(fault: Option<Fault>) {
    for count in &COUNTS {
        count.store(0, SeqCst);
    }
    HAS_FIRED.store(false, SeqCst);
    CALL.store(fault.map_or(NONE, |fault| fault.call), SeqCst);
    ERRNO.store(fault.map_or(0, |fault| fault.errno), SeqCst);
    OCCURRENCE.store(fault.map_or(0, |fault| fault.occurrence), SeqCst);
    LASTS.store(fault.map_or(0, |fault| milliseconds(fault.lasts)), SeqCst);
    UNTIL.store(0, SeqCst);
    IS_ARMED.store(true, SeqCst);
}

pub(super) fn disarm() {
    IS_ARMED.store(false, SeqCst);
}

/// Runs code of the test: its calls are not counted and do not fail.
pub(super) fn aside<T>(run: impl FnOnce() -> T) -> T {
    let was_armed = IS_ARMED.swap(false, SeqCst);
    let done = run();
    IS_ARMED.store(was_armed, SeqCst);
    done
}

pub(super) fn has_fired() -> bool {
    HAS_FIRED.load(SeqCst)
}

pub(super) fn counts() -> Vec<u32> {
    COUNTS[..CALLS.len()].iter().map(|count| count.load(SeqCst)).collect()
}

/// Watches the calls of this thread, and of all threads and processes that it starts, permanently.
pub(super) fn watch() -> io::Result<()> {
    assert!(CALLS.len() <= COUNTS.len());
    OWN_EXECUTABLE.get_or_init(|| executable(c"/proc/self/exe".to_bytes_with_nul()));
    // Started first: the calls of this thread must not be watched, or it would wait for itself.
    let (give, take) = std::sync::mpsc::channel::<OwnedFd>();
    std::thread::Builder::new().name("injector".into()).spawn(move || {
        for listener in take {
            serve(&listener);
        }
    })?;
    let listener = install()?;
    give.send(listener).map_err(io::Error::other)
}

fn install() -> io::Result<OwnedFd> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut numbers: Vec<_> = CALLS.iter().flat_map(|call| call.numbers).collect();
    numbers.sort();
    numbers.dedup();
    let mut filter = vec![step(LOAD, 0, 0, 0)];
    for (at, number) in numbers.iter().enumerate() {
        let to_the_end = u8::try_from(numbers.len() - at).unwrap();
        filter.push(step(JUMP_IF_EQUAL, to_the_end, 0, u32::try_from(**number).unwrap()));
    }
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2) PR_SET_NO_NEW_PRIVS takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: seccomp(2) reads the program, which outlives the call.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener =
        i32::try_from(listener).ok().filter(|listener| *listener >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn serve(listener: &OwnedFd) {
    loop {
        // SAFETY: all zeroes is a valid value of this structure of numbers.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one structure.
        let got = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
        if got != 0 {
            // The caller was killed or interrupted meanwhile.
            continue;
        }
        let errno = judge(&asked);
        let mut answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error: 0, flags: 0 };
        match errno {
            Some(errno) => answer.error = -errno,
            None => answer.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1),
        }
        // SAFETY: the kernel reads one structure. Fails if the caller is gone.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}

/// The error for this call, if it is the chosen one. Does not allocate and takes no lock.
fn judge(asked: &libc::seccomp_notif) -> Option<i32> {
    if !IS_ARMED.load(SeqCst) || !is_ours(asked.pid) {
        return None;
    }
    let (number, arguments) = (i64::from(asked.data.nr), &asked.data.args);
    let is_it = |call: &Call| call.numbers.contains(&number) && (call.is_meant)(arguments);
    let call = CALLS.iter().position(is_it)?;
    let occurrence = COUNTS[call].fetch_add(1, SeqCst) + 1;
    if call != CALL.load(SeqCst) {
        return None;
    }
    let is_chosen = occurrence == OCCURRENCE.load(SeqCst);
    let lasts = LASTS.load(SeqCst);
    if is_chosen && lasts > 0 {
        UNTIL.store(milliseconds_now() + lasts, SeqCst);
    }
    if !is_chosen && (UNTIL.load(SeqCst) == 0 || milliseconds_now() >= UNTIL.load(SeqCst)) {
        return None;
    }
    HAS_FIRED.store(true, SeqCst);
    Some(ERRNO.load(SeqCst))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn milliseconds_now() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    milliseconds(FIRST.get_or_init(now).elapsed())
}

/// Whether a thread belongs to this process, or to a child that has not executed its program yet.
fn is_ours(thread: u32) -> bool {
    let mut path = [0; 64];
    write_path(&mut path, b"/proc/self/task/", thread, b"");
    // SAFETY: faccessat(2) reads a NUL-terminated string.
    if unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr().cast(), libc::F_OK, 0) } == 0 {
        return true;
    }
    write_path(&mut path, b"/proc/", thread, b"/exe");
    OWN_EXECUTABLE.get().is_some_and(|own| *own == executable(&path))
}

type Path = ([u8; 256], usize);

fn executable(link: &[u8]) -> Path {
    let mut path = [0; 256];
    // SAFETY: readlink(2) reads a NUL-terminated string, and writes into the array.
    let bytes = unsafe { libc::readlink(link.as_ptr().cast(), path.as_mut_ptr().cast(), path.len()) };
    (path, usize::try_from(bytes).unwrap_or(0))
}

fn write_path(path: &mut [u8; 64], before: &[u8], number: u32, after: &[u8]) {
    let mut digits = [0; 10];
    let (mut rest, mut first) = (number, digits.len());
    while first == digits.len() || rest > 0 {
        first -= 1;
        digits[first] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    let all = before.iter().chain(&digits[first..]).chain(after).chain(&[0]);
    for (to, from) in path.iter_mut().zip(all) {
        *to = *from;
    }
}

/// The flags of a clone3(2) call, the first field of its arguments. The caller is in this process, so the address is valid here.
pub(super) fn clone3_flags(address: u64) -> u64 {
    // SAFETY: the caller is suspended in clone3 with `clone_args` at this address. A calling child shares this memory, or has copied it.
    unsafe { std::ptr::read_volatile(std::ptr::with_exposed_provenance::<u64>(usize::try_from(address).unwrap_or(0))) }
}
