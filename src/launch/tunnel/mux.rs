//! What is said to a running ssh through its control socket: `PROTOCOL.mux` of OpenSSH, version 4.
//!
//! `ssh -O forward` would do the same with one more process for each connection, and would read meaning into `:`, `%` and `$`
//! in a path. The packets are those of our own framed pipes: each after its length.

use super::{deadline::Until, error::TunnelError};
use crate::{
    pipe::{
        mode::PipeMode,
        named::{connect::ConnectOptions, message_stream::MessageStream, name::PipeName},
        timeout::Wait,
    },
    text::printable,
};
use std::{io, os::unix::ffi::OsStrExt, path::Path};

const HELLO: u32 = 1;
const VERSION: u32 = 4;
const OPEN_FORWARD: u32 = 0x1000_0006;
const CLOSE_FORWARD: u32 = 0x1000_0007;
const OK: u32 = 0x8000_0001;
const LOCAL: u32 = 1;
/// In the place of a port: the address is a path.
const PATH_PORT: u32 = u32::MAX - 1;
/// Any answer that ssh gives is far shorter.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Whether a control socket that is not there is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    Wait,
    Fail,
}

/// Says hello, and hears it: whoever answers has gone once through its loop since it was asked.
pub(super) fn greet(control: &PipeName, absent: Absent, until: &Until<'_>) -> io::Result<MessageStream> {
    let stream = knock(control, absent, until.wait())?;
    hear_hello(&stream, until.wait())?;
    stream.send_deadline(&packet(&[HELLO, VERSION]), until.wait())?;
    Ok(stream)
}

/// Begins to greet: ssh says hello to whoever is connected.
pub(super) fn knock(control: &PipeName, absent: Absent, wait: Wait<'_>) -> io::Result<MessageStream> {
    let mut options = ConnectOptions::new().mode(PipeMode::Framed).max_message(PACKET_BYTES_MAX);
    if absent == Absent::Fail {
        options = options.fail_if_absent();
    }
    options.connect(control, wait)?.into_messages()
}

pub(super) fn hear_hello(stream: &MessageStream, wait: Wait<'_>) -> io::Result<()> {
    let hello = receive(stream, wait)?;
    if number(&hello, 0) != Some(HELLO) || number(&hello, 1) != Some(VERSION) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "ssh speaks another version of its control protocol"));
    }
    Ok(())
}

/// Has ssh listen on one path for connections to another one on the far side.
pub(super) fn open_forward(
    control: &PipeName,
    here: &Path,
    there: &Path,
    until: &Until<'_>,
) -> Result<(), TunnelError> {
    let answer = ask(control, OPEN_FORWARD, here, there, until)?;
    if number(&answer, 0) == Some(OK) {
        return Ok(());
    }
    // Type, request, length of the text, text.
    let reason = printable(answer.get(12..).unwrap_or_default()).to_string().into();
    Err(TunnelError::Refused { reason })
}

/// Has ssh stop listening. What is connected stays so.
pub(super) fn close_forward(control: &PipeName, here: &Path, there: &Path, until: &Until<'_>) -> io::Result<()> {
    ask(control, CLOSE_FORWARD, here, there, until).map(drop)
}

fn ask(control: &PipeName, request: u32, here: &Path, there: &Path, until: &Until<'_>) -> io::Result<Vec<u8>> {
    const NUMBER: u32 = 0;
    let stream = greet(control, Absent::Fail, until)?;
    let mut bytes = packet(&[request, NUMBER, LOCAL]);
    for path in [here, there] {
        let path = path.as_os_str().as_bytes();
        let length = u32::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidFilename)?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(path);
        bytes.extend(PATH_PORT.to_be_bytes());
    }
    stream.send_deadline(&bytes, until.wait())?;
    receive(&stream, until.wait())
}

fn receive(stream: &MessageStream, wait: Wait<'_>) -> io::Result<Vec<u8>> {
    stream.recv_deadline(wait)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn packet(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn number(packet: &[u8], index: usize) -> Option<u32> {
    packet.get(index * 4..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
