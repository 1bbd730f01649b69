//! Extended attributes: xattr(7).

use std::{ffi::CStr, path::Path};

/// The longest value that is read, in bytes.
const LONGEST: usize = 64;

/// Reads a short value; `None` if it is absent or not readable.
pub(crate) fn get(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let mut value = [0_u8; LONGEST];
    let length = rustix::fs::getxattr(path, name, &mut value).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}
