//! The command line.

use super::select::{Partition, Pattern, RunIgnored};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    str::FromStr,
    thread,
    time::Duration,
};

pub(crate) const USAGE: &str = "\
usage: harness [OPTIONS] [-- ARGUMENTS OF cargo test]   the tests of a package, built by cargo
       harness [OPTIONS] PROGRAM...                     programs with the command line of libtest
       harness [OPTIONS] --tap PROGRAM...               programs that print TAP";

pub(crate) const HELP: &str = "\
Runs tests, each in a process of its own.

  --manifest-path FILE     the Cargo.toml of the package
  --tap PROGRAM            a program that prints TAP; it is one test
  --list                   print the tests that would run
  -j, --test-threads N     tests at a time; the number of processors by default
  --filter PATTERN         tests whose name contains PATTERN; =NAME: this one; /REGEX/: those that match. Repeated: any of them
  --skip PATTERN           not these
  --run-ignored WHICH      tests with #[ignore]: default (none), only, all
  --partition [HOW:]1/3    the first of three parts, by count (in turn, the default) or hash (by name)
  --retries N              runs a test that failed again, up to N times
  --retry-delay TIME       waits before each retry
  --slow-timeout TIME      reports a test that runs longer, and again after each such time; 60s by default
  --terminate-after N      stops a test after N slow timeouts
  --grace-period TIME      from SIGTERM to SIGKILL; 10s by default
  --leak-timeout TIME      how long processes of a test may go on after its end, and its output stay open; 100ms by default
  --fail-leaks             a test fails if it leaves a process or an open output behind
  --no-fail-fast           goes on after the first failure
  --max-fail N             goes on until N tests have failed
  --failure-output WHEN    output of failed tests: immediate (the default), final, immediate-final, never
  --success-output WHEN    output of passed tests: never by default
  --junit FILE             writes the results as JUnit XML
  --no-tests WHAT          if there are no tests: fail (the default), pass
  -h, --help               print this help
  -V, --version            print the version

exit codes: 0 all passed, 4 no tests, 96 invalid command line, 100 a test failed, 101 the build failed, 102 cargo metadata failed,
104 a program did not list its tests, 110 a file could not be written, 130 and 143 interrupted by SIGINT or SIGTERM";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Request {
    Help,
    Version,
    Run(Box<Options>),
}

#[derive(Debug)]
pub(crate) struct Options {
    /// Programs that understand libtest's command line. If there are none of either kind, cargo builds them.
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) tap_programs: Vec<PathBuf>,
    /// Arguments of `cargo test`.
    pub(crate) cargo_arguments: Vec<OsString>,
    pub(crate) list: bool,
    pub(crate) selection: Selection,
    pub(crate) run: RunOptions,
    pub(crate) output: OutputOptions,
    pub(crate) passes_without_tests: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) filters: Vec<Pattern>,
    pub(crate) skips: Vec<Pattern>,
    pub(crate) ignored: RunIgnored,
    pub(crate) partition: Option<Partition>,
}

#[derive(Debug)]
pub(crate) struct RunOptions {
    pub(crate) at_a_time: usize,
    pub(crate) retries: u32,
    pub(crate) retry_delay: Duration,
    pub(crate) slow_timeout: Duration,
    pub(crate) terminate_after: Option<u32>,
    pub(crate) grace_period: Duration,
    pub(crate) leak_timeout: Duration,
    pub(crate) fails_on_leaks: bool,
    /// `None`: any number.
    pub(crate) max_failures: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct OutputOptions {
    pub(crate) of_failures: When,
    pub(crate) of_successes: When,
    pub(crate) junit: Option<PathBuf>,
}

/// When the output of a test is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct When {
    /// When the test has ended.
    pub(crate) immediate: bool,
    /// After all tests.
    pub(crate) at_the_end: bool,
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (immediate, at_the_end) = match text {
            "immediate" => (true, false),
            "final" => (false, true),
            "immediate-final" => (true, true),
            "never" => (false, false),
            _ => return Err(format!("{text} is not one of immediate, final, immediate-final, never")),
        };
        Ok(Self { immediate, at_the_end })
    }
}

impl Options {
    fn new() -> Self {
        Self {
            programs: Vec::new(),
            tap_programs: Vec::new(),
            cargo_arguments: Vec::new(),
            list: false,
            selection: Selection::default(),
            run: RunOptions {
                at_a_time: thread::available_parallelism().map_or(1, usize::from),
                retries: 0,
                retry_delay: Duration::ZERO,
                slow_timeout: Duration::from_secs(60),
                terminate_after: None,
                grace_period: Duration::from_secs(10),
                leak_timeout: Duration::from_millis(100),
                fails_on_leaks: false,
                max_failures: Some(1),
            },
            output: OutputOptions {
                of_failures: When { immediate: true, at_the_end: false },
                of_successes: When { immediate: false, at_the_end: false },
                junit: None,
            },
            passes_without_tests: false,
        }
    }

    pub(crate) fn uses_cargo(&self) -> bool {
        self.programs.is_empty() && self.tap_programs.is_empty()
    }

