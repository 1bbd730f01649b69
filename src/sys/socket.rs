//! Local sockets (unix(7)): streams and whole messages, who is at the other end, and what the kernel still holds.

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

/// The longest path that fits into an address, without its final NUL.
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// What the kernel adds to a message within the send buffer (the room of `sendmsg` is `SO_SNDBUF - 32`, in `af_unix.c`).
const MESSAGE_OVERHEAD_BYTES: usize = 32;

/// The kernel wants one piece of memory for each message, and no piece is larger than 4 MiB and a little.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    /// Bytes without borders.
    Stream,
    /// Messages whose borders the kernel keeps.
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

/// Where a local socket lives.
#[derive(Clone)]
pub(crate) struct SocketAddress(SocketAddrUnix);

impl SocketAddress {
    /// `ENAMETOOLONG` from 108 bytes on.
    pub(crate) fn path(path: &Path) -> io::Result<Self> {
        // The kernel would take one byte more, without a NUL behind it.
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(Self(SocketAddrUnix::new(path)?))
    }

    /// A name that no file stands for, and that every user of the network namespace can reach.
    pub(crate) fn abstract_name(name: &[u8]) -> io::Result<Self> {
        Ok(Self(SocketAddrUnix::new_abstract_name(name)?))
    }
}

pub(crate) fn new(kind: SocketType) -> io::Result<OwnedFd> {
    fd::dup_above(rustix::net::socket_with(AddressFamily::UNIX, kind.number(), SocketFlags::CLOEXEC, None)?, 3)
}

pub(crate) fn bind(socket: BorrowedFd<'_>, address: &SocketAddress) -> io::Result<()> {
    Ok(rustix::net::bind(socket, &address.0)?)
}

/// The kernel cuts the backlog down to `/proc/sys/net/core/somaxconn`. From now on `accept` never waits: only we hold the socket.
pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    fd::set_nonblocking(socket)?;
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// Waits for a place in the backlog as long as [`set_send_timeout`] said, then fails with `EAGAIN`.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &SocketAddress) -> io::Result<()> {
    // A local connect that a signal interrupts has done nothing, so it can be called again.
    Ok(retry_on_intr(|| rustix::net::connect(socket, &address.0))?)
}

/// The next client in the backlog, close-on-exec; `None` if there is none. Its reads and writes wait, unless told otherwise.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC)) {
        Ok(socket) => fd::dup_above(socket, 3).map(Some),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the file of a socket that is bound afterwards may be used for, minus the umask.
pub(crate) fn set_file_mode(socket: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(socket, Mode::from_raw_mode(mode))?)
}

/// How long a blocking `connect` or send waits; zero is for ever.
pub(crate) fn set_send_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, not_zero(timeout))?)
}

/// How long [`receive_waiting`] waits; zero is for ever.
pub(crate) fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(socket, Timeout::Recv, not_zero(timeout))?)
}

fn not_zero(timeout: Duration) -> Option<Duration> {
    (!timeout.is_zero()).then_some(timeout)
}

/// Every message that is received from now on brings its sender's ids: an empty one then differs from the end of the stream.
/// Sockets that a listener accepts have it from the listener.
pub(crate) fn receive_credentials(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// Every message that is received from now on brings a pidfd of its sender, among its descriptors. Linux 6.5.
pub(super) fn receive_pidfd(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, SO_PASSPIDFD, &1_i32)
}

/// Bytes of kernel memory that may be on their way to the other side.
pub(crate) fn send_buffer(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(rustix::net::sockopt::socket_send_buffer_size(socket)?)
}

/// The kernel doubles the number, and cuts it down to twice `/proc/sys/net/core/wmem_max` for those without `CAP_NET_ADMIN`.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // The kernel doubles within 31 bits.
    let bytes = bytes.min(i32::MAX as usize / 2);
    Ok(match rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes) {
        Err(Errno::PERM | Errno::ACCESS) => rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes),
        done => done,
    }?)
}

