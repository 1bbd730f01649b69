//! What has to run, in which order.

use crate::{
    build_log::{BuildLog, Hash, NEVER, PathId, Record, modified},
    command::{self, Depfile},
    database::Entry,
    depfile,
    rule::Rule,
};
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    time::Duration,
};

/// One command.
#[derive(Debug)]
pub(crate) struct Step {
    /// The source file, or the target of a rule.
    pub(crate) name: OsString,
    pub(crate) directory: OsString,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) output: Option<OsString>,
    /// Indices of earlier steps.
    pub(crate) depends_on: Vec<usize>,
    /// Whether it has to run.
    pub(crate) is_needed: bool,
    /// Its expected time and that of the longest chain of steps that depend on it, in milliseconds: greater is more urgent.
    pub(crate) urgency: u64,
    /// For comparing with outputs.
    source: Option<OsString>,
    inputs: Inputs,
    /// Names the step in the build log.
    key: u64,
    /// Hash of the command.
    command: u64,
}

/// The files on which a step depends.
#[derive(Debug)]
enum Inputs {
    Unknown,
    /// Those in a file that the step writes.
    Depfile(Depfile),
    Listed(Vec<OsString>),
}

impl Step {
    fn of(entry: Entry, with_depfile: bool) -> Self {
        let Entry { directory, file, mut arguments, output, input } = entry;
        let inputs = match output.as_ref().and_then(|output| command::depfile(&arguments, output)) {
            Some(Depfile::Own(path)) => Inputs::Depfile(Depfile::Own(Path::new(&directory).join(path).into())),
            Some(Depfile::Added { path, options }) if with_depfile => {
                command::add_options(&mut arguments, options.iter().cloned());
                Inputs::Depfile(Depfile::Added { path, options })
            }
            _ => Inputs::Unknown,
        };
        Self { source: Some(input), ..Self::new(file, directory, arguments, output, inputs) }
    }

    fn of_rule(rule: Rule, inputs: Vec<OsString>) -> Self {
        let Rule { name, directory, arguments, target } = rule;
        Self::new(name, directory, arguments, target, Inputs::Listed(inputs))
    }

    fn new(
        name: OsString,
        directory: OsString,
        arguments: Vec<OsString>,
        output: Option<OsString>,
        inputs: Inputs,
    ) -> Self {
        let words =
            arguments.iter().fold(Hash::new().add(directory.as_bytes()), |hash, word| hash.add(word.as_bytes()));
        let command = words.finish();
        let key = output.as_ref().map_or(command, |output| Hash::new().add(output.as_bytes()).finish());
        Self {
            name,
            directory,
            arguments,
            output,
            depends_on: Vec::new(),
            is_needed: true,
            urgency: 0,
            source: None,
            inputs,
            key,
            command,
        }
    }

    /// The command as one line for a shell. Line ends and tabs are escaped.
    pub(crate) fn command_line(&self) -> Vec<u8> {
        let quoter = shlex::bytes::Quoter::new().allow_nul(true);
        let words = [OsStr::new("cd"), &self.directory].into_iter().map(Some);
        let words = words.chain([None]).chain(self.arguments.iter().map(|word| Some(word.as_os_str())));
        let quote = |word: Option<&OsStr>| {
            let Some(word) = word else { return b"&&".to_vec() };
            quoter.quote(word.as_bytes()).map_or_else(|_| word.as_bytes().to_vec(), Into::into)
        };
        let line = words.map(quote).collect::<Vec<_>>().join(&b' ');
        let escape = |byte: u8| match byte {
            b'\n' => b"\\n".to_vec(),
            b'\t' => b"\\t".to_vec(),
            byte => vec![byte],
        };
        line.into_iter().flat_map(escape).collect()
    }

    /// Names the step in the build log.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    pub(crate) fn is_rule(&self) -> bool {
        matches!(self.inputs, Inputs::Listed(_))
    }

    /// The dependency file that this program has asked for.
    pub(crate) fn added_depfile(&self) -> Option<&Path> {
        match &self.inputs {
            Inputs::Depfile(Depfile::Added { path, .. }) => Some(Path::new(path)),
            _ => None,
        }
    }

    /// The files that it writes and whose directories must exist.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &Path> {
        let depfile = match &self.inputs {
            Inputs::Depfile(Depfile::Own(path) | Depfile::Added { path, .. }) => Some(path),
            Inputs::Unknown | Inputs::Listed(_) => None,
        };
        self.output.iter().chain(depfile).map(Path::new)
    }
}

/// All steps. A step depends on earlier ones only.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    files: Files,
    /// What needed steps write.
    written: HashSet<PathId>,
}

/// Which steps run although they seem to be up to date, and which do not run although nothing is known of their inputs.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) always: bool,
    /// Commands that an interrupted run has finished.
    pub(crate) succeeded: HashSet<Vec<u8>>,
}

impl Plan {
    pub(crate) fn new(entries: Vec<Entry>, rules: Vec<Rule>, with_depfiles: bool) -> Self {
        let mut steps: Vec<_> = entries.into_iter().map(|entry| Step::of(entry, with_depfiles)).collect();
        let mut outputs: Vec<_> = steps.iter().filter_map(|step| step.output.clone()).collect();
        for rule in rules {
            let mut step = Step::of_rule(rule, outputs.clone());
            step.depends_on = (0..steps.len()).collect();
            outputs.extend(step.output.clone());
            steps.push(step);
        }
        Self { steps, files: Files::default(), written: HashSet::new() }
    }

