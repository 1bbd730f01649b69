//! Local sockets (unix(7)): streams and messages, peer credentials, ancillary data.

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::Mode,
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        sockopt::Timeout,
    },
};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use super::{cvt, cvt_size, fd, retry};

/// asm-generic/socket.h; not in `libc` for every target.
const SO_PEERGROUPS: i32 = 59;
const SO_PASSPIDFD: i32 = 76;
const SO_PEERPIDFD: i32 = 77;
const SCM_PIDFD: i32 = 4; // linux/socket.h

/// The longest path in an address, without its final NUL.
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// Kernel overhead of a message in the send buffer (`sendmsg` accepts `SO_SNDBUF - 32` bytes, in `af_unix.c`).
const MESSAGE_OVERHEAD_BYTES: usize = 32;

/// The kernel allocates each message in one piece, of 4 MiB and a little at most.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    /// A byte stream.
    Stream,
    /// A sequence of messages (`SOCK_SEQPACKET`).
    Messages,
}

impl SocketType {
    const fn number(self) -> rustix::net::SocketType {
        match self {
            Self::Stream => rustix::net::SocketType::STREAM,
            Self::Messages => rustix::net::SocketType::SEQPACKET,
        }
    }
}

/// The address of a local socket.
#[derive(Clone)]
pub(crate) struct SocketAddress(SocketAddrUnix);

impl SocketAddress {
    /// Fails with `ENAMETOOLONG` from 108 bytes on.
    pub(crate) fn path(path: &Path) -> io::Result<Self> {
        // The kernel would accept one byte more, without a final NUL.
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(Self(SocketAddrUnix::new(path)?))
    }

    /// An abstract name: no file, reachable by every user of the network namespace.
    pub(crate) fn abstract_name(name: &[u8]) -> io::Result<Self> {
        Ok(Self(SocketAddrUnix::new_abstract_name(name)?))
    }
}

pub(crate) fn new(kind: SocketType) -> io::Result<OwnedFd> {
    fd::dup_above(rustix::net::socket_with(AddressFamily::UNIX, kind.number(), SocketFlags::CLOEXEC, None)?, 3)
}

/// Two connected stream sockets.
pub(crate) fn pair() -> io::Result<[OwnedFd; 2]> {
    let kind = SocketType::Stream.number();
    let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok([fd::dup_above(one, 3)?, fd::dup_above(other, 3)?])
}

pub(crate) fn bind(socket: BorrowedFd<'_>, address: &SocketAddress) -> io::Result<()> {
    Ok(rustix::net::bind(socket, &address.0)?)
}

/// The kernel limits the backlog to `/proc/sys/net/core/somaxconn`. Makes the socket nonblocking, so that `accept` never blocks.
pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    fd::set_nonblocking(socket)?;
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// Waits up to [`set_send_timeout`] for room in the backlog, then fails with `EAGAIN`.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &SocketAddress) -> io::Result<()> {
    // A local connect that a signal interrupts has had no effect and can be repeated.
    Ok(retry_on_intr(|| rustix::net::connect(socket, &address.0))?)
}

/// Accepts the next connection, close-on-exec and blocking; `None` if none is pending.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC)) {
        Ok(socket) => fd::dup_above(socket, 3).map(Some),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The mode of the file that a later bind creates, minus the umask.
pub(crate) fn set_file_mode(socket: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(socket, Mode::from_raw_mode(mode))?)
}

/// The timeout of a blocking `connect` or send; zero is none.
pub(crate) fn set_send_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, not_zero(timeout))?)
}

/// The timeout of [`receive_waiting`]; zero is none.
pub(crate) fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(socket, Timeout::Recv, not_zero(timeout))?)
}

fn not_zero(timeout: Duration) -> Option<Duration> {
    (!timeout.is_zero()).then_some(timeout)
}

/// Attaches the sender's ids to every message received from now on, which distinguishes an empty message from the end of the stream.
/// Accepted sockets inherit this from the listener.
pub(crate) fn receive_credentials(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// Attaches a pidfd of the sender to every message received from now on. Linux 6.5.
pub(super) fn receive_pidfd(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, SO_PASSPIDFD, &1_i32)
}

/// The limit of unread bytes on their way to the peer, in bytes of kernel memory.
pub(crate) fn send_buffer(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(rustix::net::sockopt::socket_send_buffer_size(socket)?)
}

/// The kernel doubles the number, and without `CAP_NET_ADMIN` limits it to twice `/proc/sys/net/core/wmem_max`.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // Doubled by the kernel within 31 bits.
    let bytes = bytes.min(i32::MAX as usize / 2);
    Ok(match rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes) {
        Err(Errno::PERM | Errno::ACCESS) => rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes),
        done => done,
    }?)
}

/// The longest message that this socket can send, in bytes.
pub(crate) fn message_limit(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(send_buffer(socket)?.saturating_sub(MESSAGE_OVERHEAD_BYTES).min(MESSAGE_BYTES_MAX))
}

