//! What compilers print on standard error, as data.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diagnostic {
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) place: Option<Place>,
    /// The option that turns it on or off, as `-Wunused-variable`.
    pub(crate) option: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    Error,
    Warning,
    Note,
}

impl Severity {
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "error" | "fatal error" | "internal compiler error" | "sorry, unimplemented" => Some(Self::Error),
            "warning" => Some(Self::Warning),
            "note" | "remark" => Some(Self::Note),
            _ => None,
        }
    }
}

impl Diagnostic {
    /// An error that is about a file as a whole.
    pub(crate) fn error_in(file: &Path, text: &str) -> Self {
        Self { severity: Severity::Error, message: format!("{}: {text}", file.display()), place: None, option: None }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { file, line, column }) = &self.place {
            write!(formatter, "{}:{line}:{column}: ", file.display())?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(formatter, "{severity}: {}", self.message)?;
        if let Some(option) = &self.option {
            write!(formatter, " [{option}]")?;
        }
        Ok(())
    }
}

/// GCC's JSON where a line is some, plain text otherwise. What is neither explains the line before it, and is passed over.
pub(crate) fn parse(output: &str) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = Vec::new();
    for line in output.lines() {
        if let Ok(told) = serde_json::from_str::<Vec<Gcc>>(line) {
            for one in told {
                one.flatten(&mut found);
            }
        } else if let Some(diagnostic) = plain(line) {
            found.push(diagnostic);
        }
    }
    found
}

/// The last lines that a compiler printed, for one that told no error in a form we know.
pub(crate) fn last_words(output: &str) -> Vec<&str> {
    const LINES_MAX: usize = 10;
    let is_text = |line: &&str| !line.trim().is_empty() && serde_json::from_str::<Vec<Gcc>>(line).is_err();
    let mut last: Vec<&str> = output.lines().rev().filter(is_text).take(LINES_MAX).collect();
    last.reverse();
    last
}

/// `-fdiagnostics-format=json`, see the GCC manual, "Options to Control Diagnostic Messages Formatting".
#[derive(Deserialize)]
struct Gcc {
    kind: String,
    message: String,
    option: Option<String>,
    #[serde(default)]
    locations: Vec<GccLocation>,
    #[serde(default)]
    children: Vec<Self>,
}

#[derive(Deserialize)]
struct GccLocation {
    caret: GccPlace,
}

#[derive(Deserialize)]
struct GccPlace {
    file: PathBuf,
    line: u32,
    /// GCC 9 and 10 call it so; later ones tell bytes and columns apart and keep this name too.
    #[serde(default)]
    column: u32,
}

impl Gcc {
    fn flatten(self, found: &mut Vec<Diagnostic>) {
        let place = self.locations.into_iter().next().map(|location| Place {
            file: location.caret.file,
            line: location.caret.line,
            column: location.caret.column,
        });
        let severity = Severity::parse(&self.kind).unwrap_or(Severity::Note);
        found.push(Diagnostic { severity, message: self.message, place, option: self.option });
        for child in self.children {
            child.flatten(found);
        }
    }
}

/// `file:line:column: severity: text [-Woption]`, with or without the column, or `tool: severity: text`.
fn plain(line: &str) -> Option<Diagnostic> {
    let (before, severity, message) = [": fatal error: ", ": error: ", ": warning: ", ": note: ", ": remark: "]
        .into_iter()
        .filter_map(|mark| {
            let (before, message) = line.split_once(mark)?;
            Some((before, Severity::parse(mark.trim_matches([':', ' ']))?, message))
        })
        .min_by_key(|(before, ..)| before.len())?;
    let (message, option) = match message.strip_suffix(']').and_then(|rest| rest.rsplit_once(" [-")) {
        Some((message, option)) => (message, Some(format!("-{option}"))),
        None => (message, None),
    };
    Some(Diagnostic { severity, message: message.to_owned(), place: place(before), option })
}

fn place(text: &str) -> Option<Place> {
    let (rest, last) = text.rsplit_once(':')?;
    let last = last.parse().ok()?;
    let with_column = rest.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
    let (file, line, column) = match with_column {
        Some((file, line)) => (file, line, last),
        None => (rest, last, 1),
    };
    Some(Place { file: file.into(), line, column })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_gcc() {
        let output = r#"[{"kind": "warning", "message": "unused variable ‘x’", "option": "-Wunused-variable",
"locations": [], "children": []}]"#
            .replace('\n', "")
            .replace(
                r#""locations": []"#,
                r#""locations": [{"caret": {"file": "a.c", "line": 3, "display-column": 7, "column": 7}}]"#,
            )
            .replace(
                r#""children": []"#,
                r#""children": [{"kind": "note", "message": "here", "locations": [], "children": []}]"#,
            );
        let found = parse(&format!("{output}\ncc1: warning: odd\n"));
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["a.c:3:7: warning: unused variable ‘x’ [-Wunused-variable]", "note: here", "warning: odd"]);
    }

    #[test]
    fn plain_text() {
        let output = "In file included from b.h:1:\nsrc/a.c:10:5: error: expected ';': got 'x'\n   10 |  x\n      |  ^\n\
                      a.c:7: warning: old style [-Wold]\nclang: error: unknown argument: '-fdiagnostics-format=json'\n";
        let texts: Vec<String> = parse(output).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "src/a.c:10:5: error: expected ';': got 'x'",
                "a.c:7:1: warning: old style [-Wold]",
                "error: unknown argument: '-fdiagnostics-format=json'",
            ]
        );
    }

    #[test]
    fn last_words_are_the_last_that_a_person_can_read() {
        let output: String = (0..12).map(|n| format!("line {n}\n\n")).chain(["[]\n".to_owned()]).collect();
        let last = last_words(&output);
        assert_eq!((last.len(), last.first(), last.last()), (10, Some(&"line 2"), Some(&"line 11")));
        let told = Diagnostic::error_in(Path::new("a.c"), "cc: exit code 3").to_string();
        assert_eq!(told, "error: a.c: cc: exit code 3");
    }

    #[test]
    fn anything_else_is_passed_over() {
        assert_eq!(parse("[]\nnot: a diagnostic\n\n[1,2]\n"), []);
    }
}
