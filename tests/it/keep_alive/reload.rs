//! Reloads of the configuration file.

use super::{Foreman, places};
use crate::{
    kernel,
    support::{is_alive, signal_until_exit, wait_gone},
};
use std::fs;

#[test]
fn reload_changes_only_changed_workers() {
    let worker = |name: &str, more: &str| format!("[workers.{name}]\ncommand = ['sleep', '1000']\n{more}\n");
    let old = [worker("same", ""), worker("changed", ""), worker("behind", "after = ['changed']"), worker("old", "")];
    let mut foreman = Foreman::new(&old.concat());
    foreman.stdout.find_all(["same: started", "changed: started", "behind: started", "old: started"]);
    let [same, changed, gone] = ["same", "changed", "old"].map(|name| foreman.stdout.pid(name));
    foreman.reload("[workers.same]\ncommand = 'sleep'\n");
    let complaint = "keep_alive: workers.toml:2: worker `same`, `command`: expected an array of strings such as ";
    assert!(foreman.stderr.next().starts_with(complaint), "{:#?}", foreman.stderr.lines);
    assert!([same, changed, gone].into_iter().all(is_alive), "keeping the old file");
    let new = [
        worker("new", "after = ['changed', 'same']"),
        worker("changed", "env = { A = '1' }"),
        worker("same", ""),
        worker("behind", "after = ['changed']"),
    ];
    foreman.reload(&new.concat());
    // Its dependents start after it, in any order.
    foreman.stdout.find("changed: started");
    assert_ne!(foreman.stdout.pid("changed"), changed);
    foreman.stdout.find_all(["new: started", "behind: started"]);
    wait_gone(gone);
    assert!(is_alive(same));
    foreman.process.signal(libc::SIGINT).unwrap();
    let (exit, lines, _) = foreman.finish();
    assert!(exit.success(), "{exit}: {lines:#?}");
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!([count("same: started"), count("behind: started"), count("old: started")], [1, 2, 1], "{lines:#?}");
    places(
        &lines,
        &[
            "changed: changed, restarting",
            "behind: depends on changed, restarting with it",
            "old: removed from the file, stopping",
        ],
    );
}

#[test]
fn removed_workers_stop_before_new_ones_start() {
    let worker = |name: &str, more: &str| format!("[workers.{name}]\ncommand = ['sleep', '1000']\n{more}\n");
    let stubborn = r#"
        [workers.stubborn]
        command = ["sh", "-c", "trap '' TERM; echo here; while :; do sleep 1000; done"]
        ready = { line = "here" }
        stop = [{ signal = "TERM", wait = "1h" }]
        "#;
    let mut foreman = Foreman::new(&(stubborn.to_owned() + &worker("same", "")));
    foreman.stdout.find_all(["stubborn: ready", "same: started"]);
    let leaver = foreman.stdout.pid("stubborn");
    // A worker that is being replaced delays its dependents.
    let replaced = [worker("stubborn", ""), worker("same", ""), worker("behind", "after = ['stubborn']")];
    foreman.reload(&[replaced.concat(), worker("new", "after = ['same']")].concat());
    foreman.stdout.find("new: started");
    // A removed worker delays all new ones: one of them may be the same program under a new name.
    foreman.reload(&(worker("same", "") + &worker("renamed", "")));
    foreman.stdout.find("new: killed");
    // Kills the whole group: the rest of a group that is being stopped keeps the grace period.
    assert_eq!(kernel::kill_group(leaver, libc::SIGKILL), 0, "the group is running");
    foreman.stdout.find("renamed: started");
    foreman.process.signal(libc::SIGTERM).unwrap();
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
    assert!(places(&lines, &["stubborn: killed by signal 9", "renamed: started"]).is_sorted(), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("behind: started")), "{lines:#?}");
}

#[test]
fn reload_starts_failed_workers_again() {
    let file = r#"
        [workers.same]
        command = ["sleep", "1000"]
        [workers.done]
        command = ["true"]
        [workers.hopeless]
        command = ["sh", "-c", "test -e licence || exit 3"]
        restart = { when = "on-failure", first = "1ms", restarts = 1 }
        [workers.behind]
        command = ["sleep", "1000"]
        after = { hopeless = "exited", done = "exited" }
        [workers.once]
        command = ["test", "-e", "licence"]
        "#;
    let mut foreman = Foreman::new(file);
    foreman.stdout.find_all([
        "hopeless: exit code 3, gave up",
        "behind: not started: hopeless has failed",
        "once: exit code 1",
        "done: exit code 0",
        "same: started",
    ]);
    let same = foreman.stdout.pid("same");
    fs::write(foreman.directory.path().join("licence"), "").unwrap();
    foreman.reload(file);
    foreman.stdout.find("keep_alive: file reloaded");
    foreman.stdout.find_all(["hopeless: started", "behind: started", "once: exit code 0"]);
    assert!(is_alive(same));
    foreman.process.signal(libc::SIGTERM).unwrap();
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
    let expected = ["hopeless: failed, trying again", "behind: depends on hopeless, restarting with it"];
    places(&lines, &expected);
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!([count("same: started"), count("done: started"), count("once: started")], [1, 1, 2], "{lines:#?}");
}

