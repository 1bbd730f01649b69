//! Anonymous pipes, first against what the tests of .NET's `System.IO.Pipes` assert (`sNN_...` is statement NN of a list made
//! from them), then against what only this library promises.
//!
//! Statements that have no test here:
//!
//! | statement | reason |
//! |---|---|
//! | 2 `InOut` is refused | types: there is no constructor for a duplex pipe |
//! | 3 negative sizes | types: sizes are `usize` |
//! | 4, 5 unknown enum values | types |
//! | 6 null handles | types |
//! | 15 transmission and read mode | there is no mode: an anonymous pipe carries bytes |
//! | 21-65 | named pipes |
//! | 66 disposing twice | types: an end is dropped once |
//! | 67 reading a write-only end | types: `PipeWriter` is not `Read` |
//! | 68 length, position, seek | types: no `Seek` |
//! | 74, 75 offsets, argument checks | types: slices |
//! | 78 duplex for two seconds | an anonymous pipe has one direction |
//! | 85 clones of a named pipe | named pipes; clones of anonymous ends are statement 13 |
//! | 88 cancel of a pending write | `p15_cancel_ends_pending_calls_without_data_loss` |
#![expect(clippy::disallowed_methods, reason = "the tests drive std's Command themselves")]

mod promises;

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::support::DEADLINE;
use pipewright::pipe::{
    CancelToken, Cancelled, Direction, Timeout,
    anonymous::{self, Handle, HandleError, PipeReader, PipeWriter},
};
use proptest::prelude::*;

fn pair() -> (PipeReader, PipeWriter) {
    let (reader, end) = anonymous::from_child().unwrap();
    (reader, end.into_writer().unwrap())
}

/// Runs a call that may block on its own thread, and panics if it takes too long.
fn within<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || sender.send(call()).is_ok()).unwrap();
    receiver.recv_timeout(DEADLINE).map_err(|error| format!("{what}: {error}")).unwrap()
}

fn read_some(reader: &PipeReader, limit: usize) -> Vec<u8> {
    let mut buffer = vec![0; limit];
    let count = reader.read_timeout(&mut buffer, DEADLINE).unwrap();
    buffer.truncate(count);
    buffer
}

fn read_exactly(reader: &PipeReader, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = read_some(reader, count - all.len());
        assert!(!some.is_empty(), "end of file after {} of {count} bytes", all.len());
        all.extend(some);
    }
    all
}

fn read_to_end(reader: &PipeReader) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let some = read_some(reader, 64 * 1024);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// Bytes whose period is a prime, so that lost, repeated or swapped pieces are detected.
fn pattern(count: usize) -> Vec<u8> {
    (0_u8..251).cycle().take(count).collect()
}

fn fixture(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_child-fixture"));
    command.arg(subcommand).stdin(Stdio::null());
    command
}

fn exit(mut child: Child) -> ExitStatus {
    within("the child's exit", move || {
        drop(child.stdin.take());
        child.wait().unwrap()
    })
}

/// Flags of a descriptor of any process, from fdinfo.
fn is_close_on_exec(process: &str, number: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
    flags & u32::try_from(libc::O_CLOEXEC).unwrap() != 0
}

// Creation.

#[test]
fn s01_pairs_transfer_data_in_both_forms() {
    let (writer, end) = anonymous::to_child().unwrap();
    assert_eq!(end.direction(), Direction::In);
    (&writer).write_all(b"down").unwrap();
    assert_eq!(read_some(&end.into_reader().unwrap(), 16), b"down");

    let (reader, end) = anonymous::from_child().unwrap();
    assert_eq!(end.direction(), Direction::Out);
    (&end.into_writer().unwrap()).write_all(b"up").unwrap();
    assert_eq!(read_some(&reader, 16), b"up");
}

/// Waits until the reader has closed: a process being spawned by another test may hold a copy of it until its exec.
#[track_caller]
fn assert_breaks(writer: &PipeWriter) {
    assert!(writer.wait_broken(DEADLINE).unwrap(), "the reading end is still open");
    assert!(writer.is_broken());
}

#[test]
fn s07_ends_are_connected_after_creation() {
    let (writer, end) = anonymous::to_child().unwrap();
    assert!(!writer.is_broken());
    drop(end);
    assert_breaks(&writer);
}

