//! getrandom(2): bytes that nobody can guess.

use super::{cvt_size, retry};
use std::io;

pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: getrandom(2) writes at most so many bytes. Up to 256 it gives all at once, or fails.
    let filled = retry(|| cvt_size(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) }))?;
    if filled == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
