//! Named pipes: one server, many clients, both ways.
//!
//! A [`Listener`] takes a [`PipeName`] and hands out one [`Stream`] for each client; [`connect`] is the
//! client's side. Both sides have the same type.
//!
//! ```
//! use pipewright::pipe::named::{self, Listener, PipeName};
//! use std::{io::{Read, Write}, time::Duration};
//!
//! # let directory = std::env::temp_dir().join(format!("pipewright-doc-named-{}", std::process::id()));
//! # std::fs::create_dir(&directory)?;
//! let name = PipeName::new(directory.join("greeter"))?;
//! let listener = Listener::bind(&name)?;
//! let mut client = named::connect(&name, Duration::from_secs(5))?;
//! client.write_all(b"who are you?")?;
//!
//! let server = listener.accept()?;
//! let mut question = [0; 12];
//! (&server).read_exact(&mut question)?;
//! assert_eq!(server.peer()?.pid(), Some(std::process::id()));
//! # drop(listener);
//! # std::fs::remove_dir(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # With a worker
//!
//! A worker that is to be called over such a pipe needs none of this: [`WorkerSpec::control`](crate::WorkerSpec::control) gives it one,
//! and [`Worker::call`](crate::Worker::call) uses it.
//!
//! ```no_run
//! use pipewright::{Pass, Supervisor, WorkerSpec};
//! use std::time::Duration;
//!
//! let supervisor = Supervisor::new()?;
//! let plugin = supervisor.spawn(WorkerSpec::new("./plugin").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
//! let answer: String = plugin.call("greet", &["world"], Duration::from_secs(5))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # With a program in C#
//!
//! .NET takes an absolute path as the name of a pipe, and puts other names into its own directory:
//! [`PipeName::dotnet`](PipeName::dotnet) is that one. A byte pipe without a handshake is what it speaks.
//!
//! ```csharp
//! using var pipe = new NamedPipeClientStream(".", "/run/user/1000/pipewright/greeter", PipeDirection.InOut);
//! pipe.Connect(5000);
//! using var writer = new StreamWriter(pipe) { AutoFlush = true };
//! writer.WriteLine("who are you?");
//! ```
//!
//! # The nouns
//!
//! A [`Listener`] is a name that is ours; a [`Stream`] is one connection; a [`MessageStream`] is a stream that keeps
//! messages whole; a [`Peer`] is who is at the other end; a [`Timeout`](super::Timeout) says how long a call may block, and a
//! [`CancelToken`](super::CancelToken) ends it from another thread.
//!
//! A named pipe is a local socket (unix(7)), not a FIFO: any program that can open one can be the other side, of
//! [`PipeMode::Byte`](super::PipeMode::Byte) without knowing anything of this library. Two ends of this library can ask for a
//! handshake, and then know exactly where they stand: see [`ListenerOptions::handshake`].
//!
//! Who blocks: `accept`, `connect`, reads, writes and `wait_drained`, each with a form that has a deadline. Nothing is ever closed
//! under a call that waits: [`Listener::shutdown`] and [`Stream::disconnect`] wake it.

mod admission;
mod bind;
mod buffers;
pub(crate) mod connect;
mod drain;
mod handshake;
mod impersonate;
mod instances;
pub(crate) mod listener;
pub(crate) mod message;
mod message_io;
pub(crate) mod message_stream;
pub(crate) mod name;
pub(crate) mod peer;
pub(crate) mod private_directory;
pub(crate) mod split;
pub(crate) mod stream;
pub(crate) mod transport;

pub use self::{
    admission::ListenerStats,
    bind::ListenError,
    connect::{ConnectError, ConnectOptions, connect},
    drain::DrainError,
    impersonate::{ImpersonateError, run_as_client},
    listener::{AcceptError, Incoming, Listener, ListenerOptions},
    message::{MessageError, ReceivedMessage},
    message_stream::MessageStream,
    name::{NameError, PipeName},
    peer::{Access, ImpersonationLevel, Peer, PeerError},
    split::{ReadHalf, WriteHalf},
    stream::Stream,
};
pub use super::write_error::WriteError;
