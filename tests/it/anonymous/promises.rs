//! Promises beyond those of .NET.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    process::{Command, Stdio},
    sync::Barrier,
    thread,
    time::Duration,
};

use pipewright::{
    OutputMode, WorkerSpec,
    pipe::{
        Direction,
        anonymous::{self, Handle, HandleError, PipeReader, PipeWriter},
    },
};

use super::{exit, fixture, is_close_on_exec, pair, pattern, read_exactly, read_some, read_to_end, within};
use crate::support::{DEADLINE, FIXTURE};

#[test]
fn inherit_rejects_standard_stream() {
    for number in 0..=2 {
        let handle = Handle::try_from(number).unwrap();
        let error = PipeWriter::inherit(handle).unwrap_err();
        assert!(matches!(error, HandleError::StandardStream { number: reported } if reported == number), "{error:?}");
        assert!(matches!(PipeReader::inherit(handle), Err(HandleError::StandardStream { .. })));
    }
}

/// Runs itself in a child process whose stdin is the pipe.
#[test]
fn inherit_standard_leaves_dev_null_behind() {
    const NAME: &str = "anonymous::promises::inherit_standard_leaves_dev_null_behind";
    const CHILD: &str = "PIPEWRIGHT_TEST_CLAIMS_STDIN";
    if std::env::var_os(CHILD).is_some() {
        let stdin: Handle = "0".parse().unwrap();
        assert!(matches!(PipeWriter::inherit_standard(stdin), Err(HandleError::WrongDirection { .. })));
        let reader = PipeReader::inherit_standard(stdin).unwrap();
        assert!(reader.as_fd().as_raw_fd() > 2);
        assert!(is_close_on_exec("self", reader.as_fd().as_raw_fd()));
        assert_eq!(read_to_end(&reader), b"over stdin");
        assert_eq!(io::stdin().read(&mut [0; 16]).unwrap(), 0);
        assert_eq!(fs::read_link("/proc/self/fd/0").unwrap().to_str(), Some("/dev/null"));
        assert!(!is_close_on_exec("self", 0), "children still get a stdin");
        assert!(matches!(PipeReader::inherit_standard(stdin), Err(HandleError::NotAPipe { .. })));
        return;
    }
    let (writer, end) = anonymous::to_child().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME]).env(CHILD, "1").stdin(end.into_reader().unwrap()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    (&writer).write_all(b"over stdin").unwrap();
    drop(writer);
    let output = within("the test in the child", || child.wait_with_output().unwrap());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn inherit_rejects_wrong_direction_and_keeps_descriptor() {
    let (writer, end) = anonymous::to_child().unwrap();
    let handle = end.into_handle();
    let error = PipeWriter::inherit(handle).unwrap_err();
    assert!(
        matches!(
            error,
            HandleError::WrongDirection { number, wanted: Direction::Out, found: Direction::In } if number == handle.number()
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), format!("descriptor {handle} is open for reading, not for writing"));
    assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidInput);
    let reader = PipeReader::inherit(handle).unwrap();
    (&writer).write_all(b"x").unwrap();
    assert_eq!(read_some(&reader, 16), b"x");

    let (_writer, end) = anonymous::to_child().unwrap();
    assert!(matches!(end.into_writer(), Err(HandleError::WrongDirection { .. })));
    let (_reader, end) = anonymous::from_child().unwrap();
    assert!(matches!(end.into_reader(), Err(HandleError::WrongDirection { .. })));
}

#[test]
fn handle_is_claimed_once_until_dropped() {
    let (reader, end) = anonymous::from_child().unwrap();
    let handle = end.handle();
    let claimed = |handle| matches!(PipeWriter::inherit(handle), Err(HandleError::AlreadyClaimed { .. }));
    assert!(claimed(handle), "an existing child end");
    assert_eq!(end.into_handle(), handle);
    let writer = PipeWriter::inherit(handle).unwrap();
    assert!(claimed(handle), "a claimed end");
    assert_eq!(
        PipeWriter::inherit(handle).unwrap_err().to_string(),
        format!("descriptor {handle} is already owned in this process: a handle can be claimed once")
    );
    let descriptor = OwnedFd::from(writer);
    assert!(claimed(handle), "a descriptor outside the library");
    drop(descriptor);
    assert_eq!(read_to_end(&reader), b"");
}