#[test]
fn s08_inherit_accepts_text_of_handle() {
    let (writer, end) = anonymous::to_child().unwrap();
    let text = end.into_handle().to_string();
    let reader = PipeReader::inherit(text.parse().unwrap()).unwrap();
    assert_eq!(reader.as_fd().as_raw_fd().to_string(), text);
    (&writer).write_all(b"by number").unwrap();
    assert_eq!(read_some(&reader, 16), b"by number");
    drop(reader);
    // The inherited end owns the number and closes it.
    assert_breaks(&writer);
}

#[test]
fn s09_parse_rejects_text_that_is_no_number() {
    for text in ["abc", "-1", "", " 5", "5 ", "+5", "05", "0x5", "5.0", "٥", "2147483648", "99999999999999999999"] {
        let error = text.parse::<Handle>().unwrap_err();
        assert!(
            matches!(&error, HandleError::NotANumber { text: reported } if **reported == *text),
            "{text:?}: {error:?}"
        );
    }
    let error = "x".repeat(1_000_000).parse::<Handle>().unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
    assert!(matches!(Handle::try_from(-1), Err(HandleError::NotANumber { .. })));
}

proptest! {
    #[test]
    fn s09_every_number_goes_round(number in 0..=RawFd::MAX) {
        let handle: Handle = number.to_string().parse().unwrap();
        prop_assert_eq!(handle.number(), number);
        prop_assert_eq!(handle, Handle::try_from(number).unwrap());
        prop_assert_eq!(handle.to_string(), number.to_string());
    }

    #[test]
    fn s09_no_other_text_is_a_number(text in "[-+ 0-9a-fxX._\u{660}-\u{669}]{0,12}") {
        let canonical = text.parse::<RawFd>().is_ok_and(|number| number >= 0 && number.to_string() == text);
        prop_assert_eq!(text.parse::<Handle>().is_ok(), canonical);
    }
}

#[test]
fn s10_inherit_rejects_closed_descriptor() {
    let handle = Handle::try_from(RawFd::MAX).unwrap();
    assert!(matches!(PipeReader::inherit(handle), Err(HandleError::NotOpen { number: RawFd::MAX })));
    assert!(matches!(PipeWriter::inherit(handle), Err(HandleError::NotOpen { number: RawFd::MAX })));
}

#[test]
fn s11_inherit_rejects_descriptor_of_other_type() {
    for (path, name) in [("Cargo.toml", "a regular file"), ("src", "a directory"), ("/dev/null", "a character device")]
    {
        let file = File::open(path).unwrap();
        let number = file.as_raw_fd();
        let error = PipeReader::inherit(Handle::try_from(number).unwrap()).unwrap_err();
        assert!(
            matches!(error, HandleError::NotAPipe { number: reported, found } if reported == number && found == name),
            "{path}: {error:?}"
        );
        assert_eq!(error.to_string(), format!("descriptor {number} is {name}, not a pipe or a socket"));
        file.metadata().unwrap(); // still open: an error closes nothing
    }
}

