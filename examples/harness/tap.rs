//! Reads the output of a TAP program, the Test Anything Protocol 12 to 14 (<https://testanything.org/tap-version-14-specification.html>).

use std::{collections::BTreeSet, mem};

/// The longest line that is kept, in bytes; the rest of a longer line is ignored.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How many failed points are named.
const NAMED_MAX: usize = 20;

/// What a program has reported so far.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    line: Vec<u8>,
    plan: Option<Plan>,
    seen: BTreeSet<u64>,
    points: u64,
    failed: u64,
    named: Vec<String>,
    skipped: u64,
    bail_out: Option<String>,
    error: Option<String>,
    is_in_yaml: bool,
}

#[derive(Debug, PartialEq)]
struct Plan {
    points: u64,
    skip_all: Option<String>,
}

/// What the whole output says.
#[derive(Debug, PartialEq)]
pub(crate) enum TapResult {
    Passed {
        points: u64,
        skipped: u64,
    },
    /// The plan was `1..0`.
    Skipped(String),
    Failed(String),
}

/// The directive of a point, which follows `#`.
enum Directive {
    Skip,
    Todo,
}

impl Tap {
    /// Adds standard output, in pieces of any size.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_end) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend(text.iter().take(room));
            if is_end {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = mem::take(&mut self.line);
        self.read_line(String::from_utf8_lossy(&line).trim_end());
    }

    fn read_line(&mut self, line: &str) {
        if self.bail_out.is_some() {
            return;
        }
        if self.is_in_yaml {
            self.is_in_yaml = line.trim() != "...";
            return;
        }
        // Indented lines are a diagnostic block or a subtest, whose result the point after it repeats.
        if line.starts_with([' ', '\t']) {
            self.is_in_yaml = line == "  ---";
            return;
        }
        if let Some(reason) = line.strip_prefix("Bail out!") {
            self.bail_out = Some(reason.trim().to_owned());
        } else if let Some(rest) = after_word(line, "not ok") {
            self.read_point(rest, false);
        } else if let Some(rest) = after_word(line, "ok") {
            self.read_point(rest, true);
        } else if let Some(plan) = line.strip_prefix("1..") {
            self.read_plan(plan);
        }
        // Everything else is a comment, a version, a pragma, or output that is not TAP.
    }

    fn read_plan(&mut self, text: &str) {
        let (number, comment) = text.split_once('#').unwrap_or((text, ""));
        let Ok(points) = number.trim().parse() else {
            return self.note(format!("invalid plan: 1..{text}"));
        };
        if self.plan.is_some() {
            return self.note("more than one plan".into());
        }
        let skip_all = (points == 0).then(|| reason(comment).to_owned());
        self.plan = Some(Plan { points, skip_all });
    }

    fn read_point(&mut self, rest: &str, is_ok: bool) {
        self.points += 1;
        let rest = rest.trim_start();
        let digits = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
        let (number, text) = rest.split_at(digits);
        let number = if number.is_empty() { Some(self.points) } else { number.parse().ok() };
        let is_new = number.is_some_and(|number| number > 0 && self.seen.insert(number));
        if !is_new {
            self.note(format!("point {rest}: its number is not one to expect"));
        }
        let (description, directive) = split_directive(text);
        match directive {
            Some(Directive::Skip) => self.skipped += 1,
            Some(Directive::Todo) => {}
            None if is_ok => {}
            None => {
                self.failed += 1;
                if self.named.len() < NAMED_MAX {
                    let number = number.unwrap_or(self.points);
                    let separator = if description.is_empty() { "" } else { " " };
                    self.named.push(format!("{number}{separator}{description}"));
                }
            }
        }
    }

    /// Notes the first error of the format.
    fn note(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    /// The result, once the output is complete.
    pub(crate) fn finish(&mut self) -> TapResult {
        if !self.line.is_empty() {
            self.end_line();
        }
        if let Some(reason) = &self.bail_out {
            let separator = if reason.is_empty() { "" } else { ": " };
            return TapResult::Failed(format!("bailed out{separator}{reason}"));
        }
        if self.failed > 0 {
            let more = if self.failed > self.named.len() as u64 { ", …" } else { "" };
            let of = self.points;
            return TapResult::Failed(format!(
                "{} of {of} points failed: {}{more}",
                self.failed,
                self.named.join(", ")
            ));
        }
        if let Some(error) = self.error.take() {
            return TapResult::Failed(error);
        }
        match &self.plan {
            None if self.points == 0 => TapResult::Failed("no TAP output".into()),
            None => TapResult::Failed(format!("no plan; {} points", self.points)),
            Some(Plan { points, .. }) if *points != self.points => {
                TapResult::Failed(format!("planned {points} points, ran {}", self.points))
            }
            Some(Plan { points, .. }) if self.seen.last().is_some_and(|last| last > points) => {
                TapResult::Failed(format!("a point's number is beyond the plan 1..{points}"))
            }
            Some(Plan { skip_all: Some(reason), .. }) => TapResult::Skipped(reason.clone()),
            Some(Plan { points, .. }) => TapResult::Passed { points: *points, skipped: self.skipped },
        }
    }
}

/// The rest of the line after these words, which a space or the end of the line follows.
fn after_word<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    line.strip_prefix(words).filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// The text after `SKIP` in a comment.
fn reason(comment: &str) -> &str {
    let comment = comment.trim();
    let is_skip = comment.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("skip"));
    if !is_skip {
        return comment;
    }
    comment.split_once(char::is_whitespace).map_or("", |(_, reason)| reason.trim())
}