/// Takes the pending error: `ECONNRESET` if the peer closed the connection with unread data.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    Ok(rustix::net::sockopt::socket_error(socket)?.err().map(io::Error::from))
}

/// `None` for a socket of another domain or type.
pub(crate) fn socket_type(socket: BorrowedFd<'_>) -> io::Result<Option<SocketType>> {
    if rustix::net::sockopt::socket_domain(socket)? != AddressFamily::UNIX {
        return Ok(None);
    }
    let kind = rustix::net::sockopt::socket_type(socket)?;
    Ok([SocketType::Stream, SocketType::Messages].into_iter().find(|one| one.number() == kind))
}

/// Fails with `NotConnected` if the socket has no peer.
pub(crate) fn check_connected(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::getpeername(socket).map(drop)?)
}

/// Credentials of a peer: of a client when it connected, of a server when it called listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// 0 for a process outside of this PID namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Not through rustix, whose type excludes a PID of 0.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut raw = libc::ucred { pid: 0, uid: 0, gid: 0 };
    get_option(socket, libc::SO_PEERCRED, &mut raw)?;
    Ok(Credentials { pid: raw.pid, uid: raw.uid, gid: raw.gid })
}

/// The supplementary groups of the peer, as of [`peer_credentials`].
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut length = bytes_of(groups.as_slice());
        let pointer = groups.as_mut_ptr().cast();
        // SAFETY: getsockopt(2) writes at most `length` bytes, the size of the vector's contents, and one length.
        let answer = cvt(unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, pointer, &raw mut length)
        });
        let count = length as usize / size_of::<u32>();
        match answer {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The kernel has returned the count.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => groups.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}

/// A pidfd of the process in [`peer_credentials`]; `None` if the kernel lacks support (before 6.5), or if the process has been
/// reaped.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut number = -1_i32;
    match get_option(socket, SO_PEERPIDFD, &mut number) {
        // SAFETY: the kernel has just opened this descriptor, close-on-exec, and it has no other owner.
        Ok(()) if number >= 0 => fd::dup_above(unsafe { OwnedFd::from_raw_fd(number) }, 3).map(Some),
        Ok(()) => Ok(None),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::ESRCH | libc::EINVAL | libc::ENODATA) => Ok(None),
            _ => Err(error),
        },
    }
}

pub(super) fn set_option<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &T) -> io::Result<()> {
    let (pointer, length) = (std::ptr::from_ref(value).cast(), bytes_of(value));
    // SAFETY: setsockopt(2) reads `length` bytes, the size of `value`.
    cvt(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length) }).map(drop)
}

fn bytes_of<T: ?Sized>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(value)).unwrap_or(libc::socklen_t::MAX)
}

/// `T` must be valid for any bytes: the callers use integers and structures of integers.
pub(super) fn get_option<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &mut T) -> io::Result<()> {
    let mut length = bytes_of(value);
    let pointer = std::ptr::from_mut(value).cast();
    // SAFETY: getsockopt(2) writes at most `length` bytes, the size of `value`, and one length.
    cvt(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, &raw mut length) }).map(drop)
}

/// Shuts down one direction or both, for every holder of the socket. Blocked calls return.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    Ok(rustix::net::shutdown(socket, how)?)
}

/// Whether both directions are shut down: the peer has closed its socket, or each side has shut down one direction.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let at_once = Timespec::default();
    retry_on_intr(|| rustix::event::poll(&mut asked, Some(&at_once)))?;
    Ok(asked.iter().any(|socket| socket.revents().contains(PollFlags::HUP)))
}

/// Reads what is available. Never blocks. The kernel closes descriptors that were sent along.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT))?;
    Ok(bytes)
}

/// Reads what is available, and blocks up to [`set_receive_timeout`] for the first byte; then it fails with `WouldBlock`, as it does
/// at once on a nonblocking socket. Fails after a signal, since the kernel would restart the timeout.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(bytes)
}

/// How many bytes [`receive`] would read, without consuming them; `None` if ancillary data other than the sender is attached. The
/// sender is expected if [`receive_credentials`] was called.
pub(super) fn look(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: RecvMode) -> io::Result<Option<usize>> {
    let seen = peek(socket, buffer, wait, 0)?;
    if seen.is_none() && rustix::net::sockopt::socket_passcred(socket) == Ok(true) {
        return peek(socket, buffer, RecvMode::Nonblocking, SENDER_BYTES);
    }
    Ok(seen)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecvMode {
    Nonblocking,
    /// As [`receive_waiting`].
    Blocking,
}

/// `None` if the ancillary data exceeds `room`. The kernel stops at the first bytes that descriptors are attached to.
pub(super) fn peek(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: RecvMode,
    room: usize,
) -> io::Result<Option<usize>> {
    let mut control = [0; SENDER_BYTES];
    let control = control.get_mut(..room).unwrap_or_default();
    let flags = libc::MSG_PEEK | if wait == RecvMode::Nonblocking { libc::MSG_DONTWAIT } else { 0 };
    let got = receive_with_control(socket, buffer, control, flags)?;
    Ok((got.flags & libc::MSG_CTRUNC == 0).then_some(got.bytes))
}

/// Sends the slices as one message. Never blocks and never raises SIGPIPE. The descriptors, at most 253, are attached to the first
/// byte.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let ([piece], []) = (pieces, descriptors) {
        // The common case: the kernel copies and checks half as much.
        return Ok(retry_on_intr(|| rustix::net::send(socket, piece, flags))?);
    }
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL.into());
    }
    Ok(retry_on_intr(|| rustix::net::sendmsg(socket, pieces, &mut control, flags))?)
}

