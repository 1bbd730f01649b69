//! The results are those of `cargo test`, test by test.

use super::{BUILD_TIMEOUT, cargo, harness};
use pipewright::{OutputMode, WorkerSpec};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// What `cargo test`, and what the harness says about each test: `ok`, `FAILED` or `ignored`.
type Results = BTreeMap<String, String>;

fn output(spec: WorkerSpec, timeout: Duration) -> String {
    let spec = spec.stdout(OutputMode::Bytes).stderr(OutputMode::ToStdout);
    let output = spec.spawn_unsupervised().unwrap().wait_with_output(timeout).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Results of libtest's output, in which cargo names each program: `Running unittests src/lib.rs (target/debug/deps/app-0123)`.
fn results_of_cargo(package: &str, text: &str) -> Results {
    let mut program = String::new();
    let mut results = Results::new();
    for line in text.lines().map(str::trim_start) {
        if let Some(running) = line.strip_prefix("Running ") {
            let source = running.strip_prefix("unittests ").unwrap_or(running).split(' ').next().unwrap();
            let stem = Path::new(source).file_stem().unwrap().to_str().unwrap();
            program = match source {
                "src/lib.rs" => package.to_owned(),
                "src/main.rs" => format!("{package}::bin/{package}"),
                _ => format!("{package}::{stem}"),
            };
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            let result = result.split(',').next().unwrap();
            results.insert(format!("{program} {name}"), result.to_owned());
        }
    }
    results
}

/// Results of the harness's output: its lines with a position, and the list of ignored tests.
fn results_of_harness(text: &str, ignored: &str) -> Results {
    let ended = text.lines().filter(|line| !line.contains("(───)")).filter_map(|line| {
        let (label, rest) = line.split_once('[')?;
        let (position, name) = rest.split_once("] (")?.1.split_once(") ")?;
        position.contains('/').then_some(())?;
        let name = name.split_once(": ").map_or(name, |(name, _)| name);
        let result = if matches!(label.trim(), "PASS" | "LEAK") { "ok" } else { "FAILED" };
        Some((name.to_owned(), result.to_owned()))
    });
    ended.chain(ignored.lines().map(|name| (name.to_owned(), "ignored".to_owned()))).collect()
}

/// Compares both for a package, with these arguments for cargo. Returns the number of tests.
#[track_caller]
fn check((cargo, package): (WorkerSpec, &str), manifest: &Path, arguments: &[&str], timeout: Duration) -> usize {
    let under_cargo = cargo.args(["test", "--no-fail-fast", "--manifest-path"]).arg(manifest).args(arguments);
    let text = output(under_cargo, timeout);
    let expected = results_of_cargo(package, &text);
    let under_harness = || harness().arg("--manifest-path").arg(manifest);
    let list = under_harness().args(["--list", "--run-ignored", "only", "--"]).args(arguments);
    let list = list.stderr(OutputMode::Null).stdout(OutputMode::Bytes).spawn_unsupervised().unwrap();
    let ignored = String::from_utf8(list.wait_with_output(timeout).unwrap().stdout).unwrap();
    let run = output(under_harness().args(["--no-fail-fast", "--"]).args(arguments), timeout);
    let found = results_of_harness(&run, &ignored);
    assert!(!expected.is_empty(), "{text}");
    assert_eq!(found, expected, "cargo test:\n{text}\nharness:\n{run}");
    found.len()
}

/// Tests with every result.
const TESTS: &str = "\
#[test] fn passes() {}
#[test] fn fails() { println!(\"x\"); assert_eq!(1, 2) }
#[test] #[should_panic] fn panics_as_it_should() { panic!() }
#[test] #[should_panic] fn does_not_panic() {}
#[test] #[should_panic(expected = \"a\")] fn panics_otherwise() { panic!(\"b\") }
#[test] #[ignore] fn ignored() { panic!() }
#[test] #[ignore = \"later\"] fn ignored_with_reason() {}
#[test] fn returns_error() -> Result<(), String> { Err(\"no\".into()) }
mod inner { #[test] fn passes() {} }
";

#[test]
fn results_are_those_of_cargo_test() {
    let Some(cargo) = cargo() else { return };
    let directory = tempfile::tempdir().unwrap();
    let manifest = directory.path().join("Cargo.toml");
    fs::create_dir_all(directory.path().join("src")).unwrap();
    fs::create_dir_all(directory.path().join("tests")).unwrap();
    fs::write(&manifest, "[package]\nname = \"sample\"\nedition = \"2021\"\n[workspace]\n").unwrap();
    for (file, text) in [("src/lib.rs", TESTS), ("tests/one.rs", TESTS), ("tests/two.rs", TESTS)] {
        fs::write(directory.path().join(file), text).unwrap();
    }
    fs::write(directory.path().join("src/main.rs"), format!("fn main() {{}}\n{TESTS}")).unwrap();
    assert_eq!(check((cargo, "sample"), &manifest, &["--tests"], BUILD_TIMEOUT), 4 * 9);
}

#[test]
#[ignore = "runs the unit tests twice"]
fn results_are_those_of_cargo_test_for_this_library() {
    let Some(cargo) = cargo() else { return };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let tests = check((cargo, "pipewright"), &manifest, &["--lib"], 3 * BUILD_TIMEOUT);
    assert!(tests > 200, "{tests}");
}

#[test]
#[ignore = "needs a package registry"]
fn results_are_those_of_cargo_test_for_packages_of_a_registry() {
    let Some(cargo) = cargo() else { return };
    let directory = tempfile::tempdir().unwrap();
    // With a build script and several test programs; with many unit tests; with tests made by macros. None has a dependency.
    let packages = [("semver", "1.0.26", 30), ("strsim", "0.11.1", 90), ("heck", "0.5.0", 50)];
    let dependencies: Vec<String> =
        packages.iter().map(|(name, version, _)| format!("{name} = \"={version}\"\n")).collect();
    let fetch = directory.path().join("fetch");
    fs::create_dir(&fetch).unwrap();
    let manifest =
        "[package]\nname = \"fetch\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n[dependencies]\n";
    fs::write(fetch.join("Cargo.toml"), manifest.to_owned() + &dependencies.concat()).unwrap();
    fs::write(fetch.join("lib.rs"), "").unwrap();
    let sources = directory.path().join("sources");
    let vendor = cargo.clone().args(["vendor", "--versioned-dirs", "--manifest-path"]).arg(fetch.join("Cargo.toml"));
    let text = output(vendor.arg(&sources), BUILD_TIMEOUT);
    for (name, version, expected) in packages {
        let manifest = sources.join(format!("{name}-{version}")).join("Cargo.toml");
        assert!(manifest.exists(), "{text}");
        let tests = check((cargo.clone(), name), &manifest, &["--tests"], BUILD_TIMEOUT);
        assert!(tests >= expected, "{name}: {tests}");
    }
}