    /// Decides which steps are needed, on what they wait, and how urgent they are. All files are looked at once.
    pub(crate) fn compare_with(&mut self, log: &mut BuildLog, choice: &Choice) {
        let mut writers: HashMap<PathId, usize> = HashMap::new();
        for index in 0..self.steps.len() {
            let Some((step, earlier)) = self.steps.get_mut(..=index).and_then(<[Step]>::split_last_mut) else { return };
            let output = step.output.as_ref().map(|output| log.id(output));
            let source = step.source.as_ref().map(|source| log.id(source));
            let record = log.record(step.key);
            let read = source.iter().chain(record.iter().flat_map(|record| &record.inputs)).chain(&output);
            step.depends_on.extend(read.filter_map(|path| writers.get(path)));
            step.depends_on.sort_unstable();
            step.depends_on.dedup();
            let is_done = !choice.succeeded.is_empty() && choice.succeeded.contains(&step.command_line());
            let is_current = match (&step.inputs, output) {
                (Inputs::Unknown, Some(output)) => is_done && self.files.state(log, output).is_some(),
                (Inputs::Unknown, None) => is_done,
                (Inputs::Depfile(_) | Inputs::Listed(_), _) => record.is_some_and(|record| {
                    record.command == step.command
                        && record.state != NEVER
                        && self.files.hash(log, &record.inputs, output) == Some(record.state)
                }),
            };
            let waits = step.depends_on.iter().any(|other| earlier.get(*other).is_some_and(|other| other.is_needed));
            step.is_needed = waits || !is_current || (choice.always && !is_done);
            writers.extend(output.map(|output| (output, index)));
            self.written.extend(output.filter(|_| step.is_needed));
        }
        self.set_urgency(log);
    }

    /// A step that has never run takes as long as its source file is large, compared with those that have.
    fn set_urgency(&mut self, log: &mut BuildLog) {
        let (mut all_millis, mut all_bytes) = (1, 1);
        let mut times = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let source = step.source.as_ref().map(|source| log.id(source));
            let bytes = source.and_then(|source| self.files.state(log, source)).map_or(0, |state| state.bytes);
            let millis = log.record(step.key).map(|record| record.millis);
            if let Some(millis) = millis {
                all_millis += millis;
                all_bytes += bytes;
            }
            times.push((millis, bytes));
        }
        for (index, (millis, bytes)) in times.into_iter().enumerate().rev() {
            let Some((step, earlier)) = self.steps.get_mut(..=index).and_then(<[Step]>::split_last_mut) else { return };
            let estimate = bytes.saturating_mul(all_millis) / all_bytes;
            step.urgency += millis.unwrap_or(estimate);
            for other in &step.depends_on {
                if let Some(other) = earlier.get_mut(*other) {
                    other.urgency = other.urgency.max(step.urgency);
                }
            }
        }
    }

    /// What to record of a successful step of a build that began at the file time `started`.
    pub(crate) fn record(&self, step: &Step, log: &mut BuildLog, started: i128, took: Duration) -> Record {
        let (mut inputs, mut is_complete) = (Vec::new(), true);
        match &step.inputs {
            Inputs::Unknown => is_complete = false,
            Inputs::Listed(paths) => inputs.extend(paths.iter().map(|path| log.id(path))),
            Inputs::Depfile(Depfile::Own(path) | Depfile::Added { path, .. }) => match fs::read(path) {
                Ok(text) => inputs.extend(depfile::prerequisites(&text).into_iter().map(|path| {
                    let path = Path::new(&step.directory).join(OsString::from_vec(path));
                    log.id(path.as_os_str())
                })),
                Err(_) => is_complete = false,
            },
        }
        inputs.sort_unstable();
        inputs.dedup();
        // A fresh look: steps may have written these files.
        let mut files = Files::default();
        let output = step.output.as_ref().map(|output| log.id(output));
        let hash = files.hash(log, &inputs, output).filter(|_| is_complete);
        // What a step of this build has written was complete before this step read it.
        let changed_meanwhile =
            files.newest(inputs.iter().copied().filter(|path| !self.written.contains(path))) > started;
        let state = hash.filter(|_| !changed_meanwhile).unwrap_or(NEVER);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Record { command: step.command, state, millis, inputs }
    }
}

/// The states of files, each looked at once.
#[derive(Debug, Default)]
struct Files {
    known: HashMap<PathId, Option<State>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// In nanoseconds.
    modified: i128,
    bytes: u64,
}

impl Files {
    fn state(&mut self, log: &BuildLog, path: PathId) -> Option<State> {
        *self.known.entry(path).or_insert_with(|| {
            let metadata = fs::metadata(log.name(path)).ok()?;
            Some(State { modified: modified(&metadata), bytes: metadata.len() })
        })
    }

    /// A hash of the states of files; `None` if the output does not exist.
    fn hash(&mut self, log: &BuildLog, inputs: &[PathId], output: Option<PathId>) -> Option<u64> {
        if output.is_some_and(|output| self.state(log, output).is_none()) {
            return None;
        }
        let mut hash = Hash::new();
        for path in inputs.iter().chain(&output) {
            hash = match self.state(log, *path) {
                Some(State { modified, bytes }) => hash.add(&modified.to_le_bytes()).add(&bytes.to_le_bytes()),
                None => hash.add(b"missing"),
            };
        }
        Some(hash.finish())
    }

    /// The newest time of change of files whose state is known.
    fn newest(&self, paths: impl Iterator<Item = PathId>) -> i128 {
        let times = paths.filter_map(|path| self.known.get(&path).copied().flatten());
        times.map(|state| state.modified).max().unwrap_or(0)
    }
}
