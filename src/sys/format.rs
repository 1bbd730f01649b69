//! Keeps execvp(3) from running with `/bin/sh` what the kernel does not run: a script without a `#!` line, an empty file, an
//! executable of another machine. glibc does that on ENOEXEC; musl, and what starts a program by execve(2), do not.

use super::clone::Texts;
use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// The number of this machine in an ELF header.
const MACHINE: Option<u16> = if cfg!(target_arch = "x86_64") {
    Some(libc::EM_X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(libc::EM_AARCH64)
} else {
    None
};

/// The files that execvp(3) would try, in its order, and what they would be run with.
#[derive(Debug)]
pub(crate) struct Attempt {
    candidates: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// What the pointers point into.
    _texts: [Texts; 2],
}

// SAFETY: the pointers point into texts that this value owns, does not change, and keeps on the heap when it moves.
unsafe impl Send for Attempt {}
// SAFETY: as above; sharing it only reads.
unsafe impl Sync for Attempt {}

impl Attempt {
    pub(crate) fn new(candidates: Vec<CString>, arguments: Texts, environment: Texts) -> Self {
        Self {
            candidates,
            arguments: arguments.pointers(),
            environment: environment.pointers(),
            _texts: [arguments, environment],
        }
    }

    /// Has the child of a `Command` make the attempt just before its own: the last hook to be added.
    pub(crate) fn add_to(self, command: &mut Command) {
        let hook = move || self.make();
        // SAFETY: the hook runs between fork and exec and makes system calls only; an `io::Error` from an errno does not allocate.
        unsafe { command.pre_exec(hook) };
    }

    /// Fails where execvp(3) would turn to the shell. It leaves to that what the kernel certainly runs, since a `Command` does not
    /// tell the name that it gives its program (`arg0`), and what fails for another reason, since that fails there too.
    fn make(&self) -> io::Result<()> {
        for file in &self.candidates {
            if is_native(file) {
                return Ok(());
            }
            // SAFETY: execve(2) reads a C string and two null-terminated arrays of them, all owned by this value.
            unsafe { libc::execve(file.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
            match super::conduct::errno() {
                libc::ENOEXEC => return Err(io::Error::from_raw_os_error(libc::ENOEXEC)),
                libc::EACCES | libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Whether the file is a whole executable of this machine: what the kernel looks at before it runs one. False where it cannot be read.
fn is_native(file: &CStr) -> bool {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: open(2) reads a C string.
    let Ok(number) = super::cvt(unsafe { libc::open(file.as_ptr(), flags) }) else { return false };
    // SAFETY: the kernel made this number a moment ago and for us alone.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: all zero is an ELF header, which consists of numbers.
    let mut header: libc::Elf64_Ehdr = unsafe { mem::zeroed() };
    // SAFETY: pread(2) writes at most as many bytes as the header has, and any bytes are one.
    let read = unsafe { libc::pread(file.as_raw_fd(), (&raw mut header).cast(), size_of_val(&header), 0) };
    // SAFETY: lseek(2) takes three numbers.
    let bytes = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    let table = u64::from(header.e_phentsize) * u64::from(header.e_phnum);
    usize::try_from(read) == Ok(size_of_val(&header))
        && matches!(header.e_ident, [0x7f, b'E', b'L', b'F', libc::ELFCLASS64, ..])
        && MACHINE == Some(header.e_machine)
        && matches!(header.e_type, libc::ET_EXEC | libc::ET_DYN)
        && usize::from(header.e_phentsize) == size_of::<libc::Elf64_Phdr>()
        && table > 0
        && header.e_phoff.saturating_add(table) <= u64::try_from(bytes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

    fn native(path: &Path) -> bool {
        is_native(&CString::new(path.as_os_str().as_bytes()).unwrap())
    }

    #[test]
    fn a_whole_executable_of_this_machine_is_native() {
        let own = std::env::current_exe().unwrap();
        assert!(native(&own));
        let bytes = fs::read(own).unwrap();
        let mut other = bytes.clone();
        other[18] ^= 0xff; // the machine
        for wrong in [&bytes[..63], &bytes[..100], &other, b"", b"#!/bin/sh\n", b"echo\n"] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(wrong).unwrap();
            assert!(!native(file.path()), "{} bytes", wrong.len());
        }
        for path in ["/", "/dev/null", "/no/such/file"] {
            assert!(!native(Path::new(path)), "{path}");
        }
    }
}
