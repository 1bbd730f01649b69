//! How fd numbers and addresses are passed to a worker.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

/// How a handle is passed to a worker: where its fd number is written, and optionally which number it is.
///
/// In a template, `{}` is replaced by the number and `{{}}` by a literal `{}`; all other text is unchanged.
///
/// ```
/// use pipewright::{Pass, WorkerSpec};
///
/// WorkerSpec::new("gpg").args(["--batch", "--status-fd"]).messages(Pass::arg("{}"));
/// WorkerSpec::new("ffmpeg").arg("-progress").messages(Pass::arg("pipe:{}"));
/// WorkerSpec::new("supervised").messages(Pass::env("NOTIFY_FD"));
/// WorkerSpec::new("s6-style").messages(Pass::fd(3));
/// ```
#[doc(alias = "pass_fds")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    pub(super) target: PassTarget,
    pub(super) number: Option<RawFd>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PassTarget {
    Argument(OsString),
    Environment {
        name: OsString,
        template: OsString,
    },
    /// The program expects the handle at a fixed number.
    None,
}

impl Pass {
    /// Appends an argument such as `--messages={}`, `pipe:{}` or `{}`. Its position among the arguments is that of the call.
    #[must_use]
    pub fn arg(template: impl Into<OsString>) -> Self {
        Self { target: PassTarget::Argument(template.into()), number: None }
    }

    /// Sets an environment variable to the number.
    #[must_use]
    pub fn env(name: impl Into<OsString>) -> Self {
        Self::env_with(name, "{}")
    }

    /// Sets an environment variable to a template with the number.
    #[must_use]
    pub fn env_with(name: impl Into<OsString>, template: impl Into<OsString>) -> Self {
        Self { target: PassTarget::Environment { name: name.into(), template: template.into() }, number: None }
    }

    /// Fixes the fd number, 3 or above, without writing it anywhere: for programs that expect it.
    #[must_use]
    pub fn fd(number: RawFd) -> Self {
        Self { target: PassTarget::None, number: Some(number) }
    }

    /// Any fd number, which is written elsewhere.
    pub(crate) fn unnamed() -> Self {
        Self { target: PassTarget::None, number: None }
    }

    /// Fixes the fd number, 3 or above, in addition to writing it.
    #[must_use]
    pub fn at_fd(mut self, number: RawFd) -> Self {
        self.number = Some(number);
        self
    }
}

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// The text around the placeholders; one piece more than there are placeholders.
    pieces: Vec<Vec<u8>>,
}

impl Template {
    pub(super) fn parse(text: &OsStr) -> Self {
        let mut pieces = vec![Vec::new()];
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            if let Some(after) = rest.strip_prefix(b"{{}}") {
                push(&mut pieces, b"{}");
                rest = after;
            } else if let Some(after) = rest.strip_prefix(b"{}") {
                pieces.push(Vec::new());
                rest = after;
            } else {
                push(&mut pieces, &[first]);
                rest = after;
            }
        }
        Self { pieces }
    }

    pub(super) fn has_placeholder(&self) -> bool {
        self.pieces.len() > 1
    }

    pub(super) fn fill(&self, number: RawFd) -> OsString {
        self.fill_text(&number.to_string())
    }

    pub(super) fn fill_text(&self, text: &str) -> OsString {
        OsString::from_vec(self.pieces.join(text.as_bytes()))
    }
}

fn push(pieces: &mut [Vec<u8>], bytes: &[u8]) {
    if let Some(last) = pieces.last_mut() {
        last.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(template: &str, number: RawFd) -> String {
        Template::parse(OsStr::new(template)).fill(number).into_string().unwrap()
    }

    #[test]
    fn placeholder_is_replaced_by_number() {
        assert_eq!(fill("--messages={}", 3), "--messages=3");
        assert_eq!(fill("pipe:{}", 10), "pipe:10");
        assert_eq!(fill("{}", 7), "7");
        assert_eq!(fill("{}-{}", 4), "4-4");
        assert_eq!(fill("{{}}={}", 5), "{}=5");
        assert_eq!(fill("{\"fd\":{}}", 6), "{\"fd\":6}");
        assert_eq!(fill("{ } } {", 6), "{ } } {");
    }

    proptest! {
        #[test]
        fn doubled_braces_are_literal(text in "[a-z{}= ]{0,20}", number in 3..5000) {
            let doubled = text.replace("{}", "{{}}");
            let template = Template::parse(OsStr::new(&doubled));
            // Next to another brace, the doubled text can form a new `{}`.
            prop_assume!(!text.contains("{{") && !text.contains("}}"));
            prop_assert!(!template.has_placeholder());
            prop_assert_eq!(template.fill(number).into_string().unwrap(), text);
        }
    }
}
