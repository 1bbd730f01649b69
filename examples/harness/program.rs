//! Test programs and their tests.

use super::{options::Selection, select::RunIgnored};
use pipewright::{OutputMode, WorkerSpec};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

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
