//! The first line of a control connection: its version, its answer, its refusal. The test plays the worker's side.

use crate::{
    answers::{passive, spawn},
    support::{DEADLINE, FIXTURE, Story, read_to_end},
};
use pipewright::{
    EventKind, OutputMode, WorkerSpec,
    events::{HandshakeError, Warning},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

/// One connection to the control server.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(address: &str) -> Self {
        let (path, _) = address.rsplit_once('?').unwrap();
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(socket))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn send_line(&mut self, message: &Value) {
        self.send(format!("{message}\n").as_bytes());
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    fn assert_closed(&mut self) {
        let mut rest = String::new();
        // The kernel reports what was not read as a reset.
        drop(self.0.read_line(&mut rest));
        assert_eq!(rest, "");
    }
}

fn key(address: &str) -> &str {
    address.rsplit_once('?').unwrap().1
}

#[track_caller]
fn rejection(story: &mut Story) -> (HandshakeError, String) {
    story.find(|event| match event.kind {
        EventKind::Warning(warning) => match &*warning {
            Warning::HandshakeRejected { fault, .. } => Some((*fault, warning.to_string())),
            _ => panic!("{warning}"),
        },
        EventKind::ControlConnected => panic!("{event:?}"),
        _ => None,
    })
}

#[track_caller]
fn connects(story: &mut Story) {
    story.find(|event| match event.kind {
        EventKind::ControlConnected => Some(()),
        EventKind::Warning(warning) => panic!("{warning}"),
        _ => None,
    });
}

#[test]
fn p02_hello_that_is_a_request_is_answered_before_queued_calls() {
    let mut story = Story::new();
    let (worker, address) = spawn(&mut story, passive().max_message_size(12_345));
    let call = worker.start_call("queued", &()).unwrap();
    let mut client = Client::connect(&address);
    let params = json!({"key": key(&address), "version": 1});
    client.send_line(&json!({"jsonrpc": "2.0", "id": "first", "method": "hello", "params": params}));
    let result = json!({"version": 1, "max_message_size": 12_345});
    assert_eq!(client.line(), json!({"jsonrpc": "2.0", "id": "first", "result": result}));
    let request = client.line();
    assert_eq!(request["method"], "queued");
    client.send_line(&json!({"jsonrpc": "2.0", "id": request["id"], "result": 7}));
    assert_eq!(call.wait::<i64>(DEADLINE).unwrap(), 7);
    connects(&mut story);
}

/// The first text in backticks, or the only line of a code block, of the page that begins so.
fn of_the_page(begin: &str) -> String {
    let page = include_str!("../../docs/protocol.md");
    let text = &page[page.find(begin).unwrap_or_else(|| panic!("{begin}"))..];
    text[..text.find(['`', '\n']).unwrap()].to_owned()
}

