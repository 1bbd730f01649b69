//! Builds the tests of a package with cargo, and gives each program the environment that `cargo test` gives it.

use super::program::{ProgramKind, TestProgram};
use pipewright::{Event, EventKind, OutputMode, StdinMode, Supervisor, WorkerSpec};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Why there are no test programs.
pub(crate) enum BuildError {
    /// cargo has printed the reason.
    Failed(String),
    Metadata(String),
}

/// A message of `cargo test --message-format=json`.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum CargoMessage {
    CompilerArtifact(Artifact),
    BuildScriptExecuted(BuildScript),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Artifact {
    package_id: String,
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct BuildScript {
    package_id: String,
    #[serde(default)]
    linked_paths: Vec<String>,
    #[serde(default)]
    env: Vec<(String, String)>,
    out_dir: Option<PathBuf>,
}

/// A part of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    manifest_path: PathBuf,
    authors: Vec<String>,
    description: Option<String>,
    homepage: Option<String>,
    repository: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    rust_version: Option<String>,
    readme: Option<String>,
}

/// Runs `cargo test --no-run` with these arguments. Returns the test programs in the order of their ids: cargo reports them in the order in
/// which they were built, and partitions on several machines need the same order.
pub(crate) fn build(supervisor: &Supervisor, arguments: &[OsString]) -> Result<Vec<TestProgram>, BuildError> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let format = "--message-format=json-render-diagnostics";
    let spec = WorkerSpec::new(&cargo).args(["test", "--no-run", format]).args(arguments);
    let messages = run(supervisor, spec).map_err(BuildError::Failed)?;
    let (mut artifacts, mut scripts) = (Vec::new(), BTreeMap::new());
    for message in messages {
        match message {
            CargoMessage::CompilerArtifact(artifact) => artifacts.push(artifact),
            CargoMessage::BuildScriptExecuted(script) => drop(scripts.insert(script.package_id.clone(), script)),
            CargoMessage::Other => {}
        }
    }
    let is_test = |artifact: &&Artifact| artifact.profile.test && artifact.executable.is_some();
    let Some(first) = artifacts.iter().find(is_test) else { return Ok(Vec::new()) };
    let metadata = metadata(supervisor, &cargo, &first.manifest_path).map_err(BuildError::Metadata)?;
    let toolchain = Toolchain::find(supervisor);
    let program = |artifact: &Artifact| {
        let package = metadata.packages.iter().find(|package| package.id == artifact.package_id);
        let mut environment = package.map(package_environment).unwrap_or_default();
        let own_cargo = toolchain.cargo.clone().map_or_else(|| cargo.clone(), OsString::from);
        environment.push(("CARGO".into(), Some(own_cargo)));
        if artifact.target.kind.iter().any(|kind| matches!(&**kind, "test" | "bench")) {
            let siblings = artifacts.iter().filter(|other| other.package_id == artifact.package_id);
            environment.extend(siblings.filter_map(binary_variable));
        }
        let script = scripts.get(&artifact.package_id);
        environment.extend(script_environment(script));
        let program = artifact.executable.clone().unwrap_or_default();
        let paths = toolchain.library_path(&program, script, &metadata.target_directory);
        environment.push(("LD_LIBRARY_PATH".into(), Some(paths)));
        TestProgram {
            id: program_id(package.map_or("?", |package| &package.name), &artifact.target),
            path: program,
            kind: ProgramKind::Libtest,
            directory: artifact.manifest_path.parent().map(Path::to_owned),
            environment,
        }
    };
    let mut programs: Vec<TestProgram> = artifacts.iter().filter(is_test).map(program).collect();
    programs.sort_by(|one, other| (&one.id, &one.path).cmp(&(&other.id, &other.path)));
    Ok(programs)
}

/// Runs a program and returns its messages, one JSON value a line. What it prints on standard error is shown.
fn run<T: DeserializeOwned>(supervisor: &Supervisor, spec: WorkerSpec) -> Result<Vec<T>, String> {
    let spec = spec.stdin(StdinMode::Null).stderr(OutputMode::Inherit).messages_on_stdout();
    supervisor.spawn(spec).map_err(|error| error.to_string())?;
    let mut messages = Vec::new();
    let mut invalid = None;
    // No other worker runs, so this is the end of the program.
    while let Ok(Event { kind, .. }) = supervisor.events().recv() {
        match kind {
            EventKind::Message(message) => match message.json() {
                Ok(message) => messages.push(message),
                Err(error) => invalid = Some(error.to_string()),
            },
            EventKind::InvalidFrame(frame) => invalid = Some(frame.to_string()),
            EventKind::Exited { exit, .. } if exit.success() => break,
            EventKind::Exited { exit, .. } => return Err(exit.to_string()),
            _ => {}
        }
    }
    invalid.map_or(Ok(messages), Err)
}

