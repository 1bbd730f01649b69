//! The example `harness`, run as a program.

use crate::support::{DEADLINE, example};
use pipewright::{OutputMode, Process, WorkerSpec};
use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

// Cargo runs no unit tests of an example that is also built as a program, so its pure parts are tested here.
#[path = "../../../examples/harness/select.rs"]
mod select;
#[path = "../../../examples/harness/tap.rs"]
mod tap;
#[path = "../../../examples/harness/output.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod output;
#[path = "../../../examples/harness/options.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod options;
#[path = "../../../examples/harness/program.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod program;
#[path = "../../../examples/harness/list.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod list;
#[path = "../../../examples/harness/cargo_build.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod cargo_build;

mod agreement; // with cargo test
mod command_line; // selection, exit codes
mod endings; // how tests end
mod interrupts; // Ctrl-C
mod junit; // results as XML
mod leaks; // what tests leave behind
mod packages; // tests that cargo builds

const BUILD_TIMEOUT: Duration = Duration::from_secs(300);

fn harness() -> WorkerSpec {
    of_no_package(WorkerSpec::new(example("harness")).stdout(OutputMode::Bytes).stderr(OutputMode::Bytes))
}

/// `None` if the test program runs without cargo.
fn cargo() -> Option<WorkerSpec> {
    Some(of_no_package(WorkerSpec::new(env::var_os("CARGO")?)))
}

/// Without the variables of the package that this test belongs to, as in a shell.
fn of_no_package(spec: WorkerSpec) -> WorkerSpec {
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR";
    let names = env::vars_os().map(|(name, _)| name).filter(|name| name.to_str().is_some_and(own));
    names.fold(spec, WorkerSpec::env_remove).env_remove("CARGO")
}

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// The part of the output from the summary on.
    #[track_caller]
    fn summary(&self) -> &str {
        let at = self.stderr.find("Summary [").unwrap_or_else(|| panic!("no summary: {}", self.stderr));
        // Without the time.
        self.stderr[at..].split_once("] ").unwrap().1
    }

    /// The line with this text.
    #[track_caller]
    fn line(&self, text: &str) -> &str {
        self.stderr.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text}: {}", self.stderr))
    }
}

fn finish(process: Process) -> Run {
    let output = process.wait_with_output(DEADLINE).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.exit.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn run(spec: &WorkerSpec) -> Run {
    finish(spec.spawn_unsupervised().unwrap())
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// A program with the command line of libtest, as a shell script. Tests whose name begins with `ignored` have `#[ignore]`.
fn program(directory: &Path, name: &str, tests: &[(&str, &str)]) -> PathBuf {
    let path = directory.join(name);
    let list = |only_ignored: bool| -> String {
        let names = tests.iter().filter(|(name, _)| !only_ignored || name.starts_with("ignored"));
        names.map(|(name, _)| format!("echo '{name}: test';")).collect::<Vec<_>>().concat()
    };
    let cases = tests.iter().map(|(name, body)| format!("'{name}') {body} ;;\n")).collect::<Vec<_>>().concat();
    let text = format!(
        "cd '{directory}'\ncase \"$*\" in\n'--list --format terse --ignored') {ignored} exit ;;\n\
         '--list --format terse') {all} exit ;;\nesac\n\
         [ \"$1 $3\" = '--exact --nocapture' ] || exit 99\ncase \"$2\" in\n{cases}*) exit 98 ;;\nesac\n",
        directory = directory.display(),
        ignored = list(true),
        all = list(false),
    );
    script(&path, &text);
    path
}
