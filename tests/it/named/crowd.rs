//! Ten thousand clients, some of which are killed.

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
    ConnectOptions, DEADLINE, ListenerOptions, Place, Program, meet, read_exactly, text, until, with_handshake,
    write_all,
};

const THREADS: u64 = 40;
const ROUNDS: u64 = 250;
const CLIENTS: u64 = THREADS * ROUNDS;
/// One in this many rounds, another client connects and leaves during the handshake.
const EARLY_LEAVER_EVERY: u64 = 10;
const EARLY_LEAVERS: u64 = CLIENTS / EARLY_LEAVER_EVERY;
const KILLERS: u64 = 3;
/// Number sent by clients that may be killed.
const KILLED_CLIENT: u64 = u64::MAX;

#[test]
fn ten_thousand_connects_are_counted_exactly() {
    // Needs its own process to count file descriptors.
    if alone("named::crowd::ten_thousand_connects_are_counted_exactly", |spec| spec) {
        let crowd = run_crowd(0);
        assert_eq!((crowd.accepted, crowd.vanished), (CLIENTS + 1, EARLY_LEAVERS));
    }
}

#[test]
fn ten_thousand_connects_with_killed_clients_are_counted() {
    if alone("named::crowd::ten_thousand_connects_with_killed_clients_are_counted", |spec| spec) {
        let Crowd { accepted, vanished, dead } = run_crowd(KILLERS);
        assert!(dead.killed > 10, "{dead:?}");
        // A killed client may have been in the handshake, so that only one side counted it.
        let in_handshake = dead.started - dead.connected;
        let unaware = accepted.checked_sub(CLIENTS + 1 + dead.connected).expect("connected clients were accepted");
        let vanished = vanished.checked_sub(EARLY_LEAVERS).expect("clients that left have vanished");
        assert!(in_handshake <= dead.killed, "{dead:?}");
        assert!(unaware + vanished <= in_handshake, "{unaware} and {vanished} of {dead:?}");
    }
}

/// Statistics of the listener and of killed clients.
struct Crowd {
    accepted: u64,
    vanished: u64,
    dead: Dead,
}

#[derive(Debug, Default)]
struct Dead {
    killed: u64,
    started: u64,
    connected: u64,
}

fn run_crowd(killers: u64) -> Crowd {
    let place = Place::new();
    let before = open_descriptors();
    let listener = ListenerOptions::new().handshake().listen(&place.name("crowd")).unwrap();
    let alone = open_descriptors();
    let (seen, served) = (ServedNumbers::default(), AtomicU64::new(0));
    let (start, done) = (Barrier::new(usize::try_from(THREADS + killers).unwrap()), AtomicBool::new(false));
    let dead = thread::scope(|scope| {
        let servers = [(); 4].map(|()| scope.spawn(|| serve_all(&listener, &seen, &served)));
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (start, name) = (&start, listener.name());
                scope.spawn(move || {
                    start.wait();
                    for number in thread * ROUNDS..(thread + 1) * ROUNDS {
                        connect_once(name, number);
                        if number.is_multiple_of(EARLY_LEAVER_EVERY) {
                            leave_in_handshake(name, number);
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
            dead.started += more.started;
            dead.connected += more.connected;
        }
        // Once the last client is accepted, all earlier ones have been counted.
        connect_once(listener.name(), CLIENTS);
        until("no handshake is pending", || open_descriptors() == alone);
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
    assert_eq!(counts.accepted, served.into_inner(), "each counted client was returned");
    assert_eq!(counts.refused, 0);
    assert_eq!(listener.instances(), 0);
    drop(listener);
    assert_eq!(open_descriptors(), before, "all descriptors are closed");
    assert_eq!(place.files(), [""; 0]);
    Crowd { accepted: counts.accepted, vanished: counts.vanished, dead }
}

fn serve_all(listener: &Listener, seen: &ServedNumbers, served: &AtomicU64) {
    for stream in listener.incoming() {
        serve(&stream.unwrap(), seen, served);
    }
}

/// Connects, sends nothing or half of a handshake, and disconnects.
fn leave_in_handshake(name: &PipeName, number: u64) {
    let mut stream = UnixStream::connect(name.path().unwrap()).unwrap();
    if number.is_multiple_of(2 * EARLY_LEAVER_EVERY) {
        stream.write_all(b"pipewrt").unwrap();
    }
}

/// Connects, sends its number, receives it again, and disconnects.
fn connect_once(name: &PipeName, number: u64) {
    let connect = ConnectOptions::new().handshake(ImpersonationLevel::Identification);
    let stream = connect.connect(name, DEADLINE).unwrap();
    write_all(&stream, &number.to_be_bytes());
    assert_eq!(read_exactly(&stream, 8), number.to_be_bytes());
}

/// Starts processes that connect and disconnect continuously, and kills each at a random moment.
fn kill_clients(path: &str, seed: u64, done: &AtomicBool) -> Dead {
    let mut random = seed + 0x9e37_79b9_7f4a_7c15;
    let mut dead = Dead::default();
    while !done.load(Ordering::Relaxed) {
        let mut victim = Program::fixture(&["named-hammer", path]);
        assert_eq!(victim.line(), "hammering");
        // Busy for a random time.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..random >> 48 {
            std::hint::spin_loop();
        }
        victim.kill();
        dead.killed += 1;
        for mark in read_to_end(&victim.stdout) {
            *(if mark == b'k' { &mut dead.started } else { &mut dead.connected }) += 1;
        }
    }
    dead
}

struct ServedNumbers(std::sync::Mutex<Vec<u8>>);

impl Default for ServedNumbers {
    fn default() -> Self {
        Self(std::sync::Mutex::new(vec![0; usize::try_from(CLIENTS + 1).unwrap()]))
    }
}

/// Echoes one number, unless the client is killed first.
fn serve(mut stream: &Stream, seen: &ServedNumbers, served: &AtomicU64) {
    served.fetch_add(1, Ordering::Relaxed);
    let mut number = [0; 8];
    if stream.read_exact(&mut number).is_err() {
        return;
    }
    let number = u64::from_be_bytes(number);
    if number != KILLED_CLIENT {
        seen.0.lock().unwrap()[usize::try_from(number).unwrap()] += 1;
    }
    // Fails if the client was killed.
    drop(stream.write_all(&number.to_be_bytes()));
}

/// Sends the last file descriptor of a socket that blocks on close for longer than any test.
fn send_fd(name: &PipeName, before: &[u8], flags: i32) -> (UnixStream, TcpStream) {
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
    let (server, client) = with_handshake();
    let listener = server.listen(&place.name("name")).unwrap();
    let held = [(0, 0), (0, libc::MSG_OOB), (16, 0), (16, libc::MSG_OOB)]
        .map(|(before, flags)| send_fd(listener.name(), &vec![b'?'; before], flags));
    let (_server, _client) = meet(&listener, &client);
    assert_eq!(listener.stats().refused, 4);
    // Also for a client in the handshake when the listener is dropped.
    let last = send_fd(listener.name(), b"", 0);
    drop(listener);
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    drop((held, last));
}
