//! Bytes of a flow-control window that are in use until their consumer drops them.

use std::{fmt, sync::Arc};

/// Receives the bytes that are available again. A trait, since the supervisor implements it and this module must not import it.
pub(crate) trait ReturnCredit: Send + Sync + fmt::Debug {
    /// The consumer no longer holds this many bytes. Called on the thread that dropped them; must not block.
    fn returned(&self, bytes: usize);
}

/// Bytes of a window that are in use. Dropping it returns them.
#[derive(Debug)]
pub(crate) struct Permit {
    bytes: usize,
    credit: Arc<dyn ReturnCredit>,
}

impl Permit {
    pub(crate) fn new(bytes: usize, credit: Arc<dyn ReturnCredit>) -> Self {
        Self { bytes, credit }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.credit.returned(self.bytes);
    }
}
