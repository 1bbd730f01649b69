//! The address of a control pipe.

use std::{fmt, io, str::FromStr};

/// The environment variable for the key of a worker whose arguments contain the path of its control pipe. Every user of the machine
/// can read an argument list; only the owner of a process can read its environment.
pub(crate) const KEY_VARIABLE: &str = "PIPEWRIGHT_CONTROL_KEY";

/// The path of the parent's control pipe, and the key that identifies the worker's incarnation:
/// `/run/user/1000/pipewright-0f1e2d3c4b5a6978/control?4f1d…`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) path: String,
    pub(crate) key: String,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}?{}", self.path, self.key)
    }
}

/// Omits the key, which is a secret.
impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Address").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let (path, key) = text.rsplit_once('?').ok_or_else(|| invalid("missing `?` between path and key"))?;
        Self::new(path, key)
    }
}

impl Address {
    pub(crate) fn new(path: &str, key: &str) -> io::Result<Self> {
        if !path.starts_with('/') || key.is_empty() {
            return Err(invalid("address must be an absolute path with a key"));
        }
        Ok(Self { path: path.to_owned(), key: key.to_owned() })
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn addresses_round_trip(path in "/[a-z?/ ]{1,30}", key in "[0-9a-f]{1,32}") {
            let address = Address { path, key };
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }
}
