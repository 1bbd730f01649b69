//! Files of plugins that change, appear and are removed.

use super::{Session, write_plugin};
use crate::support::wait_gone;
use std::{fs, io::Write, path::Path, time::Duration};

/// A plugin whose method `version` returns the number, when a file exists if one is named.
fn write_version(path: &Path, number: u32) {
    write_plugin(path, &text_of_version(number));
}

fn text_of_version(number: u32) -> String {
    format!(
        "import os, plugin\ndef version(cancelled, file=None):\n    while file and not os.path.exists(file):\n        \
         cancelled.wait(0.01)\n    return {number}\nplugin.serve({{'version': version}})"
    )
}

/// A host with one plugin of version 1, which is ready.
#[track_caller]
fn start() -> Session {
    let mut session = Session::start(&["--timeout", "60s"], &[]);
    write_version(&session.path("one.py"), 1);
    session.expect("one.py#1: ready");
    session.type_lines("call one.py version");
    session.expect("[1] 1");
    session
}

#[test]
#[ignore = "needs python3"]
fn changed_plugin_is_replaced_when_the_new_one_is_ready() {
    let mut session = start();
    let old = session.pid("one.py#1");
    // The old version answers the call that it has begun.
    let file = session.path("go");
    session.type_lines(&format!("call one.py version [{file:?}]"));
    write_version(&session.path("one.py"), 2);
    session.expect("one.py#2: ready");
    session.expect("one.py#1: replaced by one.py#2, stops after its calls");
    session.type_lines("call one.py version");
    session.expect("[3] 2");
    fs::write(file, "").unwrap();
    session.expect("[2] 1");
    session.expect("one.py#1: ended: exit code 0");
    wait_gone(old);
    let (exit, text) = session.finish();
    assert_eq!(exit.code(), Some(0), "{text}");
}

#[test]
#[ignore = "needs python3"]
fn broken_new_version_leaves_the_old_one_running() {
    let mut session = start();
    let old = session.pid("one.py#1");
    for (load, text, expected) in [
        (2, "import plugin\nthis is not Python", "exited before it was ready, after "),
        (3, "import plugin\nplugin.serve({}, version=9)", "cannot be used: it speaks version 9"),
        (4, "import sys\nsys.exit(0)", "exited before it was ready, after "),
    ] {
        write_plugin(&session.path("one.py"), text);
        session.expect(&format!("one.py#{load}: {expected}"));
        session.expect(&format!("one.py#{load}: one.py#1 stays, stops"));
    }
    // No interpreter: it cannot even be started.
    fs::write(session.path(".part"), "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(session.path(".part"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(session.path(".part"), session.path("one.py")).unwrap();
    session.expect("one.py#5: failed to start");
    session.type_lines("call one.py version");
    session.expect("[2] 1");
    assert_eq!(session.pid("one.py#1"), old, "it was not restarted");
    write_version(&session.path("one.py"), 6);
    session.expect("one.py#6: ready");
    session.expect("one.py#1: replaced by one.py#6, stops");
    session.type_lines("call one.py version");
    session.expect("[3] 6");
    assert_eq!(session.finish().0.code(), Some(0));
}

#[test]
#[ignore = "needs python3"]
fn new_version_that_does_not_become_ready_leaves_the_old_one_running() {
    let mut session = Session::start(&["--ready", "1500ms"], &[]);
    write_version(&session.path("one.py"), 1);
    session.expect("one.py#1: ready");
    write_plugin(&session.path("one.py"), "import threading\nthreading.Event().wait()");
    session.expect("one.py#2: not ready after 1.5s");
    session.expect("one.py#2: one.py#1 stays");
    session.type_lines("call one.py version");
    session.expect("[1] 1");
    assert_eq!(session.finish().0.code(), Some(0));
}

#[test]
#[ignore = "needs python3"]
fn file_that_is_written_in_parts_is_loaded_once() {
    let mut session = Session::start(&["--settle", "1s"], &[]);
    write_version(&session.path("one.py"), 1);
    session.expect("one.py#1: ready");
    // In place, as `cp` writes: each part alone would be a broken plugin.
    let mut file = fs::File::create(session.path("one.py")).unwrap();
    for part in format!("#!/usr/bin/env python3\n{}\n", text_of_version(2)).as_bytes().chunks(40) {
        file.write_all(part).unwrap();
        file.sync_all().unwrap();
        // A writer that is slower than the notifications.
        crossbeam_channel::after(Duration::from_millis(30)).recv().unwrap();
    }
    drop(file);
    session.expect("one.py#2: ready");
    session.type_lines("call one.py version");
    session.expect("[1] 2");
    let (exit, text) = session.finish();
    assert!(exit.success() && !text.contains("one.py#3"), "{text}");
}

#[test]
#[ignore = "needs python3"]
fn editor_that_renames_the_old_file_first_loads_the_new_one() {
    let mut session = start();
    let path = session.path("one.py");
    // As vim does with `backupcopy=no`: the backup is executable, and there is no file for a moment.
    fs::rename(&path, path.with_file_name("one.py~")).unwrap();
    write_version(&path, 2);
    session.expect("one.py#2: ready");
    session.type_lines("call one.py version\nlist");
    session.expect("[2] 2");
    let (exit, text) = session.finish();
    assert!(exit.success() && !text.contains('~') && !text.contains("removed"), "{text}");
}

#[test]
#[ignore = "needs python3"]
fn new_files_become_plugins_and_removed_ones_end() {
    let mut session = start();
    fs::write(session.path("README"), "not executable").unwrap();
    write_version(&session.path(".hidden"), 1);
    write_version(&session.path("two.py"), 7);
    session.expect("two.py#1: ready");
    session.type_lines("call two.py version");
    session.expect("[2] 7");
    let pid = session.pid("two.py#1");
    fs::remove_file(session.path("two.py")).unwrap();
    session.expect("two.py#1: its file was removed, stops");
    wait_gone(pid);
    session.type_lines("call two.py version\nlist");
    session.expect("no plugin \"two.py\"; there are: one.py");
    // A file that is no longer executable is no plugin either.
    fs::set_permissions(session.path("one.py"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    session.expect("one.py#1: its file was removed, stops");
    let (exit, text) = session.finish();
    assert!(exit.code() == Some(1) && !text.contains("README") && !text.contains(".hidden"), "{text}");
}

#[test]
#[ignore = "needs python3"]
fn reload_replaces_an_unchanged_plugin_and_starts_one_that_has_given_up() {
    let mut session = start();
    let old = session.pid("one.py#1");
    session.type_lines("reload");
    session.expect("one.py#1: replaced by one.py#2, stops");
    wait_gone(old);
    write_plugin(&session.path("two.py"), "import plugin\nplugin.serve({}, version=3)");
    session.expect("two.py: does not run");
    // The import is not watched, so it needs the command.
    session.type_lines("reload two.py");
    session.expect("two.py#2: cannot be used: it speaks version 3");
    session.expect("two.py: does not run");
    write_version(&session.path("two.py"), 5);
    session.expect("two.py#3: ready");
    session.type_lines("call two.py version");
    session.expect("[2] 5");
    assert_eq!(session.finish().0.code(), Some(0));
}
