//! One worker as configured in the file, and its spec for the library.

use super::value::{Keys, Value, Wrong, flag, list, number, parsed, place, table, text, word};
use pipewright::{
    Backoff, DependencyCondition, ExitMatch, OutputMode, Readiness, Restart, RestartIntensity, RestartPolicy,
    SpecError, StopPolicy, StopStep, WorkerSpec,
    limits::{CgroupLimit, ResourceLimit},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// The configuration of a worker. A worker whose configuration did not change is not restarted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    command: Command,
    restart: Restarting,
    ready: Option<ReadinessConfig>,
    stop: Option<Vec<Step>>,
    pub(crate) after: After,
    limits: Limits,
    env: BTreeMap<String, String>,
    dir: Option<PathBuf>,
    output: Destination,
}

impl Recipe {
    pub(crate) fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let known = ["command", "restart", "ready", "stop", "after", "limits", "env", "dir", "output"];
        let keys = Keys::of(value, "a table", &known)?;
        let owned = |value| text(value).map(str::to_owned);
        let recipe = Self {
            command: keys.need("command", Command::read)?,
            restart: keys.get("restart", Restarting::read)?.unwrap_or_default(),
            ready: keys.get("ready", ReadinessConfig::read)?,
            stop: keys.get("stop", |steps| list(steps, "an array of tables", Step::read))?,
            after: keys.get("after", After::read)?.unwrap_or_default(),
            limits: keys.get("limits", Limits::read)?.unwrap_or_default(),
            env: keys.get("env", |variables| table(variables, "a table of strings", owned))?.unwrap_or_default(),
            dir: keys.get("dir", text)?.map(PathBuf::from),
            output: keys.get("output", Destination::read)?.unwrap_or_default(),
        };
        recipe.check().map_err(|(key, what)| Wrong::at(place(value, key), what).within(key))?;
        Ok(recipe)
    }

    /// The log file for its lines, which are written with the time and the name.
    pub(crate) fn log(&self) -> Option<&Path> {
        match &self.output {
            Destination::Log(path) => Some(path),
            Destination::Inherit | Destination::Show | Destination::Null | Destination::Raw(_) => None,
        }
    }

    /// The same worker, writing directly into its log file.
    pub(crate) fn without_log(&self) -> Self {
        match self.log() {
            Some(path) => Self { output: Destination::Raw(path.to_owned()), ready: None, ..self.clone() },
            None => self.clone(),
        }
    }

    pub(crate) fn restart_mode(&self) -> Restart {
        self.restart.when
    }

    /// Whether this exit is a failure.
    pub(crate) fn is_failure(&self, code: Option<i32>) -> bool {
        code.is_none_or(|code| code != 0 && !self.restart.success_codes.contains(&code))
    }

    /// Checks the combination of keys. Returns the key and the error.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_seen = matches!(self.output, Destination::Show | Destination::Log(_));
        if matches!(self.ready, Some(ReadinessConfig { sign: Sign::Line(_), .. })) && !is_seen {
            return Err((
                "ready.line",
                "lines are seen only with `output = \"show\"` or a file that is not `raw`".into(),
            ));
        }
        self.spec("").validate().map_err(|error| explain(&error))
    }

    /// Without dependencies, whose workers do not exist yet when the file is read.
    pub(crate) fn spec(&self, name: &str) -> WorkerSpec {
        let Self { command, restart, ready, stop, after: _, limits, env, dir, output } = self;
        let mut spec = WorkerSpec::new(&command.program).args(&command.arguments).name(name).restart(restart.policy());
        if let Some(ready) = ready {
            spec = spec.ready(ready.ready());
        }
        if let Some(steps) = stop {
            let add = |policy: StopPolicy, step: &Step| policy.step([StopStep::SignalGroup(step.signal)], step.wait);
            spec = spec.stop(steps.iter().fold(StopPolicy::kill(), add));
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

/// The key of the file that an error of the library is about, and the error in terms of the file.
fn explain(error: &SpecError) -> (&'static str, String) {
    let text = error.to_string();
    match error {
        SpecError::Conflict { settings: ["runtime_max", _], reason } => ("limits.run_time", reason.to_string()),
        SpecError::Conflict { settings: ["ready", "timeout"], reason } => ("ready.within", reason.to_string()),
        SpecError::Conflict { settings: ["ready", "connect_tcp" | "connect_unix"], reason } => {
            ("ready.connect", reason.to_string())
        }
        SpecError::Conflict { settings: ["ready", _], reason } => ("ready", reason.to_string()),
        SpecError::Conflict { settings: ["cgroup_limit", _], reason } => ("limits", reason.to_string()),
        SpecError::Conflict { settings: ["backoff", "max"], reason } => ("restart.first", reason.to_string()),
        SpecError::Conflict { settings: ["intensity", _], .. } => {
            let what = "with these delays `restarts` is never exceeded within `period`: make `period` longer, or `restarts` \
                        or the delays smaller";
            ("restart", what.into())
        }
        SpecError::Conflict { .. } => ("restart", text),
        SpecError::InvalidPattern { .. } => ("ready.line", text),
        SpecError::InvalidVariable { .. } => ("env", text),
        _ => ("command", text),
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Command {
    program: String,
    arguments: Vec<String>,
}

impl Command {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let mut words = list(value, "an array of strings such as [\"program\", \"argument\"]", text)?.into_iter();
        match words.next() {
            Some(program) if !program.is_empty() => {
                Ok(Self { program: program.to_owned(), arguments: words.map(str::to_owned).collect() })
            }
            _ => Err(Wrong::with(value, "the command is empty")),
        }
    }
}

const WHEN: [(&str, Restart); 3] =
    [("never", Restart::Never), ("on-failure", Restart::OnFailure), ("always", Restart::Always)];

#[derive(Debug, Clone, PartialEq, Default)]
struct Restarting {
    when: Restart,
    first: Option<Duration>,
    cap: Option<Duration>,
    restarts: Option<u32>,
    period: Option<Duration>,
    success_codes: Vec<i32>,
    fatal_codes: Vec<i32>,
}

impl Restarting {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let when = |value| parsed(value, |text| word(text, &WHEN));
        if value.get_ref().is_str() {
            return Ok(Self { when: when(value)?, ..Self::default() });
        }
        let codes = |value| list(value, "an array of exit codes", |code| number(code, 0..=255));
        let known = ["when", "first", "cap", "restarts", "period", "success_codes", "fatal_codes"];
        let keys = Keys::of(value, "\"never\", \"on-failure\", \"always\" or a table", &known)?;
        Ok(Self {
            when: keys.need("when", when)?,
            first: keys.get("first", time)?,
            cap: keys.get("cap", time)?,
            restarts: keys.get("restarts", |value| number(value, 0..=u32::MAX))?,
            period: keys.get("period", time)?,
            success_codes: keys.get("success_codes", codes)?.unwrap_or_default(),
            fatal_codes: keys.get("fatal_codes", codes)?.unwrap_or_default(),
        })
    }

    /// Missing keys have the defaults of the library.
    fn policy(&self) -> RestartPolicy {
        let exits = |codes: &[i32]| codes.iter().copied().map(ExitMatch::Code).collect::<Vec<_>>();
        let policy = RestartPolicy::from(self.when).success(exits(&self.success_codes)).fatal(exits(&self.fatal_codes));
        let or = |time: Option<Duration>, seconds| time.unwrap_or(Duration::from_secs_f64(seconds));
        let (first, cap) = (or(self.first, 0.1), or(self.cap, 30.0));
        let intensity = RestartIntensity::new(self.restarts.unwrap_or(5), or(self.period, 30.0));
        policy.backoff(Backoff::exponential(first, cap)).intensity(intensity)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct ReadinessConfig {
    sign: Sign,
    within: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
enum Sign {
    Line(String),
    Notify,
    Connect(String),
}

impl ReadinessConfig {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let keys = Keys::of(value, "a table", &["line", "notify", "connect", "within"])?;
        let yes = |value: &Value<'_>| match value.get_ref().as_bool() {
            Some(true) => Ok(()),
            _ => Err(Wrong::misplaced(value, "`true`")),
        };
        let (line, notify, connect) = (keys.get("line", text)?, keys.get("notify", yes)?, keys.get("connect", text)?);
        let sign = match (line, notify, connect) {
            (Some(pattern), None, None) => Sign::Line(pattern.to_owned()),
            (None, Some(()), None) => Sign::Notify,
            (None, None, Some(place)) => Sign::Connect(place.to_owned()),
            _ => return Err(Wrong::with(value, "expected exactly one of `line`, `notify = true` and `connect`")),
        };
        Ok(Self { sign, within: keys.get("within", time)? })
    }

    fn ready(&self) -> Readiness {
        let ready = match &self.sign {
            Sign::Line(pattern) => Readiness::log_line(pattern),
            Sign::Notify => Readiness::sd_notify(),
            Sign::Connect(path) if path.contains('/') => Readiness::connect_unix(path),
            Sign::Connect(address) => Readiness::connect_tcp(address.as_str()),
        };
        match self.within {
            Some(time) => ready.timeout(time),
            None => ready,
        }
    }
}

/// A stage of the stop policy. The signal goes to the whole process group, since a shell does not forward signals.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    signal: i32,
    wait: Duration,
}

impl Step {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let keys = Keys::of(value, "a table such as { signal = \"TERM\", wait = \"5s\" }", &["signal", "wait"])?;
        Ok(Self { signal: keys.need("signal", signal)?, wait: keys.need("wait", time)? })
    }
}

/// A signal name, with or without `SIG`.
fn signal(value: &Value<'_>) -> Result<i32, Wrong> {
    parsed(value, |text| {
        let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text));
        let is_named = |number: &i32| signal_hook::low_level::signal_name(*number) == Some(name.as_str());
        (1..=64).find(is_named).ok_or_else(|| format!("unknown signal {text:?}"))
    })
}

