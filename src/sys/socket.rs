//! Local sockets (unix(7)): streams and whole messages, who is at the other end, and what the kernel still holds.
#![expect(clippy::cast_possible_truncation, reason = "sizes of structures and of checked, short lists")]

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
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
    const fn number(self) -> i32 {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::Messages => libc::SOCK_SEQPACKET,
        }
    }
}

/// Where a local socket lives.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    raw: libc::sockaddr_un,
    length: libc::socklen_t,
}

impl Address {
    /// `ENAMETOOLONG` from 108 bytes on.
    pub(crate) fn path(path: &Path) -> io::Result<Self> {
        Self::new(path.as_os_str().as_bytes(), 0)
    }

    /// A name that no file stands for, and that every user of the network namespace can reach.
    pub(crate) fn abstract_name(name: &[u8]) -> io::Result<Self> {
        Self::new(name, 1)
    }

    fn new(text: &[u8], at: usize) -> io::Result<Self> {
        if text.len() + at > PATH_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        let mut raw =
            libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; PATH_BYTES_MAX + 1] };
        for (slot, byte) in raw.sun_path.iter_mut().skip(at).zip(text) {
            *slot = byte.cast_signed() as libc::c_char;
        }
        // A path ends with its NUL, which is there already; an abstract name ends with the address.
        let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + text.len() + 1;
        Ok(Self { raw, length: length as libc::socklen_t })
    }
}

pub(crate) fn new(kind: SocketType) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes numbers.
    let number = cvt(unsafe { libc::socket(libc::AF_UNIX, kind.number() | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel made this number a moment ago and for us alone.
    fd::lift(unsafe { OwnedFd::from_raw_fd(number) }, 3)
}

pub(crate) fn bind(socket: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let pointer = (&raw const address.raw).cast();
    // SAFETY: bind(2) reads `length` bytes, which is at most the size of `raw`.
    cvt(unsafe { libc::bind(socket.as_raw_fd(), pointer, address.length) }).map(drop)
}

/// The kernel cuts the backlog down to `/proc/sys/net/core/somaxconn`. From now on `accept` never waits: only we hold the socket.
pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    fd::set_nonblocking(socket)?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: listen(2) takes two ints.
    cvt(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// Waits for a place in the backlog as long as [`set_send_timeout`] said, then fails with `EAGAIN`.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let pointer = (&raw const address.raw).cast();
    // SAFETY: connect(2) reads `length` bytes, which is at most the size of `raw`. A local connect that a signal interrupts
    // has done nothing, so it can be called again.
    retry(|| cvt(unsafe { libc::connect(socket.as_raw_fd(), pointer, address.length) })).map(drop)
}

/// The next client in the backlog, close-on-exec; `None` if there is none. Its reads and writes wait, unless told otherwise.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: accept4(2) writes no address where the pointers are null.
    match retry(|| cvt(unsafe { libc::accept4(listener.as_raw_fd(), address, length, libc::SOCK_CLOEXEC) })) {
        // SAFETY: the kernel made this number a moment ago and for us alone.
        Ok(number) => fd::lift(unsafe { OwnedFd::from_raw_fd(number) }, 3).map(Some),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the file of a socket that is bound afterwards may be used for, minus the umask.
pub(crate) fn set_file_mode(socket: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: fchmod(2) takes two numbers.
    cvt(unsafe { libc::fchmod(socket.as_raw_fd(), mode as libc::mode_t) }).map(drop)
}

/// How long a blocking `connect` or send waits; zero is for ever.
pub(crate) fn set_send_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    set_option(socket, libc::SO_SNDTIMEO, &timeval(timeout))
}

/// How long [`receive_waiting`] waits; zero is for ever.
pub(crate) fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    set_option(socket, libc::SO_RCVTIMEO, &timeval(timeout))
}

fn timeval(timeout: Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(timeout.subsec_micros().cast_signed()),
    }
}

/// Every message that is received from now on brings its sender's ids: an empty one then differs from the end of the stream.
/// Sockets that a listener accepts have it from the listener.
pub(crate) fn receive_credentials(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SO_PASSCRED, &1_i32)
}