#[test]
fn concurrent_claims_succeed_once() {
    for _ in 0..100 {
        let (reader, end) = anonymous::from_child().unwrap();
        let handle = end.into_handle();
        let barrier = Barrier::new(2);
        let claim = || {
            barrier.wait();
            PipeWriter::inherit(handle)
        };
        let (one, two) = thread::scope(|scope| {
            let (one, two) = (scope.spawn(claim), scope.spawn(claim));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        drop((one, two));
        assert_eq!(read_to_end(&reader), b"");
    }
}

#[test]
fn inherit_rejects_descriptor_opened_by_this_process() {
    let (reader, writer) = os_pipe::pipe().unwrap();
    let handle = |fd: &dyn AsRawFd| Handle::try_from(fd.as_raw_fd()).unwrap();
    let results = [PipeReader::inherit(handle(&reader)).map(drop), PipeWriter::inherit(handle(&writer)).map(drop)];
    for result in results {
        // The second error if another test has converted an end with this number into an `OwnedFd`: such entries are permanent.
        let refused = matches!(result, Err(HandleError::NotInherited { .. } | HandleError::AlreadyClaimed { .. }));
        assert!(refused, "{result:?}");
    }
}

#[test]
fn capacities_are_rounded_up_and_limited() {
    let (reader, writer) = pair();
    for (asked, real) in [(1, 4096), (5000, 8192), (65_536, 65_536), (65_537, 131_072)] {
        assert_eq!(writer.set_capacity(asked).unwrap(), real);
        assert_eq!(reader.capacity().unwrap(), real);
    }
    (&writer).write_all(&pattern(10_000)).unwrap();
    assert_eq!(writer.set_capacity(4096).unwrap_err().kind(), ErrorKind::ResourceBusy);
    assert_eq!(writer.set_capacity(usize::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);

    let limit: usize = fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap().trim().parse().unwrap();
    match writer.set_capacity(2 * limit) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        // With CAP_SYS_RESOURCE there is no limit; tests run by an ordinary user cover it.
        Ok(real) => println!("not tested: this user may pass pipe-max-size ({real} > {limit})"),
    }
}

#[test]
fn unread_bytes_are_reported_at_both_ends() {
    let (reader, writer) = pair();
    writer.wait_drained(Duration::ZERO).unwrap();
    (&writer).write_all(&pattern(500)).unwrap();
    assert_eq!((reader.bytes_available().unwrap(), writer.bytes_unread().unwrap()), (500, 500));
    let error = writer.wait_drained(Duration::from_millis(5)).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TimedOut, "timed out: 500 bytes unread"));
    thread::scope(|scope| {
        let draining = scope.spawn(|| writer.wait_drained(DEADLINE));
        read_exactly(&reader, 500);
        draining.join().unwrap().unwrap();
    });
    assert_eq!((reader.bytes_available().unwrap(), writer.bytes_unread().unwrap()), (0, 0));
}

#[test]
fn drain_ends_when_reader_closes() {
    let (reader, writer) = pair();
    (&writer).write_all(b"12345").unwrap();
    thread::scope(|scope| {
        let draining = scope.spawn(|| writer.wait_drained(DEADLINE));
        read_exactly(&reader, 2);
        drop(reader);
        let error = draining.join().unwrap().unwrap_err();
        let text = "reader closed with 3 bytes unread";
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::BrokenPipe, text));
    });

    let (reader, writer) = pair();
    (&writer).write_all(b"12345").unwrap();
    read_exactly(&reader, 5);
    drop(reader);
    writer.wait_drained(DEADLINE).unwrap(); // read everything before it closed
}

#[test]
fn writer_detects_closed_reader_without_writing() {
    let (reader, writer) = pair();
    (&writer).write_all(b"unread").unwrap();
    assert!(!writer.is_broken());
    assert!(!writer.wait_broken(Duration::from_millis(5)).unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| writer.wait_broken(DEADLINE));
        drop(reader);
        assert!(waiting.join().unwrap().unwrap());
    });
    assert!(writer.is_broken());
}

