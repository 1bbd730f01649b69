//! Names and socket files.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Barrier,
    thread,
};

use pipewright::pipe::named::{
    Access, ConnectError, ConnectOptions, ListenError, Listener, ListenerOptions, NameError, PipeName,
};

use super::{DEADLINE, Place, Program, meet, stale_socket, text, until};
use crate::support::becomes_true;

#[test]
fn s21_s31_empty_name_is_rejected() {
    assert!(matches!(PipeName::new(""), Err(NameError::Empty)));
    assert!(matches!(PipeName::dotnet(""), Err(NameError::Empty)));
    assert!(matches!(PipeName::abstract_name(""), Err(NameError::Empty)));
}

#[test]
fn s22_name_anonymous_is_reserved() {
    for name in ["anonymous", "ANONYMOUS", "Anonymous"] {
        assert!(matches!(PipeName::new(name), Err(NameError::Reserved)), "{name}");
        assert!(matches!(PipeName::dotnet(name), Err(NameError::Reserved)), "{name}");
    }
    PipeName::new("anonymous2").unwrap();
}

#[test]
fn s33_invalid_names_are_rejected_with_reason() {
    let refusal = |name: &str| PipeName::new(name).unwrap_err();
    assert!(matches!(refusal("a/b"), NameError::Slash));
    assert!(matches!(refusal("a\0b"), NameError::Nul));
    assert!(matches!(refusal("/tmp/a\0b"), NameError::Nul));
    assert!(matches!(refusal("/tmp/a/"), NameError::Directory { .. }));
    assert!(matches!(refusal("/"), NameError::Directory { .. }));
    assert!(matches!(refusal("/tmp/.."), NameError::Directory { .. }));
    assert!(matches!(refusal(".lock"), NameError::LeadingDot));
    assert!(matches!(refusal(&"x".repeat(250)), NameError::TooLong { bytes: 250, limit: 249 }));
    assert!(matches!(PipeName::dotnet("a/b"), Err(NameError::Slash)));
    assert_eq!(io::Error::from(refusal("a/b")).kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn name_displays_its_path() {
    assert_eq!(PipeName::new("/some/where").unwrap().path(), Some(Path::new("/some/where")));
    let dotnet = PipeName::dotnet("x").unwrap();
    assert_eq!(dotnet.path(), Some(std::env::temp_dir().join("CoreFxPipe_x").as_path()));
    let private = PipeName::new("build-7").unwrap().to_string();
    assert!(private.ends_with("/build-7") && private.contains("pipewright"), "{private}");
    assert_eq!(PipeName::abstract_name("x").unwrap().to_string(), "@x");
}

#[test]
fn plain_name_is_in_private_directory() {
    // In a child, since the environment of the test process must not change.
    let place = Place::new();
    let start = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_child-fixture"));
        Program::start(command.args(arguments).env("XDG_RUNTIME_DIR", &place.0))
    };
    let mut server = start(&["named-serve", "plain"]);
    assert_eq!(server.line(), "listening");
    let directory = place.path("pipewright");
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o700);
    UnixStream::connect(directory.join("plain")).unwrap();
    // A client finds it by its plain name.
    let mut client = start(&["named-client", "plain", "current-user"]);
    assert!(client.line().starts_with("connected"));
    assert_eq!(server.finish(), 0);
    assert_eq!(client.finish(), 0, "its stream ended");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);

    fs::set_permissions(&directory, fs::Permissions::from_mode(0o770)).unwrap();
    for arguments in [&["named-serve", "plain"][..], &["named-client", "plain", "plain"]] {
        let line = start(arguments).line();
        assert!(line.starts_with("error: cannot use the private directory: ") && line.contains("0770"), "{line}");
    }
}

#[test]
fn s29_s52_second_server_of_name_is_rejected() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    let error = Listener::bind(&place.name("one")).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
    // The rejected server is not counted as a client of the first one.
    let (_server, _client) = meet(&listener, &ConnectOptions::new());
    assert_eq!(listener.stats().accepted, 1);
}

