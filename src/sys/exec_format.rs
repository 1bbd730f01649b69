//! Prevents execvp(3) from running with `/bin/sh` what the kernel cannot execute: a script without a `#!` line, an empty file, an
//! executable for another machine. glibc does that on ENOEXEC; musl, and programs that use execve(2), do not.

use super::clone::CStringArray;
use rustix::fs::{Mode, OFlags, SeekFrom};
use std::{
    ffi::{CStr, CString},
    io,
    mem::offset_of,
    os::unix::process::CommandExt,
    process::Command,
};

/// The ELF machine number of this machine.
const MACHINE: Option<u16> = if cfg!(target_arch = "x86_64") {
    Some(libc::EM_X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(libc::EM_AARCH64)
} else {
    None
};

/// An attempt to execute the files that execvp(3) would try, in the same order.
#[derive(Debug)]
pub(crate) struct ExecAttempt {
    candidates: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// The buffers that the pointers refer to.
    _texts: [CStringArray; 2],
}

// SAFETY: the pointers refer to buffers that this value owns, does not change, and keeps on the heap when it moves.
unsafe impl Send for ExecAttempt {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for ExecAttempt {}

impl ExecAttempt {
    pub(crate) fn new(candidates: Vec<CString>, arguments: CStringArray, environment: CStringArray) -> Self {
        Self {
            candidates,
            arguments: arguments.pointers(),
            environment: environment.pointers(),
            _texts: [arguments, environment],
        }
    }

    /// Makes the child of a `Command` call this just before its own exec: add it as the last hook.
    pub(crate) fn add_to(self, command: &mut Command) {
        let hook = move || self.make();
        // SAFETY: the hook runs between fork and exec and makes system calls only; an `io::Error` from an errno does not allocate.
        unsafe { command.pre_exec(hook) };
    }

    /// Fails where execvp(3) would run the shell. Leaves files that the kernel certainly executes to execvp(3), since a `Command` does not
    /// reveal the `arg0` of its program, and also files that fail for another reason, since execvp(3) fails there too.
    fn make(&self) -> io::Result<()> {
        for file in &self.candidates {
            if is_native(file) {
                return Ok(());
            }
            // SAFETY: execve(2) reads a C string and two null-terminated arrays of them, all owned by this value.
            unsafe { libc::execve(file.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
            match super::child_setup::errno() {
                libc::ENOEXEC => return Err(io::Error::from_raw_os_error(libc::ENOEXEC)),
                libc::EACCES | libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Whether the file is a complete executable for this machine, as the kernel checks before running it. False if it cannot be read.
fn is_native(file: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(file, flags, Mode::empty()) else { return false };
    let mut header = [0; size_of::<libc::Elf64_Ehdr>()];
    let is_whole = rustix::io::pread(&file, &mut header, 0) == Ok(header.len());
    let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).unwrap_or(0);
    is_whole && is_native_header(&header, bytes)
}

/// Checks the header of an ELF file (`Elf64_Ehdr` of elf.h) against the length of the file.
fn is_native_header(header: &[u8; size_of::<libc::Elf64_Ehdr>()], bytes: u64) -> bool {
    let u16_at = |at| header[at..].first_chunk().map_or(0, |field| u16::from_ne_bytes(*field));
    let u64_at = |at| header[at..].first_chunk().map_or(0, |field| u64::from_ne_bytes(*field));
    let entry_bytes = u16_at(offset_of!(libc::Elf64_Ehdr, e_phentsize));
    let table = u64::from(entry_bytes) * u64::from(u16_at(offset_of!(libc::Elf64_Ehdr, e_phnum)));
    matches!(header, [0x7f, b'E', b'L', b'F', libc::ELFCLASS64, ..])
        && MACHINE == Some(u16_at(offset_of!(libc::Elf64_Ehdr, e_machine)))
        && matches!(u16_at(offset_of!(libc::Elf64_Ehdr, e_type)), libc::ET_EXEC | libc::ET_DYN)
        && usize::from(entry_bytes) == size_of::<libc::Elf64_Phdr>()
        && table > 0
        && u64_at(offset_of!(libc::Elf64_Ehdr, e_phoff)).saturating_add(table) <= bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

    fn native(path: &Path) -> bool {
        is_native(&CString::new(path.as_os_str().as_bytes()).unwrap())
    }

    #[test]
    fn complete_executable_of_this_machine_is_native() {
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
