//! Which tests run: filters, `#[ignore]`, and partitions.

use regex_lite::Regex;
use std::str::FromStr;

/// A condition on the name of a test. Its full name is the id of its program, a space, and its name in the program.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    /// `=NAME`: this name, or this full name.
    Exact(String),
    /// `/REGEX/`, for the name or the full name.
    Regex(Regex),
    /// Anything else: a part of the name or, with a space, of the full name.
    Part(String),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix('=') {
            return Ok(Self::Exact(name.to_owned()));
        }
        match text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
            Some(regex) => {
                Regex::new(regex).map(Self::Regex).map_err(|error| format!("invalid pattern {text}: {error}"))
            }
            None => Ok(Self::Part(text.to_owned())),
        }
    }
}

impl Pattern {
    pub(crate) fn matches(&self, program: &str, name: &str) -> bool {
        let full = format!("{program} {name}");
        match self {
            Self::Exact(exact) => exact == name || *exact == full,
            Self::Regex(regex) => regex.is_match(name) || regex.is_match(&full),
            Self::Part(part) => name.contains(part) || (part.contains(' ') && full.contains(part)),
        }
    }
}

/// Which tests with `#[ignore]` run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) enum RunIgnored {
    /// None of them.
    #[default]
    Default,
    /// Only these.
    Only,
    All,
}

impl FromStr for RunIgnored {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "only" => Ok(Self::Only),
            "all" => Ok(Self::All),
            _ => Err(format!("{text} is not one of default, only, all")),
        }
    }
}

/// One of several parts of the tests, for several machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Partition {
    method: Method,
    /// Counted from 1.
    number: u64,
    of: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// In turn: parts of equal size.
    Count,
    /// By the hash of the name: a test stays in its part when others are added.
    Hash,
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (method, part) = match text.split_once(':') {
            None => (Method::Count, text),
            Some(("count", part)) => (Method::Count, part),
            Some(("hash", part)) => (Method::Hash, part),
            Some((other, _)) => return Err(format!("{other} is not one of count, hash")),
        };
        let numbers = part.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if 1 <= number && number <= of => Ok(Self { method, number, of }),
            _ => Err(format!("{part} is not a part such as 1/3")),
        }
    }
}

impl Partition {
    /// Whether the test at this position of all selected tests belongs to this part.
    pub(crate) fn contains(&self, position: usize, full_name: &str) -> bool {
        let index = match self.method {
            Method::Count => position as u64,
            Method::Hash => fnv1a(full_name.as_bytes()),
        };
        index % self.of == self.number - 1
    }
}

/// The hash function FNV-1a, which stays the same on all machines and in all versions.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_part_name_or_regex() {
        for (pattern, expected) in [
            ("parse", true),
            ("app::it parse", true),
            ("it parse::a", true),
            ("it", false),
            ("=parse::a", true),
            ("=app::it parse::a", true),
            ("=parse", false),
            ("/^parse::[ab]$/", true),
            ("/^app.*a$/", true),
            ("/^a$/", false),
            ("other", false),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches("app::it", "parse::a"), expected, "{pattern:?}");
        }
        assert!("/(/".parse::<Pattern>().unwrap_err().starts_with("invalid pattern /(/: "));
    }

    #[test]
    fn partitions_contain_each_test_once() {
        for method in ["", "count:", "hash:"] {
            for of in 1..7_u64 {
                let parts: Vec<Partition> =
                    (1..=of).map(|number| format!("{method}{number}/{of}").parse().unwrap()).collect();
                for position in 0..100 {
                    let name = format!("app test_{position}");
                    let count = parts.iter().filter(|part| part.contains(position, &name)).count();
                    assert_eq!(count, 1, "{method} {of} {position}");
                }
            }
        }
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8); // from the authors' test vectors
        for invalid in ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "slice:1/3", ""] {
            assert!(invalid.parse::<Partition>().is_err(), "{invalid}");
        }
    }
}
