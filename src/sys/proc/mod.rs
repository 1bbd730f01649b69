//! /proc (proc(5)): which processes there are, what they were given and what they hold.
//!
//! A number read here may be somebody else's by the time it is used: whoever acts on one opens a pidfd first, and looks again.

mod process;

pub(crate) use process::{
    Held, Stat, Visibility, become_subreaper, boot_ticks, hold, is_own, is_reaper, is_thread, own_real_uid,
    own_session, pipes_written, places, real_uid, visibility,
};

use super::fd;
use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    iter,
    path::Path,
    time::Duration,
};

/// The most that is told of a command line, in bytes.
const COMMAND_BYTES: u64 = 256;
/// The largest environment that is looked through, in bytes: more than the kernel allows a program by default.
const ENVIRONMENT_BYTES: u64 = 4 << 20;
/// More than all but the strangest have.
const ONE_READ_BYTES: usize = 256 << 10;

/// All processes of our namespace that we may see, ourselves included. Fails where `/proc` has the numbers of another.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    if !is_own() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The number that was given last, to a process or a thread.
pub(crate) fn last_number() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().last().and_then(|last| last.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Numbers are given in turn, up to this one, and then from the beginning again.
pub(crate) fn highest_number() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768) // include/linux/threads.h, PID_MAX_DEFAULT
}

/// `USER_HZ`: the same on every machine that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;

/// Whether a token is in the environment of a process.
#[derive(Debug)]
pub(crate) enum Sight {
    Carrier(Held),
    /// It cannot be told now: it is in the middle of an exec, in which it shows no environment (and forks nobody), or we have no
    /// descriptor left to look with.
    NotYet,
    /// Or a zombie: those have none. Or one that has become another user's: that may not be looked at.
    Stranger,
}

/// Looks at environments, one after the other.
#[derive(Debug)]
pub(crate) struct Eyes {
    bytes: Vec<u8>,
    /// There was no descriptor, or no memory, to look with.
    pub(crate) was_short: bool,
}

/// What is looked for in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Environment<T> {
    Has(T),
    Lacks,
    Hides,
    /// It may not be read.
    Refused,
}

impl Eyes {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; ONE_READ_BYTES], was_short: false }
    }

    pub(crate) fn look(&mut self, pid: i32, token: &[u8]) -> Sight {
        let has = |bytes: &[u8]| memchr::memmem::find(bytes, token).map(|_| ());
        match self.find(pid, has) {
            Environment::Hides => return Sight::NotYet,
            Environment::Lacks | Environment::Refused => return Sight::Stranger,
            Environment::Has(()) => {}
        }
        // The number may have changed hands before it was opened: so look again.
        let held = match Stat::of(pid).and_then(|stat| Held::open(&stat)) {
            Ok(held) => held,
            Err(error) if self.notes_want(&error) => return Sight::NotYet,
            Err(_) => return Sight::Stranger,
        };
        match self.find(pid, has) {
            Environment::Has(()) => Sight::Carrier(held),
            Environment::Hides => Sight::NotYet,
            Environment::Lacks | Environment::Refused => Sight::Stranger,
        }
    }

    /// Looks for something in the environment of a process.
    pub(crate) fn find<T>(&mut self, pid: i32, find: impl Fn(&[u8]) -> Option<T>) -> Environment<T> {
        self.find_in(&Path::new("/proc").join(pid.to_string()), find)
    }

    /// The same in the directory of a process or a thread.
    pub(crate) fn find_in<T>(&mut self, place: &Path, find: impl Fn(&[u8]) -> Option<T>) -> Environment<T> {
        let mut file = match fs::File::open(place.join("environ")) {
            Ok(file) => file,
            Err(error) if self.notes_want(&error) => return Environment::Hides,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                return Environment::Refused;
            }
            Err(_) => return Environment::Lacks,
        };
        // All of it at once: the file is the memory that the process had when it was opened, and between two reads an exec
        // can take that away. Then the second one finds the end.
        let read = file.read(&mut self.bytes).unwrap_or(0);
        let bytes = self.bytes.get(..read).unwrap_or_default();
        if read == ONE_READ_BYTES {
            return find_in_all(file, bytes, find);
        }
        if let Some(found) = find(bytes) {
            return Environment::Has(found);
        }
        if read > 0 {
            return Environment::Lacks;
        }
        let hides = match fs::read_to_string(place.join("stat")) {
            Ok(stat) => has_an_environment(&stat).unwrap_or(false),
            Err(error) => self.notes_want(&error),
        };
        if hides { Environment::Hides } else { Environment::Lacks }
    }

    /// Notes an error that a lack of descriptors or memory has caused.
    pub(crate) fn note(&mut self, error: &io::Error) {
        self.notes_want(error);
    }

    /// Whether it is for want of descriptors or memory that we cannot look: that passes.
    fn notes_want(&mut self, error: &io::Error) -> bool {
        let is_want = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
        self.was_short |= is_want;
        is_want
    }
}