/// The longest message that this socket can send.
pub(crate) fn message_limit(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(send_buffer(socket)?.saturating_sub(MESSAGE_OVERHEAD_BYTES).min(MESSAGE_BYTES_MAX))
}

/// The error that waits to be reported, and forgets it: `ECONNRESET` when the other side left without reading everything.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    Ok(rustix::net::sockopt::socket_error(socket)?.err().map(io::Error::from))
}

/// `None` for what is not a local socket of one of our two types.
pub(crate) fn socket_type(socket: BorrowedFd<'_>) -> io::Result<Option<SocketType>> {
    if rustix::net::sockopt::socket_domain(socket)? != AddressFamily::UNIX {
        return Ok(None);
    }
    let kind = rustix::net::sockopt::socket_type(socket)?;
    Ok([SocketType::Stream, SocketType::Messages].into_iter().find(|one| one.number() == kind))
}

/// `NotConnected` for a socket that has no other side yet.
pub(crate) fn check_connected(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::getpeername(socket).map(drop)?)
}

/// Who is at the other end: a client as it was when it connected, a server as it was when it began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// 0 for a process that has no number in our namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// rustix has a type for this in which a number of a process is never 0.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut raw = libc::ucred { pid: 0, uid: 0, gid: 0 };
    get_option(socket, libc::SO_PEERCRED, &mut raw)?;
    Ok(Credentials { pid: raw.pid, uid: raw.uid, gid: raw.gid })
}

/// The supplementary groups that belong to [`peer_credentials`].
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut length = bytes_of(groups.as_slice());
        let pointer = groups.as_mut_ptr().cast();
        // SAFETY: getsockopt(2) writes at most `length` bytes, which is what the vector has, and one length.
        let answer = cvt(unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, pointer, &raw mut length)
        });
        let count = length as usize / size_of::<u32>();
        match answer {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The kernel has told how many there are.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => groups.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}

/// A handle on the very process that [`peer_credentials`] names, however often its number was used again. `None` where the
/// kernel (before 6.5) cannot, or where the process has been reaped.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut number = -1_i32;
    match get_option(socket, SO_PEERPIDFD, &mut number) {
        // SAFETY: the kernel made this number a moment ago, close-on-exec and for us alone.
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

/// `T` must be a type of which any bytes are a value: the callers use integers and structures of integers.
pub(super) fn get_option<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &mut T) -> io::Result<()> {
    let mut length = bytes_of(value);
    let pointer = std::ptr::from_mut(value).cast();
    // SAFETY: getsockopt(2) writes at most `length` bytes, the size of `value`, and one length.
    cvt(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, &raw mut length) }).map(drop)
}

/// Ends one direction or both, for every holder of the socket, and wakes whoever waits in a call on it.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    Ok(rustix::net::shutdown(socket, how)?)
}

/// Both directions have ended: the other side has closed its socket, or each side has ended one direction.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let at_once = Timespec::default();
    retry_on_intr(|| rustix::event::poll(&mut asked, Some(&at_once)))?;
    Ok(asked.iter().any(|socket| socket.revents().contains(PollFlags::HUP)))
}

/// Reads what is there, and never waits. Descriptors that come along are closed by the kernel, unseen.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT))?;
    Ok(bytes)
}

/// Reads what is there, and waits for the first of it, as long as [`set_receive_timeout`] said; then it is `WouldBlock`, as
/// also on a socket that its owner has made non-blocking. A signal ends it: the kernel would count from the beginning again.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(bytes)
}

/// How much of a message [`receive`] would read, which stays there; `None` if more came along than a sender, which has room where
/// a socket has [`receive_credentials`].
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
    /// As [`receive_waiting`] does.
    Blocking,
}

/// `None` if more came along than there is room for. The kernel looks no further than to the first bytes with descriptors.
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

