//! Memory that makes this process as large as a real host: ordinary 4 KiB pages, all of them touched.
//!
//! With transparent huge pages the page tables of 4 GiB are 512 times smaller, and what copies them (fork) looks far cheaper
//! than it is in a host that has grown by many small allocations. So they are refused here.

#![expect(unsafe_code, reason = "no safe face of mmap(2) and madvise(2) is among the dependencies")]

use std::{io, ptr};

/// So much memory of this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ballast {
    base: *mut libc::c_void,
    bytes: usize,
}

impl Ballast {
    pub(crate) fn new(mib: usize) -> io::Result<Self> {
        let bytes = mib << 20;
        if bytes == 0 {
            return Ok(Self { base: ptr::null_mut(), bytes });
        }
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: mmap(2) of fresh anonymous memory at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ballast = Self { base, bytes };
        // A kernel without huge pages answers EINVAL, and has none to refuse.
        // SAFETY: madvise(2) on our own mapping; this advice changes no contents.
        unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        // SAFETY: the mapping is writable and has this length.
        unsafe { ptr::write_bytes(base.cast::<u8>(), 1, bytes) };
        Ok(ballast)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: unmaps exactly what `new` mapped; no other code has the address.
            let result = unsafe { libc::munmap(self.base, self.bytes) };
            debug_assert_eq!(result, 0, "munmap of our own mapping");
        }
    }
}