/// In one that did not come whole in one read.
fn find_in_all<T>(file: fs::File, bytes: &[u8], find: impl Fn(&[u8]) -> Option<T>) -> Environment<T> {
    let mut bytes = bytes.to_vec();
    // What was read before an error is looked at.
    drop(file.take(ENVIRONMENT_BYTES).read_to_end(&mut bytes));
    match (find(&bytes), bytes.last()) {
        (Some(found), _) => Environment::Has(found),
        (None, Some(0)) => Environment::Lacks,
        (None, _) => Environment::Hides,
    }
}

/// From `/proc/PID/stat`: the process has one, or will have one when its exec is through. Until then it has no code
/// (`load_elf_binary` in `fs/binfmt_elf.c` sets that after the environment), and the end of its environment is not where it will be.
fn has_an_environment(text: &str) -> Option<bool> {
    /// include/linux/sched.h
    const PF_KTHREAD: u64 = 0x0020_0000;
    let fields = stat_fields(text)?;
    let number = |position: usize| fields.get(position - FIRST_FIELD)?.parse::<u64>().ok();
    // Threads of the kernel and zombies have no memory, and so no environment either.
    let has_memory = !matches!(fields.first(), Some(&"Z" | &"X")) && number(9)? & PF_KTHREAD == 0;
    let (start_code, env_start, env_end) = (number(26)?, number(50)?, number(51)?);
    Some(has_memory && (start_code == 0 || env_start != env_end))
}

/// What it was started with, words separated by spaces; its name in brackets where it has no arguments. Cut after 256 bytes.
pub(crate) fn command_line(pid: i32) -> String {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        if let Ok(file) = fs::File::open(format!("/proc/{pid}/{name}")) {
            drop(file.take(COMMAND_BYTES).read_to_end(&mut bytes));
        }
        bytes
    };
    let bytes = read("cmdline");
    let words = String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() { format!("[{}]", String::from_utf8_lossy(&read("comm")).trim_end()) } else { words }
}

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
    /// It is stopped, by a signal or by whoever traces it.
    pub(crate) is_stopped: bool,
}

/// What a process uses now; nothing once it is reaped.
pub(crate) fn usage(pid: u32) -> Option<Use> {
    stat(&fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
}

/// `proc_pid_stat(5)` counts from 1, and the state is number 3.
const FIRST_FIELD: usize = 3;

/// The fields of `/proc/PID/stat` behind the name, which stands in parentheses and may contain some.
fn stat_fields(text: &str) -> Option<Vec<&str>> {
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().collect())
}

fn stat(text: &str) -> Option<Use> {
    let fields = stat_fields(text)?;
    let number = |position: usize| fields.get(position - FIRST_FIELD)?.parse::<u64>().ok();
    let is_stopped = matches!(fields.first(), Some(&"T" | &"t"));
    let ticks = number(14)?.saturating_add(number(15)?);
    let resident_bytes = number(24)?.saturating_mul(fd::page_bytes());
    Some(Use { cpu: Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)), resident_bytes, is_stopped })
}