/// A message from [`receive_message`].
#[derive(Debug)]
pub(crate) struct ReceivedDatagram {
    /// The length of the whole message, even if the buffer was shorter; 0 for an empty message and at the end of the stream.
    pub(crate) bytes: usize,
    /// Present for an empty message, absent at the end of the stream. Needs [`receive_credentials`].
    pub(crate) sender: Option<Credentials>,
    /// Close-on-exec. Empty unless [`RecvAction::Descriptors`] was requested.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What [`receive_message`] does with the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvAction {
    /// Leave it in the queue.
    Peek,
    /// Take it; the kernel closes the attached descriptors.
    Bytes,
    /// Take it and the attached descriptors.
    Descriptors,
}

/// Takes or peeks at one message; of a stream, the available bytes. Never blocks.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    take: RecvAction,
) -> io::Result<ReceivedDatagram> {
    let mut control = [0; CONTROL_BYTES];
    // With room for the sender only, the kernel discards what follows it. (On a stream, which has no sender, these 32 bytes would
    // admit four descriptors.)
    let room = if take == RecvAction::Descriptors { CONTROL_BYTES } else { SENDER_BYTES };
    let control = control.get_mut(..room).unwrap_or_default();
    let peek = if take == RecvAction::Peek { libc::MSG_PEEK } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC | peek;
    let got = retry(|| receive_with_control(socket, buffer, control, flags))?;
    let (sender, descriptors) = take_control(control.get(..got.control_bytes).unwrap_or_default());
    // In a host that has closed 0, 1 or 2, a received descriptor would get that number.
    let descriptors = descriptors.into_iter().map(|one| fd::dup_above(one, 3)).collect::<io::Result<_>>()?;
    Ok(ReceivedDatagram { bytes: got.bytes, sender, descriptors })
}

const DESCRIPTORS_MAX: usize = 253; // SCM_MAX_FD
const SENDER_BYTES: usize = 32; // CMSG_SPACE(sizeof(struct ucred)) with an 8-byte size_t
const CONTROL_BYTES: usize = SENDER_BYTES + 16 + DESCRIPTORS_MAX * 4 + 4;

/// The results of recvmsg(2).
struct Filled {
    bytes: usize,
    control_bytes: usize,
    flags: libc::c_int,
}

/// recvmsg(2). Not through rustix, which skips `SCM_PIDFD` and so would leak the descriptor in it.
fn receive_with_control(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Filled> {
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a `struct msghdr` without name, buffers and ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), control.len() as _);
    // SAFETY: recvmsg(2) writes to the buffer and to the control buffer, at most their lengths.
    let bytes = cvt_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    Ok(Filled { bytes, control_bytes: message.msg_controllen as _, flags: message.msg_flags })
}

/// Takes ownership of all descriptors, so that none leaks.
fn take_control(mut control: &[u8]) -> (Option<Credentials>, Vec<OwnedFd>) {
    const WORD: usize = size_of::<usize>();
    let (mut sender, mut descriptors) = (None, Vec::new());
    // The kernel's layout: total length as `size_t`, level, type and data; each message starts at a multiple of a word.
    while let Some((length, rest)) = control.split_first_chunk::<WORD>()
        && let Some((level, rest)) = rest.split_first_chunk()
        && let Some((kind, _)) = rest.split_first_chunk()
    {
        let length = usize::from_ne_bytes(*length);
        let Some(data) = control.get(size_of::<libc::cmsghdr>()..length) else { break };
        let (numbers, _) = data.as_chunks();
        match (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind)) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                if let [pid, uid, gid] = numbers {
                    let (pid, uid) = (i32::from_ne_bytes(*pid), u32::from_ne_bytes(*uid));
                    sender = Some(Credentials { pid, uid, gid: u32::from_ne_bytes(*gid) });
                }
            }
            // A pidfd is one number, negative if the sender is gone.
            (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                let numbers = numbers.iter().map(|number| i32::from_ne_bytes(*number));
                // SAFETY: the kernel has just installed this descriptor for this process.
                descriptors
                    .extend(numbers.filter(|number| *number >= 0).map(|one| unsafe { OwnedFd::from_raw_fd(one) }));
            }
            _ => {}
        }
        control = control.get(length.next_multiple_of(WORD)..).unwrap_or_default();
    }
    (sender, descriptors)
}
