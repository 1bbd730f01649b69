//! Handles: numbers of inherited file descriptors as text, and the registry of claimed numbers.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt,
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use command_fds::inherited::{InheritedFdError, take_fd_ownership};

use crate::pipe::mode::Direction;
use crate::sys::fd::{self, AccessMode, FileKind};

/// Lowest number of ends of this library: 0, 1 and 2 belong to `std`.
pub(super) const FIRST_PRIVATE_NUMBER: RawFd = 3;

/// Longest excerpt of an invalid handle in an error, in characters.
const EXCERPT_CHARS: usize = 64;

/// Number of an inherited file descriptor, to be passed as an argument of a child process.
///
/// It does not keep the descriptor open, and is valid only in the child it was made for.
/// [`PipeReader::inherit`](super::PipeReader::inherit) and [`PipeWriter::inherit`](super::PipeWriter::inherit) turn it into an end
/// of a pipe.
///
/// Its text has decimal digits only: no sign, no blanks, no leading zero, at most 2147483647.
///
/// ```
/// use pipewright::pipe::anonymous::Handle;
///
/// let handle: Handle = "17".parse()?;
/// assert_eq!(handle.number(), 17);
/// assert_eq!(format!("--messages={handle}"), "--messages=17");
/// assert_eq!(std::process::Command::new("worker").arg(handle).get_args().next().unwrap(), "17");
/// assert!("+17".parse::<Handle>().is_err());
/// # Ok::<(), pipewright::pipe::anonymous::HandleError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    number: RawFd,
    /// The number in decimal digits, right-aligned, so that `AsRef<OsStr>` can borrow it.
    text: [u8; DIGITS_MAX],
}

/// Digits of 2147483647.
const DIGITS_MAX: usize = 10;

impl Handle {
    /// The file descriptor number, not negative.
    pub const fn number(self) -> RawFd {
        self.number
    }

    pub(crate) fn of(fd: &impl AsRawFd) -> Self {
        Self::new(fd.as_raw_fd())
    }

    fn new(number: RawFd) -> Self {
        let mut text = [b'0'; DIGITS_MAX];
        let mut rest = number.unsigned_abs();
        for digit in text.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
        Self { number, text }
    }

    fn digits(&self) -> &[u8] {
        let zeros = self.text.iter().take(DIGITS_MAX - 1).take_while(|digit| **digit == b'0').count();
        self.text.get(zeros..).unwrap_or_default()
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.number, f)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.number).finish()
    }
}

impl AsRef<OsStr> for Handle {
    /// The text of the handle, for `command.arg(handle)`.
    fn as_ref(&self) -> &OsStr {
        OsStr::from_bytes(self.digits())
    }
}

impl FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let leading_zero = text.len() > 1 && text.starts_with('0');
        match text.parse() {
            Ok(number) if digits_only && !leading_zero => Ok(Self::new(number)),
            _ => Err(HandleError::NotANumber { text: text.chars().take(EXCERPT_CHARS).collect() }),
        }
    }
}

impl TryFrom<RawFd> for Handle {
    type Error = HandleError;

    /// For a number agreed on by both programs. Negative numbers are rejected.
    fn try_from(number: RawFd) -> Result<Self, HandleError> {
        if number < 0 {
            Err(HandleError::NotANumber { text: number.to_string().into() })
        } else {
            Ok(Self::new(number))
        }
    }
}

