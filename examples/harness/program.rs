//! Test programs, and the tests that they list.

use super::options::Selection;
use super::select::RunIgnored;
use pipewright::{
    Event, EventKind, OutputMode, Supervisor, WorkerSpec,
    events::OutputStream::{Stderr, Stdout},
    printable,
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The time that a program has to list its tests.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a program's unexpected output an error shows, in characters.
const EXCERPT_MAX: usize = 500;

/// A program that contains tests.
#[derive(Debug)]
pub(crate) struct TestProgram {
    /// Its name in the output, unique: that of nextest for a target of cargo, otherwise its path.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: ProgramKind,
    /// The working directory of its tests; `None`: that of the harness.
    pub(crate) directory: Option<PathBuf>,
    /// Variables that are set, or removed.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ProgramKind {
    /// Understands libtest's `--list --format terse`, `--exact NAME`, `--ignored`, `--nocapture`.
    Libtest,
    /// Prints TAP; the whole program is one test.
    Tap,
}

/// One test.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) program: Arc<TestProgram>,
    /// The name in the program; for TAP that of the program's file.
    pub(crate) name: String,
    pub(crate) is_ignored: bool,
}

impl TestProgram {
    /// A program that the user has named.
    pub(crate) fn named(path: &Path, kind: ProgramKind) -> Self {
        let is_search = !path.as_os_str().as_encoded_bytes().contains(&b'/');
        // As the user wrote it, but a program of this directory rather than one of PATH.
        let found = if is_search { Path::new(".").join(path) } else { path.to_owned() };
        Self { id: path.display().to_string(), path: found, kind, directory: None, environment: Vec::new() }
    }

    /// How the program is run, without arguments.
    pub(crate) fn spec(&self) -> WorkerSpec {
        let mut spec = WorkerSpec::new(&self.path).stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
        if let Some(directory) = &self.directory {
            spec = spec.current_dir(directory);
        }
        for (name, value) in &self.environment {
            spec = match value {
                Some(value) => spec.env(name, value),
                None => spec.env_remove(name),
            };
        }
        spec
    }

    /// The tests of this program, in its order.
    pub(crate) fn tests(self: &Arc<Self>, supervisor: &Supervisor) -> Result<Vec<Test>, String> {
        let test = |name: String, is_ignored| Test { program: Arc::clone(self), name, is_ignored };
        if self.kind == ProgramKind::Tap {
            let name = self.path.file_name().unwrap_or_default().display().to_string();
            return Ok(vec![test(name, false)]);
        }
        let ignored: BTreeSet<String> = self.list(supervisor, &["--ignored"])?.into_iter().collect();
        let all = self.list(supervisor, &[])?;
        Ok(all
            .into_iter()
            .map(|name| (ignored.contains(&name), name))
            .map(|(ignored, name)| test(name, ignored))
            .collect())
    }

    fn list(&self, supervisor: &Supervisor, arguments: &[&str]) -> Result<Vec<String>, String> {
        let failed = |why: &str| format!("{}: failed to list tests: {why}", self.id);
        let spec = self.spec().args(["--list", "--format", "terse"]).args(arguments).runtime_max(LIST_TIMEOUT);
        supervisor.spawn(spec).map_err(|error| failed(&error.to_string()))?;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        // No other worker runs, so this is the end of the program.
        while let Ok(Event { kind, .. }) = supervisor.events().recv() {
            match kind {
                EventKind::Output { stream: Stdout, bytes } => output.extend(bytes.as_bytes()),
                EventKind::Output { stream: Stderr, bytes } => errors.extend(bytes.as_bytes()),
                EventKind::Exited { exit, .. } if exit.success() => break,
                EventKind::Exited { exit, .. } => return Err(failed(&format!("{exit}{}", excerpt(&errors)))),
                _ => {}
            }
        }
        parse_list(&output).map_err(|why| failed(&why))
    }
}

/// The beginning of a text on a line of its own.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.trim_end().chars().take(EXCERPT_MAX).collect();
    if text.is_empty() { String::new() } else { format!("\n{}", printable(&text).lines()) }
}

/// The names of tests and benchmarks in a terse list.
fn parse_list(output: &[u8]) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for line in String::from_utf8_lossy(output).lines() {
        let Some(name) = line.strip_suffix(": test").or_else(|| line.strip_suffix(": benchmark")) else {
            return Err(format!("a line that is not `NAME: test`:{}", excerpt(line.as_bytes())));
        };
        if !seen.insert(name.to_owned()) {
            return Err(format!("two tests are called {}", printable(name)));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

impl Test {
    /// The id of the program and the name of the test.
    pub(crate) fn full_name(&self) -> String {
        match self.program.kind {
            ProgramKind::Libtest => format!("{} {}", self.program.id, self.name),
            ProgramKind::Tap => self.program.id.clone(),
        }
    }

    /// How the test is run.
    pub(crate) fn spec(&self) -> WorkerSpec {
        let spec = self.program.spec().name(self.full_name());
        if self.program.kind == ProgramKind::Tap {
            return spec;
        }
        let spec = spec.args(["--exact", &self.name, "--nocapture"]);
        if self.is_ignored { spec.arg("--ignored") } else { spec }
    }
}

impl Selection {
    /// The tests that run, of all tests in their order.
    pub(crate) fn select(&self, tests: Vec<Test>) -> Vec<Test> {
        let mut selected: Vec<Test> = tests.into_iter().filter(|test| self.includes(test)).collect();
        if let Some(partition) = self.partition {
            let mut position = 0..;
            selected.retain(|test| position.next().is_some_and(|at| partition.contains(at, &test.full_name())));
        }
        selected
    }

    fn includes(&self, test: &Test) -> bool {
        let is_run = match self.ignored {
            RunIgnored::Default => !test.is_ignored,
            RunIgnored::Only => test.is_ignored,
            RunIgnored::All => true,
        };
        let (program, name) = (&test.program.id, &test.name);
        let is_wanted = self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(program, name));
        is_run && is_wanted && !self.skips.iter().any(|skip| skip.matches(program, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_list_is_parsed() {
        assert_eq!(parse_list(b"a::b: test\nc: benchmark\nd: e: test\n").unwrap(), ["a::b", "c", "d: e"]);
        assert!(parse_list(b"").unwrap().is_empty());
        assert_eq!(parse_list(b"hello\x1b\n").unwrap_err(), "a line that is not `NAME: test`:\nhello\\u{1b}");
        assert_eq!(parse_list(b"a: test\na: test\n").unwrap_err(), "two tests are called a");
    }
}
