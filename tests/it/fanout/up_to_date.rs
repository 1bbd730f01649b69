//! What a second run of `fanout` does.

use super::{compiler, database, fanout, run, write};
use pipewright::WorkerSpec;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A project of two files, of which the first includes a header. Its compiler appends the name of each file that it compiles to
/// `log`.
struct Project {
    directory: tempfile::TempDir,
    database: PathBuf,
}

impl Project {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = "for a; do case $a in *.c) echo $a >>log;; esac; done\nexec cc \"$@\"";
        let compiler = compiler(directory.path(), "logging-gcc", script);
        write(directory.path(), "h.h", "#define H 1\n");
        let files = [("a.c", "#include \"h.h\"\nint a = H;\n"), ("b.c", "int b;\n")];
        let database = database(directory.path(), &files, &compiler);
        Self { directory, database }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn spec(&self) -> WorkerSpec {
        fanout().arg(&self.database).args(["-j1"])
    }

    /// Runs a build. Returns the files that were compiled.
    fn build(&self, spec: &WorkerSpec) -> Vec<String> {
        let log = self.path().join("log");
        drop(fs::remove_file(&log));
        let run = run(spec);
        assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
        let compiled = fs::read_to_string(&log).unwrap_or_default();
        let count = compiled.lines().count();
        assert!(run.stdout.contains(&format!("{count} built")), "{}", run.stdout);
        let mut files: Vec<_> = compiled.lines().map(ToOwned::to_owned).collect();
        files.sort();
        files
    }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

/// Replaces the content of a file of the same length, with an older time.
fn replace_by_older(path: &Path, text: &str) {
    let before = path.metadata().unwrap();
    fs::write(path, text).unwrap();
    assert_eq!(before.len(), text.len() as u64);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(86_400)).unwrap();
}

#[test]
fn second_run_does_nothing_until_an_input_changes() {
    let project = Project::new();
    let build = |spec: WorkerSpec| project.build(&spec);
    assert_eq!(build(project.spec()), ["a.c", "b.c"]);
    assert_eq!(build(project.spec()), nothing());
    write(project.path(), "b.c", "int bb;\n");
    assert_eq!(build(project.spec()), ["b.c"]);
    write(project.path(), "h.h", "#define H 22\n");
    assert_eq!(build(project.spec()), ["a.c"], "a header");
    replace_by_older(&project.path().join("h.h"), "#define H 33\n");
    assert_eq!(build(project.spec()), ["a.c"], "a header that is older than the object");
    assert_eq!(build(project.spec()), nothing());
    assert_eq!(build(project.spec().arg("-B")), ["a.c", "b.c"]);
    assert_eq!(build(project.spec()), nothing());
}

#[test]
fn changed_object_or_command_is_built_again() {
    let project = Project::new();
    let build = || project.build(&project.spec());
    assert_eq!(build(), ["a.c", "b.c"]);
    fs::remove_file(project.path().join("a.o")).unwrap();
    assert_eq!(build(), ["a.c"]);
    // As after a compiler that was killed.
    File::options().write(true).open(project.path().join("b.o")).unwrap().set_len(10).unwrap();
    assert_eq!(build(), ["b.c"]);
    let text = fs::read_to_string(&project.database).unwrap().replacen("-Wall", "-Wextra", 1);
    fs::write(&project.database, text).unwrap();
    assert_eq!(build(), ["a.c"]);
    assert_eq!(build(), nothing());
}

#[test]
fn input_that_changes_during_its_compilation_is_compiled_again() {
    let directory = tempfile::tempdir().unwrap();
    // The editor saves the file after the compiler has read it.
    let editing = "cc \"$@\" || exit 1\n[ -e edited ] || echo 'int b;' >>a.c\ntouch edited";
    let compiler = compiler(directory.path(), "editing-gcc", editing);
    let database = database(directory.path(), &[("a.c", "int a;\n")], &compiler);
    for expected in ["1 built, 0 failed", "1 built, 0 failed", "0 built, 1 up to date, 0 failed"] {
        let run = run(&fanout().arg(&database));
        assert!(run.exit.success() && run.stdout.contains(expected), "{expected}: {}\n{}", run.stdout, run.stderr);
    }
}

