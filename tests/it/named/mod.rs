//! Named pipes, first against what the tests of .NET's `System.IO.Pipes` assert (`sNN_...` is statement NN of a list made from
//! them; also those that .NET only keeps on Windows), then against what only this library promises.
//!
//! Statements that have no test here:
//!
//! | statement | reason |
//! |---|---|
//! | 1-20 | anonymous pipes |
//! | 23 directions, modes, option bits, negative sizes | types |
//! | 24 -2 and 255 as limits | types: `u32`; 255 is a limit like any other |
//! | 25, 36 null and invalid handles | types: `OwnedFd`; what is not a socket is in `s25` |
//! | 26 the handle of a server without a client | types: there is no stream before there is a client |
//! | 27 a server from a disposed or bound handle | types: an `OwnedFd` is open |
//! | 28 -1 instances means 255 | here no limit means no limit |
//! | 32 unknown enum values | types |
//! | 34 access rights of a client | Windows' access control lists |
//! | 35 the name of the host as server | other machines are reached through a tunnel |
//! | 37 timeouts out of range | types: `Duration`; the longest one never expires |
//! | 41, 63 connecting a connected client, or accepting into a connected server | types: each call makes a new stream |
//! | 46 cancelling from outside (`CancelIoEx`) | cancellation is tested in `s39`, `s45` and `s87` |
//! | 53, 54 each instance names its own limit | one listener has one limit |
//! | 57 one of two waiting instances is disposed | one listener; its waiting threads are in `s57` |
//! | 59, 60 reading and writing before there is a connection | types: there is no stream yet |
//! | 65, 66 using and disposing what is disposed | types; what `disconnect` leaves is in `s61` |
//! | 68 length, position, seek | types: no `Seek` |
//! | 74, 75 offsets, argument checks | types: slices |
//! | 94 read mode without the right to set attributes | Windows' access control lists |
//! | 95 message mode is not supported on Unix | it is: 89-93 |
//! | 96 `is_message_complete` of a byte pipe | types: only `MessageStream` has it |
//! | 106 the first length of a path that fails is 108 | here 4096, as for any file; the lengths between are in `s106` |
//!
//! "(types)" means that no program that breaks the statement compiles.
#![expect(clippy::disallowed_methods, reason = "tests start threads and programs, and read the clock")]

mod connecting;
mod crowd;
mod data;
mod draining;
mod example;
mod files;
mod identity;
mod instances;
mod messages;
mod names;