/// Error of turning a handle into an end of a pipe. The descriptor was not closed or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The text is not a valid handle.
    #[error("invalid handle {text:?}: not a file descriptor number in decimal digits")]
    NotANumber {
        /// First 64 characters of the text.
        text: Box<str>,
    },
    /// The number is 0, 1 or 2, a standard stream.
    #[error("handle {number} is a standard stream: use `inherit_standard` to claim it")]
    StandardStream {
        /// Number of the handle.
        number: RawFd,
    },
    /// No file descriptor with this number is open.
    #[error("descriptor {number} is not open: not inherited from the parent, or closed since")]
    NotOpen {
        /// Number of the handle.
        number: RawFd,
    },
    /// The descriptor is close-on-exec, so it cannot have been inherited: this process opened it.
    #[error("descriptor {number} was not inherited: this process opened it")]
    NotInherited {
        /// Number of the handle.
        number: RawFd,
    },
    /// The descriptor is no pipe or socket.
    #[error("descriptor {number} is {found}, not a pipe or a socket")]
    NotAPipe {
        /// Number of the handle.
        number: RawFd,
        /// Its type, with an article: "a regular file".
        found: &'static str,
    },
    /// The descriptor is open for another direction.
    #[error("descriptor {number} is open for {found}, not for {wanted}")]
    WrongDirection {
        /// Number of the handle.
        number: RawFd,
        /// Direction that the caller needs.
        wanted: Direction,
        /// Direction that it is open for.
        found: Direction,
    },
    /// The number is owned in this process: it was claimed before, or belongs to an existing [`ChildEnd`](super::ChildEnd).
    #[error("descriptor {number} is already owned in this process: a handle can be claimed once")]
    AlreadyClaimed {
        /// Number of the handle.
        number: RawFd,
    },
    /// A system call failed.
    #[error("cannot claim descriptor {number}: {source}")]
    Os {
        /// Number of the handle.
        number: RawFd,
        /// Error of the system call.
        source: io::Error,
    },
}

