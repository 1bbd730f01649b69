//! Limits on a worker with all it has started, by a host in a cgroup that was delegated to it: to root, as a service manager marks it
//! or as a container sees it, and to a user. To delegate one, the tests must be root's, and cgroup v2 must have the controllers.

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
    /// Root, by the mark of systemd.
    Root,
    /// A user, to whom it belongs.
    User,
    /// Whoever sees nothing else: in a cgroup namespace of its own.
    Container,
    /// Nobody: a part of somebody else's subtree, where root runs.
    NobodyButRoot,
    /// Nobody, and a user is in it.
    Nobody,
}

/// Where in it the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Itself,
    Leaf,
}

/// A cgroup below the mount.
struct Subtree {
    path: PathBuf,
    to: To,
    /// The fixture, where others can reach it.
    programs: tempfile::TempDir,
}

impl Subtree {
    fn new(to: To) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let mount = mount_with_controllers()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("pipewright-test-limits-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("leaf")).unwrap();
        if to == To::NobodyButRoot {
            // As its manager does: it may be had for the asking.
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

    /// What a host at this place tells.
    #[track_caller]
    fn host(&self, at: At, arguments: &[&str]) -> Value {
        let place = if at == At::Leaf { "leaf" } else { "." };
        let enter = match self.to {
            To::Root | To::NobodyButRoot => "echo $$ >$1/$2/cgroup.procs; shift 2; exec \"$@\"",
            To::User | To::Nobody => {
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
        // Of the supervisor's own nothing is left: by itself or by its guard.
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

/// A limit of each kind that does not hinder.
const ROOMY: [&str; 3] = ["--memory-bytes=67108864", "--millicores=500", "--processes=20"];

#[test]
fn all_three_hold_for_a_host_in_a_leaf_of_what_was_delegated_to_it() {
    for to in [To::Root, To::User, To::Container] {
        let Some(subtree) = Subtree::new(to) else { return };
        let told = subtree.host(At::Leaf, &[&ROOMY[..], &["--script=exit 7"]].concat());
        assert_eq!(told["contained"], "Some(Cgroup)", "{to:?}: {told}");
        let name = if to == To::Container { "" } else { subtree.path.file_name().unwrap().to_str().unwrap() };
        assert!(told["cgroup"].as_str().unwrap().starts_with(&format!("/{name}").replace("//", "/")), "{to:?}: {told}");
        let files = &told["files"];
        let limits = ["memory.max", "cpu.max", "pids.max"].map(|file| files[file].as_str().unwrap_or_default());
        assert_eq!(limits, ["67108864", "50000 100000", "20"], "{to:?}: {told}");
        assert!(files["memory.swap.max"].is_null() || files["memory.swap.max"] == "0", "{to:?}: {told}");
        assert_eq!((&told["code"], &told["oom_killed"]), (&json!(7), &json!(false)), "{to:?}: {told}");
        assert_eq!(told["next"], "Some(Cgroup)", "{to:?}: {told}");
    }
}

#[test]
fn a_tree_that_wants_too_much_memory_is_killed_and_that_is_told() {
    for to in [To::Root, To::User] {
        let Some(subtree) = Subtree::new(to) else { return };
        let allocate = format!("{} allocate --mib 256", subtree.programs.path().join("child-fixture").display());
        let told = subtree.host(At::Leaf, &["--memory-bytes=33554432", &format!("--script=exec {allocate}")]);
        assert_eq!((&told["signal"], &told["oom_killed"]), (&json!(libc::SIGKILL), &json!(true)), "{to:?}: {told}");
        // Its child alone: it tells how that ended, and ends well itself.
        let script = format!("--script={allocate}; test $? = 137");
        let told = subtree.host(At::Leaf, &["--memory-bytes=33554432", &script]);
        assert_eq!((&told["code"], &told["oom_killed"]), (&json!(0), &json!(true)), "{to:?}: {told}");
    }
}

#[test]
fn a_tree_has_no_more_processes_than_it_may() {
    let Some(subtree) = Subtree::new(To::Root) else { return };
    let script = "--script=sleep 1000 & sleep 1000 & exit 0";
    let told = subtree.host(At::Leaf, &["--processes=3", script]);
    assert_eq!(told["code"], 0, "{told}");
    // A shell that cannot fork ends.
    let told = subtree.host(At::Leaf, &["--processes=2", script]);
    assert!(told["code"].as_i64().is_some_and(|code| code != 0), "{told}");
    assert_eq!(told["oom_killed"], false, "{told}");
}

/// The limit is, for this kind of reason, and how the next worker is contained.
#[track_caller]
fn is_refused(told: &Value, [kind, reason, next]: [&str; 3], to: To) {
    assert_eq!((&told["step"], &told["kind"]), (&json!("CgroupLimit"), &json!(kind)), "{to:?}: {told}");
    assert!(told["reason"].as_str().unwrap().contains(reason), "{to:?}: {told}");
    assert_eq!(told["next"], next, "{to:?}: {told}");
}

#[test]
fn a_host_that_is_not_in_a_leaf_is_told_and_its_other_workers_are_contained() {
    for to in [To::Root, To::User, To::Container] {
        let Some(subtree) = Subtree::new(to) else { return };
        for limit in ROOMY {
            let told = subtree.host(At::Itself, &[limit]);
            is_refused(&told, ["Unsupported", "processes in it", "Some(Cgroup)"], to);
        }
    }
}

#[test]
fn root_limits_nobody_in_a_subtree_that_was_not_delegated() {
    let Some(subtree) = Subtree::new(To::NobodyButRoot) else { return };
    for limit in ROOMY {
        let told = subtree.host(At::Leaf, &[limit]);
        is_refused(&told, ["Unsupported", "processes in it", "Some(Cgroup)"], To::NobodyButRoot);
    }
}

#[test]
fn a_user_without_a_subtree_is_told() {
    let Some(subtree) = Subtree::new(To::Nobody) else { return };
    for limit in ROOMY {
        let told = subtree.host(At::Leaf, &[limit]);
        is_refused(&told, ["PermissionDenied", "cgroup", "Some(ProcessGroup)"], To::Nobody);
    }
}

#[test]
fn who_cannot_be_born_in_its_cgroup_is_not_started_without_its_limit() {
    const TEST: &str = "limits::who_cannot_be_born_in_its_cgroup_is_not_started_without_its_limit";
    const LEAF: &str = "PIPEWRIGHT_TEST_LEAF";
    let Some(leaf) = std::env::var_os(LEAF).map(PathBuf::from) else {
        if let Some(subtree) = Subtree::new(To::Root) {
            alone(TEST, |spec| spec.env(LEAF, subtree.path.join("leaf")));
        }
        return;
    };
    fs::write(leaf.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    // A sandbox that knows nothing of it.
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