#[test]
fn the_page_shows_the_hello_its_answer_and_its_refusal() {
    let mut story = Story::new();
    let (_worker, address) = spawn(&mut story, passive());
    let hello = of_the_page(r#"{"jsonrpc":"2.0","id":0,"method":"hello""#).replace("KEY", key(&address));
    let mut client = Client::connect(&address);
    client.send(format!("{}\n", hello.replace("\"version\":1", "\"version\":2")).as_bytes());
    let error = &client.line()["error"];
    let data = format!("\"data\":{}", error["data"]);
    assert_eq!((&error["code"], of_the_page(&data)), (&json!(-32600), data));
    let mut client = Client::connect(&address);
    client.send(format!("{hello}\n").as_bytes());
    let answer = of_the_page(r#"{"jsonrpc":"2.0","id":0,"result":{"version""#);
    assert_eq!(client.line(), serde_json::from_str::<Value>(&answer).unwrap());
}

#[test]
fn p02_hello_that_is_a_notification_is_not_answered() {
    for params in [json!({}), json!({"version": 1}), json!({"version": 1.0, "later": [1]}), json!({"version": null})] {
        let mut story = Story::new();
        let (worker, address) = spawn(&mut story, passive());
        let mut client = Client::connect(&address);
        let mut params = params;
        params["key"] = key(&address).into();
        client.send_line(&json!({"jsonrpc": "2.0", "method": "hello", "params": params}));
        connects(&mut story);
        let _call = worker.start_call("first", &()).unwrap();
        assert_eq!(client.line()["method"], "first", "{params}");
    }
}

#[test]
fn p12_unknown_version_is_refused_and_its_key_stays_valid() {
    let mut story = Story::new();
    let (_worker, address) = spawn(&mut story, passive());
    for id in [json!(1), Value::Null] {
        let mut client = Client::connect(&address);
        let mut hello = json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": key(&address), "version": 2}});
        if !id.is_null() {
            hello["id"] = id.clone();
        }
        client.send_line(&hello);
        let text = "protocol version 2 is not supported, only 1";
        let error = json!({"code": -32600, "message": text, "data": {"versions": [1]}});
        assert_eq!(client.line(), json!({"jsonrpc": "2.0", "id": id, "error": error}));
        client.assert_closed();
        let (fault, shown) = rejection(&mut story);
        assert_eq!(fault, HandshakeError::UnsupportedVersion { version: 2 });
        assert!(shown.contains(text) && !shown.contains(key(&address)), "{shown}");
    }
    let mut client = Client::connect(&address);
    client.send_line(&json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": key(&address)}}));
    connects(&mut story);
}

#[test]
fn p15_refused_connection_gets_an_error_at_once() {
    let mut story = Story::new();
    let (_worker, address) = spawn(&mut story, passive());
    let hello =
        |params: Value| format!("{}\n", json!({"jsonrpc": "2.0", "id": 9, "method": "hello", "params": params}));
    let key = key(&address);
    let refused = [
        // No line end follows, but no object begins so.
        ("GET / HTTP/1.1\r".to_owned(), Value::Null, HandshakeError::NotHello),
        ("\u{feff}[".to_owned(), Value::Null, HandshakeError::NotHello),
        ("{}\n".to_owned(), Value::Null, HandshakeError::NotHello),
        (hello(json!({"KEY": key})), json!(9), HandshakeError::NotHello),
        (hello(json!({"key": key, "version": "1"})), json!(9), HandshakeError::NotHello),
        (hello(json!({"key": key, "version": -1})), json!(9), HandshakeError::NotHello),
        (hello(json!({"key": "0123456789abcdef", "version": 2})), json!(9), HandshakeError::UnknownKey),
    ];
    for (bytes, id, expected) in refused {
        let mut client = Client::connect(&address);
        client.send(bytes.as_bytes());
        let answer = client.line();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&id, &json!(-32600)), "{bytes:?}: {answer}");
        assert_eq!(answer["error"]["message"], expected.to_string(), "{bytes:?}");
        client.assert_closed();
        assert_eq!(rejection(&mut story).0, expected, "{bytes:?}");
    }
}

#[test]
fn p16_refused_worker_says_why() {
    let mut story = Story::new();
    let (_worker, address) = spawn(&mut story, passive());
    let (path, _) = address.rsplit_once('?').unwrap();
    for spec in [
        WorkerSpec::new(FIXTURE).args(["serve", &format!("--control={path}")]).env("PIPEWRIGHT_CONTROL_KEY", "wrong"),
        WorkerSpec::new(FIXTURE).arg("serve").env("PIPEWRIGHT_CONTROL", format!("{path}?wrong")),
    ] {
        let mut process = spec.stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
        let stderr = String::from_utf8(read_to_end(&process.take_stderr().unwrap())).unwrap();
        let expected = format!("={path}` refused this worker: no worker with this key is expected");
        assert!(stderr.contains(&expected) && !stderr.contains("wrong"), "{stderr}");
        assert!(!process.wait_timeout(DEADLINE).unwrap().expect("exits").success());
        assert_eq!(rejection(&mut story).0, HandshakeError::UnknownKey);
    }
}
