//! Descriptors that nobody asked for, over control: to close them takes longer than any test, so nobody may close them who has
//! something else to do.

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

/// A worker that leaves its control connection to us.
struct Scene {
    began: Instant,
    story: Story,
    worker: Worker,
    path: String,
    key: String,
    /// The other ends of what was sent: if they go, so does the waiting.
    held: Vec<Box<dyn Send>>,
}

impl Scene {
    fn new() -> Self {
        let began = Instant::now();
        let mut story = Story::new();
        let spec = Way::Direct.fixture("control-address").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec).unwrap();
        let address = story.json().as_str().unwrap().to_owned();
        let (path, key) = address.rsplit_once('?').unwrap();
        Self { began, worker, path: path.to_owned(), key: key.to_owned(), held: Vec::new(), story }
    }

    fn visit(&self, said: &[u8]) -> UnixStream {
        let mut visitor = UnixStream::connect(&self.path).unwrap();
        visitor.write_all(said).unwrap();
        visitor
    }

    fn connect(&self) -> UnixStream {
        let hello = json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": self.key}});
        self.visit(format!("{hello}\n").as_bytes())
    }

    /// Sends the last descriptor of a socket that does not close, and then a byte. From Linux 6.16 on that is refused.
    fn smuggle(&mut self, mut socket: UnixStream, flags: i32) {
        let (reader, writer) = kernel::lingering();
        match kernel::try_send_descriptors(&socket, b"x", &[writer.as_fd()], flags) {
            // In this order they close at once.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => drop((reader, writer)),
            sent => {
                sent.unwrap();
                drop(writer);
                self.held.push(Box::new(reader));
            }
        }
        socket.write_all(b"y").unwrap();
        self.held.push(Box::new(socket));
    }

    fn end(self) {
        let Self { began, story, worker, path: _, key: _, held } = self;
        assert!(worker.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none(), "{:#?}", story.told);
        drop((worker, story));
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        drop(held);
    }
}

fn nobody_is_held_up() {
    for flags in [0, libc::MSG_OOB] {
        let mut scene = Scene::new();
        // The loop does not run until only itself can be the last to close.
        let stopped = stop_loop();
        scene.smuggle(scene.connect(), flags);
        // A stranger who has said so much is not read any further.
        scene.smuggle(scene.visit(&[b'x'; 4096]), flags);
        drop(stopped);
        scene.end();
    }
}

fn no_caller_is_held_up() {
    let mut scene = Scene::new();
    let socket = scene.connect();
    scene.story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    let stopped = stop_loop();
    scene.smuggle(socket, 0);
    // The loop does not read, so this one does.
    let answer = scene.worker.call::<_, ()>("anything", &(), Duration::from_millis(50));
    assert!(matches!(answer, Err(CallError::TimedOut)), "{answer:?}");
    assert!(scene.began.elapsed() < DEADLINE, "{:?}", scene.began.elapsed());
    drop(stopped);
    scene.end();
}

/// As before Linux 6.16.
fn refuse_to_refuse() {
    const SO_PASSRIGHTS: u32 = 83;
    for call in [libc::SYS_setsockopt, libc::SYS_getsockopt] {
        kernel::refuse(call, Some((2, SO_PASSRIGHTS)), libc::ENOPROTOOPT);
    }
}

#[test]
fn p12_descriptors_that_do_not_close_hold_nobody_up() {
    if alone("smuggling::p12_descriptors_that_do_not_close_hold_nobody_up", |spec| spec) {
        nobody_is_held_up();
    }
}

#[test]
fn p12_nor_a_caller() {
    if alone("smuggling::p12_nor_a_caller", |spec| spec) {
        no_caller_is_held_up();
    }
}

#[test]
fn p12_nor_where_the_kernel_does_not_refuse_them() {
    if alone("smuggling::p12_nor_where_the_kernel_does_not_refuse_them", |spec| spec) {
        refuse_to_refuse();
        nobody_is_held_up();
    }
}

#[test]
fn p12_nor_a_caller_there() {
    if alone("smuggling::p12_nor_a_caller_there", |spec| spec) {
        refuse_to_refuse();
        no_caller_is_held_up();
    }
}

#[test]
fn p12_whoever_sends_descriptors_over_control_is_disconnected() {
    if alone("smuggling::p12_whoever_sends_descriptors_over_control_is_disconnected", |spec| spec) {
        refuse_to_refuse();
        let mut scene = Scene::new();
        scene.smuggle(scene.connect(), 0);
        scene.story.find(|event| matches!(event.kind, EventKind::ControlDisconnected(_)).then_some(()));
        scene.end();
    }
}
