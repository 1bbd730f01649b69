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

/// What the shell runs.
const SCRIPT: &str = include_str!("guard.sh");

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
    /// for the shell the end of the process. True if it was started now.
    pub(super) fn stand(&self) -> Result<bool, SpawnError> {
        let mut guard = lock(&self.guard);
        let runs = guard
            .as_mut()
            .is_some_and(|guard| guard.process.wait_timeout(Duration::ZERO).is_ok_and(|end| end.is_none()));
        if !runs {
            *guard = Some(self.start()?);
        }
        Ok(!runs)
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
    use std::{
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };
    use tempfile::TempDir;

    /// Becomes the same program again and again.
    const EXECS: &str = "exec sh -c \"$0\" \"$0\"";
    /// One member runs without an environment, and so does the leader after its exec.
    const EMPTY_ENVIRONMENTS: &str = "env -i sleep 1000 & echo up; exec env -i sleep 1000";
    /// The time that a killed process may take to end.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// A shell and where it finds its tools.
    struct Shell {
        words: Vec<PathBuf>,
        path: PathBuf,
        _tools: Option<TempDir>,
    }

    impl Shell {
        /// `None`, and a line that says so, where the shell is not installed.
        fn find(name: &str) -> Option<Self> {
            let directories = PATH.split(':').map(Path::new);
            let Some(program) = directories.map(|directory| directory.join(name)).find(|file| file.exists()) else {
                eprintln!("skipped: {name} is not installed");
                return None;
            };
            if name != "busybox" {
                return Some(Self { words: vec![program], path: PATH.into(), _tools: None });
            }
            let tools = tempfile::tempdir().unwrap();
            for tool in ["grep", "head", "rmdir", "sleep", "tr"] {
                symlink(&program, tools.path().join(tool)).unwrap();
            }
            Some(Self { words: vec![program, "sh".into()], path: tools.path().into(), _tools: Some(tools) })
        }

        /// Runs the guard of a host that has ended already, with these groups.
        fn guard(&self, run: &str, groups: &str) {
            let list = memfile::new(c"groups").unwrap();
            list.write_all_at(groups.as_bytes(), 0).unwrap();
            let guard = WorkerSpec::new(&self.words[0]).args(&self.words[1..]);
            let guard = guard.args(["-c", SCRIPT, "pipewright-guard", run, ""]).env_clear().env("PATH", &self.path);
            let guard = guard.descriptor(OwnedFd::from(list), Pass::number(LIST));
            let guard = guard.stdout(Output::Null).stderr(Output::Null).group(Group::Session);
            assert!(guard.launch().unwrap().wait().unwrap().success());
        }
    }

    fn token() -> String {
        format!("{:016x}", u64::from_ne_bytes(random::bytes().unwrap()))
    }

    fn kills_descendants_during_exec(shell: &str) {
        let Some(shell) = Shell::find(shell) else { return };
        for _ in 0..5 {
            let run = token();
            let execs = WorkerSpec::new("sh").args(["-c", EXECS, EXECS]).env(VARIABLE, format!("{run}.1.1."));
            let mut all: Vec<Process> = (0..10).map(|_| execs.launch().unwrap()).collect();
            shell.guard(&run, "");
            let left =
                all.iter_mut().filter_map(|one| one.wait_timeout(PATIENCE).unwrap().is_none().then_some(one.pid()));
            assert_eq!(left.collect::<Vec<_>>(), [0; 0], "{:?}", shell.words);
        }
    }

    fn kills_groups_without_environment(shell: &str) {
        let Some(shell) = Shell::find(shell) else { return };
        let spec = WorkerSpec::new("sh").args(["-c", EMPTY_ENVIRONMENTS]).stdout(Output::Lines);
        let [mut left, mut right] = [(); 2].map(|()| spec.launch().unwrap());
        let streams = [left.take_stdout().unwrap(), right.take_stdout().unwrap()];
        for stream in &streams {
            assert_eq!(stream.read_deadline(&mut [0; 8], PATIENCE).unwrap(), 3);
        }
        shell.guard(&token(), &format!("{:11}\n           \n{}\n", left.pid(), right.pid()));
        for (stream, leader) in streams.iter().zip([&mut left, &mut right]) {
            // Its end comes when no process of the group is left.
            assert_eq!(stream.read_deadline(&mut [0; 8], PATIENCE).unwrap(), 0, "{:?}", shell.words);
            assert_eq!(leader.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
    }

    #[test]
    fn p09_dash_kills_descendants_during_exec() {
        kills_descendants_during_exec("dash");
    }

    #[test]
    fn p09_bash_kills_descendants_during_exec() {
        kills_descendants_during_exec("bash");
    }

    #[test]
    fn p09_busybox_kills_descendants_during_exec() {
        kills_descendants_during_exec("busybox");
    }

    #[test]
    fn p09_dash_kills_groups_without_environment() {
        kills_groups_without_environment("dash");
    }

    #[test]
    fn p09_bash_kills_groups_without_environment() {
        kills_groups_without_environment("bash");
    }

    #[test]
    fn p09_busybox_kills_groups_without_environment() {
        kills_groups_without_environment("busybox");
    }
}