/// Sends the pieces as one, and never waits. Never raises SIGPIPE. The descriptors go with the first byte; at most 253.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let ([piece], []) = (pieces, descriptors) {
        // What most calls are: the kernel has half as much to copy and to check.
        return Ok(retry_on_intr(|| rustix::net::send(socket, piece, flags))?);
    }
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL.into());
    }
    Ok(retry_on_intr(|| rustix::net::sendmsg(socket, pieces, &mut control, flags))?)
}

/// What a call of [`receive_message`] brought.
#[derive(Debug)]
pub(crate) struct ReceivedDatagram {
    /// All of the message, also where the buffer was shorter; 0 for an empty message and for the end of the stream.
    pub(crate) bytes: usize,
    /// Whoever sent it: an empty message has a sender, the end of the stream has none. Needs [`receive_credentials`].
    pub(crate) sender: Option<Credentials>,
    /// Close-on-exec; empty unless asked for.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What to do with the message that is first in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvAction {
    /// Leave it there and only look.
    Peek,
    /// Take it; the kernel closes the descriptors that came along, unseen.
    Bytes,
    /// Take it and its descriptors.
    Descriptors,
}

/// Takes or looks at one message, and never waits. On a stream: the bytes that are there.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    take: RecvAction,
) -> io::Result<ReceivedDatagram> {
    let mut control = [0; CONTROL_BYTES];
    // Room for the sender alone makes the kernel drop what follows it. (A stream has no sender; there 32 bytes would take four
    // descriptors in.)
    let room = if take == RecvAction::Descriptors { CONTROL_BYTES } else { SENDER_BYTES };
    let control = control.get_mut(..room).unwrap_or_default();
    let peek = if take == RecvAction::Peek { libc::MSG_PEEK } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC | peek;
    let got = retry(|| receive_with_control(socket, buffer, control, flags))?;
    let (sender, descriptors) = take_control(control.get(..got.control_bytes).unwrap_or_default());
    // In a host that has closed them, 0, 1 and 2 are free.
    let descriptors = descriptors.into_iter().map(|one| fd::dup_above(one, 3)).collect::<io::Result<_>>()?;
    Ok(ReceivedDatagram { bytes: got.bytes, sender, descriptors })
}

const DESCRIPTORS_MAX: usize = 253; // SCM_MAX_FD
const SENDER_BYTES: usize = 32; // CMSG_SPACE(sizeof(struct ucred)) with an 8-byte size_t
const CONTROL_BYTES: usize = SENDER_BYTES + 16 + DESCRIPTORS_MAX * 4 + 4;

/// What a call of recvmsg(2) has written.
struct Filled {
    bytes: usize,
    control_bytes: usize,
    flags: libc::c_int,
}

/// recvmsg(2), whose ancillary data rustix takes apart without `SCM_PIDFD`: the descriptor in it would be lost.
fn receive_with_control(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Filled> {
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a `struct msghdr` without a name, pieces and ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), control.len() as _);
    // SAFETY: recvmsg(2) writes to the one piece and to the control buffer, at most as much as their lengths say.
    let bytes = cvt_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    Ok(Filled { bytes, control_bytes: message.msg_controllen as _, flags: message.msg_flags })
}

/// Takes all descriptors into ownership, so that none is lost whatever else is in there.
fn take_control(mut control: &[u8]) -> (Option<Credentials>, Vec<OwnedFd>) {
    const WORD: usize = size_of::<usize>();
    let (mut sender, mut descriptors) = (None, Vec::new());
    // As the kernel writes it: `size_t` length of all, level, type, and the data, each message at a multiple of a word.
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
            // A pidfd is one number; negative where the sender is gone.
            (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                let numbers = numbers.iter().map(|number| i32::from_ne_bytes(*number));
                // SAFETY: the kernel has installed this number for us a moment ago.
                descriptors
                    .extend(numbers.filter(|number| *number >= 0).map(|one| unsafe { OwnedFd::from_raw_fd(one) }));
            }
            _ => {}
        }
        control = control.get(length.next_multiple_of(WORD)..).unwrap_or_default();
    }
    (sender, descriptors)
}
