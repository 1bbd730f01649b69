//! Who cleans up when this process is killed: a shell that waits for the end of a pipe.
//!
//! Nothing of ours runs when we get SIGKILL, and the parent-death signal reaches a worker's process but not what that has
//! started. So a process that holds none of our memory outlives us just long enough: `/bin/sh`, in a session of its own,
//! blocked in a read of a pipe of which we hold the only other end. What it has to know it reads at that moment from a file
//! without a name, so that it sleeps through every start and end of a worker: the process groups, one a line. Then it looks for
//! whoever carries our token in its environment, until nobody does.

use crate::{
    launch::{Group, Input, Output, Pass, Process, SpawnError},
    pipe::anonymous::PipeWriter,
    supervisor::{lock, pen::Pen, spec::WorkerSpec},
    sys::memfile,
};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Arc, Mutex},
    time::Duration,
};

/// `$1` is the token, `$2` the supervisor's cgroup, if it has one. POSIX shell, `head`, `grep`, `tr`, `rmdir` and `sleep`.
///
/// One pipeline looks through everybody in a few milliseconds: `head` says which file is whose, and not every `grep` (Busybox's
/// does not) looks behind a zero byte. A line of its form may also stand in an environment, to point at somebody else, so whoever
/// is found is looked at alone before the kill. A process in the middle of an exec shows no environment: so it is looked until
/// several looks in turn have found nobody, and nobody was in an exec (no command line either) from one to the next.
const SCRIPT: &str = r#"
run=$1
cgroup=$2
trap '' HUP INT QUIT TERM TSTP TTIN TTOU PIPE USR1 USR2
kill_carriers() {
    head -n 1000000 /dev/null /proc/[0-9]*/environ | tr '\0' '\n' | grep -F -e '==> /proc/' -e "$run." | while read -r line; do
        case $line in
        '==> /proc/'*) process=${line#==> /proc/}; process=${process%%/*} ;;
        *) is_carrier && kill -9 "$process" && echo "$process" ;;
        esac
    done
}
is_carrier() {
    tries=0
    while [ $tries -lt 20 ] && [ -e "/proc/$process/exe" ]; do
        case $(tr '\0' '\n' <"/proc/$process/environ") in
        *"$run."*) return 0 ;;
        ?*) return 1 ;;
        esac
        tries=$((tries + 1))
    done
    return 1
}
in_exec() {
    grep -LsF -e '' /proc/[0-9]*/environ | while read -r file; do
        process=${file%/environ}
        [ -e "$process/exe" ] && grep -LsF -e '' "$process/cmdline"
    done
}
hunt() {
    rounds=0
    while [ $rounds -lt 1000 ]; do
        [ -n "$(kill_carriers)" ] || return
        quiet=0
        rounds=$((rounds + 1))
    done
}
hunt_until_quiet() {
    before=
    quiet=0
    turns=0
    while [ $quiet -lt 4 ] && [ $turns -lt 100 ]; do
        hunt
        quiet=$((quiet + 1))
        now=" $(echo $(in_exec)) "
        for process in $now; do
            case $before in
            *" $process "*) quiet=0 ;;
            esac
        done
        before=$now
        [ $quiet -gt 0 ] || sleep 0.01
        turns=$((turns + 1))
    done
}
sweep() {
    trap '' URG
    [ -n "$cgroup" ] && echo 1 >"$cgroup/cgroup.kill"
    while read -r group; do
        [ -n "$group" ] && kill -9 -- "-$group"
    done <&3
    hunt_until_quiet
    rounds=0
    while [ -n "$cgroup" ] && [ -d "$cgroup" ] && [ $rounds -lt 50 ]; do
        rmdir "$cgroup"/*/*/*/*/*/ "$cgroup"/*/*/*/*/ "$cgroup"/*/*/*/ "$cgroup"/*/*/ "$cgroup"/*/ "$cgroup"
        [ -d "$cgroup" ] && sleep 0.05
        rounds=$((rounds + 1))
    done
    exit 0
}
trap sweep URG
read -r never
sweep
"#;

/// Where the shell's utilities are.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// A process id, padded, and a line feed.
const ENTRY_BYTES: usize = 12;
const EMPTY: [u8; ENTRY_BYTES] = *b"           \n";
/// Its read end is what the shell reads its list from.
const LIST: i32 = 3;

/// Guards one supervisor's trees.
#[derive(Debug)]
pub(super) struct Sentinel {
    run: Box<str>,
    pen: Arc<Pen>,
    list: File,
    places: Mutex<Places>,
    guard: Mutex<Option<Guard>>,
}

/// Where in the list there is room.
#[derive(Debug, Default)]
struct Places {
    free: Vec<u32>,
    count: u32,
}

/// The shell. Dropping it ends it, before it sees the end of its pipe.
#[derive(Debug)]
struct Guard {
    process: Process,
    /// Its end is what the shell waits for.
    pipe: PipeWriter,
}

impl Sentinel {
    pub(super) fn new(run: &str, pen: &Arc<Pen>) -> io::Result<Self> {
        let list = memfile::new(c"pipewright-groups")?;
        Ok(Self { run: run.into(), pen: Arc::clone(pen), list, places: Mutex::default(), guard: Mutex::new(None) })
    }

    /// Starts the shell, unless it runs. To be called on a thread that lives as long as workers may: the end of this thread is
    /// for the shell the end of the process.
    pub(super) fn stand(&self) -> Result<(), SpawnError> {
        let mut guard = lock(&self.guard);
        let runs = guard
            .as_mut()
            .is_some_and(|guard| guard.process.wait_timeout(Duration::ZERO).is_ok_and(|end| end.is_none()));
        if !runs {
            *guard = Some(self.start()?);
        }
        Ok(())
    }

    /// Has a guard do now what it is there for, and waits for that, at most so long.
    pub(super) fn sweep(&self, within: Duration) {
        // The last one may have swept before these were started. Refused for want of memory or descriptors.
        drop(self.stand());
        let Some(Guard { mut process, pipe }) = lock(&self.guard).take() else { return };
        // It sees the end of the pipe, or has the signal where a fork of the host holds our end too.
        drop(pipe);
        drop(process.signal(libc::SIGURG));
        drop(process.wait_timeout(within));
    }

    fn start(&self) -> Result<Guard, SpawnError> {
        let list = self.list.try_clone().map(OwnedFd::from).map_err(SpawnError::guard)?;
        let spec = WorkerSpec::new("/bin/sh")
            .args(["-c", SCRIPT, "pipewright-guard", &self.run])
            .arg(self.pen.path().unwrap_or_default())
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Input::Pipe)
            .stdout(Output::Null)
            .stderr(Output::Null)
            .descriptor(list, Pass::number(LIST))
            .group(Group::Session)
            // A fork of the host may hold our end of the pipe; it does not keep this from coming. One that a shell which has just
            // begun is not killed by.
            .death_signal(Some(libc::SIGURG));
        let mut process = spec.launch()?;
        let pipe = process.take_stdin().ok_or_else(|| SpawnError::guard(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Guard { process, pipe })
    }

    /// A group is to be killed with us. Gives its place in the list.
    pub(super) fn enter(&self, group: u32) -> Option<u32> {
        let mut places = lock(&self.places);
        let place = places.free.pop().unwrap_or_else(|| {
            places.count += 1;
            places.count - 1
        });
        let mut entry = EMPTY;
        for (slot, digit) in entry.iter_mut().zip(group.to_string().bytes()) {
            *slot = digit;
        }
        // Fails for want of memory only: then the group's members are found by their token.
        self.write(place, entry).ok().map(|()| place)
    }

    /// A group has ended, or is about to be reaped: from then on its number may be somebody else's.
    pub(super) fn leave(&self, place: u32) {
        // Memory that was written once can be written again.
        drop(self.write(place, EMPTY));
        lock(&self.places).free.push(place);
    }

    fn write(&self, place: u32, entry: [u8; ENTRY_BYTES]) -> io::Result<()> {
        self.list.write_all_at(&entry, u64::from(place) * ENTRY_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{supervisor::tree::VARIABLE, sys::random};
    use std::{os::unix::fs::symlink, path::Path};

    /// Becomes the same program again and again.
    const CHAMELEON: &str = "exec sh -c \"$0\" \"$0\"";
    /// How long the one who was killed may take.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// Ten who carry a run's token; then its guard, with this shell and tools from this path, finds its input ended.
    fn nobody_escapes(shell: &[&str], path: &Path) {
        let run = format!("{:016x}", u64::from_ne_bytes(random::bytes().unwrap()));
        let chameleon = WorkerSpec::new("sh").args(["-c", CHAMELEON, CHAMELEON]).env(VARIABLE, format!("{run}.1.1."));
        let mut all: Vec<Process> = (0..10).map(|_| chameleon.launch().unwrap()).collect();
        let no_groups = format!("exec 3</dev/null\n{SCRIPT}");
        let guard = WorkerSpec::new(shell[0]).args(&shell[1..]).args(["-c", &no_groups, "pipewright-guard", &run, ""]);
        let guard = guard.env_clear().env("PATH", path).stdout(Output::Null).stderr(Output::Null);
        assert!(guard.launch().unwrap().wait().unwrap().success());
        let escaped =
            all.iter_mut().filter_map(|one| one.wait_timeout(PATIENCE).unwrap().is_none().then_some(one.pid()));
        assert_eq!(escaped.collect::<Vec<_>>(), [0; 0], "{shell:?}");
    }

    #[test]
    fn who_execs_all_the_time_does_not_escape() {
        for _ in 0..5 {
            nobody_escapes(&["/bin/sh"], Path::new(PATH));
        }
    }

    #[test]
    fn who_execs_all_the_time_does_not_escape_from_busybox() {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            eprintln!("skipped: there is no Busybox here");
            return;
        }
        let tools = tempfile::tempdir().unwrap();
        for tool in ["grep", "head", "rmdir", "sleep", "tr"] {
            symlink(busybox, tools.path().join(tool)).unwrap();
        }
        for _ in 0..5 {
            nobody_escapes(&["/bin/busybox", "sh"], tools.path());
        }
    }
}
