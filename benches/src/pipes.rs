//! Throughput of bytes and messages for each kind of pipe, between two threads of this process.
//!
//! | peer | what | a message is |
//! |---|---|---|
//! | `socketpair` | a pair of stream sockets, the upper bound for Unix domain sockets | one write |
//! | `anonymous` | `pipe::anonymous` | one write |
//! | `named-byte` | `pipe::named`, byte mode | one write |
//! | `named-message` | message mode, the kernel's boundaries | one `send`, one `recv` |
//! | `named-framed` | framed mode | one `send`, one `recv` |
//!
//! Compare bytes per second at 64 KiB, and messages per second at 100 bytes. Nothing is buffered: each message is one system call
//! of the writer. The first three do not keep messages apart, so their reader needs fewer calls.

use crate::{
    Done, Options,
    figures::{median, now, tell},
};
use pipewright::pipe::{
    PipeMode, anonymous,
    named::{ConnectOptions, ListenerOptions, MessageStream, PipeName, Stream},
};
use serde::Serialize;
use std::{
    error::Error,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process, thread,
    time::Duration,
};

const PEERS: [&str; 5] = ["socketpair", "anonymous", "named-byte", "named-message", "named-framed"];
const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: &'static str,
    size: u32,
    bytes_per_s: f64,
    msgs_per_s: f64,
}

type Failed = Box<dyn Error + Send + Sync>;

pub(crate) fn run(options: &Options) -> Done {
    let shorter = if options.quick { 50_u32 } else { 1 };
    for (size, count) in [(64_u32 << 10, 20_000 / shorter), (100, 400_000 / shorter)] {
        let mut seconds = vec![Vec::new(); PEERS.len()];
        for _ in 0..ROUNDS {
            for (peer, seconds) in PEERS.iter().zip(&mut seconds) {
                seconds.push(time(peer, size as usize, count as usize)?);
            }
        }
        for (peer, seconds) in PEERS.into_iter().zip(seconds) {
            let msgs_per_s = (f64::from(count) / median(seconds)).round();
            tell(&Line { bench: "pipes", peer, size, bytes_per_s: msgs_per_s * f64::from(size), msgs_per_s })?;
        }
    }
    Ok(())
}

/// Seconds for `count` messages of one size.
fn time(peer: &str, size: usize, count: usize) -> Result<f64, Failed> {
    let total = size * count;
    match peer {
        "socketpair" => {
            let (writer, reader) = UnixStream::pair()?;
            bytes(writer, reader, size, total)
        }
        "anonymous" => {
            let (writer, end) = anonymous::to_child()?;
            bytes(writer, end.into_reader()?, size, total)
        }
        "named-byte" => {
            let (writer, reader) = named(PipeMode::Byte)?;
            bytes(writer, reader, size, total)
        }
        "named-message" => {
            let (writer, reader) = named(PipeMode::Message)?;
            messages(writer.into_messages()?, &reader.into_messages()?, size, count)
        }
        _ => {
            let (writer, reader) = named(PipeMode::Framed)?;
            messages(writer.into_messages()?, &reader.into_messages()?, size, count)
        }
    }
}

fn named(mode: PipeMode) -> Result<(Stream, Stream), Failed> {
    let name = PipeName::new(format!("bench-{}", process::id()))?;
    let listener = ListenerOptions::new().mode(mode).listen(&name)?;
    let client = ConnectOptions::new().mode(mode).connect(&name, PATIENCE)?;
    Ok((client, listener.accept_timeout(PATIENCE)?))
}

fn bytes(mut writer: impl Write + Send, mut reader: impl Read, size: usize, total: usize) -> Result<f64, Failed> {
    let began = now();
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let block = vec![b'x'; size];
            (0..total / size).try_for_each(|_| writer.write_all(&block))
        });
        let mut buffer = vec![0; 64 << 10];
        let mut left = total;
        while left > 0 {
            let read = reader.read(&mut buffer)?;
            if read == 0 {
                return Err("the writer has ended early".into());
            }
            left -= read;
        }
        writing.join().map_err(|_| "the writer panicked")??;
        Ok((now() - began).as_secs_f64())
    })
}

fn messages(writer: MessageStream, reader: &MessageStream, size: usize, count: usize) -> Result<f64, Failed> {
    let began = now();
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let message = vec![b'x'; size];
            (0..count).try_for_each(|_| writer.send(&message))
        });
        for _ in 0..count {
            if reader.recv()?.is_none_or(|message| message.len() != size) {
                return Err("a message is missing".into());
            }
        }
        writing.join().map_err(|_| "the writer panicked")??;
        Ok((now() - began).as_secs_f64())
    })
}