/// Every message that is received from now on brings a pidfd of its sender, among its descriptors. Linux 6.5.
pub(super) fn receive_pidfd(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, SO_PASSPIDFD, &1_i32)
}

/// Bytes of kernel memory that may be on their way to the other side.
pub(crate) fn send_buffer(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0_i32;
    get_option(socket, libc::SO_SNDBUF, &mut bytes)?;
    usize::try_from(bytes).map_err(|_| io::Error::other("the kernel counted below zero"))
}

/// The kernel doubles the number, and cuts it down to twice `/proc/sys/net/core/wmem_max` for those without `CAP_NET_ADMIN`.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // The kernel doubles within 31 bits.
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX).min(i32::MAX / 2);
    match set_option(socket, libc::SO_SNDBUFFORCE, &bytes) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => set_option(socket, libc::SO_SNDBUF, &bytes),
        done => done,
    }
}

/// The longest message that this socket can send.
pub(crate) fn message_limit(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(send_buffer(socket)?.saturating_sub(MESSAGE_OVERHEAD_BYTES).min(MESSAGE_BYTES_MAX))
}

/// The error that waits to be reported, and forgets it: `ECONNRESET` when the other side left without reading everything.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let mut code = 0_i32;
    get_option(socket, libc::SO_ERROR, &mut code)?;
    Ok((code != 0).then(|| io::Error::from_raw_os_error(code)))
}

/// `None` for what is not a local socket of one of our two types.
pub(crate) fn socket_type(socket: BorrowedFd<'_>) -> io::Result<Option<SocketType>> {
    let (mut domain, mut kind) = (0_i32, 0_i32);
    get_option(socket, libc::SO_DOMAIN, &mut domain)?;
    get_option(socket, libc::SO_TYPE, &mut kind)?;
    Ok(match (domain, kind) {
        (libc::AF_UNIX, libc::SOCK_STREAM) => Some(SocketType::Stream),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET) => Some(SocketType::Messages),
        _ => None,
    })
}

/// `NotConnected` for a socket that has no other side yet.
pub(crate) fn check_connected(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut raw = libc::sockaddr_un { sun_family: 0, sun_path: [0; PATH_BYTES_MAX + 1] };
    let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: getpeername(2) writes at most `length` bytes, the size of `raw`, and one length.
    cvt(unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut raw).cast(), &raw mut length) }).map(drop)
}

/// Who is at the other end: a client as it was when it connected, a server as it was when it began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// 0 for a process that has no number in our namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut raw = libc::ucred { pid: 0, uid: 0, gid: 0 };
    get_option(socket, libc::SO_PEERCRED, &mut raw)?;
    Ok(Credentials { pid: raw.pid, uid: raw.uid, gid: raw.gid })
}

/// The supplementary groups that belong to [`peer_credentials`].
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
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
        Ok(()) if number >= 0 => fd::lift(unsafe { OwnedFd::from_raw_fd(number) }, 3).map(Some),
        Ok(()) => Ok(None),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::ESRCH | libc::EINVAL | libc::ENODATA) => Ok(None),
            _ => Err(error),
        },
    }
}

pub(super) fn set_option<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &T) -> io::Result<()> {
    let (pointer, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: setsockopt(2) reads `length` bytes, the size of `value`.
    cvt(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length) }).map(drop)
}

/// `T` must be a type of which any bytes are a value: the callers use integers and structures of integers.
pub(super) fn get_option<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(value).cast();
    // SAFETY: getsockopt(2) writes at most `length` bytes, the size of `value`, and one length.
    cvt(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, &raw mut length) }).map(drop)
}

/// Ends one direction or both, for every holder of the socket, and wakes whoever waits in a call on it.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: shutdown(2) takes two ints.
    cvt(unsafe { libc::shutdown(socket.as_raw_fd(), how) }).map(drop)
}

/// Both directions have ended: the other side has closed its socket, or each side has ended one direction.
pub(crate) fn is_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll(2) reads and writes one structure; it is asked not to wait.
    retry(|| cvt(unsafe { libc::poll(&raw mut asked, 1, 0) }))?;
    Ok(asked.revents & libc::POLLHUP != 0)
}

