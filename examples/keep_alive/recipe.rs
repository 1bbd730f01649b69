//! One worker, as the file has it, and the spec that the library makes of it.

use pipewright::{
    Backoff, Intensity, Limit, Output, Ready, Restart, RestartPolicy, SpecError, StopPolicy, StopStep, TreeLimit, When,
    WorkerSpec,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf, str::FromStr, time::Duration};

/// Everything that the file says about a worker. Two that are equal need no restart.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    command: Command,
    #[serde(default, deserialize_with = "text_or_table")]
    restart: Restarting,
    ready: Option<Readiness>,
    stop: Option<Vec<Step>>,
    #[serde(default)]
    pub(crate) after: After,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    env: BTreeMap<String, String>,
    dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "text_or_table")]
    output: Destination,
}

impl Recipe {
    pub(crate) fn comes_back(&self) -> Restart {
        self.restart.when.into()
    }

    /// Whether it is a failure that it has ended so.
    pub(crate) fn is_failure(&self, code: Option<i32>) -> bool {
        code.is_none_or(|code| code != 0 && !self.restart.success_codes.contains(&code))
    }

    /// What no single key shows: which key it is, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.ready.as_ref().is_some_and(Readiness::reads_lines) && self.output != Destination::Show {
            return Err(("ready", "a `line` is seen only where `output` is \"show\"".into()));
        }
        self.spec("").check().map_err(|error| (key_of(&error), error.to_string()))
    }

    /// Without those that it comes after, which are not there yet when the file is read.
    pub(crate) fn spec(&self, name: &str) -> WorkerSpec {
        let Self { command, restart, ready, stop, after: _, limits, env, dir, output } = self;
        let mut spec = WorkerSpec::new(&command.program).args(&command.arguments).name(name).restart(restart.policy());
        if let Some(ready) = ready {
            spec = spec.ready(ready.ready());
        }
        if let Some(steps) = stop {
            let ladder = StopPolicy::kill();
            let climb =
                |ladder: StopPolicy, step: &Step| ladder.then([StopStep::SignalGroup(step.signal.0)], step.wait.0);
            spec = spec.stop(steps.iter().fold(ladder, climb));
        }
        for (name, value) in env {
            spec = spec.env(name, value);
        }
        if let Some(directory) = dir {
            spec = spec.current_dir(directory);
        }
        limits.put(spec).stdout(output.output()).stderr(output.output())
    }
}

