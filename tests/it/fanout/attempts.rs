//! Time limits, retries, and what is written about finished commands.

use super::{compiler, database, fanout, run, write};
use pipewright::WorkerSpec;
use serde_json::Value;
use std::{fs, path::Path};

/// Numbers of the columns of a job log: sequence, exit code and signal of each line.
fn job_log(path: &Path) -> Vec<(u32, i32, i32)> {
    let text = fs::read_to_string(path).unwrap();
    let (titles, lines) = text.split_once('\n').unwrap();
    assert_eq!(titles, "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand");
    let mut found: Vec<_> = lines
        .lines()
        .map(|line| {
            let columns: Vec<_> = line.split('\t').collect();
            assert_eq!((columns.len(), columns[1], columns[4]), (9, ":", "0"), "{line}");
            let number =
                |at: usize| columns[at].trim().parse::<f64>().unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(number(2) > 1e9 && number(3) < 60.0 && number(5) >= 0.0, "{line}");
            assert!(columns[8].starts_with("cd /"), "{line}");
            (columns[0].parse().unwrap(), columns[6].parse().unwrap(), columns[7].parse().unwrap())
        })
        .collect();
    found.sort_unstable();
    found
}

/// Three commands whose inputs are unknown. Each appends its name to `log`; `b.c` fails unless `good` exists, `c.c` ends by a signal
/// unless `good` exists.
fn project(directory: &Path) -> WorkerSpec {
    let script = "for name; do case $name in *.c) break;; esac; done\necho $name >>log\n[ -e good ] && exit 0\n\
                  case $name in b.c) exit 7;; c.c) kill -KILL $$;; esac";
    let tool = compiler(directory, "tool", script);
    let database = database(directory, &[("a.c", ""), ("b.c", ""), ("c.c", "")], &tool);
    for object in ["a.o", "b.o", "c.o"] {
        write(directory, object, "");
    }
    fanout().arg(database).args(["-j1", "-k"]).current_dir(directory)
}

fn ran(directory: &Path) -> Vec<String> {
    let log = directory.join("log");
    let text = fs::read_to_string(&log).unwrap_or_default();
    drop(fs::remove_file(&log));
    let mut names: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
    names.sort();
    names
}

#[test]
fn resumed_job_log_runs_what_has_not_succeeded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jobs.tsv");
    let spec = || project(directory.path()).args(["--joblog", "jobs.tsv"]);
    assert_eq!(run(&spec()).exit.code(), Some(1));
    assert_eq!(job_log(&path), [(1, 0, 0), (2, 7, 0), (3, 0, 9)]);
    assert_eq!(ran(directory.path()), ["a.c", "b.c", "c.c"]);
    assert_eq!(run(&spec().arg("--resume")).exit.code(), Some(1));
    assert_eq!(ran(directory.path()), ["b.c", "c.c"]);
    // Killed while it wrote a line.
    let torn = fs::read_to_string(&path).unwrap() + "2\t:\t17";
    fs::write(&path, torn).unwrap();
    write(directory.path(), "good", "");
    let resumed = run(&spec().arg("--resume"));
    assert!(resumed.exit.success(), "{}", resumed.stdout);
    assert_eq!(ran(directory.path()), ["b.c", "c.c"]);
    assert!(run(&spec().arg("--resume")).stdout.contains("0 built, 3 up to date, 0 failed"));
    assert!(run(&spec()).exit.success());
    assert_eq!(ran(directory.path()), ["a.c", "b.c", "c.c"], "without --resume the log begins anew");
    assert_eq!(job_log(&path), [(1, 0, 0), (2, 0, 0), (3, 0, 0)]);
    let alone = run(&project(directory.path()).arg("--resume"));
    assert_eq!(alone.exit.code(), Some(2));
    assert!(alone.stderr.contains("--resume needs --joblog"), "{}", alone.stderr);
}

#[test]
fn failed_command_is_retried_as_often_as_asked() {
    let directory = tempfile::tempdir().unwrap();
    // Succeeds at the third attempt.
    let script = "echo x >>tries; echo 'out of luck'; [ $(wc -l <tries) -ge 3 ]";
    let flaky = compiler(directory.path(), "flaky", script);
    let database = database(directory.path(), &[("a.c", "")], &flaky);
    let spec = |retries| fanout().arg(&database).current_dir(directory.path()).args(["--retry", retries]);
    let failed = run(&spec("1"));
    assert_eq!(failed.exit.code(), Some(1), "{}", failed.stdout);
    let expected =
        format!("out of luck\nretried: a.c: {flaky}: exit code 1\nout of luck\nerror: a.c: {flaky}: exit code 1\n");
    assert!(failed.stdout.starts_with(&expected), "{}", failed.stdout);
    fs::remove_file(directory.path().join("tries")).unwrap();
    let log = directory.path().join("jobs.tsv");
    let built = run(&spec("2").arg("--joblog").arg(&log));
    assert!(built.exit.success() && built.stdout.contains("1 built, 0 failed"), "{}", built.stdout);
    assert_eq!(job_log(&log), [(1, 0, 0), (1, 1, 0), (1, 1, 0)]);
}

