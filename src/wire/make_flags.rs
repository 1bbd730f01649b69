//! `MAKEFLAGS` and similar variables, and the jobserver that they name (GNU make's manual, "Sharing Job Slots with GNU make").

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// Variables with options of `make` and compatible programs, which may name a jobserver.
pub(crate) const MAKE_FLAGS: [&str; 4] = ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS", "GNUMAKEFLAGS"];

/// The option since make 4.2, and the one before.
const OPTIONS: [&[u8]; 2] = [b"--jobserver-auth=", b"--jobserver-fds="];

/// Where the tokens of a jobserver are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobserverAddress {
    /// Two inherited descriptors: tokens are read from the first and returned to the second.
    Pipe { reader: i32, writer: i32 },
    /// The path of a FIFO; since make 4.4.
    Fifo(PathBuf),
}

/// Why an option does not name a jobserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressError {
    /// A negative descriptor: `make` withholds its jobserver from this program.
    Disabled,
    /// Neither `fifo:PATH` nor two numbers.
    Malformed,
}

impl JobserverAddress {
    fn parse(value: &[u8]) -> Result<Self, AddressError> {
        let value = unescaped(value);
        if let Some(path) = value.strip_prefix(b"fifo:") {
            return if path.is_empty() {
                Err(AddressError::Malformed)
            } else {
                Ok(Self::Fifo(OsString::from_vec(path.to_vec()).into()))
            };
        }
        let numbers = str::from_utf8(&value).ok().and_then(|text| text.split_once(','));
        let (reader, writer) = numbers.ok_or(AddressError::Malformed)?;
        let number = |text: &str| text.parse::<i32>().map_err(|_| AddressError::Malformed);
        match (number(reader)?, number(writer)?) {
            (reader, writer) if reader < 0 || writer < 0 => Err(AddressError::Disabled),
            (reader, writer) => Ok(Self::Pipe { reader, writer }),
        }
    }

    /// The option as a word of `MAKEFLAGS`.
    fn word(&self) -> Vec<u8> {
        let value = match self {
            Self::Pipe { reader, writer } => format!("{reader},{writer}").into_bytes(),
            Self::Fifo(path) => [b"fifo:", path.as_os_str().as_bytes()].concat(),
        };
        let escaped = value.into_iter().flat_map(|byte| {
            let backslash = is_blank(byte) || byte == b'\\';
            backslash.then_some(b'\\').into_iter().chain([byte])
        });
        b"--jobserver-auth=".iter().copied().chain(escaped).collect()
    }
}

/// The jobserver that the options name; `None` if they name none. If several do, the last counts.
pub(crate) fn jobserver(flags: &[u8]) -> Option<Result<JobserverAddress, AddressError>> {
    let pieces = pieces(flags);
    let (options, _) = split(&pieces);
    let value =
        OPTIONS.iter().find_map(|option| options.iter().rev().find_map(|piece| word(piece).strip_prefix(*option)));
    value.map(JobserverAddress::parse)
}

/// The options with this jobserver in place of any other and of a bare `-j`; with `jobs` also in place of `-jN`.
pub(crate) fn with_jobserver(flags: &[u8], address: &JobserverAddress, jobs: Option<usize>) -> Vec<u8> {
    let flags = without_jobserver(flags).unwrap_or_else(|| flags.to_vec());
    let pieces = pieces(&flags);
    let (options, definitions) = split(&pieces);
    let mut kept: Vec<&[u8]> = Vec::with_capacity(options.len());
    let mut rest = options.iter().peekable();
    while let Some(piece) = rest.next() {
        let has_number = is_bare_jobs(word(piece)) && rest.peek().is_some_and(|next| is_number(word(next)));
        if jobs.is_some() && is_jobs(word(piece)) {
            rest.next_if(|_| has_number);
        } else if !word(piece).is_empty() && (has_number || !is_bare_jobs(word(piece))) {
            kept.push(piece);
        }
    }
    let mut text = kept.concat();
    let jobs = jobs.map(|jobs| format!("-j{jobs}").into_bytes());
    for added in jobs.into_iter().chain([address.word()]) {
        if !text.is_empty() {
            text.push(b' ');
        }
        text.extend(added);
    }
    let definitions = definitions.concat();
    if definitions.first().is_some_and(|first| !is_blank(*first)) {
        text.push(b' ');
    }
    text.extend(definitions);
    text
}

