//! `/proc/PID/stat`: relations, state and resource use of one process.

use crate::sys::fd;
use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// `USER_HZ`, the same on every machine that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;

/// A process and its relations at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// The main thread has ended and other threads run on: `/proc/PID/environ` is not readable.
    pub(crate) is_leaderless: bool,
    /// Every thread has ended and the process is not reaped.
    pub(crate) is_zombie: bool,
    /// Start time in ticks of the boot clock. PID and start time together identify one process.
    pub(crate) start: u64,
}

/// CPU time and memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessUsage {
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
    /// Stopped by a signal or a tracer.
    pub(crate) is_stopped: bool,
}

impl Stat {
    /// Fails where there is no such process, or no `/proc`.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let text = read(&directory(pid.unsigned_abs()))?;
        Fields::parse(&text).and_then(|fields| fields.stat(pid)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// What a process uses now; `None` once it is reaped.
pub(crate) fn usage(pid: u32) -> Option<ProcessUsage> {
    Fields::parse(&read(&directory(pid)).ok()?)?.usage()
}

/// The current time in the ticks of [`Stat::start`], rounded down as the kernel rounds those.
pub(crate) fn boot_ticks() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec. It does not fail for this clock, which every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    let since_boot = seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
    let tick = Duration::from_secs(1) / u32::try_from(TICKS_PER_SECOND).unwrap_or(100);
    u64::try_from(since_boot.as_nanos() / tick.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the process or thread with this directory has an environment, or will have one when its exec is complete.
pub(super) fn has_environment(directory: &Path) -> io::Result<bool> {
    let text = read(directory)?;
    Ok(Fields::parse(&text).and_then(|fields| fields.has_environment()).unwrap_or(false))
}

pub(super) fn parent(pid: u32) -> Option<u32> {
    Fields::parse(&read(&directory(pid)).ok()?)?.number(4)
}

pub(super) fn directory(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The name in it may be any bytes, also invalid UTF-8.
fn read(directory: &Path) -> io::Result<String> {
    let bytes = fs::read(directory.join("stat"))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The fields behind the name, which stands in parentheses and may contain some.
struct Fields<'a>(Vec<&'a str>);

impl<'a> Fields<'a> {
    /// proc(5) counts from 1; the first field behind the name is the state.
    const FIRST: usize = 3;

    fn parse(text: &'a str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        Some(Self(rest.split_whitespace().collect()))
    }

    fn field(&self, position: usize) -> Option<&'a str> {
        self.0.get(position - Self::FIRST).copied()
    }

    fn number<T: FromStr>(&self, position: usize) -> Option<T> {
        self.field(position)?.parse().ok()
    }

    fn has_ended(&self) -> Option<bool> {
        Some(matches!(self.field(3)?, "Z" | "X" | "x"))
    }

    fn stat(&self, pid: i32) -> Option<Stat> {
        let has_ended = self.has_ended()?;
        // A process that has ended counts its main thread until it is reaped.
        let has_threads = self.number::<i32>(20)? > 1;
        Some(Stat {
            pid,
            parent: self.number(4)?,
            group: self.number(5)?,
            session: self.number(6)?,
            is_leaderless: has_ended && has_threads,
            is_zombie: has_ended && !has_threads,
            start: self.number(22)?,
        })
    }

    fn usage(&self) -> Option<ProcessUsage> {
        let ticks = self.number::<u64>(14)?.saturating_add(self.number(15)?);
        Some(ProcessUsage {
            cpu: Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)),
            resident_bytes: self.number::<u64>(24)?.saturating_mul(fd::page_bytes()),
            is_stopped: matches!(self.field(3)?, "T" | "t"),
        })
    }

    /// During exec a process has no code yet (`load_elf_binary` in `fs/binfmt_elf.c` sets that after the environment), and the end of
    /// its environment is not final.
    fn has_environment(&self) -> Option<bool> {
        /// include/linux/sched.h
        const PF_KTHREAD: u64 = 0x0020_0000;
        // Kernel threads and zombies have no memory, and so no environment.
        let has_memory = !self.has_ended()? && self.number::<u64>(9)? & PF_KTHREAD == 0;
        let [start_code, env_start, env_end] = [self.number::<u64>(26)?, self.number(50)?, self.number(51)?];
        Some(has_memory && (start_code == 0 || env_start != env_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::this_process::own_pid;

    fn stat(line: &str) -> Option<Stat> {
        Fields::parse(line)?.stat(17)
    }

    #[test]
    fn relations_of_this_process() {
        let own = Stat::of(own_pid()).unwrap();
        assert_eq!(own.parent, crate::sys::this_process::parent());
        assert!(own.start <= boot_ticks() && !own.is_zombie && !own.is_leaderless, "{own:?}");
        assert_eq!(parent(own_pid().unsigned_abs()), u32::try_from(own.parent).ok());
        assert!(has_environment(Path::new("/proc/self")).unwrap());
        assert!(Stat::of(i32::MAX).is_err());
    }

    #[test]
    fn name_may_contain_parentheses_and_spaces() {
        let line = "17 (a) (b) S 1 17 17 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 555 4096 7 18446744073709551615 1 1";
        let usage = |line: &str| Fields::parse(line)?.usage();
        let expected =
            ProcessUsage { cpu: Duration::from_millis(420), resident_bytes: 7 * fd::page_bytes(), is_stopped: false };
        assert_eq!(usage(line), Some(expected));
        assert!(usage("17 (x").is_none());
        assert!(usage(&line.replace(" S ", " T ")).is_some_and(|usage| usage.is_stopped));
    }

    #[test]
    fn process_without_its_main_thread_is_not_a_zombie() {
        let line = |state: &str, threads: u32| {
            format!("17 (a) b) {state} 5 6 7 0 -1 4194304 0 0 0 0 12 30 0 0 20 0 {threads} 0 555 4096 7 0 1 1")
        };
        let running = stat(&line("S", 1)).unwrap();
        let expected =
            Stat { pid: 17, parent: 5, group: 6, session: 7, is_leaderless: false, is_zombie: false, start: 555 };
        assert_eq!(running, expected);
        assert_eq!(stat(&line("Z", 2)), Some(Stat { is_leaderless: true, ..expected }));
        assert_eq!(stat(&line("Z", 1)), Some(Stat { is_zombie: true, ..expected }));
        assert_eq!(stat("17 (a) S 5"), None);
    }

    #[test]
    fn process_during_exec_has_no_environment_yet() {
        let has_environment = |state: &str, flags: u64, start_code: u64, environment: (u64, u64)| {
            let ones = |count: usize| vec!["1"; count].join(" ");
            // Fields 4 to 8, 10 to 25, and 27 to 49.
            let (start, end) = environment;
            let line =
                format!("17 (a) b) {state} {} {flags} {} {start_code} {} {start} {end} 0", ones(5), ones(16), ones(23));
            Fields::parse(&line).unwrap().has_environment()
        };
        assert_eq!(has_environment("R", 4_194_304, 0, (0, 0)), Some(true), "in the middle of an exec");
        assert_eq!(has_environment("R", 4_194_304, 0, (4096, 4096)), Some(true), "a moment later");
        assert_eq!(has_environment("R", 4_194_304, 64, (4096, 5000)), Some(true), "after the exec");
        assert_eq!(has_environment("R", 4_194_304, 64, (4096, 4096)), Some(false), "empty environment");
        assert_eq!(has_environment("Z", 4_194_308, 0, (0, 0)), Some(false), "zombie");
        assert_eq!(has_environment("I", 69_238_880, 0, (0, 0)), Some(false), "kernel thread");
        assert_eq!(Fields::parse("17 (a) R 1").unwrap().has_environment(), None);
    }
}