#[test]
fn command_that_exceeds_its_timeout_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let slow = compiler(directory.path(), "slow", "case $* in *a.c*) exec sleep 1000;; esac");
    let database = database(directory.path(), &[("a.c", ""), ("b.c", "")], &slow);
    let run = run(&fanout().arg(database).args(["-k", "--timeout", "2s"]));
    assert_eq!(run.exit.code(), Some(1), "{}", run.stdout);
    let expected = format!("error: a.c: {slow}: killed by signal 15 (SIGTERM), stopped at its time limit\n");
    assert!(run.stdout.contains(&expected), "{}", run.stdout);
    assert!(run.stdout.contains("1 built, 1 failed"), "{}", run.stdout);
}

#[test]
fn trace_has_a_bar_for_each_command_in_the_row_of_its_slot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.json");
    let spec = project(directory.path()).args(["-j2", "--trace", "trace.json"]);
    assert_eq!(run(&spec).exit.code(), Some(1));
    let events: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let bars: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(bars.len(), 3, "{events:?}");
    for bar in &bars {
        assert!(bar["ts"].is_u64() && bar["dur"].is_u64() && bar["pid"] == 1, "{bar}");
        let row = |event: &&Value| event["name"] == "thread_name" && event["tid"] == bar["tid"];
        assert_eq!(events.iter().filter(row).count(), 1, "{events:?}");
        assert!((1..=2).contains(&bar["tid"].as_u64().unwrap()), "{bar}");
    }
    let failed = bars.iter().find(|bar| bar["name"] == "b.c").unwrap();
    assert_eq!((&failed["cat"], &failed["args"]["exit"]), (&"failure".into(), &"exit code 7".into()));
    // Bars of one row do not overlap.
    for (index, bar) in bars.iter().enumerate() {
        let end = |bar: &Value| bar["ts"].as_u64().unwrap() + bar["dur"].as_u64().unwrap();
        for other in bars[..index].iter().filter(|other| other["tid"] == bar["tid"]) {
            assert!(end(other) <= bar["ts"].as_u64().unwrap() || end(bar) <= other["ts"].as_u64().unwrap(), "{bars:?}");
        }
    }
}

#[test]
fn longest_command_of_the_last_run_starts_first() {
    let directory = tempfile::tempdir().unwrap();
    let script = "for name; do case $name in *.c) break;; esac; done\necho $name >>log\n\
                  case $name in c.c) read -r line <\"$PWD/never\" || true;; esac";
    // `c.c` takes as long as the time limit.
    assert_eq!(crate::kernel::make_fifo(&directory.path().join("never")), 0);
    let tool = compiler(directory.path(), "tool", script);
    let files = [("a.c", "int a; /* the largest file */"), ("b.c", ""), ("c.c", "")];
    let database = database(directory.path(), &files, &tool);
    let spec = || fanout().arg(&database).current_dir(directory.path()).args(["-j1", "-k", "--timeout", "2"]);
    let order = || {
        assert_eq!(run(&spec()).exit.code(), Some(1));
        let text = fs::read_to_string(directory.path().join("log")).unwrap();
        fs::remove_file(directory.path().join("log")).unwrap();
        text
    };
    assert_eq!(order().lines().next(), Some("a.c"));
    assert_eq!(order().lines().next(), Some("c.c"));
}

#[test]
fn invalid_option_values_are_named() {
    for (arguments, expected) in [
        (&["--timeout", "soon"][..], "invalid --timeout soon: "),
        (&["--timeout", "-1"], "invalid --timeout -1: "),
        (&["--timeout", "0"], "invalid --timeout 0: zero"),
        (&["--timeout"], "--timeout needs a value"),
        (&["--retry", "x"], "invalid --retry x: "),
        (&["-j0"], "invalid --jobs 0: not a positive number"),
        (&["--resume=yes", "--joblog", "x"], "--resume has no value"),
        (&["--joblog", "/no/such/place"], "/no/such/place: No such file"),
        (&["--trace", "/"], "/: Is a directory"),
        (&["--then", "x: "], "--then x: : no command"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let run = run(&fanout().arg("--out").arg(out.path()).args(arguments.iter().copied()));
        assert_eq!(run.exit.code(), Some(2), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected) && run.stderr.lines().count() == 1, "{arguments:?}: {}", run.stderr);
    }
}
