//! Text of other processes in errors and in displayed texts: it cannot control a terminal and stays on its line.

use crate::support::{Story, is_alive};
use pipewright::{
    EventKind, OutputMode, Pass, Readiness, StdinMode, WorkerSpec,
    pipe::named::{self, PipeName},
};
use std::{fs, time::Duration};

/// Clears the screen, sets a title, moves up a line, and reverses the following text.
const HOSTILE: &str = "\x1b[2J\x1b]0;root\x07\x1b[1A\u{202e}\u{9b}1m";

#[track_caller]
fn assert_harmless(text: &str) {
    let is_active = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(is_active), "{text:?}");
}

#[track_caller]
fn assert_one_line(text: &str) {
    assert_harmless(text);
    assert!(!text.contains('\n'), "{text:?}");
}

#[test]
fn p12_survivor_with_escapes_in_its_command_line_is_shown_harmless() {
    let mut story = Story::new();
    let argument = format!("{HOSTILE}\nforged: line");
    // The daemon has the hostile text as an argument.
    let daemon = "echo $$ >/proc/self/fd/$1; exec 0<&- 1>&- 2>&-; while sleep 1000; do :; done";
    let script = format!("setsid sh -c '{daemon}' \"$0\" \"$1\" & read -r _");
    let spec = WorkerSpec::new("sh").args(["-c", &script, &argument]);
    let worker = story.supervisor.spawn(spec.messages(Pass::arg("{}")).stdin(StdinMode::Pipe)).unwrap();
    let pid = u32::try_from(story.json().as_u64().unwrap()).unwrap();
    drop(worker.take_stdin());
    let exit = story.exit();
    assert!(!is_alive(pid));
    let survivor = exit.survivors.iter().find(|survivor| survivor.pid == pid).unwrap();
    assert_one_line(&survivor.command);
    assert_one_line(&survivor.to_string());
}

#[test]
fn p12_recent_output_with_escapes_is_shown_harmless_and_kept_raw() {
    let mut story = Story::new();
    let words = format!("first\r\nsecond {HOSTILE}\n");
    let spec = WorkerSpec::new("sh").args(["-c", "printf %s \"$0\" >&2; exit 3", &words]).stderr(OutputMode::Lines);
    let _worker = story.supervisor.spawn(spec.ready(Readiness::sd_notify())).unwrap();
    let last_words = story.find(|event| match event.kind {
        EventKind::NotReady { recent_output, .. } => Some(recent_output),
        _ => None,
    });
    let exit = story.exit();
    for text in [&*last_words, &exit.stderr_text()] {
        assert_harmless(text);
        assert!(text.starts_with("first\nsecond \\u{1b}[2J"), "{text:?}");
    }
    assert_eq!(String::from_utf8_lossy(&exit.stderr_tail), words);
}

#[test]
fn p16_errors_with_line_feeds_in_a_path_stay_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("a\nb{HOSTILE}"));
    let name = PipeName::new(&path).unwrap();
    let error = named::ConnectOptions::new().no_wait().connect(&name, Duration::ZERO).unwrap_err();
    assert_one_line(&error.to_string());
    fs::write(&path, "").unwrap();
    let error = named::Listener::bind(&name).unwrap_err();
    assert_one_line(&error.to_string());
    assert_one_line(&format!("{error:?}"));
    let spec = WorkerSpec::new(&path);
    let error = spec.spawn_unsupervised().unwrap_err();
    assert_one_line(&error.to_string());
    assert_one_line(&format!("{error:?}"));
}

#[test]
fn p12_message_that_is_not_understood_is_quoted_harmless() {
    #[derive(Debug, serde::Deserialize)]
    enum Known {
        One,
    }
    let mut story = Story::new();
    let json = serde_json::to_string(HOSTILE).unwrap();
    let _worker = story.supervisor.spawn(WorkerSpec::new("echo").arg(&json).messages_on_stdout()).unwrap();
    let message = story.message();
    let error = message.json::<Known>().unwrap_err();
    assert_one_line(&error.to_string());
    assert_one_line(&format!("{error:?}"));
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        assert_one_line(&error.to_string());
        source = error.source();
    }
}
