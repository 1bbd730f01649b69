//! Limits on a worker's tree, set by a host in a delegated cgroup: delegated to root, with systemd's mark or by a cgroup namespace, and to
//! a user. To delegate a cgroup, the tests must run as root, and cgroup v2 must have the controllers.

use crate::{
    kernel,
    named::{is_root, reachable},
    support::{DEADLINE, FIXTURE, alone, becomes_true, cgroup2_mount, read_to_end},
};
use pipewright::{OutputMode, SpawnStep, Supervisor, WorkerSpec, limits::CgroupLimit, status::ContainmentKind};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

const STRANGER: u32 = 65_500;
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// To whom a cgroup is delegated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// To root, by systemd's mark.
    Root,
    /// To a user, who owns it.
    User,
    /// To a process in a cgroup namespace of its own.
    Container,
    /// Not delegated: part of another program's subtree, where root runs.
    UndelegatedRoot,
    /// Not delegated, and an ordinary user runs in it.
    Undelegated,
}

/// The position of the host in the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Itself,
    Leaf,
}

/// A cgroup below the mount.
struct Subtree {
    path: PathBuf,
    to: To,
    /// A copy of the fixture that other users can execute.
    programs: tempfile::TempDir,
}

impl Subtree {
    fn new(to: To) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let mount = mount_with_controllers()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("pipewright-test-limits-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("leaf")).unwrap();
        if to == To::UndelegatedRoot {
            // As its service manager does.
            let passed = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
            fs::write(path.join("cgroup.subtree_control"), passed).unwrap();
        }
        if to == To::Root {
            kernel::note(&path, c"user.delegate", b"1")
                .or_else(|_| kernel::note(&path, c"trusted.delegate", b"1"))
                .unwrap();
        }
        if to == To::User {
            for directory in [&path, &path.join("leaf")] {
                chown(directory, Some(STRANGER), None).unwrap();
                for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                    chown(directory.join(file), Some(STRANGER), None).unwrap();
                }
            }
        }
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { path, to, programs })
    }

    /// The output of a host at this place.
    #[track_caller]
    fn host(&self, at: At, arguments: &[&str]) -> Value {
        let place = if at == At::Leaf { "leaf" } else { "." };
        let enter = match self.to {
            To::Root | To::UndelegatedRoot => "echo $$ >$1/$2/cgroup.procs; shift 2; exec \"$@\"",
            To::User | To::Undelegated => {
                "echo $$ >$1/$2/cgroup.procs; shift 2; exec setpriv --reuid=65500 --regid=65500 --clear-groups \"$@\""
            }
            To::Container => {
                "echo $$ >$1/cgroup.procs; shift; exec unshare --cgroup --mount sh -ec '
                    umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; echo $$ >/sys/fs/cgroup/$1/cgroup.procs; shift; exec \"$@\"' sh \"$@\""
            }
        };
        let fixture = reachable(Path::new(FIXTURE), self.programs.path());
        let spec = WorkerSpec::new("/bin/sh").args(["-ec", enter, "sh"]).arg(&self.path).arg(place).arg(fixture);
        let spec = spec
            .arg("limited-host")
            .args(arguments)
            .current_dir("/")
            .stdout(OutputMode::Lines)
            .stderr(OutputMode::Lines);
        let mut process = spec.spawn_unsupervised().unwrap();
        let (stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        let (stdout, stderr) = (read_to_end(&stdout), read_to_end(&stderr));
        let exit = process.wait_timeout(DEADLINE).unwrap().expect("its end").clone();
        assert!(exit.success(), "{exit}: {}", String::from_utf8_lossy(&stderr));
        // The supervisor, or its guard, has removed everything of its own.
        let left = || fs::read_dir(&self.path).unwrap().any(|entry| is_ours(&entry.unwrap().file_name()));
        assert!(becomes_true(|| !left()), "{:?}", fs::read_dir(&self.path));
        serde_json::from_slice(&stdout).unwrap()
    }
}

fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.to_str().unwrap().starts_with("pipewright-")
}

impl Drop for Subtree {
    fn drop(&mut self) {
        // The host's guard may still be in it.
        let gone = becomes_true(|| {
            let empty = fs::remove_dir(self.path.join("leaf")).is_ok() || !fs::exists(self.path.join("leaf")).unwrap();
            empty && fs::remove_dir(&self.path).is_ok()
        });
        assert!(gone || std::thread::panicking(), "{}", self.path.display());
    }
}

#[expect(clippy::print_stderr, reason = "who runs the tests should know")]
fn mount_with_controllers() -> Option<PathBuf> {
    let mount = cgroup2_mount().map(PathBuf::from).filter(|mount| mount == Path::new("/sys/fs/cgroup"));
    let passed = mount.as_ref().map(|mount| fs::read_to_string(mount.join("cgroup.subtree_control")).unwrap());
    let passed = passed.unwrap_or_default();
    let lacks = CONTROLLERS.into_iter().find(|controller| !passed.split_whitespace().any(|name| name == *controller));
    if !is_root() {
        eprintln!("skipped: to delegate a cgroup one must be root");
        return None;
    }
    if let Some(lacks) = lacks {
        eprintln!("skipped: cgroup v2 does not pass the controller {lacks} on here");
        return None;
    }
    mount
}

/// A limit of each kind that has no effect.
const ROOMY: [&str; 3] = ["--memory-bytes=67108864", "--millicores=500", "--processes=20"];