#[test]
fn p11_ends_stay_close_on_exec() {
    let (writer, child_reads) = anonymous::to_child().unwrap();
    let (reader, child_writes) = anonymous::from_child().unwrap();
    let clones = (writer.try_clone().unwrap(), reader.try_clone().unwrap());
    for fd in
        [writer.as_fd(), reader.as_fd(), clones.0.as_fd(), clones.1.as_fd(), child_reads.as_fd(), child_writes.as_fd()]
    {
        assert!(fd.as_raw_fd() > 2);
        assert!(is_close_on_exec("self", fd.as_raw_fd()));
    }
    // Also while a command owns it, and after the command was spawned.
    let mut command = fixture("count");
    let handle = child_reads.pass_to(&mut command).unwrap();
    assert!(is_close_on_exec("self", handle.number()));
    let child = command.arg(format!("--read={handle}")).stdout(Stdio::null()).spawn().unwrap();
    assert!(is_close_on_exec("self", handle.number()));
    let claimed = PipeWriter::inherit(child_writes.into_handle()).unwrap();
    assert!(is_close_on_exec("self", claimed.as_fd().as_raw_fd()));
    drop((writer, clones));
    assert!(exit(child).success());
}

#[test]
fn p03_child_inherits_only_the_passed_end() {
    let (writer, _other_end) = anonymous::to_child().unwrap();
    let (reader, granted) = anonymous::from_child().unwrap();
    let pipe = |fd: &dyn AsRawFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let (ours, theirs) = (pipe(&writer.as_fd()), pipe(&reader.as_fd()));
    let mut command = Command::new("ls");
    let handle = granted.pass_to(&mut command).unwrap();
    let child = command.args(["-l", "/proc/self/fd"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    drop(command);
    let output = within("the list", || child.wait_with_output().unwrap());
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(!list.contains(ours.to_str().unwrap()), "{list}");
    assert_eq!(list.matches(theirs.to_str().unwrap()).count(), 1, "{list}");
    assert!(list.contains(&format!(" {handle} -> {}", theirs.display())), "{list}");
}

/// In a child process, since std makes the test process ignore SIGPIPE.
#[test]
fn p11_write_without_readers_fails_despite_default_sigpipe() {
    let host = WorkerSpec::new(FIXTURE).arg("broken-pipes").stdout(OutputMode::Lines);
    let mut process = host.spawn_unsupervised().unwrap();
    let mut said = String::new();
    process.take_stdout().unwrap().read_to_string(&mut said).unwrap();
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("it ends").clone();
    assert!(exit.success(), "{exit} after {said:?}");
    let ways = ["write", "write_all_timeout", "send", "stream", "call"];
    assert_eq!(said, ways.map(|way| format!("{way}: Err(BrokenPipe)\n")).concat());
}

#[test]
fn ends_convert_from_fds_files_and_std_pipes() {
    let (reader, writer) = io::pipe().unwrap();
    let (mut reader, mut writer) = (PipeReader::from(reader), PipeWriter::from(writer));
    writer.write_all(b"std").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "std");

    let (reader, writer) = io::pipe().unwrap();
    let reader = PipeReader::try_from(OwnedFd::from(reader)).unwrap();
    let writer = PipeWriter::try_from(File::from(OwnedFd::from(writer))).unwrap();
    writer.write_all_timeout(b"file", DEADLINE).unwrap();
    assert_eq!(read_some(&reader, 10), b"file");
    let (reader, writer) = (io::PipeReader::from(reader), File::from(writer));
    let wrong = PipeWriter::try_from(OwnedFd::from(reader)).unwrap_err();
    assert!(matches!(wrong, HandleError::WrongDirection { .. }), "{wrong}");
    drop(writer);
    let regular = PipeWriter::try_from(tempfile::tempfile().unwrap()).unwrap_err();
    assert!(matches!(regular, HandleError::NotAPipe { .. }), "{regular}");
}

#[test]
fn handle_works_as_argument() {
    for number in [0, 7, 10, 100, RawFd::MAX] {
        let handle = Handle::try_from(number).unwrap();
        let mut command = Command::new("worker");
        command.arg(handle);
        assert_eq!(command.get_args().next().unwrap().to_str(), Some(&*number.to_string()));
        assert_eq!(format!("{handle:?}"), format!("Handle({number})"));
    }
    let number = |number| Handle::try_from(number).unwrap();
    assert!(number(9) < number(10) && number(100) > number(99));
}
