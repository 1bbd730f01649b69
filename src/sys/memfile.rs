//! `memfd_create(2)`: a file that has no name and lives as long as somebody holds it.

use super::{cvt, fd};
use std::{
    fs::File,
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// An empty file, close-on-exec, out of the way of small numbers.
pub(crate) fn new(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: memfd_create(2) reads a C string and takes a flag.
    let number = cvt(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel made this number a moment ago and for us alone.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    fd::lift(file, fd::OUT_OF_THE_WAY).map(File::from)
}