#[test]
fn reload_of_an_invalid_file_changes_nothing() {
    let good = "[workers.same]\ncommand = ['sleep', '1000']\n";
    let mut foreman = Foreman::new(good);
    foreman.stdout.find("same: started");
    let same = foreman.stdout.pid("same");
    for (file, expected) in [
        ("", "workers.toml: no workers defined"),
        (
            "[workers.same]\ncommand = ['x']\nafter = ['other']\n[workers.other]\ncommand = ['x']\nafter = ['same']",
            "workers.toml:3: worker `same`, `after`: dependency cycle: `same` -> `other` -> `same`",
        ),
        ("[workers.same]\ncommand = ['x']\ncommand = ['y']", "workers.toml:3: duplicate key `command`"),
        ("[workers.same]\ncommand = ['x']\n[workers.same]\ncommand = ['x']", "workers.toml:3: duplicate key `same`"),
    ] {
        foreman.reload(file);
        let line = foreman.stderr.next();
        assert!(
            line.starts_with(&format!("keep_alive: {expected}")) && line.ends_with("; keeping the old file"),
            "{line}"
        );
    }
    let file = foreman.directory.path().join("workers.toml");
    fs::remove_file(&file).unwrap();
    foreman.process.signal(libc::SIGHUP).unwrap();
    let line = foreman.stderr.next();
    assert!(
        line.starts_with("keep_alive: workers.toml: No such file") && line.ends_with("keeping the old file"),
        "{line}"
    );
    foreman.reload(good);
    foreman.stdout.find("keep_alive: file reloaded");
    assert!(is_alive(same));
    foreman.process.signal(libc::SIGTERM).unwrap();
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success(), "{exit}: {lines:#?}, {stderr:#?}");
    assert_eq!((lines.len(), stderr.len()), (4, 5), "{lines:#?}, {stderr:#?}");
}

#[test]
fn reload_with_a_missing_program_ends_only_its_worker() {
    let worker = |name: &str, program: &str| format!("[workers.{name}]\ncommand = ['{program}', '1000']\n");
    let mut foreman = Foreman::new(&(worker("same", "sleep") + &worker("changed", "sleep")));
    foreman.stdout.find_all(["same: started", "changed: started"]);
    let [same, changed] = ["same", "changed"].map(|name| foreman.stdout.pid(name));
    foreman.reload(&(worker("same", "sleep") + &worker("changed", "no-such-program")));
    foreman.stdout.find("changed: failed to start no-such-program: ");
    foreman.stdout.find("changed: gave up: its program cannot be started");
    wait_gone(changed);
    foreman.reload(&(worker("same", "sleep") + &worker("changed", "sleep")));
    foreman.stdout.find("changed: started");
    assert!(is_alive(same));
    foreman.process.signal(libc::SIGTERM).unwrap();
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
}

#[test]
fn reload_during_the_shutdown_changes_nothing() {
    let mut foreman = Foreman::new(
        r#"
        [workers.stubborn]
        command = ["sh", "-c", "trap 'echo asked' TERM; echo here; while :; do sleep 1000 & wait; done"]
        ready = { line = "here" }
        stop = [{ signal = "TERM", wait = "1h" }]
        "#,
    );
    foreman.stdout.find("stubborn: ready");
    let stubborn = foreman.stdout.pid("stubborn");
    foreman.process.signal(libc::SIGTERM).unwrap();
    // Wait for the first: two pending signals would be merged.
    foreman.stdout.find("stubborn | asked");
    foreman.reload("[workers.new]\ncommand = ['sleep', '1000']\n");
    foreman.stdout.find("keep_alive: stopping all workers, file not reloaded");
    assert!(is_alive(stubborn), "no worker is stopped sooner");
    signal_until_exit(&mut foreman.process, libc::SIGTERM);
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
    places(&lines, &["stubborn: killed by signal 9"]);
    assert!(!lines.iter().any(|line| line.starts_with("new: ")), "{lines:#?}");
}
