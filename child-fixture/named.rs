//! The other end of a named pipe in its own process, which tests kill or run as another user.

use std::{
    error::Error,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    time::Duration,
};

use pipewright::pipe::{
    Direction, PipeMode,
    anonymous::PipeWriter,
    named::{AcceptError, Access, ConnectOptions, ImpersonationLevel, Listener, ListenerOptions, PipeName, Stream},
};

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a `named-...` subcommand and returns its exit code; `None` for other subcommands.
pub(crate) fn run(arguments: &[String]) -> Option<u8> {
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match texts.as_slice() {
        ["named-serve", name] => serve(name),
        ["named-as-client", name] => as_client(name),
        ["named-starved", name] => starved(name),
        ["named-hammer", name] => hammer(name),
        ["named-client", name, level] => client(name, level),
        ["named-inherited", mode, handle] => inherited(mode, handle),
        ["named-ping-pong", inward, outward] => ping_pong(inward, outward),
        _ => return None,
    };
    match done {
        Ok(()) => Some(0),
        Err(error) => {
            drop(writeln!(io::stdout(), "error: {error}"));
            Some(1)
        }
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

fn mark(mark: u8) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&[mark])?;
    stdout.flush()
}

/// Listens until stdin ends.
fn serve(name: &str) -> Result<(), Box<dyn Error>> {
    let _listener = Listener::bind(&PipeName::new(name)?)?;
    say("listening")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Calls `run_as_client` for the first client.
fn as_client(name: &str) -> Result<(), Box<dyn Error>> {
    let listener = ListenerOptions::new().access(Access::Anyone).listen(&PipeName::new(name)?)?;
    say("listening")?;
    let stream = listener.accept_timeout(DEADLINE)?;
    let mut ran = false;
    match stream.run_as_client(|| ran = true) {
        Ok(()) => say("it ran")?,
        Err(error) => say(&format!("{error}; ran: {ran}"))?,
    }
    Ok(())
}

/// Accepts without free file descriptors until a line arrives on stdin.
fn starved(name: &str) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind(&PipeName::new(name)?)?;
    // Waiting needs no file descriptor.
    rlimit(64)?;
    let mut hoard = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        hoard.push(file);
    }
    say("listening")?;
    let before = cpu_time();
    let answer = listener.accept_timeout(Duration::from_millis(500));
    let used = cpu_time().saturating_sub(before);
    let starved = matches!(answer, Err(AcceptError::TimedOut)) && used < Duration::from_millis(50);
    say(if starved { "starved" } else { "not starved" })?;
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept_timeout(DEADLINE));
        io::stdin().read_line(&mut String::new())?;
        hoard.clear();
        let mut stream = accepting.join().map_err(|_| io::Error::other("panic"))??;
        stream.write_all(&[1])
    })?;
    Ok(())
}

fn rlimit(files: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
    #[expect(unsafe_code, reason = "std has no limits")]
    // SAFETY: setrlimit(2) reads one structure.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "std has no CPU clock")]
    // SAFETY: clock_gettime(2) writes one structure.
    unsafe {
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time)
    };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Connects and disconnects until it is killed or the server ends. Writes `k` before it connects, and `i` when it is connected.
fn hammer(name: &str) -> Result<(), Box<dyn Error>> {
    let name = PipeName::new(name)?;
    let options = ConnectOptions::new().handshake(ImpersonationLevel::Identification).no_wait();
    let mut echo = [0; 8];
    say("hammering")?;
    loop {
        mark(b'k')?;
        let mut stream = options.connect(&name, DEADLINE)?;
        mark(b'i')?;
        stream.write_all(&u64::MAX.to_be_bytes())?;
        stream.read_exact(&mut echo)?;
    }
}

/// Connects, reports it, and stays connected until the server ends the stream.
fn client(name: &str, level: &str) -> Result<(), Box<dyn Error>> {
    let options = ConnectOptions::new().allowed_server(Access::Anyone);
    let options = match level {
        "plain" => options,
        "anonymous" => options.handshake(ImpersonationLevel::Anonymous),
        "identification" => options.handshake(ImpersonationLevel::Identification),
        "impersonation" => options.handshake(ImpersonationLevel::Impersonation),
        "current-user" => options.allowed_server(Access::CurrentUser),
        other => return Err(format!("no level {other:?}").into()),
    };
    let name = match name.strip_prefix('@') {
        Some(name) => PipeName::abstract_name(name)?,
        None => PipeName::new(name)?,
    };
    let mut stream = options.connect(&name, DEADLINE)?;
    let groups = fs::read_to_string("/proc/self/status")?;
    let groups = groups.lines().find(|line| line.starts_with("Groups:")).unwrap_or_default();
    say(&format!("connected {groups}"))?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Replies to each line from one one-way pipe with a line on another.
fn ping_pong(inward: &str, outward: &str) -> Result<(), Box<dyn Error>> {
    let connect = |name: &str, direction| -> Result<Stream, Box<dyn Error>> {
        Ok(ConnectOptions::new().direction(direction).connect(&PipeName::new(name)?, DEADLINE)?)
    };
    let reader = BufReader::new(connect(inward, Direction::In)?);
    let mut writer = connect(outward, Direction::Out)?;
    for line in reader.lines() {
        writeln!(writer, "pong {}", line?)?;
    }
    Ok(())
}

/// Inherits a connected end, and returns five bytes in upper case.
fn inherited(mode: &str, handle: &str) -> Result<(), Box<dyn Error>> {
    let modes = [PipeMode::Byte, PipeMode::Message, PipeMode::Framed];
    let mode = modes.into_iter().find(|known| known.to_string() == mode).ok_or("no mode")?;
    let end = OwnedFd::from(PipeWriter::inherit(handle.parse()?)?);
    let mut stream = Stream::from_fd(end, mode)?;
    let mut letters = [0; 5];
    stream.read_exact(&mut letters)?;
    stream.write_all(&letters.to_ascii_uppercase())?;
    Ok(())
}
