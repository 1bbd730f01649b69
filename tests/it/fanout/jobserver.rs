//! `fanout` below `make -j3`: both together run three compilers.

use super::{compiler, write};
use crate::support::{DEADLINE, becomes_true, example, wait_all_gone};
use pipewright::{OutputMode, ProcessOutput, WorkerSpec};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Runs `make -j3` on a makefile of these lines.
fn make(directory: &Path, lines: &str) -> WorkerSpec {
    let fanout = example("fanout");
    write(directory, "Makefile", &lines.replace("FANOUT", fanout.to_str().unwrap()).replace("    ", "\t"));
    let make = WorkerSpec::new("make").args(["-j3", "all"]).current_dir(directory).env("LC_ALL", "C");
    make.stdout(OutputMode::Bytes).stderr(OutputMode::ToStdout)
}

fn text(output: &ProcessOutput) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A database of `count` files in a directory of its own.
fn database(directory: &Path, name: &str, count: usize, compiler: &str) -> PathBuf {
    let directory = directory.join(name);
    fs::create_dir(&directory).unwrap();
    let files: Vec<_> = (0..count).map(|number| (format!("{name}{number}.c"), "int x;\n")).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    super::database(&directory, &files, compiler)
}

/// The highest number of compilers at a time: each appends `+` when it starts and `-` before it ends.
fn highest(log: &Path) -> i32 {
    let (mut running, mut highest) = (0, 0);
    for line in fs::read_to_string(log).unwrap().lines() {
        running += if line == "+" { 1 } else { -1 };
        highest = highest.max(running);
    }
    assert_eq!(running, 0);
    highest
}

#[test]
fn two_fanouts_and_a_make_run_no_more_compilers_than_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let script =
        "echo + >>\"$(dirname \"$0\")/log\"; cc \"$@\"; code=$?; echo - >>\"$(dirname \"$0\")/log\"; exit $code";
    let counting = compiler(path, "counting-gcc", script);
    for name in ["a", "b"] {
        database(path, name, 12, &counting);
    }
    let objects: Vec<_> = (0..12).map(|number| format!("c{number}.o")).collect();
    for number in 0..12 {
        write(path, &format!("c{number}.c"), "int x;\n");
    }
    write(path, "sub.mk", &format!("all: {}\n%.o: %.c\n\t{counting} -c $< -o $@\n", objects.join(" ")));
    let lines =
        "all: a-all b-all c-all\n%-all:\n    +FANOUT $*/compile_commands.json\nc-all:\n    +$(MAKE) -f sub.mk all\n";
    let output = make(path, lines).spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
    assert!(output.exit.success(), "{}", text(&output));
    assert_eq!(text(&output).matches("12 built, 0 failed").count(), 2, "{}", text(&output));
    assert!(!text(&output).contains("jobserver unavailable"), "{}", text(&output));
    assert!(highest(&path.join("log")) <= 3, "{}", fs::read_to_string(path.join("log")).unwrap());
    assert_eq!(fs::read_to_string(path.join("log")).unwrap().lines().count(), 2 * 36);
}

#[test]
fn fanout_alone_uses_all_tokens_and_a_limit_of_its_own() {
    for (option, tokens) in [("", 3), ("-j2", 2)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // Ends when as many run at once as there are tokens.
        let script = format!(
            "cd \"$(dirname \"$0\")\" || exit 1\necho + >>log\nuntil [ \"$(wc -l <log)\" -ge {tokens} ]; do sleep 0.01; done\necho - >>log"
        );
        let together = compiler(path, "together", &script);
        database(path, "a", 6, &together);
        let lines = format!("all:\n    +FANOUT {option} --timeout 60 a/compile_commands.json\n");
        let output = make(path, &lines).spawn_unsupervised().unwrap().wait_with_output(DEADLINE * 2).unwrap();
        assert!(output.exit.success(), "{}", text(&output));
        assert_eq!(highest(&path.join("log")), tokens, "{option}");
    }
}

#[test]
fn tokens_of_a_killed_fanout_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    // Those of `a` send the pid of their fanout and never end. Those of `b` end when three of them run at once.
    let never = "cd \"$(dirname \"$0\")\" || exit 1\necho $PPID >>pids\nmkfifo wait$$\nread -r line <wait$$";
    let together = "cd \"$(dirname \"$0\")\" || exit 1\nuntil [ \"$(wc -l <pids)\" -ge 2 ]; do sleep 0.01; done\n\
                    echo + >>log\nuntil [ \"$(wc -l <log)\" -ge 3 ]; do sleep 0.01; done\necho - >>log";
    database(path, "a", 3, &compiler(path, "never", never));
    database(path, "b", 6, &compiler(path, "together", together));
    write(path, "pids", "");
    // `b` begins when `a` has all tokens but its own.
    let wait = "until [ \"$(wc -l <pids)\" -ge 2 ]; do sleep 0.01; done; ";
    let lines = format!(
        "all: a-all b-all\na-all:\n    -+FANOUT a/compile_commands.json\nb-all:\n    +{wait}exec FANOUT b/compile_commands.json\n"
    )
    .replace("$(wc", "$$(wc");
    let make = make(path, &lines).spawn_unsupervised().unwrap();
    let pids = || -> Vec<u32> {
        let text = fs::read_to_string(path.join("pids")).unwrap();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    assert!(becomes_true(|| pids().len() == 2), "two compilers of the first fanout: {:?}", pids());
    let victim = pids()[0];
    let compilers = crate::support::children(victim);
    crate::kernel::kill(victim, libc::SIGKILL);
    let output = make.wait_with_output(DEADLINE).unwrap();
    assert!(output.exit.success() && text(&output).contains("6 built, 0 failed"), "{}", text(&output));
    assert_eq!(highest(&path.join("log")), 3, "all three tokens");
    assert_eq!(pids().len(), 2, "no compiler of the first fanout has started since");
    wait_all_gone(|| compilers.iter().copied().filter(|pid| crate::support::is_alive(*pid)).collect());
}

#[test]
fn make_as_a_rule_runs_as_many_jobs_as_fanout() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let database = database(path, "a", 2, "cc");
    // Each of the jobs ends when three of them run at once.
    let job = "echo + >>log; until [ $$(wc -l <log) -ge 3 ]; do sleep 0.01; done; echo - >>log";
    write(path, "sub.mk", &format!("all: 1 2 3 4 5 6\n1 2 3 4 5 6:\n\t@{job}\n"));
    let spec = super::fanout().arg(database).args(["-j3", "--timeout", "60", "--then", "make -f sub.mk all"]);
    let run = super::run(&spec.current_dir(path));
    assert!(run.exit.success() && run.stdout.contains("3 built, 0 failed"), "{}\n{}", run.stdout, run.stderr);
    assert_eq!(highest(&path.join("log")), 3);
}

#[test]
fn jobserver_that_cannot_be_used_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    database(directory.path(), "a", 2, "cc");
    let spec = super::fanout()
        .arg(directory.path().join("a/compile_commands.json"))
        .env("MAKEFLAGS", " -j3 --jobserver-auth=fifo:/no/such/fifo");
    let run = super::run(&spec);
    assert!(run.exit.success() && run.stdout.contains("2 built, 0 failed"), "{}\n{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("/no/such/fifo"), "{}", run.stderr);
    assert!(run.stderr.contains("; running one command at a time\n"), "{}", run.stderr);
}
