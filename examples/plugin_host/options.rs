//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

const USAGE: &str = "usage: plugin_host [OPTIONS] DIRECTORY";
const HELP: &str = "\
Runs every executable file of a directory as a plugin, and calls them by commands on standard input.

usage: plugin_host [OPTIONS] DIRECTORY

  --timeout TIME   the time for a call, unless the command says otherwise (5s)
  --ready TIME     the time for a plugin to start and to agree on a version (10s)
  --watchdog TIME  a plugin that answers no ping for so long is replaced (10s)
  --settle TIME    a changed file is loaded when it has not changed for so long (200ms)
  -v, --verbose    show what plugins write to standard output and standard error
  -h, --help       print this help
  -V, --version    print the version

Results are written to standard output, everything else to standard error. `help` lists the commands.

exit code: 0 all calls succeeded, 1 a call failed, 2 invalid command line or directory, 130 Ctrl-C, 143 SIGTERM";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    /// For a call.
    pub(crate) timeout: Duration,
    /// From the start of a plugin until it is ready.
    pub(crate) ready_timeout: Duration,
    /// Of the watchdog.
    pub(crate) watchdog_period: Duration,
    /// How long a file has to be unchanged before it is loaded.
    pub(crate) settle_time: Duration,
    pub(crate) is_verbose: bool,
}

#[derive(Debug)]
pub(crate) enum Invocation {
    Run(Options),
    /// Print this and exit.
    Show(String),
}

pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Invocation, String> {
    let mut options = Options {
        directory: PathBuf::new(),
        timeout: Duration::from_secs(5),
        ready_timeout: Duration::from_secs(10),
        watchdog_period: Duration::from_secs(10),
        settle_time: Duration::from_millis(200),
        is_verbose: false,
    };
    let mut directory = None;
    while let Some(argument) = arguments.next() {
        let mut time = |target: &mut Duration| {
            let value = arguments.next().ok_or_else(|| format!("{} needs a time; {USAGE}", argument.display()))?;
            let time = value.to_str().and_then(|text| humantime::parse_duration(text).ok());
            let time = time.filter(|time| !time.is_zero());
            *target = time
                .ok_or_else(|| format!("{} {}: not a time such as 5s or 200ms", argument.display(), value.display()))?;
            Ok::<_, String>(())
        };
        match argument.to_str() {
            Some("--timeout") => time(&mut options.timeout)?,
            Some("--ready") => time(&mut options.ready_timeout)?,
            Some("--watchdog") => time(&mut options.watchdog_period)?,
            Some("--settle") => time(&mut options.settle_time)?,
            Some("-v" | "--verbose") => options.is_verbose = true,
            Some("-h" | "--help") => return Ok(Invocation::Show(HELP.into())),
            Some("-V" | "--version") => {
                return Ok(Invocation::Show(format!("plugin_host {}", env!("CARGO_PKG_VERSION"))));
            }
            Some(option) if option.starts_with('-') => return Err(format!("unknown option {option}; {USAGE}")),
            _ if directory.is_some() => return Err(format!("more than one directory; {USAGE}")),
            _ => directory = Some(PathBuf::from(argument)),
        }
    }
    options.directory = directory.ok_or(USAGE)?;
    Ok(Invocation::Run(options))
}
