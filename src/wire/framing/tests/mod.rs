//! Properties for arbitrary bytes, and special cases.

mod damage;

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json, value::RawValue};

use super::{
    Framing,
    batch::{FrameBatch, FrameChunk},
    deframer::Deframer,
    encode::{encode, reframe},
    error::{FrameError, FrameErrorKind},
    line_ending::LineEnding,
};

const FRAMINGS: [Framing; 4] = [Framing::Lines, Framing::Nul, Framing::LengthPrefixed, Framing::ContentLength];

#[derive(Debug, PartialEq, Clone)]
enum Output {
    Frame(Vec<u8>),
    Error(FrameError),
}

fn drain(batch: &mut FrameBatch, outputs: &mut Vec<Output>) {
    for piece in batch.drain() {
        match piece {
            FrameChunk::Frames { bytes, offset: _, spans } => {
                let ranges: Vec<_> =
                    spans.iter().map(|span| span.start()..span.start() + span.of(&bytes).len()).collect();
                assert_eq!(ranges[0].start, 0);
                assert_eq!(ranges.last().unwrap().end, bytes.len(), "a chunk is exactly as long as its frames");
                assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
                assert_eq!(bytes.capacity(), bytes.len());
                outputs.extend(spans.iter().map(|span| Output::Frame(span.of(&bytes).to_vec())));
            }
            FrameChunk::Error(error) => outputs.push(Output::Error(error)),
        }
    }
    assert!(batch.is_empty());
}

