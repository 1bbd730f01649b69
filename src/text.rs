//! Text of other processes, made safe for a terminal, a log or a one-line error.

use std::{
    fmt::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Implements `Debug` with the fields that matter to a user, without locks, channels, keys, tokens and values of environment variables.
macro_rules! impl_debug {
    ($type:ident $(<$lifetime:lifetime>)?, |$this:ident| { $($field:ident: $value:expr),* $(,)? }) => {
        impl std::fmt::Debug for $type $(<$lifetime>)? {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $this = self;
                formatter.debug_struct(stringify!($type))$(.field(stringify!($field), &$value))*.finish()
            }
        }
    };
}

/// Makes text of another process safe to display: it stays on its line and cannot control a terminal.
///
/// The result displays as UTF-8. Control characters, line and paragraph separators, characters that reorder text (bidirectional
/// controls) and byte order marks are escaped as in Rust (`\n`, `\u{1b}`). Invalid sequences become `�`. A backslash stays as it is, so
/// the result is not reversible.
///
/// The library applies this to foreign text in its errors and in texts for display, such as
/// [`Survivor::command`](crate::events::Survivor::command). Output as the worker wrote it, such as [`Line::text`](crate::Line::text) and
/// [`Exit::stderr_tail`](crate::Exit::stderr_tail), is unchanged: apply this before displaying it.
///
/// ```
/// use pipewright::printable;
///
/// assert_eq!(printable(b"done\x1b[2J\nroot# ").to_string(), r"done\u{1b}[2J\nroot# ");
/// assert_eq!(printable("one\r\ntwo\x07\n").lines().to_string(), "one\ntwo\\u{7}\n");
/// ```
pub fn printable<T: AsRef<[u8]> + ?Sized>(text: &T) -> Printable<'_> {
    Printable { bytes: text.as_ref(), keeps_lines: false }
}

/// As [`printable`], for a path in an error.
pub(crate) fn printable_path(path: &Path) -> Printable<'_> {
    printable(path.as_os_str().as_bytes())
}

/// Escaped text of another process, from [`printable`]. Implements `Display`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a> {
    bytes: &'a [u8],
    keeps_lines: bool,
}

impl Printable<'_> {
    /// Keeps line feeds and tabs. Drops a carriage return before a line feed.
    #[must_use]
    pub const fn lines(self) -> Self {
        Self { keeps_lines: true, ..self }
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            write_escaped(formatter, chunk.valid(), self.keeps_lines)?;
            if !chunk.invalid().is_empty() {
                formatter.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

fn write_escaped(out: &mut fmt::Formatter<'_>, text: &str, keeps_lines: bool) -> fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(|c| needs_escape(c) && !(keeps_lines && matches!(c, '\n' | '\t'))) {
        let (plain, from) = rest.split_at(at);
        out.write_str(plain)?;
        let mut characters = from.chars();
        let Some(escaped) = characters.next() else { break };
        rest = characters.as_str();
        if !(keeps_lines && escaped == '\r' && rest.starts_with('\n')) {
            write!(out, "{}", escaped.escape_default())?;
        }
    }
    out.write_str(rest)
}

/// Whether a character affects the text around it or the terminal instead of being visible.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'                     // Arabic letter mark
            | '\u{200e}' | '\u{200f}'     // left-to-right and right-to-left marks
            | '\u{2028}' | '\u{2029}'     // line and paragraph separators
            | '\u{202a}'..='\u{202e}'     // bidirectional embeddings and overrides
            | '\u{2066}'..='\u{206f}'     // bidirectional isolates, deprecated format characters
            | '\u{feff}'                  // byte order mark
            | '\u{fff9}'..='\u{fffb}'     // interlinear annotations
            | '\u{e0000}'..='\u{e007f}'   // tags: invisible
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn p12_foreign_text_is_escaped() {
        let cases: [(&[u8], &str); 8] = [
            (b"plain \\x1b text", "plain \\x1b text"),
            (b"\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
            (b"a\nb\r\tc\0\x7f", r"a\nb\r\tc\u{0}\u{7f}"),
            ("\u{9b}31m".as_bytes(), r"\u{9b}31m"),
            ("evil\u{202e}txt.exe\u{2066}".as_bytes(), r"evil\u{202e}txt.exe\u{2066}"),
            ("a\u{2028}b\u{feff}".as_bytes(), r"a\u{2028}b\u{feff}"),
            ("grün 👩\u{200d}💻 日本".as_bytes(), "grün 👩\u{200d}💻 日本"),
            (b"bad \xff\xfe, cut \xe2\x82", "bad \u{fffd}\u{fffd}, cut \u{fffd}"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(printable(bytes).to_string(), expected, "{bytes:?}");
        }
        assert_eq!(printable("\x1b\r\n\ta\rb\n").lines().to_string(), "\\u{1b}\n\ta\\rb\n");
    }

    proptest! {
        #[test]
        fn p12_any_bytes_become_one_printable_line(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let shown = printable(&bytes).to_string();
            prop_assert!(!shown.contains(needs_escape), "{shown:?}");
            let lines = printable(&bytes).lines().to_string();
            prop_assert!(!lines.contains(|c| needs_escape(c) && !matches!(c, '\n' | '\t')), "{lines:?}");
            prop_assert_eq!(printable(&shown).to_string(), &*shown);
        }
    }
}
