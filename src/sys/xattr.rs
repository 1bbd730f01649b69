//! What is noted on a file beside its contents: `xattr(7)`.

use std::{ffi::CStr, path::Path};

/// The most that is read of a value.
const LONGEST: usize = 64;

/// A short value; nothing where there is none, or none that we may see.
pub(crate) fn get(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let mut value = [0_u8; LONGEST];
    let length = rustix::fs::getxattr(path, name, &mut value).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}