#[test]
fn failed_step_runs_again_and_leaves_no_object() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = compiler(directory.path(), "late-gcc", "cc \"$@\"\n[ -e good ]");
    let database = database(directory.path(), &[("a.c", "int a;\n")], &compiler);
    for _ in 0..2 {
        assert_eq!(run(&fanout().arg(&database)).exit.code(), Some(1));
        assert!(!directory.path().join("a.o").exists());
    }
    write(directory.path(), "good", "");
    assert!(run(&fanout().arg(&database)).exit.success());
    assert!(run(&fanout().arg(&database)).stdout.contains("0 built, 1 up to date"));
}

#[test]
fn damaged_build_log_is_used_as_far_as_it_is_valid() {
    let project = Project::new();
    let build = || project.build(&project.spec());
    let log = project.path().join(".fanout_log");
    let append = |bytes: &[u8]| File::options().append(true).open(&log).unwrap().write_all(bytes).unwrap();
    assert_eq!(build(), ["a.c", "b.c"]);
    let whole = fs::read(&log).unwrap();
    for damage in [&b"s 1 2 3"[..], b"p 0 /twice\n", b"\0\0\0\0\n", b"s 1 2 3 4 4000000000\n", b"\xff\n", b"\n"] {
        append(damage);
        assert_eq!(build(), nothing(), "{:?}", String::from_utf8_lossy(damage));
        assert_eq!(fs::read(&log).unwrap(), whole, "{:?}", String::from_utf8_lossy(damage));
    }
    // Cut within the last record, as by a full disk.
    fs::write(&log, &whole[..whole.len() - 5]).unwrap();
    assert_eq!(build().len(), 1);
    for text in [&b""[..], b"another program's file\n", b"fanout build log 1"] {
        fs::write(&log, text).unwrap();
        assert_eq!(build(), ["a.c", "b.c"], "{:?}", String::from_utf8_lossy(text));
        assert_eq!(build(), nothing());
    }
}

#[test]
fn build_log_does_not_grow_without_limit() {
    let project = Project::new();
    let log = project.path().join(".fanout_log");
    for _ in 0..40 {
        project.build(&project.spec().arg("-B"));
    }
    let lines = fs::read_to_string(&log).unwrap().lines().filter(|line| line.starts_with("s ")).count();
    assert!(lines <= 66, "{lines} lines about two steps");
    assert_eq!(project.build(&project.spec()), nothing());
}

#[test]
fn rules_run_after_the_database_when_an_object_has_changed() {
    let project = Project::new();
    let rules = ["lib/libab.a: ar rcs {out} {objects}", "echo linked >>links"];
    let spec = || project.spec().current_dir(project.path()).args(["--then", rules[0], "--then", rules[1]]);
    let built = |spec: WorkerSpec| {
        let run = run(&spec);
        assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
        run.stdout.lines().find_map(|line| line.split_once(" built").map(|(count, _)| count.to_owned())).unwrap()
    };
    let links = || fs::read_to_string(project.path().join("links")).unwrap().lines().count();
    assert_eq!(built(spec()), "4");
    assert!(project.path().join("lib/libab.a").exists());
    assert_eq!((built(spec()), links()), ("0".to_owned(), 1));
    write(project.path(), "b.c", "int bb;\n");
    assert_eq!((built(spec()), links()), ("3".to_owned(), 2));
    fs::remove_file(project.path().join("lib/libab.a")).unwrap();
    assert_eq!((built(spec()), links()), ("2".to_owned(), 3));
}

#[test]
fn entry_without_dependency_file_always_runs() {
    let directory = tempfile::tempdir().unwrap();
    let script = "for a; do case $a in -M*) exit 1;; esac; done; : >a.o";
    let compiler = compiler(directory.path(), "other", script);
    let database = database(directory.path(), &[("a.c", "")], &compiler);
    for _ in 0..2 {
        assert!(run(&fanout().arg(&database)).stdout.contains("1 built, 0 failed"));
    }
    // A compiler with the name of GCC that has no such options.
    let strict = super::compiler(directory.path(), "strict-gcc", script);
    let database = super::database(directory.path(), &[("a.c", "")], &strict);
    assert_eq!(run(&fanout().arg(&database)).exit.code(), Some(1));
    assert!(run(&fanout().arg(&database).arg("--no-depfiles")).exit.success());
}

#[test]
fn second_fanout_on_the_same_build_log_is_refused() {
    let project = Project::new();
    let log = File::options().append(true).create(true).open(project.path().join(".fanout_log")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = run(&project.spec());
    assert_eq!(refused.exit.code(), Some(2));
    assert!(refused.stderr.contains(".fanout_log: in use by another fanout\n"), "{}", refused.stderr);
    drop(log);
    assert_eq!(project.build(&project.spec()), ["a.c", "b.c"]);
}