/// The frames and errors of a stream that is read in parts of these sizes, cyclically.
fn read_in_parts(deframer: &mut Deframer, stream: &[u8], reads: &[usize]) -> Vec<Output> {
    let (mut batch, mut outputs, mut rest) = (FrameBatch::default(), Vec::new(), stream);
    for size in reads.iter().cycle() {
        let (read, later) = rest.split_at((*size).min(rest.len()));
        deframer.feed(read, &mut batch);
        drain(&mut batch, &mut outputs);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    deframer.finish(&mut batch);
    drain(&mut batch, &mut outputs);
    outputs
}

/// The frames and errors of a stream in one read. They must equal those of reads of single bytes.
fn read_whole(new: impl Fn() -> Deframer, stream: &[u8]) -> Vec<Output> {
    let whole = read_in_parts(&mut new(), stream, &[stream.len().max(1)]);
    assert_eq!(comparable(&whole, stream), comparable(&read_in_parts(&mut new(), stream, &[1]), stream));
    whole
}

/// Removes what depends on the read sizes: excerpts, and the length of errors that are detected later. An excerpt must match the stream
/// at its offset.
fn comparable(outputs: &[Output], stream: &[u8]) -> Vec<Output> {
    let comparable = outputs.iter().map(|outputs| match outputs {
        Output::Error(error) => {
            let start = usize::try_from(error.offset).unwrap();
            let is_of_value = matches!(error.kind, FrameErrorKind::Truncated | FrameErrorKind::Torn { .. });
            assert!(is_of_value || stream[start..].starts_with(&error.excerpt), "{error}");
            let is_known_later = matches!(error.kind, FrameErrorKind::InvalidHeader);
            let length = if is_known_later { 0 } else { error.length };
            Output::Error(FrameError::new(error.kind, error.offset, length, &[]))
        }
        Output::Frame(_) => outputs.clone(),
    });
    comparable.collect()
}

fn messages(framing: Framing, max: usize, stream: &[u8]) -> Vec<Output> {
    read_whole(|| Deframer::new(framing, max), stream)
}

fn frame(bytes: impl AsRef<[u8]>) -> Output {
    Output::Frame(bytes.as_ref().to_vec())
}

fn error(kind: FrameErrorKind, offset: u64, length: u64, excerpt: impl AsRef<[u8]>) -> Output {
    Output::Error(FrameError { kind, offset, length, excerpt: excerpt.as_ref().into() })
}

#[test]
fn line_endings_are_removed_and_blank_lines_skipped() {
    let outputs = messages(Framing::Lines, 8, b"1\n\n22\r\n \t \r\n\r\n\r\r\n333\n");
    assert_eq!(outputs, [frame("1"), frame("22"), frame("333")]);
    // A carriage return of the line ending does not count against the limit; inside a line it is an ordinary byte.
    assert_eq!(messages(Framing::Lines, 3, b"a\rb\r\nabc\r\n"), [frame("a\rb"), frame("abc")]);
}

#[test]
fn p02_reports_long_line_at_the_limit() {
    let kind = FrameErrorKind::TooLong { limit: 3 };
    let outputs = messages(Framing::Lines, 3, b"1\nabcd\n22\r\nabc\r\r\n333\nabcdefgh");
    let expected = [
        frame("1"),
        error(kind, 2, 4, "abcd"),
        frame("22"),
        error(kind, 11, 5, "abc\r\r"),
        frame("333"),
        error(kind, 21, 4, "abcd"),
    ];
    assert_eq!(outputs, expected);
    assert_eq!(messages(Framing::Nul, 3, b"abcd\0abc\0"), [error(kind, 0, 4, "abcd"), frame("abc")]);

    let kind = FrameErrorKind::TooLong { limit: 1000 };
    let mut stream = vec![b'x'; 1_000_000];
    stream.extend_from_slice(b"\n{}\n");
    let mut deframer = Deframer::new(Framing::Lines, 1000);
    assert_eq!(read_in_parts(&mut deframer, &stream, &[4096]), [error(kind, 0, 1001, [b'x'; 256]), frame("{}")]);
}

#[test]
fn p02_reports_truncated_frame() {
    let cut = |offset, length, excerpt| error(FrameErrorKind::Truncated, offset, length, excerpt);
    assert_eq!(messages(Framing::Lines, 9, b"1\n{\"a\""), [frame("1"), cut(2, 4, "{\"a\"")]);
    assert_eq!(messages(Framing::Lines, 9, b"1\n \t"), [frame("1")]);
    assert_eq!(messages(Framing::Nul, 9, b"1\0{"), [frame("1"), cut(2, 1, "{")]);
    assert_eq!(messages(Framing::LengthPrefixed, 9, b"\0\0\0\x01a\0\0\0\x05bc"), [frame("a"), cut(5, 2, "bc")]);
    assert_eq!(messages(Framing::LengthPrefixed, 9, b"\0\0\0\x01a\0\0"), [frame("a"), cut(5, 2, "\0\0")]);
    assert_eq!(messages(Framing::ContentLength, 9, b"Content-Length: 5\r\n\r\nab"), [cut(0, 2, "ab")]);
    assert_eq!(messages(Framing::ContentLength, 9, b"Content-Len"), [cut(0, 11, "Content-Len")]);
    for framing in FRAMINGS {
        assert_eq!(messages(framing, 9, b""), []);
    }
}

#[test]
fn p02_skips_byte_order_mark_before_frame() {
    let stream = |parts: [&[u8]; 2]| parts.map(|part| [b"\xef\xbb\xbf", part].concat()).concat();
    let expected = [frame("{}"), frame("[1]")];
    assert_eq!(messages(Framing::Lines, 9, &stream([b"{}\n", b"[1]\r\n"])), expected);
    assert_eq!(messages(Framing::Nul, 9, &stream([b"{}\0", b"[1]\0"])), expected);
    assert_eq!(messages(Framing::LengthPrefixed, 9, &stream([b"\0\0\0\x02{}", b"\0\0\0\x03[1]"])), expected);
    let headed: [&[u8]; 2] = [b"Content-Length: 2\r\n\r\n{}", b"Content-Length: 3\r\n\r\n[1]"];
    assert_eq!(messages(Framing::ContentLength, 9, &stream(headed)), expected);
    // Alone it is not a frame.
    assert_eq!(messages(Framing::Lines, 9, &stream([b"\n", b""])), []);
}

#[test]
fn nul_frames_may_span_lines() {
    assert_eq!(messages(Framing::Nul, 9, b"{\n}\0\0\r\0 \0"), [frame("{\n}"), frame("\r"), frame(" ")]);
}

#[test]
fn p02_skips_value_that_is_too_long() {
    assert_eq!(messages(Framing::LengthPrefixed, 3, b"\0\0\0\0\0\0\0\x03abc"), [frame("abc")]);
    let kind = FrameErrorKind::TooLong { limit: 3 };
    let outputs = messages(Framing::LengthPrefixed, 3, b"\0\0\0\x04abcd\0\0\0\x01e");
    assert_eq!(outputs, [error(kind, 0, 4, "\0\0\0\x04abcd"), frame("e")]);
    let outputs = messages(Framing::LengthPrefixed, 3, b"\xff\xff\xff\xffabc\0\0\0\x02{}");
    assert_eq!(outputs, [error(kind, 0, u32::MAX.into(), b"\xff\xff\xff\xffabc"), frame("{}")]);
    let stream = format!("Content-Length: {}\n\nabcContent-Length: 1\n\n1", u64::MAX);
    let [Output::Error(too_long), next] = &messages(Framing::ContentLength, 3, stream.as_bytes())[..] else { panic!() };
    assert_eq!((too_long.kind, too_long.offset, too_long.length, next), (kind, 0, u64::MAX, &frame("1")));
    let stream = b"Content-Length: 4\n\nabcdContent-Length: 1\n\n1";
    let [Output::Error(too_long), next] = &messages(Framing::ContentLength, 3, stream)[..] else { panic!() };
    assert_eq!((too_long.kind, too_long.length, &*too_long.excerpt, next), (kind, 4, &stream[..23], &frame("1")));
}

#[test]
fn header_variants_are_accepted() {
    let stream = b"Content-Length: 2\r\nContent-Type: x; y=z\r\n\r\n{}\r\ncontent-length:1\n\n1CONTENT-LENGTH :  0\r\n\r\nX-Y: y\nContent-Length: 3\n\n[1]\n";
    assert_eq!(messages(Framing::ContentLength, 9, stream), [frame("{}"), frame("1"), frame("[1]")]);
}

#[test]
fn p02_captured_lines_are_complete() {
    let text = |max: usize, stream: &str| read_whole(|| Deframer::text(max), stream.as_bytes());
    assert_eq!(text(9, "a\n\n \r\nb\r\rlast"), ["a", "", " ", "b", "", "last"].map(frame));
    assert_eq!(text(9, "a\nb\r"), [frame("a"), frame("b")]);
    assert_eq!(text(3, "abc\r\nabcd\r\nabcdefgh"), ["abc", "abc", "d", "abc", "def", "gh"].map(frame));
    // Long lines are split between characters.
    assert_eq!(text(4, "abéé\nab\u{1f600}\n"), ["abé", "é", "ab", "\u{1f600}"].map(frame));
    assert_eq!(read_whole(|| Deframer::text(0), b"\x80\x80\n"), [frame(b"\x80"), frame(b"\x80")]);
}

/// The lines of a stream with their endings.
fn lines(max: usize, stream: &[u8], reads: &[usize]) -> Vec<(Vec<u8>, LineEnding)> {
    let (mut deframer, mut batch, mut lines, mut rest) =
        (Deframer::text(max), FrameBatch::default(), Vec::new(), stream);
    for size in reads.iter().cycle() {
        let (read, later) = rest.split_at((*size).min(rest.len()));
        deframer.feed(read, &mut batch);
        rest = later;
        if rest.is_empty() {
            deframer.finish(&mut batch);
        }
        for piece in batch.drain() {
            let FrameChunk::Frames { bytes, offset: _, spans } = piece else { panic!("{piece:?}") };
            lines.extend(spans.iter().map(|span| (span.of(&bytes).to_vec(), span.ending())));
        }
        if rest.is_empty() {
            break;
        }
    }
    lines
}

#[test]
fn p02_lines_have_their_endings() {
    let stream = b"a\nb\r\n 10 %\r 20 %\r\nabcdefgh\n\rlast";
    let expected = [
        ("a", LineEnding::LineFeed),
        ("b", LineEnding::CarriageReturnLineFeed),
        (" 10 %", LineEnding::CarriageReturn),
        (" 20 %", LineEnding::CarriageReturnLineFeed),
        ("abcdef", LineEnding::Partial),
        ("gh", LineEnding::LineFeed),
        ("", LineEnding::CarriageReturn),
        ("last", LineEnding::None),
    ];
    let expected = expected.map(|(line, ending)| (line.as_bytes().to_vec(), ending));
    for reads in [1, 3, 100] {
        assert_eq!(lines(6, stream, &[reads]), expected);
    }
}

#[test]
fn p07_memory_is_bounded_and_released() {
    for framing in FRAMINGS {
        let mut deframer = Deframer::new(framing, 1 << 20);
        let mut stream = Vec::new();
        encode(framing, &"x".repeat(1 << 19), &mut stream).unwrap();
        let outputs = read_in_parts(&mut deframer, &stream, &[1000]);
        assert!(matches!(&outputs[..], [Output::Frame(bytes)] if bytes.len() == (1 << 19) + 2));
        assert!(deframer.held_bytes() <= 8 * 1024, "{framing:?} keeps {}", deframer.held_bytes());
        let mut batch = FrameBatch::default();
        for _ in 0..100 {
            deframer.feed(&vec![b'1'; 1 << 16], &mut batch);
            assert!(deframer.held_bytes() <= (1 << 20) + 8192, "{framing:?} holds {}", deframer.held_bytes());
        }
    }
}

#[test]
fn whole_frames_of_a_read_share_one_chunk() {
    let mut batch = FrameBatch::default();
    let mut deframer = Deframer::new(Framing::Lines, 100);
    deframer.feed(b"1\n22\n3", &mut batch);
    deframer.feed(b"33\n4444\n5\n6", &mut batch);
    let chunks = batch.drain().map(|piece| match piece {
        FrameChunk::Frames { bytes, offset: _, spans } => (String::from_utf8(bytes).unwrap(), spans.len()),
        FrameChunk::Error(error) => panic!("{error}"),
    });
    assert_eq!(chunks.collect::<Vec<_>>(), [("1\n22".into(), 2), ("333".into(), 1), ("4444\n5".into(), 2)]);
}

#[test]
fn p16_frame_error_shows_kind_and_offset() {
    let text = |kind, length| FrameError::new(kind, 9, length, b"{\"a\x1b\xff").to_string();
    let cases = [
        (FrameErrorKind::Truncated, "the stream ended within a message, after 7 bytes of it"),
        (FrameErrorKind::TooLong { limit: 5 }, "a message of at least 7 bytes, longer than the 5 allowed"),
        (FrameErrorKind::NotUtf8 { offset: 4 }, "a message of 7 bytes that is not UTF-8 at byte 4"),
        (FrameErrorKind::NotJson { offset: 3 }, "a message of 7 bytes that is not JSON at byte 3"),
        (FrameErrorKind::InvalidHeader, "7 bytes in place of a header"),
        (FrameErrorKind::Torn { size: 30 }, "a message announced with 30 bytes, with another header after 7"),
        (FrameErrorKind::NotRpc, "a line of 7 bytes that is not JSON-RPC 2.0"),
    ];
    for (kind, expected) in cases {
        assert_eq!(text(kind, 7), format!("{expected}, at offset 9: `{{\"a\\u{{1b}}\u{fffd}`"));
    }
    let bare = FrameError::new(FrameErrorKind::Truncated, 0, 0, b"").to_string();
    assert_eq!(bare, "the stream ended within a message, after 0 bytes of it, at offset 0");
}

#[test]
fn encode_error_leaves_output_unchanged() {
    let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
    for framing in FRAMINGS {
        let mut out = b"before".to_vec();
        assert!(encode(framing, &("begin", &unwritable), &mut out).is_err());
        assert_eq!(out, b"before");
    }
}

#[test]
fn line_is_reframed_as_encoded() {
    let value = serde_json::json!({"a": ["b\n", 1]});
    for framing in FRAMINGS {
        let (mut line, mut out) = (Vec::new(), Vec::new());
        encode(Framing::Lines, &value, &mut line).unwrap();
        encode(framing, &value, &mut out).unwrap();
        assert_eq!(reframe(framing, line).unwrap(), out, "{framing:?}");
    }
}

/// Bytes that resemble real streams: delimiters, headers, JSON, invalid UTF-8.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => vec(any::<u8>(), 0..12),
        4 => "[a-z\\r\\n \\x00]{0,12}".prop_map(String::into_bytes),
        2 => Just(b"\r\n".to_vec()),
        2 => (0_u8..20).prop_map(|size| vec![0, 0, 0, size]),
        2 => (0_u8..20).prop_map(|size| format!("Content-Length: {size}\r\n\r\n").into_bytes()),
        1 => Just(b"content-length".to_vec()),
        1 => Just("é\u{1f600}".as_bytes().to_vec()),
        1 => (0_usize..6000).prop_map(|size| vec![b'x'; size]),
    ];
    vec(part, 0..20).prop_map(|parts| parts.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Multiples of 1/8: serde_json may round other fractions when parsing.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((any::<String>(), inner), 0..6).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn p02_frames_do_not_depend_on_read_sizes(
        stream in bytes(), max in 0_usize..40, reads in vec(1_usize..50, 1..8),
    ) {
        for framing in FRAMINGS {
            let whole = messages(framing, max, &stream);
            let outputs = read_in_parts(&mut Deframer::new(framing, max), &stream, &reads);
            prop_assert_eq!(comparable(&outputs, &stream), comparable(&whole, &stream));
        }
        let whole = read_whole(|| Deframer::text(max), &stream);
        prop_assert_eq!(read_in_parts(&mut Deframer::text(max), &stream, &reads), whole);
    }

    #[test]
    fn p07_deframer_holds_at_most_one_frame(stream in bytes(), max in 0_usize..40) {
        let mut batch = FrameBatch::default();
        for framing in FRAMINGS {
            let mut deframer = Deframer::new(framing, max);
            for read in stream.chunks(7) {
                deframer.feed(read, &mut batch);
                prop_assert!(deframer.held_bytes() <= 8 * 1024 + 256);
            }
        }
    }

    #[test]
    fn lines_match_naive_splitting(stream in bytes(), max in 1_usize..40) {
        let outputs = messages(Framing::Lines, max, &stream);
        let (last, lines) = stream.split(|byte| *byte == b'\n').collect::<Vec<_>>().split_last()
            .map(|(last, lines)| (last.to_vec(), lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>())).unwrap();
        let strip = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).to_vec();
        let blank = |line: &[u8]| line.iter().all(|byte| b" \t\r".contains(byte));
        let excerpt = |line: &[u8]| line[..line.len().min(256)].to_vec();
        let mut offset = 0;
        let mut at = |line: &[u8]| { let start = offset; offset += line.len() as u64 + 1; start };
        let too_long = |offset: u64, line: &[u8]| {
            let known = if line[max] == b'\r' { max + 2 } else { max + 1 };
            error(FrameErrorKind::TooLong { limit: max }, offset, known as u64, excerpt(&line[..known]))
        };
        let mut expected = Vec::new();
        for line in &lines {
            let (content, offset) = (strip(line), at(line));
            if content.len() > max { expected.push(too_long(offset, line)) } else if !blank(&content) { expected.push(frame(content)) }
        }
        let offset = at(&last);
        if strip(&last).len() > max {
            expected.push(too_long(offset, &last));
        } else if !blank(&last) {
            expected.push(error(FrameErrorKind::Truncated, offset, last.len() as u64, excerpt(&last)));
        }
        prop_assert_eq!(outputs, expected);
    }

    #[test]
    fn p02_captured_text_is_complete(stream in "[a-cé\u{1f600}\n\r]{0,60}", max in 4_usize..12, reads in vec(1_usize..20, 1..8)) {
        let lines = lines(max, stream.as_bytes(), &reads);
        let mut rebuilt = Vec::new();
        for (line, ending) in &lines {
            prop_assert!(line.len() <= max);
            prop_assert!(std::str::from_utf8(line).is_ok(), "split between characters");
            prop_assert!(!line.is_empty() || *ending != LineEnding::Partial);
            rebuilt.extend_from_slice(line);
            rebuilt.extend_from_slice(ending.as_bytes());
        }
        prop_assert_eq!(rebuilt, stream.as_bytes());
    }

    #[test]
    fn encoded_values_are_decoded(values in vec(value(), 0..8), pretty in any::<bool>(), reads in vec(1_usize..50, 1..8)) {
        for framing in FRAMINGS {
            let mut stream = Vec::new();
            for value in &values {
                if pretty {
                    // A raw value keeps the line endings between its tokens.
                    let text = serde_json::to_string_pretty(value).unwrap().replace('\n', "\r\n");
                    let raw = RawValue::from_string(text).unwrap();
                    encode(framing, &raw, &mut stream).unwrap();
                } else {
                    encode(framing, value, &mut stream).unwrap();
                }
            }
            let outputs = read_in_parts(&mut Deframer::new(framing, 1 << 20), &stream, &reads);
            let heard = outputs.iter().map(|outputs| match outputs {
                Output::Frame(bytes) => serde_json::from_slice(bytes).unwrap(),
                Output::Error(error) => json!(error.to_string()),
            });
            prop_assert_eq!(heard.collect::<Vec<Value>>(), values.clone());
        }
    }
}
