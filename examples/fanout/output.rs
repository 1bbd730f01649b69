//! Our own standard output and error, line by line, whatever stands at the other end.

use pipewright::pipe::anonymous::PipeWriter;
use std::{fmt::Display, io, os::fd::AsFd, time::Duration};

/// Writes a line, also where another process has made the descriptor non-blocking (a Node parent, an `ssh` beside us): the pipe is
/// then waited for instead of losing the line. A reader that has closed it wants no more; the build goes on all the same.
pub(crate) fn write_line(stream: impl AsFd, text: &str) {
    let Ok(descriptor) = stream.as_fd().try_clone_to_owned() else { return };
    let line = format!("{text}\n");
    let written =
        PipeWriter::from(os_pipe::PipeWriter::from(descriptor)).write_all_timeout(line.as_bytes(), Duration::MAX);
    drop(written.map_err(io::Error::from));
}

pub(crate) fn say(text: &str) {
    write_line(io::stdout(), text);
}

pub(crate) fn complain(what: &dyn Display) {
    write_line(io::stderr(), &format!("fanout: {what}"));
}
