//! The child of `throughput`: writes messages as fast as its pipe accepts. It is this program, started with another command.

use crate::Done;
use pipewright::pipe::anonymous::PipeWriter;
use std::io::{self, Read, Write};

/// Its command.
pub(crate) const COMMAND: &str = "flood";

/// One write fills a pipe of the default size.
const BLOCK_BYTES: usize = 64 << 10;

/// `flood HANDLE BYTES COUNT`: writes `COUNT` messages of `BYTES` bytes into the pipe after the end of standard input.
pub(crate) fn run(words: &[String]) -> Done {
    let [handle, bytes, count] = words else { return Err("flood HANDLE BYTES COUNT".into()) };
    let (bytes, mut left): (usize, usize) = (bytes.parse()?, count.parse()?);
    let mut messages = PipeWriter::inherit(handle.parse()?)?;
    let block_messages = (BLOCK_BYTES / bytes).max(1);
    let block: Vec<u8> = (0..block_messages).flat_map(|n| message(n, bytes)).collect();

    // The parent starts all children together by closing its end.
    io::stdin().read_to_end(&mut Vec::new())?;
    while left > 0 {
        let now = left.min(block_messages);
        messages.write_all(block.get(..now * bytes).unwrap_or_default())?;
        left -= now;
    }
    Ok(())
}

/// A line of this size, line feed included: `{"n":12,"file":"src/a.c","done":true,"pad":"xxx"}`.
fn message(n: usize, bytes: usize) -> Vec<u8> {
    let head = format!(r#"{{"n":{n},"file":"src/a.c","done":true,"pad":""#);
    let tail = "\"}\n";
    let pad = bytes.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", "x".repeat(pad)).into_bytes()
}
