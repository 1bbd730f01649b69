//! What is noted on a file beside its contents: `xattr(7)`.

use std::{
    ffi::{CStr, CString},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// The most that is read of a value.
const LONGEST: usize = 64;

/// A short value; nothing where there is none, or none that we may see.
pub(crate) fn get(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = [0_u8; LONGEST];
    // SAFETY: getxattr(2) writes no more than `LONGEST` bytes, which `value` has; both strings end in a zero byte.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), LONGEST) };
    let length = usize::try_from(length).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}
