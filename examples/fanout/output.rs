//! Writes lines to standard output and standard error, which may be non-blocking or closed.

use pipewright::pipe::anonymous::PipeWriter;
use std::{fmt::Display, io, os::fd::AsFd, time::Duration};

/// Writes a line. Another process with the same open file (a Node parent, an `ssh`) may have made it non-blocking: this waits
/// until it is writable instead of losing the line. Ignores errors: the build continues after the reader has closed the pipe.
pub(crate) fn write_line(stream: impl AsFd, text: &str) {
    let Ok(fd) = stream.as_fd().try_clone_to_owned() else { return };
    let line = format!("{text}\n");
    let written = PipeWriter::from(os_pipe::PipeWriter::from(fd)).write_all_timeout(line.as_bytes(), Duration::MAX);
    drop(written.map_err(io::Error::from));
}

pub(crate) fn print_line(text: &str) {
    write_line(io::stdout(), text);
}

pub(crate) fn print_error(error: &dyn Display) {
    write_line(io::stderr(), &format!("fanout: {error}"));
}
