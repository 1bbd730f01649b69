//! The number of an inherited descriptor as text, and who in this process owns which number.

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

/// 0, 1 and 2 belong to `std`; no end of ours ever stands there.
pub(super) const FIRST_PRIVATE_NUMBER: RawFd = 3;

/// An excerpt of what was given as a handle, in characters: enough to recognise it.
const EXCERPT_CHARS: usize = 64;

/// The number of an inherited descriptor: what stands on a child's command line.
///
/// It is only a number. It keeps nothing open, and it means something in one process alone: the child it was made for.
/// [`PipeReader::inherit`](super::PipeReader::inherit) and its sister turn it into an end of a pipe.
///
/// Its text is strict: decimal digits only, no sign, no blanks, no leading zero, at most 2147483647.
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
    /// The number as text, right-aligned, so that it can be lent as an argument.
    text: [u8; DIGITS_MAX],
}

/// Of 2147483647.
const DIGITS_MAX: usize = 10;

impl Handle {
    /// The number, 0 or more.
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
    /// Its text, as an argument: `command.arg(handle)`.
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

    /// For a number the two programs agreed on beforehand. Negative numbers are refused.
    fn try_from(number: RawFd) -> Result<Self, HandleError> {
        if number < 0 {
            Err(HandleError::NotANumber { text: number.to_string().into() })
        } else {
            Ok(Self::new(number))
        }
    }
}

/// Why a handle could not become an end of a pipe. Nothing was closed or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The text is not a handle's.
    #[error("{text:?} is not a handle: a handle is a descriptor's number, as its parent wrote it, in digits only")]
    NotANumber {
        /// Its first 64 characters.
        text: Box<str>,
    },
    /// The number is 0, 1 or 2, where `std` reads and prints.
    #[error("handle {number} is a standard stream: ask for it by `inherit_standard` if it is really meant")]
    StandardStream {
        /// The handle's number.
        number: RawFd,
    },
    /// Nothing stands behind the number.
    #[error("descriptor {number} is not open: the parent did not pass it on, or it was closed since")]
    NotOpen {
        /// The handle's number.
        number: RawFd,
    },
    /// The descriptor is close-on-exec, so it cannot have come from the parent: this process opened it, and owns it somewhere.
    #[error("descriptor {number} was opened by this process itself, it did not come from its parent")]
    NotInherited {
        /// The handle's number.
        number: RawFd,
    },
    /// The descriptor is something other than a pipe or a socket.
    #[error("descriptor {number} is {found}, not a pipe or a socket")]
    NotAPipe {
        /// The handle's number.
        number: RawFd,
        /// What it is, with an article: "a regular file".
        found: &'static str,
    },
    /// The descriptor goes the other way.
    #[error("descriptor {number} is open for {found}, not for {wanted}")]
    WrongDirection {
        /// The handle's number.
        number: RawFd,
        /// What the caller wants to do with it.
        wanted: Direction,
        /// What it is open for.
        found: Direction,
    },
    /// Somebody in this process owns the number: it was claimed before, or it is a
    /// [`ChildEnd`](super::ChildEnd) that is still held.
    #[error("descriptor {number} has an owner in this process already: a handle can be claimed once")]
    AlreadyClaimed {
        /// The handle's number.
        number: RawFd,
    },
    /// The kernel refused something else.
    #[error("descriptor {number} could not be taken over: {source}")]
    Os {
        /// The handle's number.
        number: RawFd,
        /// Why.
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

/// Whether 0 to 2 may be claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StandardStreams {
    Refused,
    Allowed,
}

/// Makes the caller the owner of an inherited number: checked, close-on-exec, and entered in the registry.
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
    // Held until the entry stands, so that of two threads with the same text one is refused.
    let mut registry = registry();
    // First, because an entry that was kept for ever may be older than what stands behind the number now.
    inspect(number, wanted)?;
    let fd = match registry.numbers.get(&number) {
        Some(FdOwner::Held { .. }) => return Err(HandleError::AlreadyClaimed { number }),
        Some(FdOwner::Released) => fd::adopt(number),
        None => take_inherited(number)?,
    };
    // So that no grandchild holds the pipe open. After this line a second claim would be refused even without the registry.
    fd::set_close_on_exec(fd.as_fd()).map_err(|source| HandleError::Os { number, source })?;
    Ok((fd, registry.enter(number)))
}

