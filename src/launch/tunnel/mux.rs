//! Client of ssh's control socket: `PROTOCOL.mux` of OpenSSH, version 4.
//!
//! `ssh -O forward` would do the same with one more process for each connection, and would interpret `:`, `%` and `$` in a path.
//! Packets are length-prefixed, as in our framed pipes.

use super::{deadline::TunnelDeadline, error::TunnelError};
use crate::{
    pipe::{
        mode::PipeMode,
        named::{connect::ConnectOptions, message_stream::MessageStream, name::PipeName},
        timeout::Timeout,
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
/// Stands for a port: the address is a path.
const PATH_PORT: u32 = u32::MAX - 1;
/// Replies of ssh are far shorter.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// What to do while the control socket does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingSocket {
    Wait,
    Fail,
}

/// Exchanges hello messages. The reply shows that ssh has completed one turn of its event loop since the connection was made.
pub(super) fn handshake(
    control: &PipeName,
    absent: MissingSocket,
    until: &TunnelDeadline<'_>,
) -> io::Result<MessageStream> {
    let stream = connect(control, absent, until.wait())?;
    receive_hello(&stream, until.wait())?;
    stream.send_timeout(&packet(&[HELLO, VERSION]), until.wait())?;
    Ok(stream)
}

/// Connects to the control socket; ssh then sends its hello.
pub(super) fn connect(control: &PipeName, absent: MissingSocket, wait: Timeout<'_>) -> io::Result<MessageStream> {
    let mut options = ConnectOptions::new().mode(PipeMode::Framed).max_message_size(PACKET_BYTES_MAX);
    if absent == MissingSocket::Fail {
        options = options.no_wait();
    }
    options.connect(control, wait)?.into_messages()
}

pub(super) fn receive_hello(stream: &MessageStream, wait: Timeout<'_>) -> io::Result<()> {
    let hello = receive(stream, wait)?;
    if number(&hello, 0) != Some(HELLO) || number(&hello, 1) != Some(VERSION) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "unsupported version of ssh's control protocol"));
    }
    Ok(())
}

/// Makes ssh listen at `local` and forward connections to `remote` on the remote machine.
pub(super) fn open_forward(
    control: &PipeName,
    local: &Path,
    remote: &Path,
    until: &TunnelDeadline<'_>,
) -> Result<(), TunnelError> {
    let answer = request(control, OPEN_FORWARD, local, remote, until)?;
    if number(&answer, 0) == Some(OK) {
        return Ok(());
    }
    // Reply layout: type, request, length of the text, text.
    let reason = printable(answer.get(12..).unwrap_or_default()).to_string().into();
    Err(TunnelError::ForwardingRefused { reason })
}

/// Makes ssh stop listening. Existing connections stay open.
pub(super) fn close_forward(
    control: &PipeName,
    local: &Path,
    remote: &Path,
    until: &TunnelDeadline<'_>,
) -> io::Result<()> {
    request(control, CLOSE_FORWARD, local, remote, until).map(drop)
}

fn request(
    control: &PipeName,
    kind: u32,
    local: &Path,
    remote: &Path,
    until: &TunnelDeadline<'_>,
) -> io::Result<Vec<u8>> {
    const NUMBER: u32 = 0;
    let stream = handshake(control, MissingSocket::Fail, until)?;
    let mut bytes = packet(&[kind, NUMBER, LOCAL]);
    for path in [local, remote] {
        let path = path.as_os_str().as_bytes();
        let length = u32::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidFilename)?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(path);
        bytes.extend(PATH_PORT.to_be_bytes());
    }
    stream.send_timeout(&bytes, until.wait())?;
    receive(&stream, until.wait())
}

fn receive(stream: &MessageStream, wait: Timeout<'_>) -> io::Result<Vec<u8>> {
    stream.recv_timeout(wait)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn packet(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn number(packet: &[u8], index: usize) -> Option<u32> {
    packet.get(index * 4..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
