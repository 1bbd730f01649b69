//! The command line.

use std::{
    error::Error,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

pub(crate) const HELP: &str = "\
usage: fanout [OPTIONS] [compile_commands.json]

Runs the commands of a compilation database in parallel, those that took longest in the last run first. A command whose source file,
headers and command line are as in the last run is not run again. Without a database it builds the C project in examples/c-project.

options:
  -j, --jobs N         run at most N commands at once (default: the number of processors, or below `make -jN` as many as make)
  -k, --keep-going     after a failure, go on with what does not depend on it
  -B, --always-make    run all commands, also those that are up to date
      --out DIR        write the objects below DIR instead of where the database says
      --then RULE      after the database, run `TARGET: COMMAND` or `COMMAND` in a shell, if an object has changed or TARGET is
                       missing; {out} is TARGET, {objects} are the objects; several rules run in their order
      --timeout TIME       stop a command that takes longer, such as 90 (seconds), 2min, 1h 30min
      --retry N            run a command that has failed again, up to N times
      --joblog FILE        write a line about each finished command to FILE, as GNU parallel does
      --resume             continue --joblog: what has succeeded there is not run again if its inputs are unknown or -B is given
      --trace FILE         write a trace for https://ui.perfetto.dev to FILE
      --no-depfiles    do not add -MD -MF to commands of GCC and Clang, whose headers are then unknown: they always run
  -v, --verbose        print each command when it starts
  -h, --help           print this text

exit codes:
  0    everything is built
  1    a command failed, or could not be started
  2    the command line or the database is invalid, or another fanout uses the same build log
  130  interrupted by Ctrl-C (SIGINT); no compiler is left running
  143  terminated by SIGTERM; no compiler is left running

Below `make -jN`, in a recipe line that begins with `+`, each command takes a token of make's jobserver, so that both together run N. Elsewhere
rules of --then find a jobserver of N tokens: a make among them runs N jobs.

The build log is the file .fanout_log in DIR, or beside the database.";

const HINT: &str = "fanout --help lists the options";

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one field for each option")]
pub(crate) struct Options {
    pub(crate) database: Option<PathBuf>,
    pub(crate) out: Option<PathBuf>,
    /// `None`: as many as there are processors, or tokens of a jobserver.
    pub(crate) jobs: Option<usize>,
    pub(crate) rules: Vec<OsString>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) job_log: Option<PathBuf>,
    pub(crate) resume: bool,
    pub(crate) trace: Option<PathBuf>,
    pub(crate) keep_going: bool,
    pub(crate) always: bool,
    pub(crate) no_depfiles: bool,
    pub(crate) verbose: bool,
}

impl Options {
    /// `None` if the help is asked for.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, Box<dyn Error>> {
        let mut options = Self {
            database: None,
            out: None,
            jobs: None,
            rules: Vec::new(),
            timeout: None,
            retries: 0,
            job_log: None,
            resume: false,
            trace: None,
            keep_going: false,
            always: false,
            no_depfiles: false,
            verbose: false,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, mut attached) = split(&argument);
            let mut value = || {
                let next = attached.take().or_else(|| arguments.next());
                next.ok_or_else(|| format!("{} needs a value; {HINT}", name.display()))
            };
            match name.as_bytes() {
                b"--jobs" | b"-j" => options.jobs = Some(number("--jobs", &value()?, 1)?),
                b"--out" => options.out = Some(value()?.into()),
                b"--then" => options.rules.push(value()?),
                b"--timeout" => options.timeout = Some(time("--timeout", &value()?)?),
                b"--retry" => options.retries = number("--retry", &value()?, 0)?,
                b"--joblog" => options.job_log = Some(value()?.into()),
                b"--resume" => options.resume = true,
                b"--trace" => options.trace = Some(value()?.into()),
                b"--keep-going" | b"-k" => options.keep_going = true,
                b"--always-make" | b"-B" => options.always = true,
                b"--no-depfiles" => options.no_depfiles = true,
                b"--verbose" | b"-v" => options.verbose = true,
                b"--help" | b"-h" => return Ok(None),
                [b'-', _, ..] => return Err(format!("unknown option {}; {HINT}", argument.display()).into()),
                _ if options.database.is_some() => return Err(format!("more than one database; {HINT}").into()),
                _ => options.database = Some(argument.clone().into()),
            }
            if attached.is_some() {
                return Err(format!("{} has no value; {HINT}", name.display()).into());
            }
        }
        if options.resume && options.job_log.is_none() {
            return Err(format!("--resume needs --joblog; {HINT}").into());
        }
        Ok(Some(options))
    }
}

/// Splits `--name=value` and `-jN`.
fn split(argument: &OsStr) -> (&OsStr, Option<OsString>) {
    let bytes = argument.as_bytes();
    let at = match bytes {
        [b'-', b'-', ..] => bytes.iter().position(|byte| *byte == b'=').map(|at| (at, at + 1)),
        [b'-', b'j', _, ..] => Some((2, 2)),
        _ => None,
    };
    match at.and_then(|(end, start)| Some((bytes.get(..end)?, bytes.get(start..)?))) {
        Some((name, value)) => (OsStr::from_bytes(name), Some(OsStr::from_bytes(value).to_owned())),
        None => (argument, None),
    }
}

fn number<N: FromStr + PartialOrd + From<u8>>(option: &str, text: &OsStr, min: u8) -> Result<N, String> {
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number >= N::from(min));
    number.ok_or_else(|| format!("invalid {option} {}: not a positive number", text.display()))
}

fn time(option: &str, text: &OsStr) -> Result<Duration, String> {
    let text = text.to_str().ok_or_else(|| format!("invalid {option} {}: not a time", text.display()))?;
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time = seconds.map_or_else(|| humantime::parse_duration(text), Ok);
    let time = time.map_err(|error| format!("invalid {option} {text}: {error}"))?;
    if time.is_zero() { Err(format!("invalid {option} {text}: zero")) } else { Ok(time) }
}