/// Whether this number can do what is wanted of it. Looks, and changes nothing: a refused descriptor stays as it was.
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
        AccessMode::Neither => return Err(HandleError::NotAPipe { number, found: "a mere path to a pipe (O_PATH)" }),
    };
    if found == wanted || found == Direction::InOut {
        Ok(())
    } else {
        Err(HandleError::WrongDirection { number, wanted, found })
    }
}

/// A program may have called `init_inherited_fds` of command-fds, which then owns every inherited descriptor; ask it first.
fn take_inherited(number: RawFd) -> Result<OwnedFd, HandleError> {
    match take_fd_ownership(number) {
        Ok(fd) => Ok(fd),
        Err(InheritedFdError::OwnershipTaken(_)) => Err(HandleError::AlreadyClaimed { number }),
        Err(InheritedFdError::NotInitialized | InheritedFdError::FileDescriptorNotInherited(_)) => {
            // What came through exec is not close-on-exec; what Rust's std opens is. So this tells an inherited descriptor from
            // a file of this process that happens to have the number, which would get a second owner here.
            match fd::is_close_on_exec(number) {
                Ok(false) => Ok(fd::adopt(number)),
                Ok(true) => Err(HandleError::NotInherited { number }),
                Err(source) => Err(HandleError::Os { number, source }),
            }
        }
    }
}

/// Takes the pipe away from a standard stream and leaves `/dev/null` there: nothing that is printed can get between the bytes
/// of the pipe, no grandchild inherits it, and the number never becomes free for a file that would then be taken for stdout.
fn take_standard(number: RawFd, wanted: Direction) -> Result<OwnedFd, HandleError> {
    let _one_at_a_time = registry();
    inspect(number, wanted)?;
    let take = || {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let fd = fd::duplicate_number(number, FIRST_PRIVATE_NUMBER)?;
        fd::redirect_standard(number, null.as_fd())?;
        Ok(fd)
    };
    take().map_err(|source| HandleError::Os { number, source })
}

/// Who owns a number that travels, or travelled, as text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FdOwner {
    /// A live end of ours. The ticket tells it from an earlier end of the same number whose entry is still to be removed.
    Held { ticket: u64 },
    /// Nobody: given up by `ChildEnd::into_handle`, for whoever claims it.
    Released,
}

/// A handle is text, and any text can be claimed; two owners of one number would each close it, the second time under
/// whatever file has the number by then. So what is claimed is written down, for the whole process.
struct Registry {
    numbers: BTreeMap<RawFd, FdOwner>,
    tickets: u64,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { numbers: BTreeMap::new(), tickets: 0 });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Replaces an older entry: the caller holds the number, so whoever had it before has closed it.
    fn enter(&mut self, number: RawFd) -> Claim {
        self.tickets = self.tickets.wrapping_add(1);
        self.numbers.insert(number, FdOwner::Held { ticket: self.tickets });
        Claim { entry: Some((number, self.tickets)) }
    }
}

/// An entry in the registry, removed on drop. Stands *after* the descriptor in its struct, so that the number is closed first.
#[derive(Debug)]
pub(super) struct Claim {
    entry: Option<(RawFd, u64)>,
}

impl Claim {
    /// For an end whose number never travels as text.
    pub(super) const fn none() -> Self {
        Self { entry: None }
    }

    /// Enters a descriptor made here whose number may travel.
    pub(super) fn of(fd: &OwnedFd) -> Self {
        registry().enter(fd.as_raw_fd())
    }

    /// Leaves the entry for ever: the number goes to an owner whose end this library does not see. Should the number be free
    /// again one day, nobody will claim it as inherited, so the entry harms nobody; and an end of ours replaces it.
    pub(super) fn keep(mut self) {
        self.entry = None;
    }

    /// Gives the number up for whoever claims it next.
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
