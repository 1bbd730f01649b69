//! What a test has written, and the harness's own output.

use pipewright::pipe::anonymous::PipeWriter;
use std::{collections::VecDeque, fmt::Display, io, os::fd::AsFd, time::Duration};

/// How many bytes of the beginning, and how many of the end, of the output of one test are kept.
const KEPT_BYTES: usize = 512 << 10;

/// The output of one test, standard output and standard error in the order in which they arrived.
#[derive(Debug, Default)]
pub(crate) struct KeptOutput {
    first: Vec<u8>,
    last: VecDeque<u8>,
    omitted: u64,
}

impl KeptOutput {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = KEPT_BYTES.saturating_sub(self.first.len());
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.first.extend(first);
        // Of a piece that is longer than what is kept, only its end.
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(KEPT_BYTES));
        let excess = (self.last.len() + rest.len()).saturating_sub(KEPT_BYTES);
        self.last.drain(..excess.min(self.last.len()));
        self.last.extend(rest);
        self.omitted += (skipped.len() + excess) as u64;
    }

    pub(crate) fn text(&self) -> String {
        let mut bytes = self.first.clone();
        if self.omitted > 0 {
            bytes.extend(format!("\n[{} bytes omitted]\n", self.omitted).bytes());
        }
        bytes.extend(&self.last);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Writes text. Another process with the same open file (a Node parent, an `ssh`) may have made it non-blocking: this waits until
/// it is writable instead of losing the text. Ignores errors: the tests go on after the reader has closed the pipe.
pub(crate) fn write(stream: impl AsFd, text: &str) {
    let Ok(fd) = stream.as_fd().try_clone_to_owned() else { return };
    let written = PipeWriter::from(os_pipe::PipeWriter::from(fd)).write_all_timeout(text.as_bytes(), Duration::MAX);
    drop(written.map_err(io::Error::from));
}

pub(crate) fn print_error(error: &dyn Display) {
    write(io::stderr(), &format!("error: {error}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_are_kept() {
        let mut short = KeptOutput::default();
        short.push(b"a");
        short.push(b"b\xff");
        assert_eq!(short.text(), "ab\u{fffd}");
        for piece in [1000, KEPT_BYTES, 5 * KEPT_BYTES] {
            let mut output = KeptOutput::default();
            output.push(b"begin");
            let mut total = 5;
            while total < 5 * KEPT_BYTES {
                output.push(&vec![b'.'; piece]);
                total += piece;
            }
            output.push(b"..end");
            let text = output.text();
            let omitted = total + 5 - 2 * KEPT_BYTES;
            assert!(text.starts_with("begin.") && text.ends_with("...end"));
            assert!(text.contains(&format!("\n[{omitted} bytes omitted]\n")), "{piece} {omitted}");
            assert!(text.len() < 2 * KEPT_BYTES + 100);
        }
    }
}