#[test]
fn s29_second_server_in_other_process_is_rejected() {
    let place = Place::new();
    let mut server = Program::fixture(&["named-serve", text(&place.path("one"))]);
    assert_eq!(server.line(), "listening");
    assert!(matches!(Listener::bind(&place.name("one")), Err(ListenError::InUse { .. })));
    assert_eq!(server.finish(), 0);
    Listener::bind(&place.name("one")).unwrap();
}

#[test]
fn s30_second_server_with_other_direction_is_rejected() {
    let place = Place::new();
    let _listener = Listener::bind(&place.name("one")).unwrap();
    let other = ListenerOptions::new().direction(pipewright::pipe::Direction::In).listen(&place.name("one"));
    assert!(matches!(other, Err(ListenError::InUse { .. })));
}

#[test]
fn s55_name_is_reusable_with_other_limit() {
    let place = Place::new();
    drop(ListenerOptions::new().max_instances(1).listen(&place.name("one")).unwrap());
    let listener = ListenerOptions::new().max_instances(2).listen(&place.name("one")).unwrap();
    let _first = meet(&listener, &ConnectOptions::new());
    let _second = meet(&listener, &ConnectOptions::new());
    assert_eq!(listener.instances(), 2);
}

#[test]
fn s103_socket_file_has_mode_of_access() {
    let place = Place::new();
    for (access, mode) in [(Access::CurrentUser, 0o600), (Access::Anyone, 0o666)] {
        let _listener = ListenerOptions::new().access(access).listen(&place.name("one")).unwrap();
        assert_eq!(fs::metadata(place.path("one")).unwrap().permissions().mode() & 0o7777, mode, "{access:?}");
    }
}

#[test]
fn s104_peer_can_be_plain_socket() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("ours")).unwrap();
    let mut plain = super::plain(&place.path("ours"));
    let mut server = listener.accept_timeout(DEADLINE).unwrap();
    plain.write_all(b"ping").unwrap();
    assert_eq!(super::read_exactly(&server, 4), b"ping");
    server.write_all(b"pong").unwrap();
    let mut answer = [0; 4];
    plain.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");

    let listener = UnixListener::bind(place.path("plain")).unwrap();
    let mut client = pipewright::pipe::named::connect(&place.name("plain"), DEADLINE).unwrap();
    let (mut plain, _) = listener.accept().unwrap();
    plain.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"ping").unwrap();
    plain.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn s105_socket_file_is_removed_with_server() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    assert!(fs::symlink_metadata(place.path("one")).unwrap().file_type().is_socket());
    assert_eq!(place.files(), [".one.lock", "one"]);
    drop(listener);
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn s106_paths_longer_than_socket_address_work() {
    let place = Place::new();
    let deep = place.0.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    for length in [1, 107, 108, 249] {
        let path = deep.join("n".repeat(length));
        let name = PipeName::new(&path).unwrap();
        let listener = Listener::bind(&name).unwrap();
        let (server, mut client) = meet(&listener, &ConnectOptions::new());
        client.write_all(b"long").unwrap();
        assert_eq!(super::read_exactly(&server, 4), b"long");
        assert!(matches!(Listener::bind(&name), Err(ListenError::InUse { .. })), "{length}");
        drop(listener);
        assert!(!path.exists());
    }
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
    // Up to the limit of the kernel for paths.
    let path = |bytes: usize| format!("/{}x", "d/".repeat(bytes / 2 - 1));
    PipeName::new(path(4094)).unwrap();
    assert!(matches!(PipeName::new(path(4096)), Err(NameError::TooLong { bytes: 4096, limit: 4095 })));
}

#[test]
fn s106_path_lengths_around_limit_work() {
    let place = Place::new();
    let base = text(&place.0).len() + 1;
    for total in 100..116 {
        let listener = Listener::bind(&place.name(&"n".repeat(total - base))).unwrap();
        meet(&listener, &ConnectOptions::new());
    }
}

