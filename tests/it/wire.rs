//! Streams of messages and lines with damage, byte order marks and unusual line endings.

use crate::support::{DEADLINE, Story, Way};
use pipewright::{
    Event, EventKind, Framing, Line, OutputMode, Pass, StdinMode, Worker, WorkerSpec,
    events::{FrameErrorKind, LineEnding},
    pipe::anonymous::PipeWriter,
};
use serde_json::{Value, json};
use std::io::Write;

/// A worker that returns its standard input as messages.
fn echo(story: &Story, framing: Framing) -> (Worker, PipeWriter) {
    let spec =
        WorkerSpec::new("cat").stdin(StdinMode::Pipe).messages_on_stdout().framing(framing).max_message_size(1000);
    let worker = story.supervisor.spawn(spec).unwrap();
    let writer = worker.take_stdin().unwrap();
    (worker, writer)
}

fn frame(framing: Framing, body: &str) -> Vec<u8> {
    let head = match framing {
        Framing::LengthPrefixed => u32::try_from(body.len()).unwrap().to_be_bytes().to_vec(),
        Framing::ContentLength => format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes(),
        _ => Vec::new(),
    };
    let end: &[u8] = match framing {
        Framing::Lines => b"\n",
        Framing::Nul => b"\0",
        _ => b"",
    };
    [&head, body.as_bytes(), end].concat()
}

/// All messages, and the kind and offset of each frame error.
fn messages_and_errors(story: &mut Story) -> (Vec<Value>, Vec<(FrameErrorKind, u64)>) {
    let (mut messages, mut errors) = (Vec::new(), Vec::new());
    for event in story.rest() {
        match event.kind {
            EventKind::Message(message) => messages.push(message.json().unwrap()),
            EventKind::InvalidFrame(error) => errors.push((error.kind, error.offset)),
            _ => {}
        }
    }
    (messages, errors)
}

#[test]
fn p02_messages_after_damage_are_delivered() {
    let short = frame(Framing::ContentLength, "{\"label\":\"caf\u{e9}\"}");
    let short = String::from_utf8(short).unwrap().replace("17", "16").into_bytes();
    let cases: [(Framing, Vec<u8>); 9] = [
        (Framing::ContentLength, b"debug: starting".to_vec()),
        (Framing::ContentLength, b"debug starting\n".to_vec()),
        (Framing::ContentLength, b"Content-Length: x\r\n\r\n{\"n\":333}".to_vec()),
        (Framing::ContentLength, b"{\"n\":333}".to_vec()),
        (Framing::ContentLength, b"Content-Length: 20\r\n\r\n{\"n\":333}".to_vec()),
        (Framing::ContentLength, short),
        (Framing::LengthPrefixed, b"Warning: deprecated\n".to_vec()),
        (Framing::LengthPrefixed, b"\0\0\0\x30{\"n\":333}".to_vec()),
        (Framing::LengthPrefixed, b"\0\0\0\x08{\"n\":333}".to_vec()),
    ];
    for (framing, damage) in cases {
        let mut story = Story::new();
        let (_worker, mut writer) = echo(&story, framing);
        let mut stream = frame(framing, "{\"n\":0}");
        let (begin, end) = (stream.len() as u64, (stream.len() + damage.len()) as u64);
        stream.extend_from_slice(&damage);
        (1..200).for_each(|n| stream.extend_from_slice(&frame(framing, &format!("{{\"n\":{n}}}"))));
        writer.write_all(&stream).unwrap();
        drop(writer);
        let (messages, errors) = messages_and_errors(&mut story);
        let shown = String::from_utf8_lossy(&damage);
        assert_eq!(messages, (0..200).map(|n| json!({ "n": n })).collect::<Vec<_>>(), "{framing:?} {shown}");
        assert!(!errors.is_empty(), "{framing:?} {shown}");
        assert!(errors.iter().all(|(_, offset)| (begin..end).contains(offset)), "{errors:?} {framing:?} {shown}");
    }
}

#[test]
fn p02_long_frame_is_reported_at_its_header() {
    for (framing, stream) in [
        (Framing::LengthPrefixed, 5000_u32.to_be_bytes().to_vec()),
        (Framing::LengthPrefixed, b"Warning: deprecated\n".to_vec()),
        (Framing::ContentLength, b"Content-Length: 5000\r\n\r\n".to_vec()),
        (Framing::Lines, vec![b'1'; 1001]),
        (Framing::Nul, vec![b'1'; 1001]),
    ] {
        let mut story = Story::new();
        // The stream stays open without further bytes.
        let (worker, mut writer) = echo(&story, framing);
        writer.write_all(&stream).unwrap();
        let (kind, length) = story.find(|event| match event.kind {
            EventKind::InvalidFrame(error) => Some((error.kind, error.length)),
            _ => None,
        });
        assert_eq!(kind, FrameErrorKind::TooLong { limit: 1000 }, "{framing:?}");
        assert!(length > 1000, "{framing:?}: {length}");
        drop(writer);
        assert!(worker.wait_timeout(DEADLINE).unwrap().success());
        let (messages, errors) = messages_and_errors(&mut story);
        assert_eq!((messages.len(), errors), (0, Vec::new()), "{framing:?}: reported once");
    }
}

