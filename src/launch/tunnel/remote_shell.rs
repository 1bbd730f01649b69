//! A shell on the remote machine, over the same ssh connection. It reports where pipe names resolve there, and echoes lines, which
//! shows that everything sent before has been processed.

use super::{deadline::TunnelDeadline, error::TunnelError};
use crate::{
    launch::{
        context::{OpenMode, SpawnContext},
        plan::{Argument, LaunchPlan, Program},
        process::Process,
        spawn::{launch, prepare},
        stdio::{OutputMode, StdinMode},
    },
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    text::printable,
};
use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Marks our line: the login shell's start-up files may print before it.
const REPLY_PREFIX: &[u8] = b"pipewright:";

/// Works in any login shell: single-quoted, with neither a single quote nor a `!` inside. `cat` then echoes standard input.
const COMMAND: &str = r#"exec sh -c 'printf "\npipewright:%s:%s\n" "$(id -u)" "$XDG_RUNTIME_DIR"; exec cat'"#;

/// Limit for the output of start-up files before our line.
const BANNER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct RemoteShell {
    process: Process,
    input: PipeWriter,
    output: PipeReader,
    read: Vec<u8>,
    sequence: u64,
    /// Where plain pipe names resolve on the remote machine.
    pub(super) directory: PathBuf,
}

impl RemoteShell {
    pub(super) fn open(control: &Path, until: &TunnelDeadline<'_>) -> Result<Self, TunnelError> {
        let mut plan = LaunchPlan::new(Program::Named("ssh".into()));
        let socket = control.as_os_str().to_owned();
        let plain = |text: &str| OsString::from(text);
        // No configuration: the tunnel's ssh has applied it. If that ssh refuses the session, this client would open a connection
        // of its own; a proxy command that fails prevents it.
        plan.arguments.extend(
            [plain("-F"), plain("none"), plain("-S"), socket, plain("-T"), plain("-o"), plain("BatchMode=yes")]
                .into_iter()
                .chain(["-o", "ProxyCommand=false", "--", "tunnel", COMMAND].map(plain))
                .map(Argument::Plain),
        );
        (plan.stdin, plan.stdout, plan.stderr) = (StdinMode::Pipe, OutputMode::Lines, OutputMode::Lines);
        let mut process =
            Process::new(&plan, launch(&plan, prepare(&plan, OpenMode::Nonblocking)?, &SpawnContext::default())?);
        let (Some(input), Some(output)) = (process.take_stdin(), process.take_stdout()) else {
            return Err(io::Error::other("ssh was started without its pipes").into());
        };
        let mut shell = Self { process, input, output, read: Vec::new(), sequence: 0, directory: PathBuf::new() };
        shell.directory = loop {
            match shell.line(until) {
                Ok(line) if line.starts_with(REPLY_PREFIX) => {
                    break directory(line.get(REPLY_PREFIX.len()..).unwrap_or_default());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(TunnelError::NoShell { stderr: shell.stderr(until) });
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(shell)
    }

    /// Returns when the remote shell has echoed a line: the remote sshd has then processed everything that ssh sent before.
    pub(super) fn round_trip(&mut self, until: &TunnelDeadline<'_>) -> io::Result<()> {
        self.sequence += 1;
        let line = format!("{}\n", self.sequence);
        self.input.write_all_timeout(line.as_bytes(), until.remaining()).map_err(io::Error::from)?;
        // Skip echoes of earlier calls that timed out.
        while self.line(until)? != line.trim_end().as_bytes() {}
        Ok(())
    }

    fn line(&mut self, until: &TunnelDeadline<'_>) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=at).collect();
                line.pop();
                return Ok(line);
            }
            if self.read.len() > BANNER_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the remote shell printed more than 1 MiB before it answered",
                ));
            }
            let mut part = [0; 1024];
            match self.output.read_timeout(&mut part, until.remaining())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.read.extend_from_slice(part.get(..bytes).unwrap_or_default()),
            }
        }
    }

    /// Reads standard error of a shell that has exited.
    fn stderr(&mut self, until: &TunnelDeadline<'_>) -> Box<str> {
        const STDERR_TIMEOUT: Duration = Duration::from_secs(1);
        let Some(pipe) = self.process.take_stderr() else { return Box::default() };
        let (mut text, mut part) = (Vec::new(), [0; 1024]);
        while let Ok(bytes @ 1..) = pipe.read_timeout(&mut part, until.remaining().min(STDERR_TIMEOUT)) {
            text.extend_from_slice(part.get(..bytes).unwrap_or_default());
            if text.len() > 8 * part.len() {
                break;
            }
        }
        printable(&text).lines().to_string().into()
    }
}

/// Applies the rule of [`PipeName::new`](crate::pipe::named::PipeName::new) to the remote machine's `UID:XDG_RUNTIME_DIR`.
fn directory(reply: &[u8]) -> PathBuf {
    let colon = reply.iter().position(|byte| *byte == b':').unwrap_or(reply.len());
    let (uid, runtime) = reply.split_at(colon);
    let runtime = PathBuf::from(OsString::from_vec(runtime.get(1..).unwrap_or_default().to_vec()));
    if runtime.is_absolute() {
        return runtime.join("pipewright");
    }
    PathBuf::from(format!("/tmp/pipewright-{}", String::from_utf8_lossy(uid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_follows_remote_uid_and_runtime_dir() {
        assert_eq!(directory(b"1000:/run/user/1000"), Path::new("/run/user/1000/pipewright"));
        assert_eq!(directory(b"1000:/a:b"), Path::new("/a:b/pipewright"));
        assert_eq!(directory(b"1000:"), Path::new("/tmp/pipewright-1000"));
        assert_eq!(directory(b"0:relative"), Path::new("/tmp/pipewright-0"));
    }
}