/// Reads what is there, and never waits. Descriptors that come along are closed by the kernel, unseen.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (pointer, length) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: recv(2) writes at most `length` bytes to the buffer.
    retry(|| cvt_size(unsafe { libc::recv(socket.as_raw_fd(), pointer, length, libc::MSG_DONTWAIT) }))
}

/// Reads what is there, and waits for the first of it, as long as [`set_receive_timeout`] said; then it is `WouldBlock`, as
/// also on a socket that its owner has made non-blocking. A signal ends it: the kernel would count from the beginning again.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (pointer, length) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: recv(2) writes at most `length` bytes to the buffer.
    cvt_size(unsafe { libc::recv(socket.as_raw_fd(), pointer, length, 0) })
}

/// How much of a message [`receive`] would read, which stays there; `None` if more came along than a sender, which has room where
/// a socket has [`receive_credentials`].
pub(super) fn look(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: Wait) -> io::Result<Option<usize>> {
    let seen = peek(socket, buffer, wait, 0)?;
    let mut has_sender = 0_i32;
    if seen.is_none() && get_option(socket, libc::SO_PASSCRED, &mut has_sender).is_ok() && has_sender != 0 {
        return peek(socket, buffer, Wait::No, SENDER_BYTES);
    }
    Ok(seen)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    /// As [`receive_waiting`] does.
    AsTold,
}

/// `None` if more came along than there is room for. The kernel looks no further than to the first bytes with descriptors.
pub(super) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: Wait, room: usize) -> io::Result<Option<usize>> {
    let mut control = Control::empty();
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = header(&raw mut piece, 1);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = room.min(SENDER_BYTES) as _;
    let flags = libc::MSG_PEEK | if wait == Wait::No { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: recvmsg(2) writes to the one piece and to the control buffer, at most as much as their lengths say.
    let bytes = cvt_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    Ok((message.msg_flags & libc::MSG_CTRUNC == 0).then_some(bytes))
}

/// Sends the pieces as one, and never waits. Never raises SIGPIPE. The descriptors go with the first byte; at most 253.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if let ([piece], []) = (pieces, descriptors) {
        return send_one(socket, piece);
    }
    let mut control = Control::empty();
    let mut message = header(pieces.as_ptr().cast::<libc::iovec>().cast_mut(), pieces.len());
    if !descriptors.is_empty() {
        control.write_rights(descriptors, &mut message);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: sendmsg(2) reads the pieces (an `IoSlice` is a `struct iovec`, its docs say) and the control buffer; both outlive
    // the call.
    retry(|| cvt_size(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }))
}

/// What most calls are: the kernel has half as much to copy and to check.
fn send_one(socket: BorrowedFd<'_>, piece: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: send(2) reads `len` bytes of the piece.
    retry(|| cvt_size(unsafe { libc::send(socket.as_raw_fd(), piece.as_ptr().cast(), piece.len(), flags) }))
}

/// What a call of [`receive_message`] brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// All of the message, also where the buffer was shorter; 0 for an empty message and for the end of the stream.
    pub(crate) bytes: usize,
    /// Whoever sent it: an empty message has a sender, the end of the stream has none. Needs [`receive_credentials`].
    pub(crate) sender: Option<Credentials>,
    /// Close-on-exec; empty unless asked for.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What to do with the message that is first in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Leave it there and only look.
    Peek,
    /// Take it; the kernel closes the descriptors that came along, unseen.
    Bytes,
    /// Take it and its descriptors.
    Descriptors,
}

/// Takes or looks at one message, and never waits. On a stream: the bytes that are there.
pub(crate) fn receive_message(socket: BorrowedFd<'_>, buffer: &mut [u8], take: Take) -> io::Result<Received> {
    let mut control = Control::empty();
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = header(&raw mut piece, 1);
    message.msg_control = control.0.as_mut_ptr().cast();
    // Room for the sender alone makes the kernel drop what follows it. (A stream has no sender; there 32 bytes would take four
    // descriptors in.)
    let room = if take == Take::Descriptors { CONTROL_BYTES } else { SENDER_BYTES };
    message.msg_controllen = room as _;
    let peek = if take == Take::Peek { libc::MSG_PEEK } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC | peek;
    // SAFETY: recvmsg(2) writes to the one piece and to the control buffer, at most as much as their lengths say.
    let bytes = retry(|| cvt_size(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) }))?;
    let (sender, descriptors) = read_control(&message)?;
    Ok(Received { bytes, sender, descriptors })
}

