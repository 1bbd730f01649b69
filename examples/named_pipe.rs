//! A chat of several terminals, and a file server that reads each file with the rights of the client that asks.
//!
//! ```text
//! named_pipe serve NAME [--messages] [--max N]     what one client says, all the others hear
//! named_pipe serve NAME --as-client FILE           each client gets FILE in one message, if the client may read it
//! named_pipe connect NAME [--messages]             stdin goes there, what comes from there to stdout
//! named_pipe connect ssh://USER@HOST/NAME          the same, on another machine
//! ```
//!
//! NAME is a plain name or an absolute path (`ssh://host//run/jobs`). For clients of other users, give a path that they can
//! reach; a client that comes through ssh is the user it logged in as.
use std::{
    error::Error,
    fmt::Display,
    fs,
    io::{self, BufRead, IsTerminal},
    os::fd::AsFd,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use pipewright::{
    pipe::{
        PipeMode,
        anonymous::PipeWriter,
        named::{
            Access, ConnectOptions, ImpersonationLevel, ListenerOptions, MessageError, MessageStream, PipeName, Stream,
        },
    },
    printable,
    tunnel::Tunnel,
};

type Outcome = Result<(), Box<dyn Error>>;

const USAGE: &str = "usage: named_pipe serve NAME [--messages] [--max N] [--as-client FILE] | named_pipe connect [ssh://USER@HOST/]NAME [--messages]";

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    complain(&format_args!("named_pipe: {text}"));
    ExitCode::FAILURE
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut mode, mut max, mut file) = (PipeMode::Framed, None, None);
    let (verb, name, mut flags) = match arguments.as_slice() {
        [verb, name, flags @ ..] => (verb.as_str(), name, flags.iter()),
        _ => return Err(USAGE.into()),
    };
    while let Some(flag) = flags.next() {
        match (flag.as_str(), verb) {
            ("--messages", _) => mode = PipeMode::Message,
            ("--max", "serve") => max = Some(flags.next().ok_or(USAGE)?.parse()?),
            ("--as-client", "serve") => file = Some(flags.next().ok_or(USAGE)?),
            _ => return Err(USAGE.into()),
        }
    }
    let mut options = ListenerOptions::new().mode(mode).handshake();
    if let Some(max) = max {
        options = options.max_instances(max);
    }
    match (verb, file) {
        ("serve", Some(file)) => serve_file(&options.access(Access::Anyone), &PipeName::new(name)?, file),
        ("serve", None) => chat(&options, &PipeName::new(name)?),
        ("connect", _) => connect(name, mode),
        _ => Err(USAGE.into()),
    }
}

/// Where the other side is: on this machine, or at the end of a tunnel that lives as long as the talk.
fn connect(place: &str, mode: PipeMode) -> Outcome {
    // The client asks to be served with its own rights, by whoever serves there.
    let options =
        ConnectOptions::new().mode(mode).allowed_server(Access::Anyone).handshake(ImpersonationLevel::Impersonation);
    let Some(elsewhere) = place.strip_prefix("ssh://") else {
        return talk(options.connect(&PipeName::new(place)?, PATIENCE)?.into_messages()?);
    };
    let (machine, name) = elsewhere.split_once('/').ok_or(USAGE)?;
    let tunnel = Tunnel::ssh(format!("ssh://{machine}"))?;
    talk(tunnel.connect_with(&options, name, PATIENCE)?.into_messages()?)
}

/// Everything that a client says goes to all others.
fn chat(options: &ListenerOptions, name: &PipeName) -> Outcome {
    let listener = options.listen(name)?;
    let guests = Guests::default();
    complain(&format_args!("listening on {name}"));
    thread::scope(|scope| {
        for (number, stream) in listener.incoming().enumerate() {
            // One that does not get in keeps nobody else out.
            let guest = stream.map_err(Into::into).and_then(|stream| guests.enter(number, stream));
            match guest {
                Ok((who, speaker)) => {
                    let guests = &guests;
                    thread::Builder::new().spawn_scoped(scope, move || guests.host(number, &who, &speaker))?;
                }
                Err(error) => complain(&format_args!("guest {number} did not get in: {error}")),
            }
        }
        Ok(())
    })
}

#[derive(Default)]
struct Guests(Mutex<Vec<(usize, MessageStream)>>);