impl From<HandleError> for io::Error {
    fn from(error: HandleError) -> Self {
        let kind = match &error {
            HandleError::Os { source, .. } => source.kind(),
            HandleError::AlreadyClaimed { .. } => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Whether the numbers 0 to 2 may be claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StandardStreams {
    Refused,
    Allowed,
}

/// Claims an inherited number: checks it, makes it close-on-exec, and enters it in the registry.
pub(super) fn claim(
    handle: Handle,
    wanted: Direction,
    standard: StandardStreams,
) -> Result<(OwnedFd, Claim), HandleError> {
    let number = handle.number();
    if number < FIRST_PRIVATE_NUMBER {
        return match standard {
            StandardStreams::Refused => Err(HandleError::StandardStream { number }),
            StandardStreams::Allowed => take_standard(number, wanted).map(|fd| (fd, Claim::none())),
        };
    }
    // Locked until the entry is made, so that only one of two threads with the same handle succeeds.
    let mut registry = registry();
    // Must come first: a permanent entry may be older than the descriptor that has the number now.
    inspect(number, wanted)?;
    let fd = match registry.numbers.get(&number) {
        Some(FdOwner::Held { .. }) => return Err(HandleError::AlreadyClaimed { number }),
        Some(FdOwner::Released) => fd::adopt(number),
        None => take_inherited(number)?,
    };
    // Keeps children of this process from holding the pipe open. Also makes a second claim fail, even without the registry.
    fd::set_close_on_exec(fd.as_fd()).map_err(|source| HandleError::Os { number, source })?;
    Ok((fd, registry.enter(number)))
}

/// Checks that the descriptor is a pipe or socket open for `wanted`. Changes nothing.
pub(super) fn inspect(number: RawFd, wanted: Direction) -> Result<(), HandleError> {
    if !fd::is_open(number) {
        return Err(HandleError::NotOpen { number });
    }
    let os = |source| HandleError::Os { number, source };
    match fd::file_kind(number).map_err(os)? {
        FileKind::Fifo | FileKind::Socket => {}
        other => return Err(HandleError::NotAPipe { number, found: other.name() }),
    }
    let found = match fd::access_mode(number).map_err(os)? {
        AccessMode::Read => Direction::In,
        AccessMode::Write => Direction::Out,
        AccessMode::Both => Direction::InOut,
        AccessMode::Neither => return Err(HandleError::NotAPipe { number, found: "a path to a pipe (O_PATH)" }),
    };
    if found == wanted || found == Direction::InOut {
        Ok(())
    } else {
        Err(HandleError::WrongDirection { number, wanted, found })
    }
}

/// Takes an inherited descriptor. If the program called `init_inherited_fds` of command-fds, that crate owns all of them and must
/// be asked first.
fn take_inherited(number: RawFd) -> Result<OwnedFd, HandleError> {
    match take_fd_ownership(number) {
        Ok(fd) => Ok(fd),
        Err(InheritedFdError::OwnershipTaken(_)) => Err(HandleError::AlreadyClaimed { number }),
        Err(InheritedFdError::NotInitialized | InheritedFdError::FileDescriptorNotInherited(_)) => {
            // Descriptors that survived exec are not close-on-exec; those opened by Rust's std are. This keeps a file of this
            // process that happens to have the number from getting a second owner.
            match fd::is_close_on_exec(number) {
                Ok(false) => Ok(fd::adopt(number)),
                Ok(true) => Err(HandleError::NotInherited { number }),
                Err(source) => Err(HandleError::Os { number, source }),
            }
        }
    }
}

/// Replaces a standard stream by `/dev/null` and returns the pipe under another number. Prints then cannot mix with the data of the
/// pipe, children do not inherit it, and the number never becomes free for another file, which would be used as stdout.
fn take_standard(number: RawFd, wanted: Direction) -> Result<OwnedFd, HandleError> {
    let _lock = registry();
    inspect(number, wanted)?;
    let take = || {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let fd = fd::duplicate_number(number, FIRST_PRIVATE_NUMBER)?;
        fd::redirect_standard(number, null.as_fd())?;
        Ok(fd)
    };
    take().map_err(|source| HandleError::Os { number, source })
}

/// Owner of a registered number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FdOwner {
    /// An open end of this library. The ticket tells it from an earlier end with the same number whose entry is not removed yet.
    Held { ticket: u64 },
    /// No owner: released by `ChildEnd::into_handle` to be claimed.
    Released,
}

/// Claimed numbers of the process. A handle is text, which can be claimed twice; the second owner would close a number that may
/// belong to another file by then.
struct Registry {
    numbers: BTreeMap<RawFd, FdOwner>,
    tickets: u64,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { numbers: BTreeMap::new(), tickets: 0 });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Replaces an older entry: the caller owns the number, so its earlier owner has closed it.
    fn enter(&mut self, number: RawFd) -> Claim {
        self.tickets = self.tickets.wrapping_add(1);
        self.numbers.insert(number, FdOwner::Held { ticket: self.tickets });
        Claim { entry: Some((number, self.tickets)) }
    }
}

/// Entry in the registry, removed on drop. Must come *after* the descriptor in its struct, so that the number is closed first.
#[derive(Debug)]
pub(super) struct Claim {
    entry: Option<(RawFd, u64)>,
}

impl Claim {
    /// For an end whose number is never used as a handle.
    pub(super) const fn none() -> Self {
        Self { entry: None }
    }

    /// Registers a descriptor created here whose number may be used as a handle.
    pub(super) fn of(fd: &OwnedFd) -> Self {
        registry().enter(fd.as_raw_fd())
    }

    /// Keeps the entry permanently: the number goes to an owner outside this library. If the number is reused later, it will not be
    /// claimed as inherited, and an end of this library replaces the entry.
    pub(super) fn keep(mut self) {
        self.entry = None;
    }

    /// Releases the number for the next claim.
    pub(super) fn release(mut self, fd: OwnedFd) -> Handle {
        self.entry = None;
        let mut registry = registry();
        let number = fd.into_raw_fd();
        registry.numbers.insert(number, FdOwner::Released);
        Handle::new(number)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some((number, ticket)) = self.entry else { return };
        let mut registry = registry();
        if registry.numbers.get(&number) == Some(&FdOwner::Held { ticket }) {
            registry.numbers.remove(&number);
        }
    }
}
