//! The jobserver that the environment of this process names.

use crate::{
    jobserver::error::JobserverError,
    sys::fd::{self, AccessMode, FileKind},
    wire::make_flags::{self, AddressError, JobserverAddress},
};
use std::{
    env,
    fs::OpenOptions,
    os::{
        fd::{OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// In the order in which they are looked at, as in the crate `jobserver`: below cargo, `MAKEFLAGS` may be that of a `make` around it.
const VARIABLES: [&str; 3] = ["CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS"];

/// The open jobserver of this process.
#[derive(Debug)]
pub(super) struct JobserverSource {
    /// Tokens are taken from here.
    pub(super) reader: OwnedFd,
    /// Tokens are returned here. Does not block where the descriptor could be opened again.
    pub(super) writer: OwnedFd,
    pub(super) address: SharedAddress,
}

/// What a worker gets that inherits the jobserver.
#[derive(Debug, Clone)]
pub(crate) enum SharedAddress {
    /// The ends of the pipe as `make` has passed them.
    Pipe([Arc<OwnedFd>; 2]),
    /// The path of the FIFO.
    Fifo(PathBuf),
}

/// Opens the jobserver; `None` if there is none. The first variable counts whose jobserver can be used.
pub(super) fn open() -> Result<Option<JobserverSource>, JobserverError> {
    let mut first_error = None;
    for variable in VARIABLES {
        let Some(flags) = env::var_os(variable) else { continue };
        let Some(address) = make_flags::jobserver(flags.as_bytes()) else { continue };
        let opened = match address {
            Ok(JobserverAddress::Pipe { reader, writer }) => pipe(variable, reader, writer),
            Ok(JobserverAddress::Fifo(path)) => fifo(variable, &path),
            Err(AddressError::Disabled) => Err(JobserverError::Disabled { variable }),
            Err(AddressError::Malformed) => {
                Err(JobserverError::Malformed { variable, flags: flags.to_string_lossy().into() })
            }
        };
        match opened {
            Ok(source) => return Ok(Some(source)),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    first_error.map_or(Ok(None), Err)
}

fn pipe(variable: &'static str, reader: RawFd, writer: RawFd) -> Result<JobserverSource, JobserverError> {
    let checked = |number: RawFd, unwanted: AccessMode| {
        let closed = |_| JobserverError::Closed { variable, fd: number };
        let kind = fd::file_kind(number).map_err(closed)?;
        let found = match fd::access_mode(number).map_err(closed)? {
            _ if kind != FileKind::Fifo => Some(kind.name()),
            mode if mode == unwanted || mode == AccessMode::Neither => Some("the other end of a pipe"),
            _ => None,
        };
        found.map_or(Ok(()), |found| Err(JobserverError::NotAPipe { variable, fd: number, found }))
    };
    checked(reader, AccessMode::Write)?;
    checked(writer, AccessMode::Read)?;
    let duplicate = |number| {
        fd::duplicate_number(number, fd::MIN_FD)
            .map_err(JobserverError::failed("duplicate the jobserver's descriptors"))
    };
    // O_NONBLOCK belongs to the description, which the other clients share, so writes use a description of our own. Reads need none:
    // `splice::move_byte` does not block in any case. A pipe of another user cannot be opened again.
    let own = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(format!("/proc/self/fd/{writer}"));
    let own = own.and_then(|own| fd::dup_above(own.into(), fd::MIN_FD)).or_else(|_| duplicate(writer))?;
    let shared = [Arc::new(duplicate(reader)?), Arc::new(duplicate(writer)?)];
    Ok(JobserverSource { reader: duplicate(reader)?, writer: own, address: SharedAddress::Pipe(shared) })
}

fn fifo(variable: &'static str, path: &Path) -> Result<JobserverSource, JobserverError> {
    let refused = |source| JobserverError::Open { variable, path: path.into(), source };
    // For both directions: opened for one of them, a FIFO waits for the other end.
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(refused)?;
    let reader = fd::dup_above(opened.into(), fd::MIN_FD).map_err(refused)?;
    let kind = fd::kind_of(&reader).map_err(refused)?;
    if kind != FileKind::Fifo {
        return Err(refused(std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("it is {}", kind.name()))));
    }
    let writer = reader.try_clone().map_err(refused)?;
    let writer = fd::dup_above(writer, fd::MIN_FD).map_err(refused)?;
    Ok(JobserverSource { reader, writer, address: SharedAddress::Fifo(path.into()) })
}
