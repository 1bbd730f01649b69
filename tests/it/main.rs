//! Everything the library promises, proven through its public face with real processes.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod house;