#[test]
fn host_in_a_delegated_leaf_sets_all_three_limits() {
    for to in [To::Root, To::User, To::Container] {
        let Some(subtree) = Subtree::new(to) else { return };
        let output = subtree.host(At::Leaf, &[&ROOMY[..], &["--script=exit 7"]].concat());
        assert_eq!(output["contained"], "Some(Cgroup)", "{to:?}: {output}");
        let name = if to == To::Container { "" } else { subtree.path.file_name().unwrap().to_str().unwrap() };
        assert!(
            output["cgroup"].as_str().unwrap().starts_with(&format!("/{name}").replace("//", "/")),
            "{to:?}: {output}"
        );
        let files = &output["files"];
        let limits = ["memory.max", "cpu.max", "pids.max"].map(|file| files[file].as_str().unwrap_or_default());
        assert_eq!(limits, ["67108864", "50000 100000", "20"], "{to:?}: {output}");
        assert!(files["memory.swap.max"].is_null() || files["memory.swap.max"] == "0", "{to:?}: {output}");
        assert_eq!((&output["code"], &output["oom_killed"]), (&json!(7), &json!(false)), "{to:?}: {output}");
        assert_eq!(output["next"], "Some(Cgroup)", "{to:?}: {output}");
    }
}

#[test]
fn tree_beyond_its_memory_limit_is_killed_and_reported() {
    for to in [To::Root, To::User] {
        let Some(subtree) = Subtree::new(to) else { return };
        let allocate = format!("{} allocate --mib 256", subtree.programs.path().join("child-fixture").display());
        let output = subtree.host(At::Leaf, &["--memory-bytes=33554432", &format!("--script=exec {allocate}")]);
        assert_eq!(
            (&output["signal"], &output["oom_killed"]),
            (&json!(libc::SIGKILL), &json!(true)),
            "{to:?}: {output}"
        );
        let text = "killed by signal 9 (SIGKILL), out of memory: its tree reached its memory limit";
        assert_eq!(output["text"], text, "{to:?}");
        // Only the child: the shell reports its exit, and then exits with 0.
        let script = format!("--script={allocate}; test $? = 137");
        let output = subtree.host(At::Leaf, &["--memory-bytes=33554432", &script]);
        assert_eq!((&output["code"], &output["oom_killed"]), (&json!(0), &json!(true)), "{to:?}: {output}");
    }
}

#[test]
fn tree_beyond_its_process_limit_cannot_fork() {
    let Some(subtree) = Subtree::new(To::Root) else { return };
    let script = "--script=sleep 1000 & sleep 1000 & exit 0";
    let output = subtree.host(At::Leaf, &["--processes=3", script]);
    assert_eq!(output["code"], 0, "{output}");
    // A shell that cannot fork exits.
    let output = subtree.host(At::Leaf, &["--processes=2", script]);
    assert!(output["code"].as_i64().is_some_and(|code| code != 0), "{output}");
    assert_eq!(output["oom_killed"], false, "{output}");
}

/// Asserts that the limit is refused with an error of this kind, and how the next worker is contained.
#[track_caller]
fn is_refused(output: &Value, [kind, reason, next]: [&str; 3], to: To) {
    assert_eq!((&output["step"], &output["kind"]), (&json!("CgroupLimit"), &json!(kind)), "{to:?}: {output}");
    assert!(output["reason"].as_str().unwrap().contains(reason), "{to:?}: {output}");
    assert_eq!(output["next"], next, "{to:?}: {output}");
}

#[test]
fn limits_outside_a_leaf_are_refused_and_other_workers_contained() {
    for to in [To::Root, To::User, To::Container] {
        let Some(subtree) = Subtree::new(to) else { return };
        for limit in ROOMY {
            let output = subtree.host(At::Itself, &[limit]);
            is_refused(&output, ["Unsupported", "contains processes", "Some(Cgroup)"], to);
        }
    }
}

#[test]
fn limits_of_root_in_an_undelegated_subtree_are_refused() {
    let Some(subtree) = Subtree::new(To::UndelegatedRoot) else { return };
    for limit in ROOMY {
        let output = subtree.host(At::Leaf, &[limit]);
        is_refused(&output, ["Unsupported", "contains processes", "Some(Cgroup)"], To::UndelegatedRoot);
    }
}

#[test]
fn limits_of_a_user_without_a_subtree_are_refused() {
    let Some(subtree) = Subtree::new(To::Undelegated) else { return };
    for limit in ROOMY {
        let output = subtree.host(At::Leaf, &[limit]);
        is_refused(&output, ["PermissionDenied", "cgroup", "Some(ProcessGroup)"], To::Undelegated);
    }
}

#[test]
fn worker_is_not_started_outside_its_limited_cgroup() {
    const TEST: &str = "limits::worker_is_not_started_outside_its_limited_cgroup";
    const LEAF: &str = "PIPEWRIGHT_TEST_LEAF";
    let Some(leaf) = std::env::var_os(LEAF).map(PathBuf::from) else {
        if let Some(subtree) = Subtree::new(To::Root) {
            alone(TEST, |spec| spec.env(LEAF, subtree.path.join("leaf")));
        }
        return;
    };
    fs::write(leaf.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    // As in a sandbox without clone3.
    kernel::refuse(libc::SYS_clone3, None, libc::ENOSYS);
    let supervisor = Supervisor::new().unwrap();
    let hanging = || WorkerSpec::new(FIXTURE).arg("hang");
    let refused = supervisor.spawn(hanging().cgroup_limit(CgroupLimit::PidsMax(9))).unwrap_err();
    assert_eq!(refused.step(), Some(&SpawnStep::Cgroup), "{refused:?}");
    assert_eq!(
        supervisor.spawn(hanging()).unwrap().containment().map(|it| it.kind),
        Some(ContainmentKind::ProcessGroup)
    );
}
