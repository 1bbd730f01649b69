//! Ten thousand clients, some of them killed.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use pipewright::pipe::named::{ImpersonationLevel, Listener, PipeName, Stream};

use crate::{
    kernel,
    support::{alone, open_descriptors, read_to_end},
};

use super::{
    ConnectOptions, ListenerOptions, PATIENCE, Place, Program, meet, read_exactly, shaking, text, until, write_all,
};

const THREADS: u64 = 40;
const ROUNDS: u64 = 250;
const CLIENTS: u64 = THREADS * ROUNDS;
/// One in so many rounds somebody else knocks, and leaves before it is let in.
const QUITTER_EVERY: u64 = 10;
const QUITTERS: u64 = CLIENTS / QUITTER_EVERY;
const KILLERS: u64 = 3;
/// What clients that may be killed call themselves.
const HAMMER: u64 = u64::MAX;

#[test]
fn ten_thousand_connects_are_counted_exactly() {
    // In a process of its own the descriptors are only ours.
    if alone("named::crowd::ten_thousand_connects_are_counted_exactly", |spec| spec) {
        let crowd = the_crowd(0);
        assert_eq!((crowd.accepted, crowd.vanished), (CLIENTS + 1, QUITTERS));
    }
}

#[test]
fn ten_thousand_connects_with_killed_clients_are_counted() {
    if alone("named::crowd::ten_thousand_connects_with_killed_clients_are_counted", |spec| spec) {
        let Crowd { accepted, vanished, dead } = the_crowd(KILLERS);
        assert!(dead.killed > 10, "{dead:?}");
        // The only ones of whom one side alone knows: each that was killed may have been about to come in.
        let under_way = dead.knocked - dead.came_in;
        let unaware = accepted.checked_sub(CLIENTS + 1 + dead.came_in).expect("whoever came in was accepted");
        let vanished = vanished.checked_sub(QUITTERS).expect("whoever left before that has vanished");
        assert!(under_way <= dead.killed, "{dead:?}");
        assert!(unaware + vanished <= under_way, "{unaware} and {vanished} of {dead:?}");
    }
}

/// What the listener has counted, and what is known of those who were killed.
struct Crowd {
    accepted: u64,
    vanished: u64,
    dead: Dead,
}

#[derive(Debug, Default)]
struct Dead {
    killed: u64,
    knocked: u64,
    came_in: u64,
}