use std::{
    collections::BTreeSet,
    fs,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use pipewright::pipe::{
    CancelToken, PipeMode, Timeout,
    anonymous::PipeReader,
    named::{ConnectOptions, ImpersonationLevel, Listener, ListenerOptions, MessageStream, PipeName, Stream},
};

use crate::{kernel, support::DEADLINE};

/// Time for which something must not happen.
const A_WHILE: Duration = Duration::from_millis(90);

const MODES: [PipeMode; 3] = [PipeMode::Byte, PipeMode::Message, PipeMode::Framed];

#[test]
fn every_statement_has_test_or_reason() {
    let table = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    let mut missing: BTreeSet<u32> = (1..=110).collect();
    for row in table {
        // "1-20 what it says", "25, 36 what they say"
        let numbers = row.split([' ', ',']).filter(|word| !word.is_empty());
        for number in numbers.take_while(|word| word.starts_with(|c: char| c.is_ascii_digit())) {
            let (first, last) = number.split_once('-').unwrap_or((number, number));
            missing.retain(|number| !(first.parse().unwrap()..=last.parse().unwrap()).contains(number));
        }
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/named");
    for file in fs::read_dir(directory).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        // "fn s29_s52_second_server"
        for name in text.lines().filter_map(|line| line.strip_prefix("fn ")) {
            let numbers = name.split('_').map_while(|word| word.strip_prefix('s')?.parse().ok());
            numbers.for_each(|tested: u32| missing.retain(|number| *number != tested));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// A directory for one test that all users can enter. Removed on drop.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pipewright-named-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn name(&self, name: &str) -> PipeName {
        PipeName::new(self.path(name)).unwrap()
    }

    /// Names of the files in it.
    fn files(&self) -> Vec<String> {
        let mut files: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Both ends of one connection. The listener is dropped last.
struct Pair {
    server: Stream,
    client: Stream,
    listener: Listener,
    _place: Place,
}

impl Pair {
    fn new(mode: PipeMode) -> Self {
        Self::with(&ListenerOptions::new().mode(mode), &ConnectOptions::new().mode(mode))
    }

    fn bytes() -> Self {
        Self::new(PipeMode::Byte)
    }

    fn with(server: &ListenerOptions, client: &ConnectOptions) -> Self {
        let place = Place::new();
        let name = place.name("pair");
        let listener = server.listen(&name).unwrap();
        let (server, client) = meet(&listener, client);
        Self { server, client, listener, _place: place }
    }

    /// Server and client end, as message streams.
    fn messages(mode: PipeMode) -> (MessageStream, MessageStream) {
        let Self { server, client, .. } = Self::new(mode);
        (server.into_messages().unwrap(), client.into_messages().unwrap())
    }
}

/// Connects and accepts concurrently.
fn meet(listener: &Listener, client: &ConnectOptions) -> (Stream, Stream) {
    thread::scope(|scope| {
        let server = scope.spawn(|| listener.accept_timeout(DEADLINE));
        let client = client.connect(listener.name(), DEADLINE);
        (server.join().unwrap().unwrap(), client.unwrap())
    })
}

fn with_handshake() -> (ListenerOptions, ConnectOptions) {
    let client = ConnectOptions::new().handshake(ImpersonationLevel::Identification);
    (ListenerOptions::new().handshake(), client)
}

#[track_caller]
fn read_exactly(stream: &Stream, count: usize) -> Vec<u8> {
    let mut all = vec![0; count];
    let mut have = 0;
    while have < count {
        let got = stream.read_timeout(&mut all[have..], DEADLINE).unwrap();
        assert!(got > 0, "end of stream after {have} of {count} bytes");
        have += got;
    }
    all
}

#[track_caller]
fn read_to_end(stream: &Stream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match stream.read_timeout(&mut piece, DEADLINE).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

#[track_caller]
fn write_all(stream: &Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[stream.write_timeout(bytes, DEADLINE).unwrap()..];
    }
}

#[track_caller]
fn recv(stream: &MessageStream) -> Option<Vec<u8>> {
    stream.recv_timeout(DEADLINE).unwrap()
}

/// Bytes with a period of 251, a prime.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// Polls until a condition holds that cannot be waited for.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::yield_now();
    }
}

/// A timeout that ends on cancellation, or at the deadline of the test.
fn until_cancelled(cancel: &CancelToken) -> Timeout<'_> {
    Timeout::after(DEADLINE).or_cancelled(cancel)
}

/// Drops one end and waits until the other end detects it. A process being spawned by another test holds a copy of the socket
/// until its exec.
fn close(end: Stream, other: &Stream) {
    drop(end);
    until("peer has closed", || !other.is_connected());
}

/// Creates a stale socket file. Waits like [`close`].
fn stale_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    until("socket is closed", || UnixStream::connect(path).is_err());
}

pub(crate) fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line.starts_with("Uid:\t0\t0\t0"))
}

/// Copies a program to a path that other users can reach.
pub(crate) fn reachable(program: &Path, directory: &Path) -> PathBuf {
    let path = directory.join(program.file_name().unwrap());
    if !path.exists() {
        // By another process: a process being spawned by another test would hold the file open for writing, which makes exec fail
        // with ETXTBSY.
        assert!(Command::new("cp").arg(program).arg(&path).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

/// A program that is killed when the test ends.
struct Program {
    child: Child,
    stdout: PipeReader,
}

impl Program {
    fn fixture(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_child-fixture"));
        command.args(arguments);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = os_pipe::PipeReader::from(OwnedFd::from(child.stdout.take().unwrap()));
        Self { child, stdout: stdout.into() }
    }

    /// The next line of its output; empty at the end.
    #[track_caller]
    fn line(&mut self) -> String {
        line(&self.stdout).trim_end().to_owned()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Closes its stdin and waits for its exit.
    #[track_caller]
    fn finish(&mut self) -> i32 {
        drop(self.child.stdin.take());
        self.wait()
    }

    #[track_caller]
    fn wait(&mut self) -> i32 {
        // Not reaped yet, so the number cannot be reused.
        let end = kernel::pidfd_open(self.child.id()).unwrap();
        assert!(kernel::poll_readable(&end, DEADLINE), "process {} still runs", self.child.id());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

/// Reads the next line from a pipe and no byte more; at the end, the rest.
#[track_caller]
fn line(pipe: &PipeReader) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while pipe.read_timeout(&mut byte, DEADLINE).unwrap() == 1 && byte != *b"\n" {
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn byte(stream: &Stream) -> u8 {
    read_exactly(stream, 1)[0]
}

fn put(stream: &Stream, byte: u8) {
    write_all(stream, &[byte]);
}

/// A plain Unix domain socket with a read timeout.
fn plain(path: &Path) -> UnixStream {
    let plain = UnixStream::connect(path).unwrap();
    plain.set_read_timeout(Some(DEADLINE)).unwrap();
    plain
}
