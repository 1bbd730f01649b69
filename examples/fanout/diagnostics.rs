//! Recognizes warnings in the output of compilers.

/// Whether a line is a warning of GCC, Clang, `as`, `ld`, rustc: `file:line:column: warning: text [-Woption]`, `Warning: text`. In a
/// language other than English, the option tells.
pub(crate) fn is_warning(line: &str) -> bool {
    let is_marked = |mark: &str| {
        line.find(mark).is_some_and(|at| {
            let (before, after) = (&line[..at], &line[at + mark.len()..]);
            (before.is_empty() || before.ends_with(": ")) && (after.starts_with(": ") || after.starts_with('['))
        })
    };
    let option = line.strip_suffix(']').and_then(|line| line.rsplit_once(" [-W"));
    is_marked("warning") || is_marked("Warning") || option.is_some_and(|(_, option)| !option.starts_with("error"))
}

#[cfg(test)]
mod tests {
    use super::is_warning;

    #[test]
    fn warnings_of_compilers_are_recognized() {
        for line in [
            "src/a.c:10:5: warning: unused variable 'x' [-Wunused-variable]",
            "a.c:7: warning: old style",
            "a.c:3:7: Warnung: Variable »x« wird nicht verwendet [-Wunused-variable]",
            "s.s:3: Warning: odd",
            "cc1: warning: odd",
            "warning: unused variable: `x`",
        ] {
            assert!(is_warning(line), "{line}");
        }
        for line in [
            "a.c:1:1: error: unused variable 'x' [-Werror=unused-variable]",
            "    1 | int warning;",
            "a.c:1:1: error: no member named warning: 'x'",
            "In file included from warning.h:1:",
            "",
        ] {
            assert!(!is_warning(line), "{line}");
        }
    }
}
