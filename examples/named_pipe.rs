//! A chat of several terminals, and a file server that reads each file with the rights of the client that asks.
//!
//! ```text
//! named_pipe serve NAME [--messages] [--max N]     chat: sends each line of a client to all other clients
//! named_pipe serve NAME --as-client FILE           sends FILE to each client, in one message, if the client may read it
//! named_pipe connect NAME [--messages]             sends stdin, prints what it receives
//! named_pipe connect ssh://USER@HOST/NAME          the same, on another machine
//! ```
//!
//! NAME is a plain name or an absolute path (`ssh://host//run/jobs`). Clients of other users need a path that they can reach. A
//! client that connects through ssh has the rights of the user it logs in as.

#[path = "shared/explain.rs"]
mod explain;

use explain::explain;
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

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    report(&format_args!("named_pipe: {}", explain(&*error)));
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

/// Connects on this machine, or through a tunnel that stays open until the connection ends.
fn connect(target: &str, mode: PipeMode) -> Outcome {
    // Trusts a server of any user, and allows it to act with the rights of this client.
    let options =
        ConnectOptions::new().mode(mode).allowed_server(Access::Anyone).handshake(ImpersonationLevel::Impersonation);
    let Some(remote) = target.strip_prefix("ssh://") else {
        return talk(options.connect(&PipeName::new(target)?, CONNECT_TIMEOUT)?.into_messages()?);
    };
    let (machine, name) = remote.split_once('/').ok_or(USAGE)?;
    let tunnel = Tunnel::ssh(format!("ssh://{machine}"))?;
    talk(tunnel.connect_with(&options, name, CONNECT_TIMEOUT)?.into_messages()?)
}

/// Sends each message of a client to all other clients.
fn chat(options: &ListenerOptions, name: &PipeName) -> Outcome {
    let listener = options.listen(name)?;
    let clients = Clients::default();
    report(&format_args!("listening on {name}"));
    thread::scope(|scope| {
        for (number, stream) in listener.incoming().enumerate() {
            // A client that cannot be accepted does not affect others.
            let client = stream.map_err(Into::into).and_then(|stream| clients.add(number, stream));
            match client {
                Ok((name, receiver)) => {
                    let clients = &clients;
                    thread::Builder::new().spawn_scoped(scope, move || clients.serve(number, &name, &receiver))?;
                }
                Err(error) => report(&format_args!("client {number} rejected: {error}")),
            }
        }
        Ok(())
    })
}

#[derive(Default)]
struct Clients(Mutex<Vec<(usize, MessageStream)>>);

impl Clients {
    /// Adds a client. Returns its display name, and its stream for receiving.
    fn add(&self, number: usize, stream: Stream) -> Result<(String, MessageStream), Box<dyn Error>> {
        let receiver = stream.clone().into_messages()?;
        // Fails for an anonymous client.
        let peer = stream.peer()?;
        let name = format!("{}/{number}", peer.user_name()?.unwrap_or_else(|| peer.uid().to_string()));
        self.broadcast(number, format!("{name} joined").as_bytes());
        self.list().push((number, stream.into_messages()?));
        Ok((name, receiver))
    }

    /// Forwards messages of a client until it disconnects.
    fn serve(&self, number: usize, name: &str, receiver: &MessageStream) {
        while let Ok(Some(text)) = receiver.recv() {
            self.broadcast(number, &[name.as_bytes(), b": ", &text].concat());
        }
        self.list().retain(|(client, _)| *client != number);
        self.broadcast(number, format!("{name} left").as_bytes());
        // Frees the instance. Fails if the client was disconnected for being slow.
        drop(receiver.as_stream().disconnect());
    }

    /// Sends to all clients but one. Disconnects a client that does not read, which ends its `serve`.
    fn broadcast(&self, from: usize, text: &[u8]) {
        self.list().retain(|(number, client)| {
            if *number == from {
                return true;
            }
            match client.send_timeout(text, Duration::from_millis(100)) {
                // A message that is too long is no fault of the receiver.
                Ok(()) | Err(MessageError::TooLarge { .. }) => true,
                Err(_) => {
                    drop(client.as_stream().disconnect());
                    false
                }
            }
        });
    }

    fn list(&self) -> MutexGuard<'_, Vec<(usize, MessageStream)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends each client the file or the reason why it cannot be read.
fn serve_file(options: &ListenerOptions, name: &PipeName, file: &str) -> Outcome {
    let listener = options.listen(name)?;
    report(&format_args!("listening on {name}"));
    for stream in listener.incoming() {
        let sent = stream.map_err(Into::into).and_then(|stream| send_file(stream, file));
        if let Err(error) = sent {
            report(&format_args!("cannot reply to a client: {error}"));
        }
    }
    Ok(())
}

fn send_file(stream: Stream, file: &str) -> Outcome {
    let answer = stream.run_as_client(|| fs::read(file));
    let client = stream.into_messages()?;
    // Messages of the kernel are shorter than framed ones.
    let limit = client.max_message_size()?;
    let answer = match answer {
        Ok(Ok(bytes)) if bytes.len() > limit => {
            format!("{file}: {} bytes exceed the limit of a message, {limit} bytes", bytes.len()).into_bytes()
        }
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => format!("{file}: {error}").into_bytes(),
        Err(error) => format!("{file}: {error}").into_bytes(),
    };
    Ok(client.send_timeout(&answer, Duration::from_secs(5))?)
}

/// Sends lines of stdin and prints messages until the server closes the connection.
fn talk(stream: MessageStream) -> Outcome {
    let stream = Arc::new(stream);
    let sender = Arc::clone(&stream);
    // Not joined: stdin may never end, and a blocked read of it cannot be woken. The thread ends with the process.
    thread::Builder::new().spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match sender.send(line.as_bytes()) {
                Ok(()) => {}
                Err(error @ MessageError::TooLarge { .. }) => report(&format_args!("named_pipe: {error}")),
                Err(_) => break,
            }
        }
    })?;
    let is_terminal = io::stdout().is_terminal();
    while let Some(message) = stream.recv()? {
        // Text of other users must not control the terminal.
        let line = if is_terminal { printable(&message).lines().to_string().into_bytes() } else { message };
        write_line(io::stdout(), &line)?;
    }
    Ok(())
}

/// Writes a line to standard error. Ignores errors, so that a server continues without standard error.
fn report(what: &dyn Display) {
    drop(write_line(io::stderr(), what.to_string().as_bytes()));
}

/// Waits for space even if another process has made the descriptor non-blocking, so that no line is lost.
fn write_line(stream: impl AsFd, line: &[u8]) -> io::Result<()> {
    let writer = PipeWriter::from(os_pipe::PipeWriter::from(stream.as_fd().try_clone_to_owned()?));
    Ok(writer.write_all_timeout(&[line, b"\n"].concat(), Duration::MAX)?)
}
