//! Parses what compilers print on standard error.

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
    /// The option that controls the diagnostic, such as `-Wunused-variable`.
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
    /// An error without a position in the file.
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

/// A piece of a compiler's standard error.
#[derive(Debug, PartialEq)]
pub(crate) enum OutputItem {
    Diagnostic(Diagnostic),
    /// Other lines: source lines with carets, include chains, output of a wrapper.
    Text(String),
}

impl fmt::Display for OutputItem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diagnostic(diagnostic) => diagnostic.fmt(formatter),
            Self::Text(text) => formatter.write_str(text),
        }
    }
}

/// Parses each line as GCC's JSON, or else as plain text.
pub(crate) fn parse(output: &str) -> Vec<OutputItem> {
    let mut found = Vec::new();
    for line in output.lines() {
        if let Ok(diagnostics) = serde_json::from_str::<Vec<Gcc>>(line) {
            for diagnostic in diagnostics {
                diagnostic.flatten(&mut found);
            }
        } else {
            found.push(plain(line).map_or_else(|| OutputItem::Text(line.to_owned()), OutputItem::Diagnostic));
        }
    }
    found
}

/// Whether a line of the output is GCC's JSON.
pub(crate) fn has_json(output: &str) -> bool {
    output.lines().any(|line| serde_json::from_str::<Vec<Gcc>>(line).is_ok())
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
    /// GCC 9 and 10 have only this field; later versions add `byte-column` and `display-column`.
    #[serde(default)]
    column: u32,
}

impl Gcc {
    fn flatten(self, found: &mut Vec<OutputItem>) {
        let place = self.locations.into_iter().next().map(|location| Place {
            file: location.caret.file,
            line: location.caret.line,
            column: location.caret.column,
        });
        let severity = Severity::parse(&self.kind).unwrap_or(Severity::Note);
        found.push(OutputItem::Diagnostic(Diagnostic { severity, message: self.message, place, option: self.option }));
        for child in self.children {
            child.flatten(found);
        }
    }
}

/// Parses `file:line:column: severity: text [-Woption]` with an optional column, `tool: severity: text`, capitalized severities
/// (`as`), and `severity: text` and `error[E0425]: text` (rustc).
fn plain(line: &str) -> Option<Diagnostic> {
    const MARKS: [&str; 7] = ["fatal error", "error", "Error", "warning", "Warning", "note", "remark"];
    let (before, severity, message) = MARKS
        .into_iter()
        .filter_map(|mark| {
            let severity = Severity::parse(&mark.to_ascii_lowercase())?;
            if let Some((before, message)) = line.split_once(&format!(": {mark}: ")) {
                return Some((before, severity, message));
            }
            let rest = line.strip_prefix(mark)?;
            let rest = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(rest, |(_, rest)| rest);
            Some(("", severity, rest.strip_prefix(": ")?))
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
    fn parses_gcc_json() {
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
    fn parses_plain_text() {
        let output = "In file included from b.h:1:\nsrc/a.c:10:5: error: expected ';': got 'x'\n   10 |  x\n      |  ^\n\
                      a.c:7: warning: old style [-Wold]\nclang: error: unknown argument: '-fdiagnostics-format=json'\n\
                      s.s:3: Error: no such instruction\nwarning: unused variable: `x`\nerror[E0425]: no `y`\n";
        let texts: Vec<String> = parse(output).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "In file included from b.h:1:",
                "src/a.c:10:5: error: expected ';': got 'x'",
                "   10 |  x",
                "      |  ^",
                "a.c:7:1: warning: old style [-Wold]",
                "error: unknown argument: '-fdiagnostics-format=json'",
                "s.s:3:1: error: no such instruction",
                "warning: unused variable: `x`",
                "error: no `y`",
            ]
        );
        assert_eq!(parse(output).iter().filter(|item| matches!(item, OutputItem::Text(_))).count(), 3);
    }

    #[test]
    fn other_lines_are_text() {
        assert_eq!(parse("[]\nnot: a diagnostic\n"), [OutputItem::Text("not: a diagnostic".into())]);
        assert!(has_json("x\n[]\n") && !has_json("[1,2]\nx\n"));
        let text = Diagnostic::error_in(Path::new("a.c"), "cc: exit code 3").to_string();
        assert_eq!(text, "error: a.c: cc: exit code 3");
    }
}
