//! User and group ids of one thread, and the effect of changing them on the process.
//!
//! The C library's `setuid` and similar functions change every thread. The kernel's calls change the calling thread only, and so do
//! the functions of `rustix::thread`.

use rustix::{
    process::{DumpableBehavior, Gid, Pid, Uid},
    thread::{CapabilitySet, CapabilitySets},
};
use std::{
    ffi::CStr,
    io,
    os::raw::c_long,
    sync::{Mutex, PoisonError},
};

use super::cvt;

/// The ids that determine the permissions of a thread, apart from capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ThreadIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Sorted and without duplicates.
    pub(crate) groups: Vec<u32>,
}

impl ThreadIds {
    pub(crate) fn new(uid: u32, gid: u32, mut groups: Vec<u32>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self { uid, gid, groups }
    }
}

/// The effective user id of the calling thread.
pub(crate) fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The overflow user and group ids, which stand for ids without a mapping in this user namespace (`user_namespaces(7)`). `None` if every
/// id is mapped: then these are ordinary ids, Debian's `nobody` and `nogroup`.
pub(crate) fn overflow_ids() -> (Option<u32>, Option<u32>) {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let overflow = |kind: &str| {
        let map = read(format!("/proc/self/{kind}_map"));
        if map.is_some_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"])) {
            return None;
        }
        let id = read(format!("/proc/sys/kernel/overflow{kind}")).and_then(|text| text.trim().parse().ok());
        Some(id.unwrap_or(65_534))
    };
    (overflow("uid"), overflow("gid"))
}

/// Permanently gives the calling thread these ids: supplementary groups, then all three group ids, then all three user ids. Then drops
/// all capabilities. Ids that are already right are not set, so that equal ids need no privilege.
///
/// For a thread that ends soon. After a failure the thread may have some of the ids, and must end.
pub(crate) fn become_for_good(ids: &ThreadIds) -> io::Result<()> {
    let unchanged_root = ids.uid == 0 && user_ids()? == [0; 3];
    if groups()? != ids.groups {
        let all: Vec<Gid> = ids.groups.iter().map(|&group| Gid::from_raw(group)).collect();
        rustix::thread::set_thread_groups(&all)?;
    }
    if group_ids()? != [ids.gid; 3] {
        let gid = Gid::from_raw(ids.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    }
    if user_ids()? != [ids.uid; 3] {
        let uid = Uid::from_raw(ids.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    // A server that is not root but has CAP_SETUID would keep its capabilities: the kernel drops them only on a change from uid 0.
    // Root serving root keeps them.
    if !unchanged_root {
        drop_capabilities()?;
    }
    if are(ids)? { Ok(()) } else { Err(io::Error::other("the kernel accepted the ids, and shows others")) }
}

/// Whether the calling thread already has all of these ids.
pub(crate) fn are(ids: &ThreadIds) -> io::Result<bool> {
    Ok(user_ids()? == [ids.uid; 3] && group_ids()? == [ids.gid; 3] && groups()? == ids.groups)
}

/// Drops the permitted, effective and inheritable capabilities. The ambient ones go with the permitted ones.
fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

fn user_ids() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: getresuid(2) writes three ids.
    cvt(unsafe { libc::getresuid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

fn group_ids() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: getresgid(2) writes three ids.
    cvt(unsafe { libc::getresgid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

/// Sorted and without duplicates.
fn groups() -> io::Result<Vec<u32>> {
    let groups = rustix::process::getgroups()?.into_iter().map(Gid::as_raw).collect();
    Ok(ThreadIds::new(0, 0, groups).groups)
}

/// The number of threads with foreign ids, and the dumpable flag of the process before the first of them.
static UNDUMPABLE: Mutex<(usize, DumpableBehavior)> = Mutex::new((0, DumpableBehavior::NotDumpable));

/// While a value exists, unprivileged processes may not trace this process or read its memory.
///
/// For ptrace(2), a thread that takes a client's ids belongs to the client: it could attach to the thread and, as threads share
/// memory, control the whole server. The kernel clears the flag when the ids change and never sets it again. The last value restores
/// it, and must be dropped after its thread has ended.
#[derive(Debug)]
pub(crate) struct Undumpable(());

impl Undumpable {
    pub(crate) fn enter() -> io::Result<Self> {
        let mut state = UNDUMPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == 0 {
            state.1 = rustix::process::dumpable_behavior()?;
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        state.0 += 1;
        Ok(Self(()))
    }
}

impl Drop for Undumpable {
    fn drop(&mut self) {
        let mut state = UNDUMPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        // 2 (dump readable by root only) cannot be set; the kernel derives it from /proc/sys/fs/suid_dumpable, and 0 is stricter.
        if state.0 == 0 && state.1 == DumpableBehavior::Dumpable {
            // Setting 1 never fails.
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap_or_default();
        }
    }
}

/// The id of the calling thread.
pub(crate) fn thread_id() -> i32 {
    Pid::as_raw(Some(rustix::thread::gettid()))
}

/// Whether a thread of this process has been released by the kernel, which happens shortly after it can be joined.
pub(crate) fn thread_has_ended(id: i32) -> bool {
    let process = c_long::from(std::process::id().cast_signed());
    // SAFETY: tgkill(2) takes numbers; signal 0 only checks for existence.
    unsafe { libc::syscall(libc::SYS_tgkill, process, c_long::from(id), 0) == -1 }
}

/// The name of a user id in the user database. Can query a network service and block.
pub(crate) fn user_name(uid: u32) -> io::Result<Option<String>> {
    let mut text = vec![0_u8; 1024];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        let (buffer, length) = (text.as_mut_ptr().cast(), text.len());
        // SAFETY: getpwuid_r(3) writes the entry, at most `length` bytes of text, and one pointer.
        let code = unsafe { libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer, length, &raw mut found) };
        match code {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: a non-null `found` points to `entry`, which is initialised.
                let entry = unsafe { entry.assume_init() };
                // SAFETY: `pw_name` ends in NUL and lies in `text`, which is alive.
                let name = unsafe { CStr::from_ptr(entry.pw_name) };
                return Ok(Some(name.to_string_lossy().into_owned()));
            }
            libc::ERANGE if length < 1 << 20 => text.resize(length * 2, 0),
            libc::EINTR => {}
            // Errors that getpwuid_r(3) lists for "no such user".
            libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}