#[test]
fn p02_byte_order_mark_before_first_message_is_skipped() {
    for framing in [Framing::Lines, Framing::Nul, Framing::LengthPrefixed, Framing::ContentLength] {
        let mut story = Story::new();
        let (_worker, mut writer) = echo(&story, framing);
        writer.write_all(b"\xef\xbb\xbf").unwrap();
        writer.write_all(&frame(framing, "{\"n\":0}")).unwrap();
        drop(writer);
        assert_eq!(messages_and_errors(&mut story), (vec![json!({"n": 0})], Vec::new()), "{framing:?}");
    }
}

#[test]
fn p02_pieces_of_long_lines_and_unfinished_line_are_marked() {
    use LineEnding::{CarriageReturnLineFeed, LineFeed, None, Partial};
    const MAX: usize = 64 << 10;
    let long = |length, ending: &str| [vec![b'x'; length], ending.as_bytes().to_vec()].concat();
    // The two-byte character does not fit into the first piece.
    let split = format!("{}é{}", "x".repeat(MAX - 1), "y".repeat(MAX));
    let outputs = [
        (long(MAX, "\n"), vec![(MAX, LineFeed)]),
        (long(MAX + 1, "\r\n"), vec![(MAX, Partial), (1, CarriageReturnLineFeed)]),
        (
            [b"a\n".to_vec(), long(2 * MAX + 7, "")].concat(),
            vec![(1, LineFeed), (MAX, Partial), (MAX, Partial), (7, None)],
        ),
        (split.into_bytes(), vec![(MAX - 1, Partial), (MAX, Partial), (2, None)]),
        (b"done\nno line feed".to_vec(), vec![(4, LineFeed), (12, None)]),
    ];
    for (output, expected) in outputs {
        let mut story = Story::new();
        let spec = WorkerSpec::new("cat").stdin(StdinMode::Pipe).stdout(OutputMode::Lines);
        let worker = story.supervisor.spawn(spec).unwrap();
        worker.take_stdin().unwrap().write_all(&output).unwrap();
        let lines: Vec<_> = story.rest().into_iter().filter_map(line_of).collect();
        let marks: Vec<_> = lines.iter().map(|line| (line.as_bytes().len(), line.ending())).collect();
        assert_eq!(marks, expected);
        assert!(lines.iter().all(|line| line.is_partial() == (line.ending() == Partial)));
    }
}

fn line_of(event: Event) -> Option<Line> {
    if let EventKind::Line { line, .. } = event.kind { Some(line) } else { None }
}

#[test]
fn p02_lines_and_endings_reproduce_the_output() {
    let long = vec![b'x'; 150_000];
    let outputs: [&[u8]; 6] =
        [b"a\nb", b"a\nb\n", b"x\r\ny\r\n", b"10 %\r20 %\r30 %\r\ndone\n", b"\n\r\r\n\n\r", &long];
    for output in outputs {
        let mut story = Story::new();
        let worker =
            story.supervisor.spawn(WorkerSpec::new("cat").stdin(StdinMode::Pipe).stdout(OutputMode::Lines)).unwrap();
        let mut writer = worker.take_stdin().unwrap();
        writer.write_all(output).unwrap();
        drop(writer);
        let mut rebuilt = Vec::new();
        for event in story.rest() {
            if let EventKind::Line { line, .. } = event.kind {
                assert_eq!(line.is_partial(), line.ending() == LineEnding::Partial);
                rebuilt.extend_from_slice(line.as_bytes());
                rebuilt.extend_from_slice(line.ending().as_bytes());
            }
        }
        assert!(
            rebuilt == output,
            "{} of {} bytes: {}",
            rebuilt.len(),
            output.len(),
            String::from_utf8_lossy(&output[..9.min(output.len())])
        );
    }
}

#[test]
fn p01_progress_is_delivered_before_its_line_ends() {
    let mut story = Story::new();
    let worker =
        story.supervisor.spawn(WorkerSpec::new("cat").stdin(StdinMode::Pipe).stdout(OutputMode::Lines)).unwrap();
    let mut writer = worker.take_stdin().unwrap();
    writer.write_all(b"\r10 %\r20 %").unwrap();
    for expected in ["", "10 %"] {
        let line = story.find(|event| if let EventKind::Line { line, .. } = event.kind { Some(line) } else { None });
        assert_eq!((&*line.text(), line.ending()), (expected, LineEnding::CarriageReturn));
    }
    drop(writer);
    let line = story.find(|event| if let EventKind::Line { line, .. } = event.kind { Some(line) } else { None });
    assert_eq!((&*line.text(), line.ending()), ("20 %", LineEnding::None));
}

#[test]
fn p15_serves_on_fewer_threads_if_none_can_be_created() {
    let mut story = Story::new();
    let spec =
        Way::Direct.plain("serve").control(Pass::arg("--control={}")).args(["--threads", "8", "--no-more-memory"]);
    let worker = story.supervisor.spawn(spec).unwrap();
    assert_eq!(worker.call::<_, i64>("add", &[20, 22], DEADLINE).unwrap(), 42);
    worker.stop();
    assert!(story.exit().success());
}
