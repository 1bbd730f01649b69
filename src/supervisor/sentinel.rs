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

/// `$1` is the token, `$2` the supervisor's cgroup, if it has one. POSIX shell, `grep`, `tr`, `rmdir` and `sleep`.
///
/// One `grep` looks through everybody in a few milliseconds, but a process in the middle of an exec shows no environment. So it is
/// looked until several looks in turn have found nobody, and nobody was in an exec (no command line either) from one to the next.
/// Busybox's `grep` does not look behind the first zero byte; there everybody is looked at one by one, which takes a hundred times
/// as long.
const SCRIPT: &str = r#"
run=$1
cgroup=$2
trap '' HUP INT QUIT TERM TSTP TTIN TTOU PIPE USR1 USR2
carriers() {
    grep -lsF -e "$run." /proc/[0-9]*/environ | while read -r file; do
        file=${file%/environ}
        echo "${file#/proc/}"
    done
}
sees_behind_zeros() {
    printf 'a\0b' | grep -qsF b
}
in_exec() {
    grep -LsF -e '' /proc/[0-9]*/environ | while read -r file; do
        process=${file%/environ}
        [ -e "$process/exe" ] && grep -LsF -e '' "$process/cmdline"
    done
}
carriers_one_by_one() {
    for file in /proc/[0-9]*/environ; do
        case $(tr '\0' '\n' <"$file") in
        *"$run."*) file=${file%/environ}; echo "${file#/proc/}" ;;
        esac
    done
}
hunt() {
    rounds=0
    while [ $rounds -lt 1000 ]; do
        found=$($1)
        [ -n "$found" ] || return
        kill -9 $found
        quiet=0
        rounds=$((rounds + 1))
    done
}
hunt_until_quiet() {
    before=
    quiet=0
    turns=0
    while [ $quiet -lt 4 ] && [ $turns -lt 100 ]; do
        hunt carriers
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
    hunt carriers
    if sees_behind_zeros; then
        hunt_until_quiet
    else
        hunt carriers_one_by_one
    fi
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
    _pipe: PipeWriter,
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
        Ok(Guard { process, _pipe: pipe })
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