#[test]
fn s12_ends_from_owned_fds_work() {
    let (writer, end) = anonymous::to_child().unwrap();
    let writer = PipeWriter::from(os_pipe::PipeWriter::from(OwnedFd::from(writer)));
    let reader = PipeReader::from(os_pipe::PipeReader::from(OwnedFd::from(end)));
    (&writer).write_all(b"again").unwrap();
    assert_eq!(read_some(&reader, 16), b"again");
    drop(reader);
    assert_breaks(&writer);
    assert_eq!((&writer).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn s13_clones_work_like_the_original() {
    let (reader, writer) = pair();
    let (other_reader, other_writer) = (reader.try_clone().unwrap(), writer.try_clone().unwrap());
    (&other_writer).write_all(b"one").unwrap();
    assert_eq!(read_some(&reader, 16), b"one");
    (&writer).write_all(b"two").unwrap();
    assert_eq!(read_some(&other_reader, 16), b"two");
    drop(writer);
    (&other_writer).write_all(b"three").unwrap();
    drop(other_writer);
    assert_eq!(read_to_end(&reader), b"three");
}

#[test]
fn s14_both_ends_report_the_same_capacity() {
    for bytes in [4096, 8192] {
        let (reader, writer) = pair();
        assert_eq!(reader.set_capacity(bytes).unwrap(), bytes);
        assert_eq!((reader.capacity().unwrap(), writer.capacity().unwrap()), (bytes, bytes));
        assert_eq!(writer.set_capacity(2 * bytes).unwrap(), 2 * bytes);
        assert_eq!((reader.capacity().unwrap(), writer.capacity().unwrap()), (2 * bytes, 2 * bytes));
    }
}

#[test]
fn s16_dropping_child_end_loses_no_data() {
    let (reader, end) = anonymous::from_child().unwrap();
    let writer = end.into_writer().unwrap();
    (&writer).write_all(b"written before").unwrap();
    drop(writer);
    assert_eq!(read_to_end(&reader), b"written before");
}

// Across processes.

#[test]
fn s17_child_echoes_ten_bytes() {
    let (writer, child_reads) = anonymous::to_child().unwrap();
    let (reader, child_writes) = anonymous::from_child().unwrap();
    let mut command = fixture("echo-pipe");
    let read = child_reads.pass_to(&mut command).unwrap();
    let write = child_writes.pass_to(&mut command).unwrap();
    assert!(read.number() >= 10 && write.number() >= 10, "{read} {write}");
    let child = command.arg(format!("--read={read}")).arg(format!("--write={write}")).spawn().unwrap();
    drop(command);
    for round in 0..3_u8 {
        let ping: Vec<u8> = (0..10).map(|byte| byte * 10 + round).collect();
        (&writer).write_all(&ping).unwrap();
        assert_eq!(read_exactly(&reader, 10), ping);
    }
    // In the child an inherited end is close-on-exec, so that its children do not hold it open.
    let pid = child.id().to_string();
    assert!(is_close_on_exec(&pid, read.number()) && is_close_on_exec(&pid, write.number()));
    drop(writer);
    assert!(exit(child).success());
    assert_eq!(read_to_end(&reader), b"");
}

#[test]
fn s18_child_reads_data_then_end_of_file() {
    let (writer, end) = anonymous::to_child().unwrap();
    let mut command = fixture("count");
    let handle = end.pass_to(&mut command).unwrap();
    let child = command.arg(format!("--read={handle}")).stdout(Stdio::piped()).spawn().unwrap();
    drop(command);
    (&writer).write_all(b"12345").unwrap();
    drop(writer);
    let output = within("the child's output", || child.wait_with_output().unwrap());
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "5\n");
}

#[test]
fn s19_end_of_file_despite_open_copy_of_child_end() {
    let (writer, end) = anonymous::to_child().unwrap();
    let other_writer = writer.try_clone().unwrap();
    let mut command = fixture("count");
    let handle = end.pass_to(&mut command).unwrap();
    let child = command.arg(format!("--read={handle}")).stdout(Stdio::piped()).spawn().unwrap();
    (&writer).write_all(b"12345").unwrap();
    drop(writer);
    drop(other_writer);
    let output = within("the child's output", || child.wait_with_output().unwrap());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "5\n");
}

#[test]
fn s19_command_owns_child_end_until_dropped() {
    let (writer, end) = anonymous::to_child().unwrap();
    let mut command = fixture("count");
    let handle = end.pass_to(&mut command).unwrap();
    let mut child = command.arg(format!("--read={handle}")).stdout(Stdio::piped()).spawn().unwrap();
    child.kill().unwrap();
    exit(child);
    assert!(!writer.is_broken());
    drop(command);
    assert!(writer.wait_broken(DEADLINE).unwrap());
}