fn the_crowd(killers: u64) -> Crowd {
    let place = Place::new();
    let before = open_descriptors();
    let listener = ListenerOptions::new().handshake().listen(&place.name("crowd")).unwrap();
    let alone = open_descriptors();
    let (seen, served) = (SeenBytes::default(), AtomicU64::new(0));
    let (start, done) = (Barrier::new(usize::try_from(THREADS + killers).unwrap()), AtomicBool::new(false));
    let dead = thread::scope(|scope| {
        let servers = [(); 4].map(|()| scope.spawn(|| serve_all(&listener, &seen, &served)));
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (start, name) = (&start, listener.name());
                scope.spawn(move || {
                    start.wait();
                    for number in thread * ROUNDS..(thread + 1) * ROUNDS {
                        visit(name, number);
                        if number.is_multiple_of(QUITTER_EVERY) {
                            quit(name, number);
                        }
                    }
                })
            })
            .collect();
        let killers: Vec<_> = (0..killers)
            .map(|seed| {
                let (start, done, path) = (&start, &done, place.path("crowd"));
                scope.spawn(move || {
                    start.wait();
                    kill_clients(text(&path), seed, done)
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let mut dead = Dead::default();
        for killer in killers {
            let more = killer.join().unwrap();
            dead.killed += more.killed;
            dead.knocked += more.knocked;
            dead.came_in += more.came_in;
        }
        // When the last one is in, everybody before it has at least been seen.
        visit(listener.name(), CLIENTS);
        until("nobody is half-way in", || open_descriptors() == alone);
        listener.shutdown();
        for server in servers {
            server.join().unwrap();
        }
        dead
    });
    let numbers = seen.0.into_inner().unwrap();
    assert_eq!(numbers.len() as u64, CLIENTS + 1, "each client was served");
    assert!(numbers.iter().all(|count| *count == 1), "and once");
    let counts = listener.stats();
    assert_eq!(counts.accepted, served.into_inner(), "each that was counted was handed out");
    assert_eq!(counts.refused, 0);
    assert_eq!(listener.instances(), 0);
    drop(listener);
    assert_eq!(open_descriptors(), before, "no descriptor is left");
    assert_eq!(place.files(), [""; 0]);
    Crowd { accepted: counts.accepted, vanished: counts.vanished, dead }
}

fn serve_all(listener: &Listener, seen: &SeenBytes, served: &AtomicU64) {
    for stream in listener.incoming() {
        serve(&stream.unwrap(), seen, served);
    }
}

/// Knocks, says nothing or half of what is wanted, and goes.
fn quit(name: &PipeName, number: u64) {
    let mut stream = UnixStream::connect(name.path().unwrap()).unwrap();
    if number.is_multiple_of(2 * QUITTER_EVERY) {
        stream.write_all(b"pipewrt").unwrap();
    }
}

/// Comes in, says its number, hears it again, and goes.
fn visit(name: &PipeName, number: u64) {
    let connect = ConnectOptions::new().handshake(ImpersonationLevel::Identification);
    let stream = connect.connect(name, PATIENCE).unwrap();
    write_all(&stream, &number.to_be_bytes());
    assert_eq!(read_exactly(&stream, 8), number.to_be_bytes());
}

/// Starts processes that come and go all the time, and kills each at a random moment.
fn kill_clients(path: &str, seed: u64, done: &AtomicBool) -> Dead {
    let mut random = seed + 0x9e37_79b9_7f4a_7c15;
    let mut dead = Dead::default();
    while !done.load(Ordering::Relaxed) {
        let mut victim = Program::fixture(&["named-hammer", path]);
        assert_eq!(victim.line(), "hammering");
        // Some work for a random time.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..random >> 48 {
            std::hint::spin_loop();
        }
        victim.kill();
        dead.killed += 1;
        for mark in read_to_end(&victim.stdout) {
            *(if mark == b'k' { &mut dead.knocked } else { &mut dead.came_in }) += 1;
        }
    }
    dead
}

struct SeenBytes(std::sync::Mutex<Vec<u8>>);

impl Default for SeenBytes {
    fn default() -> Self {
        Self(std::sync::Mutex::new(vec![0; usize::try_from(CLIENTS + 1).unwrap()]))
    }
}

/// Echoes one number, if the client lives long enough to send it.
fn serve(mut stream: &Stream, seen: &SeenBytes, served: &AtomicU64) {
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

/// Sends the last descriptor of a socket that takes longer to close than any test.
fn smuggle(name: &PipeName, before: &[u8], flags: i32) -> (UnixStream, TcpStream) {
    let mut client = UnixStream::connect(name.path().unwrap()).unwrap();
    client.write_all(before).unwrap();
    let (reader, writer) = kernel::lingering();
    kernel::try_send_descriptors(&client, b"x", &[writer.as_fd()], flags).unwrap();
    client.write_all(b"y").unwrap();
    (client, reader)
}

#[test]
fn fds_sent_in_handshake_do_not_delay_server() {
    let began = Instant::now();
    let place = Place::new();
    let (server, client) = shaking();
    let listener = server.listen(&place.name("door")).unwrap();
    let held = [(0, 0), (0, libc::MSG_OOB), (16, 0), (16, libc::MSG_OOB)]
        .map(|(before, flags)| smuggle(listener.name(), &vec![b'?'; before], flags));
    let (_server, _client) = meet(&listener, &client);
    assert_eq!(listener.stats().refused, 4);
    // Whoever stands before the door then.
    let last = smuggle(listener.name(), b"", 0);
    drop(listener);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    drop((held, last));
}