fn metadata(supervisor: &Supervisor, cargo: &OsStr, manifest: &Path) -> Result<Metadata, String> {
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path"];
    let found = run(supervisor, WorkerSpec::new(cargo).args(arguments).arg(manifest))?;
    found.into_iter().next().ok_or_else(|| "cargo metadata printed nothing".into())
}

/// The id of a program as nextest forms it.
fn program_id(package: &str, target: &Target) -> String {
    let kind = target.kind.first().map_or("lib", String::as_str);
    match kind {
        "test" => format!("{package}::{}", target.name),
        "bin" | "example" | "bench" => format!("{package}::{kind}/{}", target.name),
        _ => package.to_owned(), // one of the kinds of libraries
    }
}

type Variable = (OsString, Option<OsString>);

/// `CARGO_MANIFEST_DIR`, `CARGO_PKG_…`: The Cargo Book, "Environment variables Cargo sets for crates".
fn package_environment(package: &Package) -> Vec<Variable> {
    let version = package.version.split_once('+').map_or(&*package.version, |(version, _)| version);
    let (numbers, pre) = version.split_once('-').unwrap_or((version, ""));
    let mut numbers = numbers.split('.');
    let mut number = || numbers.next().unwrap_or_default().to_owned();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let directory = package.manifest_path.parent().unwrap_or(Path::new("/"));
    let variables = [
        ("NAME", package.name.clone()),
        ("VERSION", package.version.clone()),
        ("VERSION_MAJOR", number()),
        ("VERSION_MINOR", number()),
        ("VERSION_PATCH", number()),
        ("VERSION_PRE", pre.to_owned()),
        ("AUTHORS", package.authors.join(":")),
        ("DESCRIPTION", text(&package.description)),
        ("HOMEPAGE", text(&package.homepage)),
        ("REPOSITORY", text(&package.repository)),
        ("LICENSE", text(&package.license)),
        ("LICENSE_FILE", text(&package.license_file)),
        ("RUST_VERSION", text(&package.rust_version)),
        ("README", text(&package.readme)),
    ];
    let variables = variables.map(|(name, value)| (format!("CARGO_PKG_{name}").into(), Some(value.into())));
    let paths = [("CARGO_MANIFEST_DIR", directory), ("CARGO_MANIFEST_PATH", &package.manifest_path)];
    let paths = paths.map(|(name, path)| (name.into(), Some(path.into())));
    variables.into_iter().chain(paths).collect()
}

/// `CARGO_BIN_EXE_NAME`, the path of a binary of the package, which integration tests and benchmarks have.
fn binary_variable(artifact: &Artifact) -> Option<Variable> {
    let is_binary = !artifact.profile.test && artifact.target.kind.iter().any(|kind| kind == "bin");
    let path = artifact.executable.as_ref().filter(|_| is_binary)?;
    Some((format!("CARGO_BIN_EXE_{}", artifact.target.name).into(), Some(path.into())))
}

/// What the build script has set. Without one, the variable `OUT_DIR` of another package, whose test runs this program, is removed.
fn script_environment(script: Option<&BuildScript>) -> Vec<Variable> {
    let variables = script.into_iter().flat_map(|script| &script.env);
    let variables = variables.map(|(name, value)| (name.into(), Some(value.into())));
    let out_dir = script.and_then(|script| script.out_dir.clone()).map(OsString::from);
    variables.chain([("OUT_DIR".into(), out_dir)]).collect()
}

/// The toolchain of the tests.
#[derive(Default)]
struct Toolchain {
    /// The directory of the shared libraries that the tests of macros are linked to, for the target and for the host.
    target_libraries: Option<PathBuf>,
    host_libraries: Option<PathBuf>,
    /// The program that rustup's `cargo` executes.
    cargo: Option<PathBuf>,
}

