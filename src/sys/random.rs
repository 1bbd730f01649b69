//! getrandom(2): bytes that nobody can guess.

use rustix::{io::retry_on_intr, rand::GetRandomFlags};
use std::io;

pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 it gives all at once, or fails.
    let filled = retry_on_intr(|| rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()))?;
    if filled == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
