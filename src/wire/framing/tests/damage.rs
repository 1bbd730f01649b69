//! Streams with damaged bytes.

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use super::{FRAMINGS, Output, drain, error, frame, messages, read_in_parts};
use crate::wire::{
    decode::check,
    framing::{Framing, batch::FrameBatch, deframer::Deframer, encode::encode, error::FrameErrorKind},
};

#[test]
fn p02_reports_damage_before_more_bytes_arrive() {
    let too_long = FrameErrorKind::TooLong { limit: 9 };
    let cases: [(Framing, &[u8], FrameErrorKind, u64); 10] = [
        (Framing::Lines, b"1\n0123456789", too_long, 2),
        (Framing::Nul, b"1\x000123456789", too_long, 2),
        (Framing::LengthPrefixed, b"\0\0\0\x011\0\0\0\x0a", too_long, 5),
        (Framing::LengthPrefixed, b"\0\0\0\x011Warn", too_long, 5),
        (Framing::LengthPrefixed, b"\0\0\0\x09{\"a\0\0\0\x02{", FrameErrorKind::Torn { size: 9 }, 0),
        (Framing::ContentLength, b"Content-Length: 10\r\n\r\n", too_long, 0),
        (Framing::ContentLength, b"Content-Length: 1\n\n1d", FrameErrorKind::InvalidHeader, 20),
        (Framing::ContentLength, b"Content-Length: 1\n\n1{", FrameErrorKind::InvalidHeader, 20),
        (Framing::ContentLength, b"Content-Length: x", FrameErrorKind::InvalidHeader, 0),
        (Framing::ContentLength, b"Content-Length: 90\n\n[Content-Length: 8\n", FrameErrorKind::Torn { size: 90 }, 0),
    ];
    for (framing, stream, kind, offset) in cases {
        let (mut batch, mut outputs) = (FrameBatch::default(), Vec::new());
        let max = if matches!(kind, FrameErrorKind::Torn { .. }) { 99 } else { 9 };
        let mut deframer = Deframer::new(framing, max);
        deframer.feed(&stream[..stream.len() - 1], &mut batch);
        drain(&mut batch, &mut outputs);
        assert!(outputs.iter().all(|outputs| matches!(outputs, Output::Frame(_))), "{outputs:?}");
        deframer.feed(&stream[stream.len() - 1..], &mut batch);
        drain(&mut batch, &mut outputs);
        let found = outputs.iter().find_map(|outputs| {
            if let Output::Error(error) = outputs { Some((error.kind, error.offset)) } else { None }
        });
        assert_eq!(found, Some((kind, offset)), "{framing:?} {:?}", String::from_utf8_lossy(stream));
    }
}

#[test]
fn p02_finds_next_message_after_invalid_header() {
    let long = format!("X-Long: {}\n", "y".repeat(5000));
    let cases: [&str; 14] = [
        "Debugger attached.\n",
        "debug: starting",
        "{\"n\":333}",
        "Content-Length: 1x\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: -1\r\n\r\n{\"n\":1}",
        "Content-Length:\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Type: x\r\n\r\n",
        "Content-Type: ",
        "Content-Len",
        ": 5\n",
        "Warning: Content-Length",
        &long,
    ];
    for damage in cases {
        let stream = [damage.as_bytes(), b"content-lengtH: 1\r\n\r\n1"].concat();
        let excerpt = &damage.as_bytes()[..damage.len().min(256)];
        let expected = [error(FrameErrorKind::InvalidHeader, 0, damage.len() as u64, excerpt), frame("1")];
        assert_eq!(messages(Framing::ContentLength, 9, &stream), expected, "{damage}");
    }
    let outputs = messages(Framing::ContentLength, 9, b"Content-Length: 1\nContent-Length: 2\n\n12");
    assert_eq!(outputs, [error(FrameErrorKind::InvalidHeader, 0, 18, "Content-Length: 1\n"), frame("12")]);
}

#[test]
fn p02_resumes_after_wrong_size() {
    // Sizes counted in characters, or larger than the value, so that the frame ends inside or after the next header.
    let value = "{\"a\":{\"label\":\"caf\u{e9}\"}}";
    for size in [1, value.len() - 1, value.len() + 1, value.len() + 9, value.len() + 25, 10_000] {
        let stream =
            format!("Content-Length: {size}\r\n\r\n{value}Content-Length: 2\r\n\r\n{{}}Content-Length: 3\n\n[1]");
        let outputs = messages(Framing::ContentLength, 20_000, stream.as_bytes());
        assert!(outputs.ends_with(&[frame("{}"), frame("[1]")]), "{size}: {outputs:?}");
        assert!(matches!(outputs[..outputs.len() - 2].last(), Some(Output::Error(_))), "{size}: {outputs:?}");
        let mut stream = u32::try_from(size).unwrap().to_be_bytes().to_vec();
        stream.extend([value.as_bytes(), b"\0\0\0\x02{}\0\0\0\x03[1]"].concat());
        let outputs = messages(Framing::LengthPrefixed, 20_000, &stream);
        assert!(outputs.ends_with(&[frame("{}"), frame("[1]")]), "{size}: {outputs:?}");
        assert!(matches!(outputs[..outputs.len() - 2].last(), Some(Output::Error(_))), "{size}: {outputs:?}");
    }
}