impl Toolchain {
    /// Asks the compiler. If it does not answer, tests of macros fail with the loader's reason.
    fn find(supervisor: &Supervisor) -> Self {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let spec = WorkerSpec::new(rustc).args(["--print", "target-libdir", "--print", "sysroot"]);
        if supervisor.spawn(spec.stdout(OutputMode::Lines).stderr(OutputMode::Null)).is_err() {
            return Self::default();
        }
        let mut paths = Vec::new();
        while let Ok(Event { kind, .. }) = supervisor.events().recv() {
            match kind {
                EventKind::Line { line, .. } => paths.push(PathBuf::from(&*line.text())),
                EventKind::Exited { .. } => break,
                _ => {}
            }
        }
        let [libraries, sysroot] = &*paths else { return Self::default() };
        let cargo = Some(sysroot.join("bin/cargo")).filter(|cargo| cargo.exists());
        Self { target_libraries: Some(libraries.clone()), host_libraries: Some(sysroot.join("lib")), cargo }
    }

    /// `LD_LIBRARY_PATH`: directories of the build script below the target directory, of the program, of Rust's
    /// libraries, and the former value.
    fn library_path(&self, program: &Path, script: Option<&BuildScript>, target: &Path) -> OsString {
        let linked = script.into_iter().flat_map(|script| &script.linked_paths);
        let linked = linked.map(|path| Path::new(path.split_once('=').map_or(&**path, |(_, path)| path)));
        let mut paths: Vec<PathBuf> = linked.filter(|path| path.starts_with(target)).map(Path::to_owned).collect();
        // The program is in `deps` or `examples`.
        let profile = program.ancestors().nth(2).unwrap_or(target);
        paths.extend([profile.to_owned(), profile.join("deps")]);
        paths.extend(self.target_libraries.clone());
        if let Some(former) = env::var_os("LD_LIBRARY_PATH") {
            paths.extend(env::split_paths(&former));
        }
        paths.extend(self.host_libraries.clone());
        let mut seen = BTreeSet::new();
        paths.retain(|path| seen.insert(path.clone()));
        // Fails for a path with a colon, which no list of paths can contain.
        env::join_paths(&paths).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_cargo_are_parsed() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///a#0.1.0","manifest_path":"/a/Cargo.toml",
            "target":{"kind":["test"],"crate_types":["bin"],"name":"it"},"profile":{"opt_level":"0","test":true},
            "filenames":["/t/it-1"],"executable":"/t/it-1","fresh":true}"#;
        let Ok(CargoMessage::CompilerArtifact(artifact)) = serde_json::from_str(line) else { panic!("{line}") };
        assert_eq!(artifact.executable.as_deref(), Some(Path::new("/t/it-1")));
        assert_eq!(program_id("a", &artifact.target), "a::it");
        let line = r#"{"reason":"build-script-executed","package_id":"a","linked_libs":[],"linked_paths":["native=/t/x"],
            "cfgs":[],"env":[["A","b"]],"out_dir":"/t/out"}"#;
        let Ok(CargoMessage::BuildScriptExecuted(script)) = serde_json::from_str(line) else { panic!("{line}") };
        let variables = script_environment(Some(&script));
        assert_eq!(variables, [("A".into(), Some("b".into())), ("OUT_DIR".into(), Some("/t/out".into()))]);
        assert_eq!(script_environment(None), [("OUT_DIR".into(), None)]);
        let paths = Toolchain::default().library_path(Path::new("/t/debug/deps/it-1"), Some(&script), Path::new("/t"));
        assert!(paths.to_string_lossy().starts_with("/t/x:/t/debug:/t/debug/deps"), "{paths:?}");
        assert!(matches!(
            serde_json::from_str(r#"{"reason":"build-finished","success":true}"#),
            Ok(CargoMessage::Other)
        ));
    }

    #[test]
    fn ids_are_those_of_nextest() {
        for (kind, expected) in [
            ("lib", "a"),
            ("rlib", "a"),
            ("proc-macro", "a"),
            ("test", "a::b"),
            ("bin", "a::bin/b"),
            ("example", "a::example/b"),
            ("bench", "a::bench/b"),
        ] {
            assert_eq!(program_id("a", &Target { name: "b".into(), kind: vec![kind.into()] }), expected);
        }
    }
}
