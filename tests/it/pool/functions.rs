//! Functions of the same executable as workers.

use crate::support::{DEADLINE, FIXTURE};
use pipewright::{
    OutputMode, RpcError, Supervisor, WorkerSpec,
    pool::{FunctionError, Pool},
};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let spec = WorkerSpec::new(FIXTURE).args(arguments).stdout(OutputMode::Lines).stderr(OutputMode::Lines);
    let output = spec.spawn_unsupervised().unwrap().wait_with_output(DEADLINE).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.exit.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn p02_functions_of_the_program_run_in_processes_of_their_own() {
    let (code, stdout, stderr) = run(&["pool-host"]);
    let expected = "25502500\nfunction child_fixture::pool::never_added was not passed to pool::init\n";
    assert_eq!((code, &*stdout), (Some(0), expected), "{stderr}");
}

#[test]
fn p16_program_without_init_does_not_start_itself() {
    let supervisor = Supervisor::new().unwrap();
    let function = |n: u64| -> Result<u64, RpcError> { Ok(n) };
    let error = Pool::of_function(&supervisor, function).unwrap_err();
    assert!(matches!(error, FunctionError::NotInitialized), "{error}");
    let (code, _, stderr) = run(&["--pipewright-function", "unknown\n"]);
    assert_eq!((code, &*stderr), (Some(1), "no function unknown\\n was passed to pool::init\n"));
    let (code, _, stderr) = run(&["--pipewright-function", "child_fixture::pool::cube"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("worker"), "started by hand: {stderr}");
}