/// Removes the options that name a jobserver; `None` if there are none. Everything else stays unchanged, including blanks.
///
/// `-jN` stays: a `make` that reads it has N slots of its own. A bare `-j`, which older versions of `make` and cargo add next to the
/// jobserver, is removed: alone it would mean an unlimited number of jobs. After `--`, words define variables.
pub(crate) fn without_jobserver(flags: &[u8]) -> Option<Vec<u8>> {
    let pieces = pieces(flags);
    let (options, definitions) = split(&pieces);
    if !options.iter().any(|piece| is_jobserver(word(piece))) {
        return None;
    }
    let mut kept: Vec<&[u8]> = Vec::with_capacity(pieces.len());
    let mut rest = options.iter().peekable();
    while let Some(piece) = rest.next() {
        let is_bare = is_bare_jobs(word(piece)) && !rest.peek().is_some_and(|next| is_number(word(next)));
        if !is_bare && !is_jobserver(word(piece)) {
            kept.push(piece);
        }
    }
    let rest = [kept.concat(), definitions.concat()].concat();
    Some(if rest.iter().all(|&byte| is_blank(byte)) { Vec::new() } else { rest })
}

fn is_jobserver(word: &[u8]) -> bool {
    OPTIONS.iter().any(|option| word.starts_with(option))
}

fn is_jobs(word: &[u8]) -> bool {
    let number = word.strip_prefix(b"--jobs=").or_else(|| word.strip_prefix(b"-j"));
    is_bare_jobs(word) || number.is_some_and(|number| number.iter().all(u8::is_ascii_digit))
}

fn is_bare_jobs(word: &[u8]) -> bool {
    matches!(word, b"-j" | b"--jobs")
}

fn is_number(word: &[u8]) -> bool {
    word.first().is_some_and(u8::is_ascii_digit)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The options, and the definitions of variables after `--`.
fn split<'a, 'b>(pieces: &'a [&'b [u8]]) -> (&'a [&'b [u8]], &'a [&'b [u8]]) {
    let end = pieces.iter().position(|piece| word(piece) == b"--").unwrap_or(pieces.len());
    pieces.split_at_checked(end).unwrap_or((pieces, &[]))
}

/// Splits the text into words, each with its preceding blanks; the last piece may be blanks only. A backslash escapes the next byte,
/// as `make` writes a blank inside a word.
fn pieces(text: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut length = rest.iter().take_while(|byte| is_blank(**byte)).count();
        while let Some(&byte) = rest.get(length).filter(|byte| !is_blank(**byte)) {
            length = length.saturating_add(if byte == b'\\' { 2 } else { 1 });
        }
        let (piece, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        pieces.push(piece);
        rest = others;
    }
    pieces
}

fn word(piece: &[u8]) -> &[u8] {
    let blanks = piece.iter().take_while(|byte| is_blank(**byte)).count();
    piece.get(blanks..).unwrap_or_default()
}

fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = word.iter();
    let mut text = Vec::with_capacity(word.len());
    while let Some(&byte) = bytes.next() {
        text.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rest(value: &str) -> Option<String> {
        without_jobserver(value.as_bytes()).map(|rest| String::from_utf8(rest).unwrap())
    }

    fn found(value: &str) -> Option<Result<JobserverAddress, AddressError>> {
        jobserver(value.as_bytes())
    }

    fn pipe(reader: i32, writer: i32) -> JobserverAddress {
        JobserverAddress::Pipe { reader, writer }
    }

    #[test]
    fn p03_removes_jobserver_and_keeps_other_flags() {
        for (given, expected) in [
            (" -j3 --jobserver-auth=3,4", Some(" -j3")),
            ("k -j3 --jobserver-auth=fifo:/tmp/GMfifo17", Some("k -j3")),
            ("w --jobserver-fds=3,4 -j -- CC=gcc", Some("w -- CC=gcc")),
            ("-j --jobserver-fds=3,4 --jobserver-auth=3,4", Some("")),
            ("--jobserver-auth=3,4 -j 4", Some(" -j 4")),
            (
                "rk -j3 --jobserver-auth=3,4 --sync-mutex=fnm:/tmp/GM1 -- A=b\\ --jobserver-auth=c",
                Some("rk -j3 --sync-mutex=fnm:/tmp/GM1 -- A=b\\ --jobserver-auth=c"),
            ),
            ("-I a\\ --jobserver-auth=3,4", None),
            ("-- A=b --jobserver-auth=3,4", None),
            ("-j --jobserver-style=pipe", None),
            ("", None),
            ("\\", None),
        ] {
            assert_eq!(rest(given).as_deref(), expected, "{given:?}");
        }
    }

    #[test]
    fn jobserver_is_the_last_one_named() {
        for (given, expected) in [
            ("", None),
            ("-j2", None),
            ("--jobserver-auth", None),
            ("-- A=b --jobserver-auth=3,4", None),
            (" -j4 --jobserver-auth=3,4", Some(Ok(pipe(3, 4)))),
            ("w --jobserver-fds=5,6 -j", Some(Ok(pipe(5, 6)))),
            ("--jobserver-auth=3,4 --jobserver-auth=7,8 -- A=--jobserver-auth=1,2", Some(Ok(pipe(7, 8)))),
            ("--jobserver-auth=3,4 --jobserver-fds=7,8", Some(Ok(pipe(3, 4)))),
            ("--jobserver-auth=fifo:/tmp/a\\ b", Some(Ok(JobserverAddress::Fifo("/tmp/a b".into())))),
            ("--jobserver-auth=-2,-2", Some(Err(AddressError::Disabled))),
            ("--jobserver-auth=-1,3", Some(Err(AddressError::Disabled))),
            ("--jobserver-auth=", Some(Err(AddressError::Malformed))),
            ("--jobserver-auth=3", Some(Err(AddressError::Malformed))),
            ("--jobserver-auth=3,x", Some(Err(AddressError::Malformed))),
            ("--jobserver-auth=3,4,5", Some(Err(AddressError::Malformed))),
            ("--jobserver-auth=99999999999,4", Some(Err(AddressError::Malformed))),
            ("--jobserver-auth=fifo:", Some(Err(AddressError::Malformed))),
        ] {
            assert_eq!(found(given), expected, "{given:?}");
        }
    }

    #[test]
    fn with_jobserver_replaces_what_was_there() {
        let text = |given: &str, jobs| String::from_utf8(with_jobserver(given.as_bytes(), &pipe(5, 6), jobs)).unwrap();
        assert_eq!(text("", Some(3)), "-j3 --jobserver-auth=5,6");
        assert_eq!(text("k -j8 --jobserver-auth=3,4 -- CC=gcc", Some(3)), "k -j3 --jobserver-auth=5,6 -- CC=gcc");
        assert_eq!(text("k -j8 --jobserver-auth=3,4 -- CC=gcc", None), "k -j8 --jobserver-auth=5,6 -- CC=gcc");
        assert_eq!(text(" --jobs 8 -j 4 --jobs=2 -j --junk", Some(3)), " --junk -j3 --jobserver-auth=5,6");
        assert_eq!(text(" -- CC=gcc", None), "--jobserver-auth=5,6 -- CC=gcc");
    }

    /// Words of `MAKEFLAGS`, with and without a jobserver.
    fn any_flags() -> impl Strategy<Value = Vec<String>> {
        let word = prop_oneof![
            Just("--jobserver-auth=3,4".to_owned()),
            Just("--jobserver-auth=fifo:/tmp/a\\ b".to_owned()),
            Just("--jobserver-fds=10,11".to_owned()),
            Just("-j3".to_owned()),
            Just("-j".to_owned()),
            Just("--".to_owned()),
            "[a-zA-Z=/-]([a-z]|\\\\ ){0,5}",
        ];
        proptest::collection::vec(word, 0..8)
    }

    fn any_address() -> impl Strategy<Value = JobserverAddress> {
        prop_oneof![
            (0..5000, 0..5000).prop_map(|(reader, writer)| pipe(reader, writer)),
            "/[a-z \\\\,:=-]{1,12}".prop_map(|path| JobserverAddress::Fifo(path.into())),
        ]
    }

    proptest! {
        #[test]
        fn p03_removes_only_words_of_jobserver(words in any_flags(), blanks in "[ \t]{1,3}") {
            let text = words.join(&blanks);
            let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
            let is_jobserver = |word: &String| word.starts_with("--jobserver-");
            let has_one = words.iter().take(end).any(is_jobserver);
            // A bare -j is removed together with a jobserver.
            let is_removed = |word: &String| is_jobserver(word) || (has_one && word == "-j");
            let is_kept = |(at, word): (usize, &String)| (at >= end || !is_removed(word)).then(|| word.clone());
            let expected: Vec<String> = words.iter().enumerate().filter_map(is_kept).collect();
            match without_jobserver(text.as_bytes()) {
                None => prop_assert_eq!(expected, words),
                Some(rest) => {
                    let rest = String::from_utf8(rest).unwrap();
                    prop_assert_eq!(rest.trim_start_matches([' ', '\t']), expected.join(&blanks));
                    prop_assert_eq!(without_jobserver(rest.as_bytes()), None);
                }
            }
        }

        /// What is written is what is read, and everything but the jobserver stays.
        #[test]
        fn written_jobserver_is_read_back(
            words in any_flags(),
            address in any_address(),
            jobs in proptest::option::of(1..500_usize),
        ) {
            let text = words.join(" ");
            let written = with_jobserver(text.as_bytes(), &address, jobs);
            prop_assert_eq!(jobserver(&written), Some(Ok(address.clone())));
            // A bare -j is removed together with a jobserver.
            if jobs.is_none() && !words.contains(&"-j".to_owned()) {
                let before = without_jobserver(text.as_bytes()).unwrap_or_else(|| text.into_bytes());
                let after = without_jobserver(&written).unwrap();
                prop_assert_eq!(after.trim_ascii(), before.trim_ascii());
            }
            prop_assert_eq!(with_jobserver(&written, &address, jobs), written);
        }

        #[test]
        fn any_text_is_read(text: Vec<u8>) {
            jobserver(&text);
            without_jobserver(&text);
        }

        #[test]
        fn pieces_concatenate_to_original_text(text: Vec<u8>) {
            prop_assert_eq!(pieces(&text).concat(), text);
        }
    }
}