#[test]
fn listen_keeps_file_that_is_no_socket() {
    let place = Place::new();
    fs::write(place.path("file"), "precious").unwrap();
    assert!(matches!(Listener::bind(&place.name("file")), Err(ListenError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "precious");
    let error = pipewright::pipe::named::connect(&place.name("file"), DEADLINE).unwrap_err();
    assert!(matches!(error, ConnectError::NotASocket { .. }), "{error}");

    fs::create_dir(place.path("directory")).unwrap();
    assert!(matches!(Listener::bind(&place.name("directory")), Err(ListenError::NotASocket { .. })));
    symlink(place.path("file"), place.path("link")).unwrap();
    assert!(matches!(Listener::bind(&place.name("link")), Err(ListenError::NotASocket { .. })));
    assert_eq!(place.files(), ["directory", "file", "link"]);
}

#[test]
fn listen_keeps_running_server_of_other_library() {
    let place = Place::new();
    let plain = UnixListener::bind(place.path("plain")).unwrap();
    assert!(matches!(Listener::bind(&place.name("plain")), Err(ListenError::InUse { .. })));
    UnixStream::connect(place.path("plain")).unwrap();
    drop(plain);
    until("socket is closed", || UnixStream::connect(place.path("plain")).is_err());
    // Its socket file is left.
    let listener = Listener::bind(&place.name("plain")).unwrap();
    meet(&listener, &ConnectOptions::new());
}

#[test]
fn listen_replaces_stale_socket() {
    let place = Place::new();
    let mut server = Program::fixture(&["named-serve", text(&place.path("one"))]);
    assert_eq!(server.line(), "listening");
    server.kill();
    assert_eq!(place.files(), [".one.lock", "one"], "SIGKILL leaves the files");
    let listener = Listener::bind(&place.name("one")).unwrap();
    meet(&listener, &ConnectOptions::new());
    drop(listener);
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn concurrent_listens_succeed_once() {
    let place = Place::new();
    for round in 0..50 {
        // Every other round starts with a stale socket file.
        if round % 2 == 0 {
            stale_socket(&place.path("one"));
        }
        let start = Barrier::new(8);
        let servers: Vec<_> = thread::scope(|scope| {
            let starters: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        Listener::bind(&place.name("one"))
                    })
                })
                .collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        let won = servers.iter().filter(|server| server.is_ok()).count();
        assert_eq!(won, 1, "round {round}: {servers:?}");
        assert!(
            servers.iter().filter_map(|server| server.as_ref().err()).all(|e| matches!(e, ListenError::InUse { .. }))
        );
        drop(servers);
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn drop_keeps_file_of_other_server() {
    let place = Place::new();
    let listener = Listener::bind(&place.name("one")).unwrap();
    fs::remove_file(place.path("one")).unwrap();
    File::create(place.path("one")).unwrap();
    drop(listener);
    assert_eq!(place.files(), ["one"]);
}

#[test]
fn listen_rejects_other_users_in_private_directory() {
    let name = PipeName::new(format!("private-{}", std::process::id())).unwrap();
    let error = ListenerOptions::new().access(Access::Anyone).listen(&name).unwrap_err();
    assert!(matches!(error, ListenError::Unreachable { .. }), "{error}");
}

#[test]
fn abstract_name_ends_with_its_server() {
    let name = PipeName::abstract_name(format!("pipewright-test-{}", std::process::id())).unwrap();
    let listener = Listener::bind(&name).unwrap();
    assert!(matches!(Listener::bind(&name), Err(ListenError::InUse { .. })));
    meet(&listener, &ConnectOptions::new());
    drop(listener);
    // A process being spawned by another test holds a copy of the socket, and thereby the name, until its exec.
    assert!(becomes_true(|| Listener::bind(&name).is_ok()));
    let connect = || ConnectOptions::new().no_wait().connect(&name, DEADLINE);
    assert!(becomes_true(|| matches!(connect(), Err(ConnectError::NoServer { .. }))));
}
