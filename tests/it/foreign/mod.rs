//! Programs that were not written for this library, unmodified. `.ci/run` installs them; elsewhere the tests of missing ones are skipped.

mod jest_worker;
mod lsp;
mod mcp;
mod node;
mod peers;
mod pools;

use crate::support::DEADLINE;
use pipewright::{StopPolicy, StopStep};
use std::{
    env,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where `.ci/run` installs programs that are no packages of the system.
const DIRECTORIES: [&str; 3] =
    ["target/foreign/node_modules/.bin", "target/foreign/python/bin", "target/foreign/schemas"];

/// The steps of `StdioProtocol::mcp` and `new`, with more time: the machine may be loaded.
fn end_of_input() -> StopPolicy {
    StopPolicy::kill().step([StopStep::CloseStdin], DEADLINE)
}

/// Returns the path of a program, or of another file. Without it the test is skipped, and fails in continuous integration.
#[track_caller]
#[expect(clippy::print_stderr, reason = "skipped tests must be visible")]
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let root = Path::new(ROOT);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = DIRECTORIES
        .iter()
        .map(|directory| root.join(directory))
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        assert!(env::var("CI").as_deref() != Ok("true"), "{name} is not installed, see .ci/run");
        eprintln!("skipped: {name} is not installed, see .ci/run");
    }
    found
}