#[test]
fn s20_child_closing_its_end_ends_the_stream() {
    let (reader, end) = anonymous::from_child().unwrap();
    let mut command = fixture("say");
    let handle = end.pass_to(&mut command).unwrap();
    command.arg(format!("--write={handle}")).args(["--text=hello", "--linger"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(read_to_end(&reader), b"hello");
    assert!(child.try_wait().unwrap().is_none(), "waits for the end of stdin");
    assert!(exit(child).success());
}

// Reading and writing.

#[test]
fn s69_bytes_arrive_complete_and_in_order() {
    for count in [1, 42, 10 * 1024] {
        let (reader, writer) = pair();
        (&writer).flush().unwrap();
        (&writer).write_all(&pattern(count)).unwrap();
        assert_eq!(read_exactly(&reader, count), pattern(count));
    }
}

#[test]
fn s70_ten_megabytes_arrive_complete() {
    copied(10 * 1024 * 1024);
}

#[test]
fn s71_read_returns_no_more_than_was_written() {
    let (reader, writer) = pair();
    for message in 0..5_u8 {
        (&writer).write_all(&[message; 512]).unwrap();
        assert_eq!(read_some(&reader, 1024), [message; 512]);
    }
}

#[test]
fn s72_empty_read_returns_at_once_and_consumes_nothing() {
    let (mut reader, writer) = pair();
    for _ in 0..2 {
        assert_eq!(reader.read_timeout(&mut [], DEADLINE).unwrap(), 0);
        assert_eq!(reader.read(&mut []).unwrap(), 0);
    }
    (&writer).write_all(b"x").unwrap();
    assert_eq!(reader.read_timeout(&mut [], DEADLINE).unwrap(), 0);
    assert_eq!(reader.read(&mut []).unwrap(), 0);
    assert_eq!(read_some(&reader, 16), b"x");
}

#[test]
fn s73_empty_write_has_no_effect() {
    let (reader, writer) = pair();
    for text in ["hello", "", "", "world"] {
        (&writer).write_all(text.as_bytes()).unwrap();
        assert_eq!((&writer).write(b"").unwrap(), 0);
        writer.write_all_timeout(b"", DEADLINE).unwrap();
    }
    drop(writer);
    assert_eq!(read_to_end(&reader), b"helloworld");
}

/// Writes on one thread, with and without a timeout, and reads on another.
fn copied(count: usize) {
    for deadline in [None, Some(DEADLINE)] {
        let (reader, writer) = pair();
        thread::scope(|scope| {
            scope.spawn(move || match deadline {
                None => (&writer).write_all(&pattern(count)).unwrap(),
                Some(timeout) => writer.write_all_timeout(&pattern(count), timeout).unwrap(),
            });
            let got = read_to_end(&reader);
            assert_eq!(got.len(), count);
            assert!(got == pattern(count), "{count} bytes arrived changed");
        });
    }
}

#[test]
fn s76_copies_of_any_length_are_exact_and_end() {
    for count in [0, 1, 1024, 4095, 4096, 4097, 65_536, 1024 * 1024] {
        copied(count);
    }
}

#[test]
fn s77_twenty_pairs_work_concurrently() {
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| copied(10 * 1024));
        }
    });
}

#[test]
fn s79_alternating_writes_and_reads_work() {
    for (rounds, write, read) in [(5000, 1, 1), (500, 21, 18), (500, 18, 21), (5, 128_000, 64_000)] {
        let (reader, writer) = pair();
        let sent = pattern(rounds * write);
        thread::scope(|scope| {
            let chunks = sent.chunks(write);
            scope.spawn(move || {
                for chunk in chunks {
                    (&writer).write_all(chunk).unwrap();
                }
            });
            let mut got = Vec::new();
            loop {
                let some = read_some(&reader, read);
                assert!(some.len() <= read);
                if some.is_empty() {
                    break;
                }
                got.extend(some);
            }
            assert!(got == sent, "{rounds} writes of {write}, reads of {read}");
        });
    }
}

#[test]
fn s80_flush_never_blocks() {
    let (_reader, writer) = pair();
    (&writer).write_all(b"unread").unwrap();
    (&writer).flush().unwrap();
    assert_eq!(writer.bytes_unread().unwrap(), 6);
}

// End of file and broken pipes.

#[test]
fn s81_end_of_file_follows_data_and_persists() {
    let (mut reader, writer) = pair();
    (&writer).write_all(b"rest").unwrap();
    drop(writer);
    assert_eq!(read_some(&reader, 16), b"rest");
    for _ in 0..3 {
        assert_eq!(read_some(&reader, 16), b"");
        assert_eq!(reader.read(&mut [0; 16]).unwrap(), 0);
    }
}

#[test]
fn s82_pending_read_ends_when_writer_closes() {
    let (reader, writer) = pair();
    thread::scope(|scope| {
        let pending = scope.spawn(|| read_some(&reader, 16));
        drop(writer);
        assert_eq!(pending.join().unwrap(), b"");
    });
}