/// The children of a process's main thread.
pub(crate) fn children_of_main_thread(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// The user whose files a process reaches: its effective one, unless it has set another for file systems.
pub(crate) fn user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().nth(3)?.parse().ok()
}

/// Whether a process is this one or descends from it, as long as those between live.
pub(crate) fn descends(pid: i32, ancestor: u32) -> bool {
    /// Deeper than trees of processes are.
    const DEPTH: usize = 64;
    let parent = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat_fields(&text)?.get(1)?.parse().ok().filter(|parent| *parent > 1)
    };
    let own = u32::try_from(pid).ok().filter(|pid| *pid > 0);
    iter::successors(own, parent).take(DEPTH).any(|pid| pid == ancestor)
}

/// The children of a process. One list for each of its threads: the thread that forked is the one that has the child.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The processes that descend from this one, as long as it and those between live: a child whose parent has ended is
/// somebody else's child. None where `/proc` has the numbers of another pid namespace.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    if !is_own() {
        return Vec::new();
    }
    let (mut found, mut known) = (vec![ancestor], HashSet::from([ancestor]));
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        at += 1;
        found.extend(children(pid).into_iter().filter(|child| known.insert(*child)));
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let line = "17 (a) (b) S 1 17 17 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 555 4096 7 18446744073709551615 1 1";
        assert_eq!(
            stat(line),
            Some(Use { cpu: Duration::from_millis(420), resident_bytes: 7 * fd::page_bytes(), is_stopped: false })
        );
        assert_eq!(stat("17 (x"), None);
        assert!(stat(&line.replace(" S ", " T ")).is_some_and(|state| state.is_stopped));
    }

    #[test]
    fn we_see_ourselves() {
        let own = super::super::pidfd::own_pid();
        assert!(all().unwrap().contains(&own));
        assert!(last_number().unwrap() > 0 && highest_number() >= 301);
        assert!(!command_line(own).is_empty());
        assert!(usage(own.unsigned_abs()).is_some_and(|usage| usage.resident_bytes > 0));
        assert!(matches!(Eyes::new().look(own, b"no such thing in any environment"), Sight::Stranger));
        let held = hold(|| vec![own, i32::MAX]);
        assert_eq!(held.iter().map(|process| process.pid).collect::<Vec<_>>(), [own]);
    }

    #[test]
    fn one_that_becomes_another_program_has_no_environment_yet() {
        let line = |state: &str, flags: u64, start_code: u64, environment: (u64, u64)| {
            let ones = |count: usize| vec!["1"; count].join(" ");
            // Numbers 4 to 8, 10 to 25, and 27 to 49.
            let (start, end) = environment;
            format!("17 (a) b) {state} {} {flags} {} {start_code} {} {start} {end} 0", ones(5), ones(16), ones(23))
        };
        assert_eq!(has_an_environment(&line("R", 4_194_304, 0, (0, 0))), Some(true), "in the middle of an exec");
        assert_eq!(has_an_environment(&line("R", 4_194_304, 0, (4096, 4096))), Some(true), "a moment later");
        assert_eq!(has_an_environment(&line("R", 4_194_304, 64, (4096, 5000))), Some(true), "through");
        assert_eq!(has_an_environment(&line("R", 4_194_304, 64, (4096, 4096))), Some(false), "it was given none");
        assert_eq!(has_an_environment(&line("Z", 4_194_308, 0, (0, 0))), Some(false), "a zombie");
        assert_eq!(has_an_environment(&line("I", 69_238_880, 0, (0, 0))), Some(false), "of the kernel");
        assert_eq!(has_an_environment("17 (a) R 1"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(has_an_environment(&own), Some(true));
    }
}