    /// Sets an option with a value. Returns whether there is such an option.
    fn set(&mut self, option: &str, value: &OsStr) -> Result<bool, String> {
        let text = value.to_str().ok_or_else(|| format!("{option}: {} is not UTF-8", value.display()));
        match option {
            "--manifest-path" => self.cargo_arguments.extend([option.into(), value.to_owned()]),
            "--tap" => self.tap_programs.push(value.into()),
            "--junit" => self.output.junit = Some(value.into()),
            "-j" | "--test-threads" => self.run.at_a_time = positive(option, text?)?,
            "--filter" => self.selection.filters.push(parsed(option, text?)?),
            "--skip" => self.selection.skips.push(parsed(option, text?)?),
            "--run-ignored" => self.selection.ignored = parsed(option, text?)?,
            "--partition" => self.selection.partition = Some(parsed(option, text?)?),
            "--retries" => self.run.retries = number(option, text?)?,
            "--retry-delay" => self.run.retry_delay = time(option, text?)?,
            "--slow-timeout" => self.run.slow_timeout = positive_time(option, text?)?,
            "--terminate-after" => self.run.terminate_after = Some(positive(option, text?)?),
            "--grace-period" => self.run.grace_period = time(option, text?)?,
            "--leak-timeout" => self.run.leak_timeout = time(option, text?)?,
            "--max-fail" => self.run.max_failures = Some(positive(option, text?)?),
            "--failure-output" => self.output.of_failures = parsed(option, text?)?,
            "--success-output" => self.output.of_successes = parsed(option, text?)?,
            "--no-tests" => {
                self.passes_without_tests = match text? {
                    "pass" => true,
                    "fail" => false,
                    other => return Err(format!("{option}: {other} is not one of fail, pass")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn parsed<T: FromStr<Err = String>>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{option}: {error}"))
}

fn number<T: FromStr>(option: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option}: {text} is not a number"))
}

fn positive<T: FromStr + PartialEq + From<u8>>(option: &str, text: &str) -> Result<T, String> {
    number(option, text)
        .ok()
        .filter(|number| *number != T::from(0))
        .ok_or(format!("{option}: {text} is not a positive number"))
}

fn time(option: &str, text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{option}: {text}: {error}"))
}

fn positive_time(option: &str, text: &str) -> Result<Duration, String> {
    let time = time(option, text)?;
    if time.is_zero() { Err(format!("{option}: {text} is not a positive time")) } else { Ok(time) }
}

impl Request {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let mut options = Options::new();
        let mut has_cargo_arguments = false;
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                options.cargo_arguments.extend(arguments.by_ref());
                has_cargo_arguments = true;
                continue;
            }
            let shown = argument.display().to_string();
            match argument.as_bytes() {
                b"-h" | b"--help" => return Ok(Self::Help),
                b"-V" | b"--version" => return Ok(Self::Version),
                b"--list" => options.list = true,
                b"--fail-leaks" => options.run.fails_on_leaks = true,
                b"--no-fail-fast" => options.run.max_failures = None,
                // `-jN`, as in make.
                [b'-', b'j', number @ ..] if !number.is_empty() => {
                    options.set("-j", OsStr::from_bytes(number))?;
                }
                [b'-', _, ..] => {
                    let (name, value) =
                        shown.split_once('=').map_or((&*shown, None), |(name, value)| (name, Some(value)));
                    let value = value.map(OsString::from).or_else(|| arguments.next());
                    // The name is looked up first: an unknown option as the last argument lacks nothing.
                    if !options.set(name, value.as_deref().unwrap_or_default())? {
                        return Err(format!("unknown option {name}"));
                    }
                    if value.is_none() {
                        return Err(format!("{name} needs a value"));
                    }
                }
                _ => options.programs.push(argument.into()),
            }
        }
        if !options.uses_cargo() && (has_cargo_arguments || !options.cargo_arguments.is_empty()) {
            return Err("arguments of cargo, and programs".into());
        }
        Ok(Self::Run(Box::new(options)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        match Request::parse(line.split_whitespace().map(OsString::from))? {
            Request::Run(options) => Ok(*options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn options_are_parsed() {
        let options =
            parse("-j3 --retries=2 --slow-timeout 5s --terminate-after 2 --partition hash:1/3 --no-fail-fast a b");
        let options = options.unwrap();
        assert_eq!((options.run.at_a_time, options.run.retries), (3, 2));
        assert_eq!((options.run.slow_timeout, options.run.terminate_after), (Duration::from_secs(5), Some(2)));
        assert_eq!(options.programs, [PathBuf::from("a"), "b".into()]);
        assert!(options.run.max_failures.is_none() && options.selection.partition.is_some() && !options.uses_cargo());
        let cargo = parse("--manifest-path x/Cargo.toml -- --lib -p y").unwrap();
        assert_eq!(cargo.cargo_arguments, ["--manifest-path", "x/Cargo.toml", "--lib", "-p", "y"]);
        assert!(cargo.uses_cargo());
    }

    #[test]
    fn invalid_command_line_is_explained() {
        for (line, expected) in [
            ("--retris 3", "unknown option --retris"),
            ("--retris", "unknown option --retris"),
            ("--junit", "--junit needs a value"),
            ("--tap", "--tap needs a value"),
            ("-j", "-j: "),
            ("-j 0", "-j: 0 is not a positive number"),
            ("-jx", "-j: x is not a positive number"),
            ("--retries -1", "--retries: -1 is not a number"),
            ("--slow-timeout 5", "--slow-timeout: 5: time unit needed"),
            ("--slow-timeout 0s", "--slow-timeout: 0s is not a positive time"),
            ("--partition 4/3", "--partition: 4/3 is not a part such as 1/3"),
            ("--run-ignored some", "--run-ignored: some is not one of"),
            ("--failure-output later", "--failure-output: later is not one of"),
            ("--no-tests ok", "--no-tests: ok is not one of"),
            ("--filter /(/", "--filter: invalid pattern /(/"),
            ("program -- --lib", "arguments of cargo, and programs"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }
}