#[test]
fn s83_write_fails_after_reader_closed() {
    let (reader, writer) = pair();
    drop(reader);
    assert_breaks(&writer);
    assert_eq!((&writer).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let error = writer.write_all_timeout(b"x", DEADLINE).unwrap_err();
    assert_eq!((error.kind(), error.written()), (ErrorKind::BrokenPipe, 0));
}

#[test]
fn s84_pending_write_fails_when_reader_closes() {
    let (reader, writer) = pair();
    let pending = thread::Builder::new().spawn(move || (&writer).write_all(&pattern(1024 * 1024))).unwrap();
    assert_eq!(read_some(&reader, 1), [0]); // started, and cannot have finished: the pipe holds less
    drop(reader);
    let result = within("the write's end", || pending.join().unwrap());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

// Timeouts, which correspond to cancellation in .NET.

#[test]
fn s86_zero_timeout_has_no_effect() {
    let (reader, writer) = pair();
    let error = reader.read_timeout(&mut [0; 16], Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);

    let full = writer.capacity().unwrap();
    writer.write_all_timeout(&pattern(full), Duration::ZERO).unwrap(); // there is space: needs no time
    let error = writer.write_all_timeout(b"x", Duration::ZERO).unwrap_err();
    assert_eq!((error.kind(), error.written()), (ErrorKind::TimedOut, 0));
    assert_eq!(read_exactly(&reader, full), pattern(full));
    assert_eq!(reader.bytes_available().unwrap(), 0);
}

#[test]
fn s87_timed_out_read_loses_no_data() {
    let (reader, writer) = pair();
    for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(100)] {
        let error = reader.read_timeout(&mut [0; 16], timeout).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    (&writer).write_all(b"later").unwrap();
    assert_eq!(read_some(&reader, 16), b"later");
}

#[test]
fn timed_out_write_reports_bytes_written() {
    let (reader, writer) = pair();
    assert_eq!(writer.set_capacity(4096).unwrap(), 4096);
    let sent = pattern(10_000);
    let error = writer.write_all_timeout(&sent, Duration::from_millis(20)).unwrap_err();
    assert_eq!((error.kind(), error.written()), (ErrorKind::TimedOut, 4096));
    assert_eq!(error.to_string(), "4096 of 10000 bytes were written: timed out");
    let written = error.written();
    let error = io::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.get_ref().unwrap().is::<anonymous::WriteError>());

    let rest = sent.get(written..).unwrap().to_vec();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all_timeout(&rest, DEADLINE).unwrap());
        assert_eq!(read_to_end(&reader), sent);
    });
}

#[test]
fn p15_cancel_ends_pending_calls_without_data_loss() {
    let is_cancelled =
        |error: &io::Error| error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Cancelled>);
    for cancel_first in [true, false] {
        let (reader, writer) = pair();
        let (other_reader, _other_writer) = pair();
        let data = pattern(writer.capacity().unwrap() + 1);
        let cancel = CancelToken::new().unwrap();
        if cancel_first {
            cancel.cancel();
        }
        let wait = Timeout::after(DEADLINE).or_cancelled(&cancel);
        let written = thread::scope(|scope| {
            let read = scope.spawn(|| other_reader.read_timeout(&mut [0], wait).unwrap_err());
            let write = scope.spawn(|| writer.write_all_timeout(&data, wait).unwrap_err());
            let full = if cancel_first { 0 } else { data.len() - 1 };
            within_reach("the writes", || reader.bytes_available().unwrap() == full);
            if cancel_first {
                // There is data to read and to drain.
                writer.write_all_timeout(b"x", DEADLINE).unwrap();
            }
            let drain = scope.spawn(|| writer.wait_drained(wait).unwrap_err());
            let broken = scope.spawn(|| writer.wait_broken(wait).unwrap_err());
            cancel.cancel();
            for error in [read, drain, broken].map(|thread| thread.join().unwrap()) {
                assert!(is_cancelled(&error), "{error:?}");
            }
            let error = write.join().unwrap();
            assert!(error.is_cancelled(), "{error:?}");
            assert_eq!(error.written(), full);
            error.written()
        });
        let left = if cancel_first { b"x".to_vec() } else { data[..written].to_vec() };
        assert_eq!(read_exactly(&reader, left.len()), left);
    }
}

/// Polls until a condition holds.
#[track_caller]
fn within_reach(what: &str, is_so: impl FnMut() -> bool) {
    assert!(crate::support::becomes_true(is_so), "not within the deadline: {what}");
}
