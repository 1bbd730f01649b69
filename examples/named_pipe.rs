//! A chat of several terminals, and a file server that reads each file with the rights of the client that asks.
//!
//! ```text
//! named_pipe serve NAME [--messages] [--max N]     what one client says, all the others hear
//! named_pipe serve NAME --as-client FILE           each client gets FILE, if the client may read it
//! named_pipe connect NAME [--messages]             stdin goes there, what comes from there to stdout
//! ```
//!
//! NAME is a plain name or an absolute path. For clients of other users, give a path that they can reach.
use std::{
    error::Error,
    fs,
    io::{self, BufRead, Write},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use pipewright::pipe::{
    PipeMode,
    name::PipeName,
    named::{Access, ConnectOptions, ImpersonationLevel, ListenerOptions, MessageStream, Stream},
};

type Outcome = Result<(), Box<dyn Error>>;

const USAGE: &str =
    "usage: named_pipe serve NAME [--messages] [--max N] [--as-client FILE] | named_pipe connect NAME [--messages]";

/// A file goes to its client in one message.
const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

fn main() -> Outcome {
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
        ("connect", _) => talk(&open(name, mode)?.into_messages()?),
        _ => Err(USAGE.into()),
    }
}

/// Where the other side is: so far on this machine.
fn open(place: &str, mode: PipeMode) -> Result<Stream, Box<dyn Error>> {
    // The client asks to be served with its own rights, by whoever serves there.
    let options = ConnectOptions::new().mode(mode).server(Access::Anyone).handshake(ImpersonationLevel::Impersonation);
    Ok(options.connect(&PipeName::new(place)?, Duration::from_secs(10))?)
}

/// Everything that a client says goes to all others.
fn chat(options: &ListenerOptions, name: &PipeName) -> Outcome {
    let listener = options.listen(name)?;
    let guests: Mutex<Vec<(usize, MessageStream)>> = Mutex::default();
    let tell = |from: usize, text: &[u8]| {
        let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest who does not listen is not waited for, and one who has left is forgotten.
        guests
            .retain(|(number, guest)| *number == from || guest.send_deadline(text, Duration::from_millis(100)).is_ok());
    };
    writeln!(io::stderr(), "listening on {name}")?;
    thread::scope(|scope| {
        for (number, stream) in listener.incoming().enumerate() {
            let (stream, tell) = (stream?, &tell);
            let speaker = stream.clone().into_messages()?;
            let who = stream.peer()?;
            let who = format!("{}/{number}", who.user_name()?.unwrap_or_else(|| who.uid().to_string()));
            guests.lock().unwrap_or_else(PoisonError::into_inner).push((number, stream.into_messages()?));
            thread::Builder::new().spawn_scoped(scope, move || {
                tell(number, format!("{who} came in").as_bytes());
                while let Ok(Some(text)) = speaker.recv() {
                    tell(number, &[who.as_bytes(), b": ", &text].concat());
                }
                // Both ends of this guest go: the one here, and the one among the guests.
                drop(speaker.as_stream().disconnect());
                tell(number, format!("{who} has left").as_bytes());
            })?;
        }
        Ok(())
    })
}

/// Each client gets the file, or the reason why it may not have it.
fn serve_file(options: &ListenerOptions, name: &PipeName, file: &str) -> Outcome {
    let listener = options.listen(name)?;
    writeln!(io::stderr(), "listening on {name}")?;
    for stream in listener.incoming() {
        let stream = stream?;
        let answer = match stream.run_as_client(|| fs::read(file)) {
            Ok(Ok(bytes)) if bytes.len() > FILE_BYTES_MAX => b"the file is too long".to_vec(),
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => format!("{file}: {error}").into_bytes(),
            Err(error) => error.to_string().into_bytes(),
        };
        let client = stream.into_messages()?;
        if let Err(error) = client.send_deadline(&answer, Duration::from_secs(5)) {
            writeln!(io::stderr(), "a client went without its answer: {error}")?;
        }
    }
    Ok(())
}

/// Until the other side ends.
#[expect(clippy::exit, reason = "a thread that reads stdin cannot be woken")]
fn talk(stream: &MessageStream) -> Outcome {
    thread::scope(|scope| {
        thread::Builder::new().spawn_scoped(scope, move || {
            for line in io::stdin().lock().lines() {
                match line {
                    Ok(line) if stream.send(line.as_bytes()).is_ok() => {}
                    _ => break,
                }
            }
        })?;
        while let Some(message) = stream.recv()? {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&message)?;
            stdout.write_all(b"\n")?;
        }
        // Stdin may never end: the process does.
        std::process::exit(0)
    })
}
