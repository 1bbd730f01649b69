//! A shell on the far side, over the same ssh: it tells where names live there, and answers, so that we know what has arrived.

use super::{deadline::Until, error::TunnelError};
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

/// Our own line begins so: the login shell's start-up files may print before it.
const MARK: &[u8] = b"pipewright:";

/// For any login shell: in single quotes, without a single quote or a `!`. In the end it only repeats what it reads.
const COMMAND: &str = r#"exec sh -c 'printf "\npipewright:%s:%s\n" "$(id -u)" "$XDG_RUNTIME_DIR"; exec cat'"#;

/// Lines of a chatty start-up file before ours, in bytes.
const CHATTER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Far {
    process: Process,
    input: PipeWriter,
    output: PipeReader,
    read: Vec<u8>,
    questions: u64,
    /// Where plain names live there.
    pub(super) directory: PathBuf,
}

impl Far {
    pub(super) fn ask(control: &Path, until: &Until<'_>) -> Result<Self, TunnelError> {
        let mut plan = LaunchPlan::new(Program::Named("ssh".into()));
        let socket = control.as_os_str().to_owned();
        let plain = |text: &str| OsString::from(text);
        // No configuration: all was said when the tunnel was opened. Where the running ssh refuses, this one would go its own
        // way: the proxy that fails keeps it from that.
        plan.arguments.extend(
            [plain("-F"), plain("none"), plain("-S"), socket, plain("-T"), plain("-o"), plain("BatchMode=yes")]
                .into_iter()
                .chain(["-o", "ProxyCommand=false", "--", "tunnel", COMMAND].map(plain))
                .map(Argument::Plain),
        );
        (plan.stdin, plan.stdout, plan.stderr) = (StdinMode::Pipe, OutputMode::Lines, OutputMode::Lines);
        let mut process =
            Process::new(launch(&plan, prepare(&plan, OpenMode::Nonblocking)?, &SpawnContext::default())?);
        let (Some(input), Some(output)) = (process.take_stdin(), process.take_stdout()) else {
            return Err(io::Error::other("a process without the pipes that were asked for").into());
        };
        let mut far = Self { process, input, output, read: Vec::new(), questions: 0, directory: PathBuf::new() };
        far.directory = loop {
            match far.line(until) {
                Ok(line) if line.starts_with(MARK) => break directory(line.get(MARK.len()..).unwrap_or_default()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(TunnelError::NoShell { said: far.complaint(until) });
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(far)
    }

    /// Returns when the far side has answered: it has dealt with everything that ssh sent before.
    pub(super) fn round_trip(&mut self, until: &Until<'_>) -> io::Result<()> {
        self.questions += 1;
        let question = format!("{}\n", self.questions);
        self.input.write_all_deadline(question.as_bytes(), until.remaining()).map_err(io::Error::from)?;
        // An answer that came too late for its question is passed over.
        while self.line(until)? != question.trim_end().as_bytes() {}
        Ok(())
    }

    fn line(&mut self, until: &Until<'_>) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=at).collect();
                line.pop();
                return Ok(line);
            }
            if self.read.len() > CHATTER_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the far side's shell prints without end"));
            }
            let mut part = [0; 1024];
            match self.output.read_deadline(&mut part, until.remaining())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.read.extend_from_slice(part.get(..bytes).unwrap_or_default()),
            }
        }
    }

    /// What it said on its way out.
    fn complaint(&mut self, until: &Until<'_>) -> Box<str> {
        const MOMENT: Duration = Duration::from_secs(1);
        let Some(stderr) = self.process.take_stderr() else { return Box::default() };
        let (mut said, mut part) = (Vec::new(), [0; 1024]);
        while let Ok(bytes @ 1..) = stderr.read_deadline(&mut part, until.remaining().min(MOMENT)) {
            said.extend_from_slice(part.get(..bytes).unwrap_or_default());
            if said.len() > 8 * part.len() {
                break;
            }
        }
        printable(&said).lines().to_string().into()
    }
}

/// The rule of [`PipeName::new`](crate::pipe::named::PipeName::new), on what the far side says of itself: `UID:XDG_RUNTIME_DIR`.
fn directory(told: &[u8]) -> PathBuf {
    let colon = told.iter().position(|byte| *byte == b':').unwrap_or(told.len());
    let (uid, runtime) = told.split_at(colon);
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
    fn names_live_where_the_far_side_says() {
        assert_eq!(directory(b"1000:/run/user/1000"), Path::new("/run/user/1000/pipewright"));
        assert_eq!(directory(b"1000:/a:b"), Path::new("/a:b/pipewright"));
        assert_eq!(directory(b"1000:"), Path::new("/tmp/pipewright-1000"));
        assert_eq!(directory(b"0:relative"), Path::new("/tmp/pipewright-0"));
    }
}
