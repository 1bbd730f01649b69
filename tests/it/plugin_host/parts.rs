//! The parts of the program that are pure. Cargo does not run unit tests of an example that is also built as a program.

#[path = "../../../examples/plugin_host/directory.rs"]
#[expect(dead_code, reason = "code that reads files is tested through the program")]
mod directory;
#[path = "../../../examples/plugin_host/prompt.rs"]
#[expect(dead_code, reason = "code that reads standard input is tested through the program")]
mod prompt;

use directory::{Change, Files, Fingerprint, Settling};
use prompt::Command;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SETTLE: Duration = Duration::from_millis(200);

fn call(params: Value, timeout: Option<Duration>) -> Command {
    Command::Call { plugin: "words.py".into(), method: "count".into(), params, timeout }
}

#[test]
fn command_call_is_parsed() {
    let second = Some(Duration::from_secs(1));
    for (line, expected) in [
        ("call words.py count", call(Value::Null, None)),
        ("  call  words.py\tcount  \n", call(Value::Null, None)),
        ("call words.py count within 1s", call(Value::Null, second)),
        (
            "call words.py count [\"within 2s\", {\"a\": [1, 2]}] within 1s",
            call(json!(["within 2s", {"a": [1, 2]}]), second),
        ),
        ("call words.py count {\"text\":\"a  b\"}within 1s", call(json!({"text": "a  b"}), second)),
    ] {
        assert_eq!(Command::parse(line), Ok(expected), "{line}");
    }
}

#[test]
fn other_commands_are_parsed() {
    for (line, expected) in [
        ("", Command::Nothing),
        ("# call", Command::Nothing),
        ("cancel 7", Command::Cancel(7)),
        ("list", Command::List),
        ("reload", Command::Reload(None)),
        ("reload words.py", Command::Reload(Some("words.py".into()))),
        ("attach words.py", Command::Attach("words.py".into())),
        ("wait", Command::Wait),
        ("help", Command::Help),
        ("quit", Command::Quit),
    ] {
        assert_eq!(Command::parse(line), Ok(expected), "{line}");
    }
}

fn of_size(size: u64) -> Fingerprint {
    Fingerprint { device: 1, inode: 1, size, modified: (0, 0) }
}

/// Files that exist, by name and size.
fn files(list: &[(&str, u64)]) -> Files {
    list.iter().map(|(name, size)| ((*name).to_owned(), of_size(*size))).collect()
}

/// When the directory holds what is found at these times, returns the changes and their times.
fn changes(found: &[(u64, Files)], start: &Files) -> Vec<(u64, Change)> {
    let begin = Instant::now();
    let mut settling = Settling::new(SETTLE, start.clone());
    let mut changes = Vec::new();
    for time in 0..5000 {
        let now = begin + Duration::from_millis(time);
        if found.iter().any(|(when, _)| *when == time) {
            settling.notice(now);
        }
        if settling.poll_timeout().is_some_and(|due| due <= now) {
            let present = found.iter().rev().find(|(when, _)| *when <= time).map_or(start, |(_, files)| files);
            changes.extend(settling.handle(present, now).into_iter().map(|change| (time, change)));
        }
    }
    assert_eq!(settling.poll_timeout(), None, "nothing changes any more, so nothing is scanned");
    changes
}

#[test]
fn settling_reports_a_change_once_it_is_complete() {
    let start = files(&[("a", 1)]);
    let changed = |time| vec![(time, Change::Changed("a".into()))];
    assert_eq!(changes(&[(0, files(&[("a", 2)]))], &start), changed(300));
    // Written in three parts.
    let parts = [(0, files(&[("a", 2)])), (150, files(&[("a", 3)])), (390, files(&[("a", 4)]))];
    let seen = changes(&parts, &start);
    assert!(seen.len() == 1 && seen[0].0 >= 390 + 200, "{seen:?}");
    // Renamed away and back.
    assert_eq!(changes(&[(0, files(&[])), (50, files(&[("a", 1)]))], &start), []);
    assert_eq!(changes(&[(0, files(&[])), (110, files(&[("a", 2)]))], &start).len(), 1);
    assert_eq!(changes(&[(0, files(&[]))], &start), [(300, Change::Removed("a".into()))]);
    assert_eq!(changes(&[(0, files(&[("a", 1), ("b", 1)]))], &start), [(300, Change::New("b".into()))]);
    // A file that came and went.
    assert_eq!(changes(&[(0, files(&[("a", 1), ("b", 1)])), (120, start.clone())], &start), []);
}

proptest! {
    /// Whatever happens to the files: what is reported leads from the first state to the last one, and no change is reported while it is
    /// younger than the settle time.
    #[test]
    fn settling_reports_everything_that_stays(steps in prop::collection::vec((1_u64..400, 0_u8..3, 0_u64..4), 1..12)) {
        let start = files(&[("a", 1), ("b", 1)]);
        let (mut time, mut present, mut found) = (0, start.clone(), Vec::new());
        for (pause, name, size) in steps {
            time += pause;
            let name = ["a", "b", "c"][usize::from(name)];
            match size {
                0 => drop(present.remove(name)),
                size => drop(present.insert(name.into(), of_size(size))),
            }
            found.push((time, present.clone()));
        }
        let mut known = start.clone();
        for (when, change) in changes(&found, &start) {
            let now = &found.iter().rev().find(|(time, _)| *time <= when).unwrap().1;
            let then = found.iter().rev().find(|(time, _)| *time <= when - 200).map_or(&start, |(_, files)| files);
            let (Change::New(name) | Change::Changed(name) | Change::Removed(name)) = &change;
            prop_assert_eq!(now.get(name), then.get(name), "{:?} at {}", change, when);
            match now.get(name) {
                None => known.remove(name),
                Some(file) => known.insert(name.clone(), *file),
            };
        }
        prop_assert_eq!(known, present);
    }
}
