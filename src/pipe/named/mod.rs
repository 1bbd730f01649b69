//! Named pipes: one server, many clients, both directions.
//!
//! A [`Listener`] binds a [`PipeName`] and accepts one [`Stream`] for each client. A client calls [`connect`](fn@connect), which
//! returns a [`Stream`] too: both sides use the same type. A named pipe is a Unix domain socket (unix(7)), not a FIFO, so any
//! program that can open such a socket can be the peer of a byte pipe.
//!
//! # Example
//!
//! ```
//! use pipewright::pipe::named::{self, Listener, PipeName};
//! use std::{io::{Read, Write}, thread, time::Duration};
//!
//! # let directory = std::env::temp_dir().join(format!("pipewright-doc-named-{}", std::process::id()));
//! # std::fs::create_dir(&directory)?;
//! let name = PipeName::new(directory.join("greeter"))?;
//!
//! // The server: clients can connect as soon as `bind` has returned.
//! let listener = Listener::bind(&name)?;
//! let server = thread::spawn(move || {
//!     let mut stream = listener.accept()?;
//!     println!("client is process {:?}", stream.peer().ok().and_then(|peer| peer.pid()));
//!     stream.write_all(b"hello")
//! });
//!
//! // The client: waits up to 5 seconds for the server to appear.
//! let mut client = named::connect(&name, Duration::from_secs(5))?;
//! let mut greeting = String::new();
//! client.read_to_string(&mut greeting)?; // until the server drops its stream
//! assert_eq!(greeting, "hello");
//! # server.join().unwrap()?;
//! # std::fs::remove_dir(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Types
//!
//! | type | role |
//! |---|---|
//! | [`PipeName`] | address: a file path, a name in the user's private directory, or an abstract name |
//! | [`Listener`], [`ListenerOptions`] | server: owns the name, accepts clients |
//! | [`ConnectOptions`], [`connect`](fn@connect) | client |
//! | [`Stream`], [`ReadHalf`], [`WriteHalf`] | one connection, as bytes |
//! | [`MessageStream`] | one connection, as whole messages |
//! | [`Peer`], [`Access`] | the process at the other end, and who may be there |
//! | [`Timeout`](super::Timeout), [`CancelToken`](super::CancelToken) | bound a blocking call, or end it from another thread |
//!
//! # Modes
//!
//! Both sides must use the same [`PipeMode`](super::PipeMode):
//!
//! | mode | carries | longest message | peer |
//! |---|---|---|---|
//! | [`Byte`](super::PipeMode::Byte) (default) | a stream of bytes, without boundaries | | any program |
//! | [`Message`](super::PipeMode::Message) | messages, kept whole by the kernel (`SOCK_SEQPACKET`) | about 208 KiB; up to 4 MiB with a larger [send buffer](Stream::set_send_buffer_size) | any program |
//! | [`Framed`](super::PipeMode::Framed) | messages, each behind a four-byte big-endian length | 16 MiB, or [`max_message_size`](ListenerOptions::max_message_size) | any program that writes the length |
//!
//! [`Stream::into_messages`] turns a stream of the last two modes into a [`MessageStream`].
//!
//! # Limits
//!
//! * **Users**: by default only processes of the same user may connect. [`ListenerOptions::access`] admits a group or all
//!   users; [`ConnectOptions::allowed_server`] says which servers a client trusts.
//! * **Clients**: any number, unless [`ListenerOptions::max_instances`] is set. 4096 may wait for `accept`, less where
//!   `/proc/sys/net/core/somaxconn` is lower.
//! * **Buffering**: data in transit is charged to the [send buffer](Stream::send_buffer_size) of the writer. A writer blocks
//!   while it is full.
//! * **Names**: the last component has at most 249 bytes. Paths may be longer than a socket address.
//!
//! # Blocking and errors
//!
//! `accept`, `connect`, reads, writes and [`wait_drained`](Stream::wait_drained) block. Each has a form that takes a
//! [`Timeout`](super::Timeout). A timed-out or cancelled call loses no data and no client. [`Listener::shutdown`] and
//! [`Stream::disconnect`] end all blocked calls.
//!
//! Each operation has its own error type: [`NameError`], [`ListenError`], [`AcceptError`], [`ConnectError`], [`MessageError`],
//! [`WriteError`], [`DrainError`], [`PeerError`], [`ImpersonateError`]. Their text says what failed and why. All convert into
//! [`io::Error`](std::io::Error), except [`PeerError`].
//!
//! # Handshake
//!
//! Without a handshake, a client counts as connected as soon as it is in the backlog of the server, as with every socket.
//! With [`ListenerOptions::handshake`] and [`ConnectOptions::handshake`] both sides exchange 16 bytes first: `connect` returns
//! after the server has accepted the client, and different modes, directions or versions are reported as errors.
//!
//! # Workers
//!
//! A worker that is called over a named pipe needs none of this: [`WorkerSpec::control`](crate::WorkerSpec::control) creates
//! the pipe and [`Worker::call`](crate::Worker::call) uses it.
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
//! # C\#
//!
//! .NET uses byte pipes without a handshake. It accepts an absolute path as the name of a pipe; [`PipeName::dotnet`] computes
//! the path that it uses for other names.
//!
//! ```csharp
//! using var pipe = new NamedPipeClientStream(".", "/run/user/1000/pipewright/greeter", PipeDirection.InOut);
//! pipe.Connect(5000);
//! using var reader = new StreamReader(pipe);
//! Console.WriteLine(reader.ReadToEnd());
//! ```

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
