//! File descriptors sent over a control connection. Closing them blocks for longer than any test, so neither the event loop nor a
//! caller may close them.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, alone, stop_loop},
};
use pipewright::{CallError, EventKind, Pass, StdinMode, Worker};
use serde_json::json;
use std::{
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

/// A worker whose control connection the test opens.
struct Scene {
    began: Instant,
    story: Story,
    worker: Worker,
    path: String,
    key: String,
    /// The peers of the sent sockets: once they are closed, close(2) no longer blocks.
    peers: Vec<Box<dyn Send>>,
}

impl Scene {
    fn new() -> Self {
        let began = Instant::now();
        let mut story = Story::new();
        let spec = Way::Direct.fixture("control-address").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec).unwrap();
        let address = story.json().as_str().unwrap().to_owned();
        let (path, key) = address.rsplit_once('?').unwrap();
        Self { began, worker, path: path.to_owned(), key: key.to_owned(), peers: Vec::new(), story }
    }

    fn connect_with(&self, bytes: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.write_all(bytes).unwrap();
        client
    }

    fn connect(&self) -> UnixStream {
        let hello = json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": self.key}});
        self.connect_with(format!("{hello}\n").as_bytes())
    }

    /// Sends the last descriptor of a socket whose close(2) blocks, then a byte. Since Linux 6.16 the kernel refuses to send it.
    fn smuggle(&mut self, mut socket: UnixStream, flags: i32) {
        let (reader, writer) = kernel::lingering();
        match kernel::try_send_descriptors(&socket, b"x", &[writer.as_fd()], flags) {
            // In this order close(2) does not block.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => drop((reader, writer)),
            sent => {
                sent.unwrap();
                drop(writer);
                self.peers.push(Box::new(reader));
            }
        }
        socket.write_all(b"y").unwrap();
        self.peers.push(Box::new(socket));
    }

    fn end(self) {
        let Self { began, story, worker, path: _, key: _, peers } = self;
        assert!(worker.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none(), "{:#?}", story.told);
        drop((worker, story));
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        drop(peers);
    }
}

fn loop_is_not_blocked() {
    for flags in [0, libc::MSG_OOB] {
        let mut scene = Scene::new();
        // The loop is stopped until it would be the last to close the socket.
        let stopped = stop_loop();
        scene.smuggle(scene.connect(), flags);
        // After this many bytes without a key the connection is not read any further.
        scene.smuggle(scene.connect_with(&[b'x'; 4096]), flags);
        drop(stopped);
        scene.end();
    }
}

fn caller_is_not_blocked() {
    let mut scene = Scene::new();
    let socket = scene.connect();
    scene.story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    let stopped = stop_loop();
    scene.smuggle(socket, 0);
    // The loop is stopped, so the caller reads.
    let answer = scene.worker.call::<_, ()>("anything", &(), Duration::from_millis(50));
    assert!(matches!(answer, Err(CallError::TimedOut)), "{answer:?}");
    assert!(scene.began.elapsed() < DEADLINE, "{:?}", scene.began.elapsed());
    drop(stopped);
    scene.end();
}

/// As on kernels before Linux 6.16.
fn disable_passrights() {
    const SO_PASSRIGHTS: u32 = 83;
    for call in [libc::SYS_setsockopt, libc::SYS_getsockopt] {
        kernel::refuse(call, Some((2, SO_PASSRIGHTS)), libc::ENOPROTOOPT);
    }
}

#[test]
fn p12_fds_that_block_close_do_not_block_the_loop() {
    if alone("smuggling::p12_fds_that_block_close_do_not_block_the_loop", |spec| spec) {
        loop_is_not_blocked();
    }
}

#[test]
fn p12_fds_that_block_close_do_not_block_a_caller() {
    if alone("smuggling::p12_fds_that_block_close_do_not_block_a_caller", |spec| spec) {
        caller_is_not_blocked();
    }
}

#[test]
fn p12_fds_that_block_close_do_not_block_the_loop_without_so_passrights() {
    if alone("smuggling::p12_fds_that_block_close_do_not_block_the_loop_without_so_passrights", |spec| spec) {
        disable_passrights();
        loop_is_not_blocked();
    }
}

#[test]
fn p12_fds_that_block_close_do_not_block_a_caller_without_so_passrights() {
    if alone("smuggling::p12_fds_that_block_close_do_not_block_a_caller_without_so_passrights", |spec| spec) {
        disable_passrights();
        caller_is_not_blocked();
    }
}

#[test]
fn p12_client_that_sends_fds_over_control_is_disconnected() {
    if alone("smuggling::p12_client_that_sends_fds_over_control_is_disconnected", |spec| spec) {
        disable_passrights();
        let mut scene = Scene::new();
        scene.smuggle(scene.connect(), 0);
        scene.story.find(|event| matches!(event.kind, EventKind::ControlDisconnected(_)).then_some(()));
        scene.end();
    }
}
