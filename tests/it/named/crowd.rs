//! Ten thousand clients, some of them killed.

use std::{
    io::{Read, Write},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use pipewright::pipe::{
    name::PipeName,
    named::{AcceptError, ImpersonationLevel, Stream},
};

use crate::support::{alone, open_descriptors};

use super::{ConnectOptions, ListenerOptions, PATIENCE, Place, Program, text};

const THREADS: u64 = 40;
const ROUNDS: u64 = 250;
const KILLERS: u64 = 3;
/// What clients that may be killed call themselves.
const HAMMER: u64 = u64::MAX;

#[test]
fn ten_thousand_connects_from_forty_threads_while_clients_are_killed() {
    // In a process of its own the descriptors are only ours.
    if alone("named::crowd::ten_thousand_connects_from_forty_threads_while_clients_are_killed", |spec| spec) {
        the_crowd();
    }
}

fn the_crowd() {
    let place = Place::new();
    let before = open_descriptors();
    let listener = ListenerOptions::new().handshake().listen(&place.name("crowd")).unwrap();
    let (seen, killed, served) = (Tally::default(), AtomicU64::new(0), AtomicU64::new(0));
    let (start, done) = (Barrier::new(usize::try_from(THREADS + KILLERS).unwrap()), AtomicBool::new(false));
    thread::scope(|scope| {
        let servers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        match listener.accept() {
                            Ok(stream) => serve(&stream, &seen, &served),
                            Err(AcceptError::ShutDown) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (start, name) = (&start, listener.name());
                scope.spawn(move || {
                    start.wait();
                    (thread * ROUNDS..(thread + 1) * ROUNDS).for_each(|number| visit(name, number));
                })
            })
            .collect();
        let killers: Vec<_> = (0..KILLERS)
            .map(|seed| {
                let (start, done, killed, path) = (&start, &done, &killed, place.path("crowd"));
                scope.spawn(move || {
                    start.wait();
                    kill_clients(text(&path), seed, done, killed);
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for killer in killers {
            killer.join().unwrap();
        }
        // What the dead left in the backlog is looked at, too.
        loop {
            match listener.accept_deadline(Duration::ZERO) {
                Ok(stream) => serve(&stream, &seen, &served),
                Err(AcceptError::TimedOut) => break,
                Err(error) => panic!("{error}"),
            }
        }
        listener.shutdown();
        for server in servers {
            server.join().unwrap();
        }
    });
    let numbers = seen.0.into_inner().unwrap();
    assert_eq!(numbers.len() as u64, THREADS * ROUNDS, "each client was served");
    assert!(numbers.iter().all(|count| *count == 1), "and once");
    let (counts, killed) = (listener.counts(), killed.into_inner());
    assert_eq!(counts.accepted, served.into_inner(), "each that was counted was handed out");
    assert_eq!(counts.refused, 0);
    assert_eq!(listener.instances(), 0);
    assert!(killed > 10, "{killed}");
    drop(listener);
    assert_eq!(open_descriptors(), before, "no descriptor is left");
    assert_eq!(place.files(), [""; 0]);
}

/// Comes in, says its number, hears it again, and goes.
fn visit(name: &PipeName, number: u64) {
    let connect = ConnectOptions::new().handshake(ImpersonationLevel::Identification);
    let mut stream = connect.connect(name, PATIENCE).unwrap();
    stream.write_all(&number.to_be_bytes()).unwrap();
    let mut echo = [0; 8];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(u64::from_be_bytes(echo), number);
}

/// Starts processes that come and go all the time, and kills each at a random moment.
fn kill_clients(path: &str, seed: u64, done: &AtomicBool, killed: &AtomicU64) {
    let mut random = seed + 0x9e37_79b9_7f4a_7c15;
    while !done.load(Ordering::Relaxed) {
        let mut victim = Program::fixture(&["named-hammer", path]);
        assert_eq!(victim.line(), "hammering");
        // Some work for a random time.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..random >> 48 {
            std::hint::spin_loop();
        }
        victim.kill();
        killed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Tally(std::sync::Mutex<Vec<u8>>);

impl Default for Tally {
    fn default() -> Self {
        Self(std::sync::Mutex::new(vec![0; usize::try_from(THREADS * ROUNDS).unwrap()]))
    }
}

/// Echoes one number, if the client lives long enough to send it.
fn serve(mut stream: &Stream, seen: &Tally, served: &AtomicU64) {
    served.fetch_add(1, Ordering::Relaxed);
    let mut number = [0; 8];
    if stream.read_exact(&mut number).is_err() {
        return;
    }
    let number = u64::from_be_bytes(number);
    if number != HAMMER {
        seen.0.lock().unwrap()[usize::try_from(number).unwrap()] += 1;
    }
    // A client that was killed does not need the answer.
    drop(stream.write_all(&number.to_be_bytes()));
}