/// The key that the user has to look at.
fn key_of(error: &SpecError) -> &'static str {
    match error {
        SpecError::Conflict { settings: ["tree_limit" | "time_limit", _], .. } => "limits",
        SpecError::Conflict { settings: ["ready", _] | [_, "ready"], .. } | SpecError::BadPattern { .. } => "ready",
        SpecError::Conflict { .. } => "restart",
        SpecError::BadVariable { .. } => "env",
        _ => "command",
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Command {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for Command {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Self, Self::Error> {
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty());
        Ok(Self { program: program.ok_or("it names no program")?, arguments: words.collect() })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Comeback {
    #[default]
    Never,
    OnFailure,
    Always,
}

impl From<Comeback> for Restart {
    fn from(when: Comeback) -> Self {
        match when {
            Comeback::Never => Self::Never,
            Comeback::OnFailure => Self::OnFailure,
            Comeback::Always => Self::Always,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restarting {
    when: Comeback,
    first: Option<Time>,
    cap: Option<Time>,
    restarts: Option<u32>,
    period: Option<Time>,
    #[serde(default)]
    success_codes: Vec<i32>,
    #[serde(default)]
    fatal_codes: Vec<i32>,
}

impl FromStr for Restarting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let when = match text {
            "never" => Comeback::Never,
            "on-failure" => Comeback::OnFailure,
            "always" => Comeback::Always,
            _ => return Err(format!("{text:?} is none of \"never\", \"on-failure\" and \"always\"")),
        };
        Ok(Self { when, ..Self::default() })
    }
}

impl Restarting {
    /// What the file does not say is as the library has it.
    fn policy(&self) -> RestartPolicy {
        let policy = RestartPolicy::from(Restart::from(self.when))
            .success_codes(self.success_codes.iter().copied())
            .fatal_codes(self.fatal_codes.iter().copied());
        let or = |time: Option<Time>, seconds| time.map_or(Duration::from_secs_f64(seconds), |time| time.0);
        let (first, cap) = (or(self.first, 0.1), or(self.cap, 30.0));
        let intensity = Intensity::new(self.restarts.unwrap_or(5), or(self.period, 30.0));
        policy.backoff(Backoff::new(first, cap)).intensity(intensity)
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ReadyTable")]
struct Readiness {
    sign: Sign,
    within: Option<Time>,
}

#[derive(Debug, Clone, PartialEq)]
enum Sign {
    Line(String),
    Notify,
    Connect(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyTable {
    line: Option<String>,
    notify: Option<bool>,
    connect: Option<String>,
    within: Option<Time>,
}

impl TryFrom<ReadyTable> for Readiness {
    type Error = &'static str;

    fn try_from(table: ReadyTable) -> Result<Self, Self::Error> {
        let sign = match (table.line, table.notify, table.connect) {
            (Some(pattern), None, None) => Sign::Line(pattern),
            (None, Some(true), None) => Sign::Notify,
            (None, None, Some(place)) => Sign::Connect(place),
            _ => return Err("it needs one of `line`, `notify = true` and `connect`"),
        };
        Ok(Self { sign, within: table.within })
    }
}

impl Readiness {
    fn reads_lines(&self) -> bool {
        matches!(self.sign, Sign::Line(_))
    }

    fn ready(&self) -> Ready {
        let ready = match &self.sign {
            Sign::Line(pattern) => Ready::line(pattern),
            Sign::Notify => Ready::notify(),
            Sign::Connect(path) if path.contains('/') => Ready::connect_unix(path),
            Sign::Connect(address) => Ready::connect_tcp(address.as_str()),
        };
        match self.within {
            Some(time) => ready.within(time.0),
            None => ready,
        }
    }
}

/// A rung of the stop ladder: to the whole group, since a shell does not pass signals on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    signal: Signal,
    wait: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Signal(i32);

impl TryFrom<String> for Signal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = format!("SIG{}", text.trim_start_matches("SIG"));
        let named = |number: &i32| signal_hook::low_level::signal_name(*number) == Some(name.as_str());
        (1..=64).find(named).map(Self).ok_or_else(|| format!("there is no signal {text:?}"))
    }
}

/// As `10s`, `1m 30s`, `200ms`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Time(Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|error| format!("{text:?} is no time, as \"10s\" is: {error}"))
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    cpu_seconds: Option<u64>,
    file_bytes: Option<u64>,
    stack_bytes: Option<u64>,
    core_bytes: Option<u64>,
    open_files: Option<u64>,
    address_space_bytes: Option<u64>,
    nice: Option<i32>,
    run_time: Option<Time>,
    tree_memory_bytes: Option<u64>,
    tree_millicores: Option<u32>,
    tree_processes: Option<u32>,
}

impl Limits {
    fn put(&self, mut spec: WorkerSpec) -> WorkerSpec {
        for (limit, value) in [
            (Limit::CpuSeconds, self.cpu_seconds),
            (Limit::FileBytes, self.file_bytes),
            (Limit::StackBytes, self.stack_bytes),
            (Limit::CoreBytes, self.core_bytes),
            (Limit::OpenFiles, self.open_files),
            (Limit::AddressSpaceBytes, self.address_space_bytes),
        ] {
            spec = value.into_iter().fold(spec, |spec, value| spec.limit(limit, value));
        }
        spec = self.run_time.iter().fold(spec, |spec, time| spec.time_limit(time.0));
        let memory = self.tree_memory_bytes.map(TreeLimit::MemoryBytes);
        let cores = self.tree_millicores.map(TreeLimit::Millicores);
        let processes = self.tree_processes.map(TreeLimit::Processes);
        spec = memory.into_iter().chain(cores).chain(processes).fold(spec, WorkerSpec::tree_limit);
        self.nice.into_iter().fold(spec, WorkerSpec::nice)
    }
}

/// Where its standard output and error go.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Destination {
    Inherit,
    #[default]
    Show,
    Null,
    File(PathBuf),
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "inherit" => Ok(Self::Inherit),
            "show" => Ok(Self::Show),
            "null" => Ok(Self::Null),
            _ => Err(format!("{text:?} is none of \"show\", \"inherit\", \"null\" and {{ file = \"..\" }}")),
        }
    }
}

impl Destination {
    fn output(&self) -> Output {
        match self {
            Self::Inherit => Output::Inherit,
            Self::Show => Output::Lines,
            Self::Null => Output::Null,
            Self::File(path) => Output::File(path.clone()),
        }
    }
}

/// Whom it comes after: a list of those that must be ready, or how far each must be.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct After(pub(crate) BTreeMap<String, Stage>);

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    Started,
    Ready,
    Exited,
}

impl From<Stage> for When {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Started => Self::Started,
            Stage::Ready => Self::Ready,
            Stage::Exited => Self::Exited,
        }
    }
}

impl<'de> Deserialize<'de> for After {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = After;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of names, or a table as { name = \"ready\" }")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<After, A::Error> {
                let mut after = After::default();
                while let Some(name) = list.next_element()? {
                    after.0.insert(name, Stage::Ready);
                }
                Ok(after)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<After, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(table)).map(After)
            }
        }

        deserializer.deserialize_any(Names)
    }
}

/// A value that is mostly a word, and sometimes a table.
fn text_or_table<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr<Err = String>,
{
    struct Either<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de> + FromStr<Err = String>> Visitor<'de> for Either<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a word or a table")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(table))
        }
    }

    deserializer.deserialize_any(Either(PhantomData))
}