impl Guests {
    /// Who it is, and what it will say.
    fn enter(&self, number: usize, stream: Stream) -> Result<(String, MessageStream), Box<dyn Error>> {
        let speaker = stream.clone().into_messages()?;
        // Fails for one who wants to stay unknown.
        let who = stream.peer()?;
        let who = format!("{}/{number}", who.user_name()?.unwrap_or_else(|| who.uid().to_string()));
        self.tell(number, format!("{who} came in").as_bytes());
        self.list().push((number, stream.into_messages()?));
        Ok((who, speaker))
    }

    /// As long as the guest stays.
    fn host(&self, number: usize, who: &str, speaker: &MessageStream) {
        while let Ok(Some(text)) = speaker.recv() {
            self.tell(number, &[who.as_bytes(), b": ", &text].concat());
        }
        self.list().retain(|(guest, _)| *guest != number);
        self.tell(number, format!("{who} has left").as_bytes());
        // Makes room for the next one. Fails where the guest was put out.
        drop(speaker.as_stream().disconnect());
    }

    /// To all but one. A guest who does not listen is not waited for: it is put out, and its host hears of it.
    fn tell(&self, from: usize, text: &[u8]) {
        self.list().retain(|(number, guest)| {
            if *number == from {
                return true;
            }
            match guest.send_timeout(text, Duration::from_millis(100)) {
                // A speech that is too long is nobody else's fault.
                Ok(()) | Err(MessageError::TooLarge { .. }) => true,
                Err(_) => {
                    drop(guest.as_stream().disconnect());
                    false
                }
            }
        });
    }

    fn list(&self) -> MutexGuard<'_, Vec<(usize, MessageStream)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each client gets the file, or the reason why it may not have it.
fn serve_file(options: &ListenerOptions, name: &PipeName, file: &str) -> Outcome {
    let listener = options.listen(name)?;
    complain(&format_args!("listening on {name}"));
    for stream in listener.incoming() {
        let sent = stream.map_err(Into::into).and_then(|stream| send_file(stream, file));
        if let Err(error) = sent {
            complain(&format_args!("a client went without its answer: {error}"));
        }
    }
    Ok(())
}

fn send_file(stream: Stream, file: &str) -> Outcome {
    let answer = stream.run_as_client(|| fs::read(file));
    let client = stream.into_messages()?;
    // The kernel's own messages are short, framed ones are long.
    let limit = client.max_message_size()?;
    let answer = match answer {
        Ok(Ok(bytes)) if bytes.len() > limit => {
            format!("{file}: {} bytes, and a message of this pipe has {limit} at most", bytes.len()).into_bytes()
        }
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => format!("{file}: {error}").into_bytes(),
        Err(error) => format!("{file}: {error}").into_bytes(),
    };
    Ok(client.send_timeout(&answer, Duration::from_secs(5))?)
}

/// Until the other side ends.
fn talk(stream: MessageStream) -> Outcome {
    let stream = Arc::new(stream);
    let speaker = Arc::clone(&stream);
    // Not waited for: stdin may never end, and a thread that reads it cannot be woken. It goes with the process.
    thread::Builder::new().spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match speaker.send(line.as_bytes()) {
                Ok(()) => {}
                Err(error @ MessageError::TooLarge { .. }) => complain(&format_args!("named_pipe: {error}")),
                Err(_) => break,
            }
        }
    })?;
    let is_terminal = io::stdout().is_terminal();
    while let Some(message) = stream.recv()? {
        // What another user says must not control the terminal.
        let line = if is_terminal { printable(&message).lines().to_string().into_bytes() } else { message };
        write_line(io::stdout(), &line)?;
    }
    Ok(())
}

/// Tells the user something on standard error; serving goes on where that is closed.
fn complain(what: &dyn Display) {
    drop(write_line(io::stderr(), what.to_string().as_bytes()));
}

/// Also where another process has made the descriptor non-blocking: then it is waited for instead of losing the line.
fn write_line(stream: impl AsFd, line: &[u8]) -> io::Result<()> {
    let writer = PipeWriter::from(os_pipe::PipeWriter::from(stream.as_fd().try_clone_to_owned()?));
    Ok(writer.write_all_timeout(&[line, b"\n"].concat(), Duration::MAX)?)
}