/// A part of a stream.
#[derive(Debug)]
enum Part {
    Frame(Value),
    /// Bytes between frames.
    Garbage(Vec<u8>),
    /// A frame that ends early, with other bytes in place of its rest.
    Torn(Value, prop::sample::Index, Vec<u8>),
}

fn part() -> impl Strategy<Value = Part> {
    // No proper prefix of an object is JSON.
    let object = || "[ -~é]{0,20}".prop_map(|text| json!({ "n": text }));
    let garbage = || {
        prop_oneof![
            3 => "[abCcdhlnt{\":,0-9 .-]{1,40}",
            1 => "[{a-c]{1,3}",
            1 => Just("Content-Length: x".to_owned()),
            1 => Just("warning: Content-Length".to_owned()),
            1 => Just("Content-Type: text".to_owned()),
            1 => Just("Content-Length: 12".to_owned()),
            1 => (256_usize..6000).prop_map(|size| "w".repeat(size)),
        ]
        .prop_filter("neither JSON nor blank", |text| check(text.as_bytes()).is_err() && !text.trim().is_empty())
    };
    prop_oneof![
        4 => object().prop_map(Part::Frame),
        2 => garbage().prop_map(|text| Part::Garbage(text.into_bytes())),
        2 => (object(), any::<prop::sample::Index>(), prop_oneof![Just(String::new()), garbage()])
            .prop_map(|(value, cut, more)| Part::Torn(value, cut, more.into_bytes())),
    ]
}

proptest! {
    /// Damage between or inside frames loses only the frames that it touches.
    #[test]
    fn p02_delivers_every_recognizable_frame_after_damage(parts in vec(part(), 1..12), reads in vec(1_usize..60, 1..8)) {
        for framing in FRAMINGS {
            let mut stream = Vec::new();
            let (mut expected, mut damaged) = (Vec::new(), Vec::new());
            for part in &parts {
                let start = stream.len();
                match part {
                    Part::Frame(value) => {
                        encode(framing, value, &mut stream).unwrap();
                        expected.push(Output::Frame(serde_json::to_vec(value).unwrap()));
                    }
                    Part::Garbage(bytes) => {
                        stream.extend_from_slice(bytes);
                        // A delimited frame is recognized by the delimiter of the previous one.
                        match framing {
                            Framing::Lines => stream.push(b'\n'),
                            Framing::Nul => stream.push(0),
                            Framing::LengthPrefixed | Framing::ContentLength => {}
                        }
                        damaged.push(start..stream.len());
                    }
                    Part::Torn(value, cut, more) => {
                        let mut whole = Vec::new();
                        encode(framing, value, &mut whole).unwrap();
                        // The rest of a header of four bytes cannot be distinguished from zeros.
                        let least = if framing == Framing::LengthPrefixed { 5 } else { 1 };
                        // The delimiter is restored.
                        let most = whole.len() - if matches!(framing, Framing::Lines | Framing::Nul) { 2 } else { 1 };
                        let cut = least + cut.index(most - least + 1);
                        whole.truncate(cut.min(most));
                        if framing == Framing::ContentLength && whole.ends_with(b"\r\n") && !whole.ends_with(b"\r\n\r\n") {
                            // A next frame of the same length would continue this header: its line is the same again.
                            whole.pop();
                        }
                        stream.extend_from_slice(&whole);
                        stream.extend_from_slice(more);
                        match framing {
                            Framing::Lines => stream.push(b'\n'),
                            Framing::Nul => stream.push(0),
                            Framing::LengthPrefixed | Framing::ContentLength => {}
                        }
                        damaged.push(start..stream.len());
                    }
                }
            }
            let outputs = read_in_parts(&mut Deframer::new(framing, 1 << 16), &stream, &reads);
            let frames = outputs.iter().filter(|outputs| matches!(outputs, Output::Frame(bytes) if check(bytes).is_ok())).cloned();
            prop_assert_eq!(frames.collect::<Vec<_>>(), expected, "{:?} {:?}", framing, String::from_utf8_lossy(&stream));
            // Everything else is an error, here or in the check of the value: at the offset of the damage, at most one for each.
            let offsets = outputs.iter().filter_map(|outputs| if let Output::Error(error) = outputs { Some(error.offset) } else { None });
            for place in offsets {
                prop_assert!(damaged.iter().any(|range| range.contains(&usize::try_from(place).unwrap())), "{place} is not in {damaged:?}");
            }
            if matches!(framing, Framing::ContentLength | Framing::LengthPrefixed) {
                let wrong = outputs.iter().filter(|outputs| !matches!(outputs, Output::Frame(bytes) if check(bytes).is_ok())).count();
                prop_assert!(wrong > 0 || damaged.is_empty(), "{framing:?}: {damaged:?} unreported");
            }
        }
    }
}