const DESCRIPTORS_MAX: usize = 253; // SCM_MAX_FD
const SENDER_BYTES: usize = 32; // CMSG_SPACE(sizeof(struct ucred)) with an 8-byte size_t
const CONTROL_BYTES: usize = SENDER_BYTES + 16 + DESCRIPTORS_MAX * 4 + 4;

/// Ancillary data, aligned as `struct cmsghdr` is.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Control {
    const fn empty() -> Self {
        Self([0; CONTROL_BYTES])
    }

    fn write_rights(&mut self, descriptors: &[BorrowedFd<'_>], message: &mut libc::msghdr) {
        let bytes = size_of_val(descriptors) as libc::c_uint;
        message.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE(3) only counts.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as _;
        // SAFETY: the control buffer is longer than one header, so this is its start.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const *message) };
        // SAFETY: CMSG_LEN(3) only counts.
        let length = unsafe { libc::CMSG_LEN(bytes) };
        // SAFETY: all zero is a valid header; the C libraries pad it differently.
        let mut head: libc::cmsghdr = unsafe { std::mem::zeroed() };
        (head.cmsg_level, head.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // Without the padding at the end, which would count as one descriptor more: number 0.
        head.cmsg_len = length as _;
        // SAFETY: `first` is the aligned start of the buffer.
        unsafe { first.write(head) };
        // SAFETY: the header is followed by its data within the same buffer.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: a `BorrowedFd` is an int (repr(transparent)); at most 253 of them fit, as the caller has checked.
        unsafe { std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), data, bytes as usize) };
    }
}

fn header(pieces: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all zero is a `struct msghdr` without a name, pieces and ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces;
    message.msg_iovlen = count as _;
    message
}

/// Takes all descriptors into ownership, so that none is lost whatever else is in there.
fn read_control(message: &libc::msghdr) -> io::Result<(Option<Credentials>, Vec<OwnedFd>)> {
    let (mut sender, mut descriptors) = (None, Vec::new());
    // SAFETY: recvmsg filled the control buffer and its length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header within the buffer.
        let head = unsafe { next.read() };
        match (head.cmsg_level, head.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: the data follows its header within the buffer, and a header of this kind has a whole `struct ucred`.
                let data = unsafe { libc::CMSG_DATA(next) };
                #[expect(clippy::cast_ptr_alignment, reason = "it is read unaligned")]
                let data = data.cast::<libc::ucred>();
                // SAFETY: as above; it need not be aligned.
                let raw = unsafe { data.read_unaligned() };
                sender = Some(Credentials { pid: raw.pid, uid: raw.uid, gid: raw.gid });
            }
            // A pidfd is one number; negative where the sender is gone.
            (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                // SAFETY: CMSG_LEN(3) only counts.
                let before = unsafe { libc::CMSG_LEN(0) } as usize;
                let count = (head.cmsg_len as usize).saturating_sub(before) / size_of::<i32>();
                // SAFETY: the data follows its header within the buffer.
                let data = unsafe { libc::CMSG_DATA(next) }.cast::<[u8; size_of::<i32>()]>();
                for at in 0..count {
                    // SAFETY: `count` ints lie within the message's length.
                    let slot = unsafe { data.add(at) };
                    // SAFETY: as above; bytes need no alignment.
                    let number = i32::from_ne_bytes(unsafe { slot.read() });
                    if number >= 0 {
                        // SAFETY: the kernel has installed this number for us a moment ago.
                        descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                    }
                }
            }
            _ => {}
        }
        // SAFETY: `next` is a header within this message.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    // In a host that has closed them, 0, 1 and 2 are free.
    let descriptors = descriptors.into_iter().map(|one| fd::lift(one, 3)).collect::<io::Result<_>>()?;
    Ok((sender, descriptors))
}