/// Such as `10s`, `1m 30s`, `200ms`.
fn time(value: &Value<'_>) -> Result<Duration, Wrong> {
    parsed(value, |text| {
        humantime::parse_duration(text).map_err(|error| format!("{text:?} is not a duration such as \"10s\": {error}"))
    })
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Limits {
    cpu_seconds: Option<u64>,
    file_bytes: Option<u64>,
    stack_bytes: Option<u64>,
    core_bytes: Option<u64>,
    open_files: Option<u64>,
    address_space_bytes: Option<u64>,
    nice: Option<i32>,
    run_time: Option<Duration>,
    tree_memory_bytes: Option<u64>,
    tree_millicores: Option<u32>,
    tree_processes: Option<u32>,
}

impl Limits {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let known = [
            "cpu_seconds",
            "file_bytes",
            "stack_bytes",
            "core_bytes",
            "open_files",
            "address_space_bytes",
            "nice",
            "run_time",
            "tree_memory_bytes",
            "tree_millicores",
            "tree_processes",
        ];
        let keys = Keys::of(value, "a table", &known)?;
        let large = |key| keys.get(key, |value| number(value, 0..=u64::MAX));
        let small = |key| keys.get(key, |value| number(value, 0..=u32::MAX));
        Ok(Self {
            cpu_seconds: large("cpu_seconds")?,
            file_bytes: large("file_bytes")?,
            stack_bytes: large("stack_bytes")?,
            core_bytes: large("core_bytes")?,
            open_files: large("open_files")?,
            address_space_bytes: large("address_space_bytes")?,
            nice: keys.get("nice", |value| number(value, -20..=19))?,
            run_time: keys.get("run_time", time)?,
            tree_memory_bytes: large("tree_memory_bytes")?,
            tree_millicores: small("tree_millicores")?,
            tree_processes: small("tree_processes")?,
        })
    }

    fn put(&self, mut spec: WorkerSpec) -> WorkerSpec {
        for (limit, value) in [
            (ResourceLimit::CpuSeconds, self.cpu_seconds),
            (ResourceLimit::FileBytes, self.file_bytes),
            (ResourceLimit::StackBytes, self.stack_bytes),
            (ResourceLimit::CoreBytes, self.core_bytes),
            (ResourceLimit::OpenFiles, self.open_files),
            (ResourceLimit::AddressSpaceBytes, self.address_space_bytes),
        ] {
            spec = value.into_iter().fold(spec, |spec, value| spec.rlimit(limit, value));
        }
        spec = self.run_time.iter().fold(spec, |spec, time| spec.runtime_max(*time));
        let memory = self.tree_memory_bytes.map(CgroupLimit::MemoryMax);
        let cores = self.tree_millicores.map(CgroupLimit::CpuMax);
        let processes = self.tree_processes.map(CgroupLimit::PidsMax);
        spec = memory.into_iter().chain(cores).chain(processes).fold(spec, WorkerSpec::cgroup_limit);
        self.nice.into_iter().fold(spec, WorkerSpec::nice)
    }
}

