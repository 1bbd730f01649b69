//! Binding, probing and releasing names, and the names of .NET.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixListener,
};

use pipewright::pipe::named::{ConnectOptions, ListenError, Listener, ListenerOptions, NameError, PipeName};

use super::{DEADLINE, Pair, Place, meet, read_exactly, read_to_end, write_all};
use crate::{kernel, support::alone};

#[test]
fn p10_fork_dropping_listener_and_streams_does_not_affect_parent() {
    const NAME: &str = "named::names::p10_fork_dropping_listener_and_streams_does_not_affect_parent";
    if !alone(NAME, |spec| spec) {
        return;
    }
    let place = Place::new();
    let listener = ListenerOptions::new().max_instances(1).listen(&place.name("one")).unwrap();
    let (server, client) = meet(&listener, &ConnectOptions::new());
    let (reader, writer) = client.split();
    let mut everything = Some((listener, server, reader, writer));
    let forked = kernel::fork(|| {
        drop(everything.take());
        0
    });
    assert_eq!(kernel::wait(forked), 0);
    let (listener, server, mut reader, mut writer) = everything.unwrap();
    assert_eq!(place.files(), [".one.lock", "one"]);
    assert!(matches!(Listener::bind(&place.name("one")), Err(ListenError::InUse { .. })));
    writer.write_all(b"to the server").unwrap();
    assert_eq!(read_exactly(&server, 13), b"to the server");
    write_all(&server, b"back");
    let mut back = [0; 4];
    reader.read_exact(&mut back).unwrap();
    // The forked child has not freed an instance.
    let waiting = ConnectOptions::new().connect(&place.name("one"), DEADLINE).unwrap();
    listener.accept_timeout(super::A_WHILE).unwrap_err();
    drop((server, waiting));
    listener.accept_timeout(DEADLINE).unwrap();
    drop(listener);
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn p12_bind_to_name_in_use_does_not_reach_its_server() {
    let place = Place::new();
    let server = UnixListener::bind(place.path("one")).unwrap();
    server.set_nonblocking(true).unwrap();
    assert!(matches!(Listener::bind(&place.name("one")), Err(ListenError::InUse { .. })));
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "a server for one client would be used up");
}

#[test]
fn p12_bind_to_name_of_server_not_listening_yet_is_rejected() {
    let place = Place::new();
    let bound = kernel::bind_only(&place.path("one"));
    assert!(matches!(Listener::bind(&place.name("one")), Err(ListenError::InUse { .. })));
    kernel::listen(&bound);
    std::os::unix::net::UnixStream::connect(place.path("one")).unwrap();
}

#[test]
fn p16_unusable_lock_file_is_reported_with_owner() {
    let place = Place::new();
    fs::create_dir(place.path(".one.lock")).unwrap();
    let error = Listener::bind(&place.name("one")).unwrap_err();
    assert!(matches!(error, ListenError::LockFile { owner: Some(_), .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(".one.lock of user "), "{text}");
}

#[test]
fn dotnet_names_follow_rules_of_dotnet() {
    let hidden = PipeName::dotnet(".hidden").unwrap();
    assert!(hidden.to_string().ends_with("/CoreFxPipe_.hidden"), "{hidden}");
    let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    assert_eq!(PipeName::dotnet(path(107)).unwrap().to_string(), path(107));
    assert!(matches!(PipeName::dotnet(path(108)), Err(NameError::TooLong { bytes: 108, limit: 107 })));
    let short = PipeName::dotnet("x").unwrap().to_string().len();
    assert!(PipeName::dotnet("x".repeat(107 - short + 1)).is_ok());
    let error = PipeName::dotnet("x".repeat(108 - short + 1)).unwrap_err();
    assert!(matches!(error, NameError::TooLong { bytes: 108, limit: 107 }), "{error}");
}

#[test]
fn dotnet_names_are_in_tmp_if_tmpdir_is_empty() {
    if alone("named::names::dotnet_names_are_in_tmp_if_tmpdir_is_empty", |spec| spec.env("TMPDIR", "")) {
        assert_eq!(PipeName::dotnet("x").unwrap().to_string(), "/tmp/CoreFxPipe_x");
    }
}

#[test]
fn dotnet_names_are_in_working_directory_if_tmpdir_is_relative() {
    const NAME: &str = "named::names::dotnet_names_are_in_working_directory_if_tmpdir_is_relative";
    if alone(NAME, |spec| spec.env("TMPDIR", "some/where/")) {
        let expected = std::env::current_dir().unwrap().join("some/where/CoreFxPipe_x");
        assert_eq!(PipeName::dotnet("x").unwrap().path(), Some(expected.as_path()));
    }
}

#[test]
fn p02_dropped_halves_end_their_direction() {
    let Pair { server, client, .. } = Pair::bytes();
    let (reader, writer) = client.split();
    drop(writer);
    assert_eq!(read_to_end(&server), b"");
    drop(reader);
}
