//! The sockets of a control connection, and their registration with the loop's epoll.

use crate::{
    launch::descriptors::ParentSockets,
    sys::{
        epoll::{Interests, Poller},
        fd_free_stream::{self, FdFreeStream},
        socket,
    },
};
use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// One socket for both directions, or one for each: a worker's standard input and output. A single socket would not do for those:
/// Python's asyncio takes a standard output that becomes readable for closed.
#[derive(Debug)]
pub(crate) struct RpcSocket {
    /// The socket that is read.
    pub(crate) stream: FdFreeStream,
    /// The socket that is written, if it is another one.
    writer: Option<WriteSocket>,
    poller: Arc<Poller>,
    token: u64,
}

#[derive(Debug)]
struct WriteSocket {
    socket: OwnedFd,
    token: u64,
}

/// For reading.
impl AsFd for RpcSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl RpcSocket {
    pub(crate) fn duplex(stream: FdFreeStream, poller: &Arc<Poller>, token: u64) -> Self {
        Self { stream, writer: None, poller: Arc::clone(poller), token }
    }

    /// The worker's standard output, which is read, and its standard input; or a channel, whose directions are used apart from each other.
    pub(crate) fn split(sockets: ParentSockets, poller: &Arc<Poller>, [token, writer]: [u64; 2]) -> io::Result<Self> {
        let ParentSockets { input, output } = sockets;
        // Where the kernel does not support it, received file descriptors are detected later.
        drop(fd_free_stream::refuse_descriptors(output.as_fd()));
        let writer = Some(WriteSocket { socket: input, token: writer });
        Ok(Self { stream: FdFreeStream::new(output)?, writer, poller: Arc::clone(poller), token })
    }

    pub(crate) fn is_split(&self) -> bool {
        self.writer.is_some()
    }

    fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_ref().map_or(self.stream.as_fd(), |writer| writer.socket.as_fd())
    }

    /// Sends as much as the socket takes.
    pub(crate) fn send(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        socket::send(self.writer(), parts, &[])
    }

    /// Ends a read that waits: it receives what has arrived, and then the end of the stream.
    pub(crate) fn shutdown_read(&self) {
        // Cannot fail: the kernel sets a flag of a Unix domain socket, also after the peer has closed its own.
        drop(socket::shutdown(self.as_fd(), Shutdown::Read));
    }

    /// The peer reads what was sent, and then the end of the stream.
    pub(crate) fn shutdown_write(&self) {
        // Cannot fail, as above.
        drop(socket::shutdown(self.writer(), Shutdown::Write));
    }
}

/// Which events of an [`RpcSocket`] are reported to the loop.
#[derive(Debug, Default)]
pub(crate) struct SocketRegistration {
    reader: ReaderRegistration,
    /// Whether the other socket is registered. That is the case only while bytes wait for it: a level-triggered socket whose peer has
    /// closed its end would be reported all the time.
    writer: bool,
}

/// The registration of the socket that is read.
#[derive(Debug, Default, Clone, Copy)]
enum ReaderRegistration {
    #[default]
    None,
    Registered(Interests),
    /// It is not registered while it has no interests. With empty interests, each wake-up of a caller that reads would look at epoll.
    Suspended,
}

impl SocketRegistration {
    /// Registers the socket that is read, and updates the interests. A paused reader is registered only for the sake of writes.
    pub(crate) fn add(&mut self, socket: &RpcSocket, interests: Interests, is_paused: bool) -> io::Result<()> {
        let is_needed = !is_paused || interests.writes && socket.writer.is_none();
        if !matches!(self.reader, ReaderRegistration::Registered(_)) && is_needed {
            self.add_reader(socket)?;
        }
        self.update(socket, interests)
    }

    fn add_reader(&mut self, socket: &RpcSocket) -> io::Result<()> {
        socket.poller.add(socket, socket.token)?;
        self.reader = ReaderRegistration::Registered(Interests::READS);
        Ok(())
    }

    /// Deregisters the socket that is read until an update has interests in it: callers read in a burst of calls.
    pub(crate) fn suspend_reader(&mut self, socket: &RpcSocket) {
        if let ReaderRegistration::Registered(_) = self.reader {
            self.remove_reader(socket);
            self.reader = ReaderRegistration::Suspended;
        }
    }

    /// Updates the interests of what is registered.
    pub(crate) fn update(&mut self, socket: &RpcSocket, interests: Interests) -> io::Result<()> {
        let mut interests = interests;
        if let Some(WriteSocket { socket: writer, token }) = &socket.writer {
            let writes = std::mem::take(&mut interests.writes);
            match (writes, self.writer) {
                (true, false) => socket.poller.add_for_writes(writer, *token)?,
                (false, true) => socket.poller.remove(writer)?,
                (true, true) | (false, false) => {}
            }
            self.writer = writes;
        }
        if let (ReaderRegistration::Suspended, Interests { reads: true, .. } | Interests { writes: true, .. }) =
            (self.reader, interests)
        {
            self.add_reader(socket)?;
        }
        if let ReaderRegistration::Registered(registered) = &mut self.reader
            && *registered != interests
        {
            socket.poller.watch(socket, socket.token, interests)?;
            *registered = interests;
        }
        Ok(())
    }

    /// Deregisters the socket that is read.
    pub(crate) fn remove_reader(&mut self, socket: &RpcSocket) {
        if let ReaderRegistration::Registered(_) = std::mem::take(&mut self.reader) {
            drop(socket.poller.remove(socket));
        }
    }

    /// Deregisters all. Closing does not suffice: if a fork of the host holds the open file description, epoll would report it forever.
    pub(crate) fn remove(&mut self, socket: &RpcSocket) {
        self.remove_reader(socket);
        if let (true, Some(writer)) = (std::mem::take(&mut self.writer), &socket.writer) {
            drop(socket.poller.remove(&writer.socket));
        }
    }
}