/// Where standard output and error go.
#[derive(Debug, Clone, PartialEq, Default)]
enum Destination {
    Inherit,
    #[default]
    Show,
    Null,
    /// Through this program, line by line.
    Log(PathBuf),
    /// Directly into the file.
    Raw(PathBuf),
}

impl Destination {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        const WANTED: &str = "\"show\", \"inherit\", \"null\" or { file = \"..\" }";
        if value.get_ref().is_str() {
            return parsed(value, |text| match text {
                "inherit" => Ok(Self::Inherit),
                "show" => Ok(Self::Show),
                "null" => Ok(Self::Null),
                _ => Err(format!("{text:?} is not {WANTED}")),
            });
        }
        let keys = Keys::of(value, WANTED, &["file", "raw"])?;
        let path = keys.need("file", text)?.into();
        Ok(if keys.get("raw", flag)?.unwrap_or(false) { Self::Raw(path) } else { Self::Log(path) })
    }

    fn output(&self) -> OutputMode {
        match self {
            Self::Inherit => OutputMode::Inherit,
            Self::Show | Self::Log(_) => OutputMode::Lines,
            Self::Null => OutputMode::Null,
            Self::Raw(path) => OutputMode::File(path.clone()),
        }
    }
}

/// The dependencies: an array of workers that must be ready, or a condition for each.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct After(pub(crate) BTreeMap<String, Stage>);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Stage {
    Started,
    Ready,
    Exited,
}

impl From<Stage> for DependencyCondition {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Started => Self::Started,
            Stage::Ready => Self::Ready,
            Stage::Exited => Self::Completed,
        }
    }
}

impl After {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        const STAGES: [(&str, Stage); 3] =
            [("started", Stage::Started), ("ready", Stage::Ready), ("exited", Stage::Exited)];
        const WANTED: &str = "an array of names, or a table such as { name = \"ready\" }";
        if value.get_ref().is_array() {
            let names = list(value, WANTED, text)?;
            return Ok(Self(names.into_iter().map(|name| (name.to_owned(), Stage::Ready)).collect()));
        }
        table(value, WANTED, |stage| parsed(stage, |text| word(text, &STAGES))).map(Self)
    }
}
