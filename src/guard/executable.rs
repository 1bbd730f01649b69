//! The guard that is the host's own executable.

use super::{
    cleanup::Cleanup,
    groups,
    protocol::{
        CONFIG_FD, HELD_TOKENS_FD, JOBSERVER, JOBSERVER_FD, LIST_READER_FD, LIST_WRITER_FD, READY, TESTED, TITLE,
        VARIABLE,
    },
};
use crate::deadline::Deadline;
use crate::sys::{
    fd, kill,
    pidfd::PidFd,
    poll::{self, Interest},
    proc::{
        environ::{EnvironReader, EnvironState},
        list,
        stat::Stat,
    },
    signals, this_process,
};
use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::PathBuf,
    time::Duration,
};

/// Then it can kill the listed groups and the cgroup only.
const WITHOUT_PROC: &str = " without /proc";

/// Whether this process was started as a guard.
pub(super) fn is_guard() -> bool {
    let mut arguments = env::args_os();
    let is_titled = arguments.next().is_some_and(|title| title == TITLE) && arguments.next().is_none();
    is_titled && env::var_os(VARIABLE).is_some()
}

/// The configuration received from the host.
struct ReceivedConfig {
    token: Vec<u8>,
    cgroup: Option<PathBuf>,
    host: i32,
    /// The held tokens, and where they are returned to.
    tokens: Option<(File, File)>,
}

/// Returns the exit code.
pub(super) fn run() -> i32 {
    signals::block_all();
    this_process::set_title(c"pipewright-guard");
    match guard() {
        Ok(()) => 0,
        Err(error) => {
            report(&format!("{error}"));
            1
        }
    }
}

fn guard() -> io::Result<()> {
    // Inherited from the host: `GuardProgram::plan` assigns these numbers.
    let mut config_pipe = BufReader::new(File::from(fd::adopt(CONFIG_FD)));
    let (reader, writer) = (File::from(fd::adopt(LIST_READER_FD)), fd::adopt(LIST_WRITER_FD));
    let config = read_config(&mut config_pipe)?;
    let host = Stat::of(config.host).ok();
    report(&format!("{READY}{}\n{TESTED}", self_test()?));
    wait_for_end(&config_pipe.into_inner(), config.host)?;
    let listed = groups::read(reader, writer.as_fd()).unwrap_or_default();
    Cleanup::new(&config.token, listed.groups, host).run(config.cgroup.as_deref(), listed.directory.as_deref());
    // The host can end while the guard cleans up for it.
    let is_host_alive = listed.is_host_alive && this_process::parent() == config.host;
    match config.tokens {
        Some((held, jobserver)) if !is_host_alive => return_tokens(&held, &jobserver),
        _ => Ok(()),
    }
}

/// Returns the tokens to the jobserver that the host held when it ended. Neither end blocks.
fn return_tokens(mut held: &File, mut jobserver: &File) -> io::Result<()> {
    let mut tokens = [0; 4096];
    loop {
        match held.read(&mut tokens) {
            Ok(0) => return Ok(()),
            Ok(count) => jobserver.write_all(tokens.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A fork of the host has the other end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn read_config(config_pipe: &mut impl BufRead) -> io::Result<ReceivedConfig> {
    let mut line = || {
        let mut line = Vec::new();
        config_pipe.read_until(b'\n', &mut line)?;
        line.pop_if(|last| *last == b'\n');
        io::Result::Ok(line)
    };
    let (token, cgroup, host, jobserver) = (line()?, line()?, line()?, line()?);
    let host = String::from_utf8_lossy(&host).parse().map_err(|_| io::ErrorKind::InvalidData)?;
    let cgroup = (!cgroup.is_empty()).then(|| PathBuf::from(OsString::from_vec(cgroup)));
    let tokens = (jobserver == JOBSERVER.as_bytes())
        .then(|| (File::from(fd::adopt(HELD_TOKENS_FD)), File::from(fd::adopt(JOBSERVER_FD))));
    Ok(ReceivedConfig { token: [&token[..], b"."].concat(), cgroup, host, tokens })
}

/// Tests what the cleanup relies on. Returns what is missing.
fn self_test() -> io::Result<&'static str> {
    let own = this_process::own_pid();
    kill::probe_own_group()?;
    let is_listed = list::all().is_ok_and(|all| all.contains(&own));
    let found = EnvironReader::new().search(own, |bytes| memchr::memmem::find(bytes, VARIABLE.as_bytes()));
    let sees = is_listed && matches!(found, EnvironState::Found(_)) && Stat::of(own).is_ok();
    Ok(if sees { "" } else { WITHOUT_PROC })
}

/// Writes one line to the host.
fn report(line: &str) {
    // A host that has ended reads nothing; the guard continues all the same.
    drop(io::stdout().write_all(format!("{line}\n").as_bytes()));
}

/// Waits for the host to end: its process, or the pipe.
fn wait_for_end(pipe: &File, host: i32) -> io::Result<()> {
    let pidfd = PidFd::open(host);
    let mut watched = vec![(pipe.as_fd(), Interest::Readable)];
    watched.extend(pidfd.as_ref().ok().map(|pidfd| (pidfd.as_fd(), Interest::Readable)));
    // The PID may have been reused before the process was opened.
    if this_process::parent() != host {
        return Ok(());
    }
    poll::wait_any(&watched, Deadline::after_now(Duration::MAX)).map(drop)
}
