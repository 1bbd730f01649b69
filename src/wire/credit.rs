//! Bytes of a window that are out, and come back.

use std::{fmt, sync::Arc};

/// Who is told how many bytes of a window are free again. The driver is, as the lower floor must not know it.
pub(crate) trait ReturnCredit: Send + Sync + fmt::Debug {
    /// So many bytes are no longer held by the consumer; told on whatever thread let them go. Must not block.
    fn returned(&self, bytes: usize);
}

/// Bytes of a window that are out; they return when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    bytes: usize,
    credit: Arc<dyn ReturnCredit>,
}

impl Permit {
    /// When it is dropped, `credit` is told of so many bytes.
    pub(crate) fn new(bytes: usize, credit: Arc<dyn ReturnCredit>) -> Self {
        Self { bytes, credit }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.credit.returned(self.bytes);
    }
}