/// Splits ` - text # TODO why` at the last `#` that is not escaped, if a directive follows it.
fn split_directive(text: &str) -> (String, Option<Directive>) {
    let is_escaped = |at: usize| text.get(..at).is_some_and(|before| before.ends_with('\\'));
    let hash = text.rmatch_indices('#').map(|(at, _)| at).find(|at| !is_escaped(*at));
    let after = hash.and_then(|at| text.get(at + 1..)).unwrap_or_default().trim_start().to_ascii_lowercase();
    let directive = if after.starts_with("skip") {
        Some(Directive::Skip)
    } else if after.starts_with("todo") {
        Some(Directive::Todo)
    } else {
        None
    };
    let end = hash.filter(|_| directive.is_some()).unwrap_or(text.len());
    let description = text.get(..end).unwrap_or_default().trim();
    let description = description.strip_prefix("- ").unwrap_or(description).trim();
    (description.replace("\\#", "#"), directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(text: &str) -> TapResult {
        let mut whole = Tap::default();
        whole.read(text.as_bytes());
        let whole = whole.finish();
        let mut bytes = Tap::default();
        text.bytes().for_each(|byte| bytes.read(&[byte]));
        assert_eq!(bytes.finish(), whole, "{text}");
        whole
    }

    #[test]
    fn passes_if_every_planned_point_is_ok() {
        assert_eq!(result("1..2\nok 1\nok 2 - b\n"), TapResult::Passed { points: 2, skipped: 0 });
        assert_eq!(result("TAP version 14\nok\nok\n1..2"), TapResult::Passed { points: 2, skipped: 0 });
        let todo = "1..3\nok 1 # SKIP no disk\nnot ok 2 - b # TODO later\nnot ok 3 # skip\n";
        assert_eq!(result(todo), TapResult::Passed { points: 3, skipped: 2 });
        let nested = "1..1\n# Subtest: a\n    not ok 1\n    1..1\nok 1 - a\n  ---\n  not ok 9\nnot ok 8\n  ...\n";
        assert_eq!(result(nested), TapResult::Passed { points: 1, skipped: 0 });
        assert_eq!(result("1..0 # SKIP no network\n"), TapResult::Skipped("no network".into()));
    }

    #[test]
    fn fails_with_reason() {
        for (text, expected) in [
            ("1..2\nok 1\nnot ok 2 - b \\# c\n", "1 of 2 points failed: 2 b # c"),
            ("1..2\nok 1\n", "planned 2 points, ran 1"),
            ("1..1\nok 1\nok 2\n", "planned 1 points, ran 2"),
            ("ok 1\n", "no plan; 1 points"),
            ("", "no TAP output"),
            ("hello\nokay\n", "no TAP output"),
            ("1..2\nok 1\nBail out! no database\nok 2\n", "bailed out: no database"),
            ("1..2\nok 1\nok 1\n", "point 1: its number is not one to expect"),
            ("1..2\nok 1\nok 3\n", "a point's number is beyond the plan 1..2"),
            ("1..x\n", "invalid plan: 1..x"),
            ("1..1\n1..1\nok\n", "more than one plan"),
            ("1..1\nnot ok 99999999999999999999\n", "1 of 1 points failed: 1"),
            ("1..2\nok 0\nok 1\n", "point 0: its number is not one to expect"),
        ] {
            assert_eq!(result(text), TapResult::Failed(expected.into()), "{text}");
        }
    }

    #[test]
    fn endless_output_takes_no_memory() {
        let mut tap = Tap::default();
        for _ in 0..1000 {
            tap.read(&[b'x'; 4096]);
        }
        assert!(tap.line.len() <= LINE_BYTES_MAX);
        (0..100_000).for_each(|_| tap.read(b"\nnot ok"));
        assert_eq!(tap.named.len(), NAMED_MAX);
    }
}
