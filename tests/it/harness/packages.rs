//! Tests that cargo builds.

use super::{BUILD_TIMEOUT, cargo, harness, run};
use pipewright::OutputMode;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A package with a library, a binary, a test and a build script. Its tests write their environment and working directory to a file.
fn write_package(directory: &Path) {
    let manifest = "[package]\nname = \"sample\"\nversion = \"1.2.3-beta.4+five\"\nedition = \"2021\"\nauthors = [\"A\", \"B\"]\n\
        description = \"A sample\"\nlicense = \"MIT\"\nrust-version = \"1.70\"\n[workspace]\n";
    let dump = "#[test]\nfn dumps() {\n    let directory = std::env::current_dir().unwrap().display().to_string();\n\
        \x20   let mut lines = vec![format!(\"DIRECTORY={directory:?}\")];\n\
        \x20   lines.extend(std::env::vars().map(|(name, value)| format!(\"{name}={value:?}\")));\n\
        \x20   std::fs::write(std::env::var(\"DUMP\").unwrap() + \"_\" + module_path!(), lines.join(\"\\n\")).unwrap();\n}\n";
    let build = "fn main() { println!(\"cargo:rustc-env=FROM_BUILD=yes\"); }\n";
    let texts = [
        ("Cargo.toml", manifest),
        ("build.rs", build),
        ("src/lib.rs", dump),
        ("src/main.rs", "fn main() {}\n"),
        ("tests/it.rs", dump),
    ];
    for (name, text) in texts {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// Variables of this test, of the library, of rustup for itself, and the paths of binaries, which cargo sets since 1.94.
fn is_of_process(name: &str) -> bool {
    let prefixes = ["RUST_RECURSION", "RUSTUP_", "CARGO_BIN_EXE_"];
    matches!(name, "DUMP" | "PIPEWRIGHT_TREE" | "PIPEWRIGHT_SLOT")
        || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn dumped(directory: &Path, name: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(directory.join(name)).unwrap();
    let variables = text.lines().map(|line| line.split_once('=').unwrap());
    variables
        .filter(|(name, _)| !is_of_process(name))
        .map(|(name, value)| (name.into(), value.into()))
        .map(unique_paths)
        .collect()
}

/// Without directories that are in a list twice.
fn unique_paths((name, value): (String, String)) -> (String, String) {
    let mut seen = BTreeSet::new();
    let paths: Vec<&str> = value.trim_matches('"').split(':').filter(|path| seen.insert(*path)).collect();
    let is_list = name == "LD_LIBRARY_PATH";
    (name, if is_list { paths.join(":") } else { value })
}

#[test]
fn environment_is_that_of_cargo_test() {
    let Some(cargo) = cargo() else { return };
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("package");
    write_package(&package);
    let manifest = package.join("Cargo.toml");
    let under_cargo = cargo.args(["test", "--quiet", "--tests", "--manifest-path"]).arg(&manifest);
    let under_cargo = under_cargo.env("DUMP", directory.path().join("cargo"));
    let spec = under_cargo.stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
    let output = spec.spawn_unsupervised().unwrap().wait_with_output(BUILD_TIMEOUT).unwrap();
    assert!(output.exit.success(), "{output:?}");
    let spec = harness().arg("--manifest-path").arg(&manifest).args(["--", "--tests"]);
    let run = run(&spec.env("DUMP", directory.path().join("harness")));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for test in ["sample dumps", "sample::it dumps"] {
        assert!(run.line(test).contains("PASS ["), "{}", run.stderr);
    }
    let text = fs::read_to_string(directory.path().join("harness_it")).unwrap();
    assert!(text.contains("\nCARGO_BIN_EXE_sample=\""), "{text}");
    for module in ["sample", "it"] {
        let expected = dumped(directory.path(), &format!("cargo_{module}"));
        let found = dumped(directory.path(), &format!("harness_{module}"));
        let differs = |name: &&String| found.get(*name) != expected.get(*name);
        let names: BTreeSet<&String> = found.keys().chain(expected.keys()).filter(differs).collect();
        let both = |name: &&String| format!("{name}: {:?}, not {:?}", found.get(*name), expected.get(*name));
        assert!(names.is_empty(), "{module}: {:#?}", names.iter().map(both).collect::<Vec<_>>());
        assert_eq!(found["DIRECTORY"], format!("{:?}", package.display().to_string()));
        assert!(found.contains_key("OUT_DIR") && found["FROM_BUILD"] == "\"yes\"", "{found:?}");
    }
}

#[test]
fn build_failure_is_101() {
    if cargo().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    write_package(directory.path());
    fs::write(directory.path().join("src/lib.rs"), "fn broken( {").unwrap();
    let run = run(&harness().arg("--manifest-path").arg(directory.path().join("Cargo.toml")));
    assert_eq!(run.code, Some(101), "{}", run.stderr);
    assert!(run.stderr.contains("error: this file contains an unclosed delimiter"), "cargo's reason: {}", run.stderr);
    assert!(run.stderr.ends_with("error: cargo test --no-run failed: exit code 101\n"), "{}", run.stderr);
    let empty = tempfile::tempdir().unwrap();
    let without = super::run(&harness().args(["--", "--lib"]).current_dir(empty.path()));
    assert_eq!(without.code, Some(101), "{}", without.stderr);
    assert!(without.stderr.contains("could not find `Cargo.toml`"), "{}", without.stderr);
}
