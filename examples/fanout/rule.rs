//! Commands that run after the database: `--then 'TARGET: COMMAND'`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

#[derive(Debug, PartialEq)]
pub(crate) struct Rule {
    /// The target, or the command.
    pub(crate) name: OsString,
    pub(crate) directory: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// Absolute.
    pub(crate) target: Option<OsString>,
}

impl Rule {
    /// Parses `TARGET: COMMAND` or `COMMAND`, where `{out}` stands for the target and `{objects}` for `objects`. They are the shell's
    /// parameters: no file name needs quotes, and many files make no long argument.
    pub(crate) fn parse(text: &OsStr, directory: &Path, objects: &[OsString]) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let is_name =
            |word: &&[u8]| !word.is_empty() && !word.iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':');
        let colon = memchr::memmem::find(bytes, b": ");
        let target = colon.and_then(|at| bytes.get(..at)).filter(is_name);
        let command = target.and_then(|target| bytes.get(target.len() + 2..)).unwrap_or(bytes);
        if command.trim_ascii().is_empty() {
            return Err(format!("--then {}: no command", text.display()));
        }
        if target.is_none() && memchr::memmem::find(command, b"{out}").is_some() {
            return Err(format!("--then {}: {{out}} needs a target", text.display()));
        }
        let command = replace(&replace(command, b"{out}", b"\"$0\""), b"{objects}", b"\"$@\"");
        let absolute = target.map(|target| directory.join(OsStr::from_bytes(target)).into_os_string());
        let mut arguments = vec!["/bin/sh".into(), "-c".into(), OsString::from_vec(command)];
        arguments.push(absolute.clone().unwrap_or_else(|| "sh".into()));
        arguments.extend_from_slice(objects);
        let name = OsStr::from_bytes(target.unwrap_or(bytes)).to_owned();
        Ok(Self { name, directory: directory.into(), arguments, target: absolute })
    }
}

fn replace(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let (mut replaced, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(at) = memchr::memmem::find(rest, name) {
        replaced.extend_from_slice(rest.get(..at).unwrap_or_default());
        replaced.extend_from_slice(value);
        rest = rest.get(at + name.len()..).unwrap_or_default();
    }
    replaced.extend_from_slice(rest);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_parameters_and_target_is_optional() {
        let objects = ["/b/a.o".into(), "/b/it's.o".into()];
        let parse = |text: &str| Rule::parse(OsStr::new(text), Path::new("/w"), &objects);
        let words = |rule: &Rule| rule.arguments[2..].join(OsStr::new("|")).into_string().unwrap();
        let rule = parse("lib a.a: ar").unwrap();
        assert_eq!((&rule.target, words(&rule)), (&None, "lib a.a: ar|sh|/b/a.o|/b/it's.o".to_owned()));
        let rule = parse("liba.a: ar rcs {out} {objects}").unwrap();
        assert_eq!((rule.target.as_deref(), rule.name.to_str()), (Some(OsStr::new("/w/liba.a")), Some("liba.a")));
        assert_eq!(words(&rule), "ar rcs \"$0\" \"$@\"|/w/liba.a|/b/a.o|/b/it's.o");
        assert_eq!(parse(": && true").unwrap().target, None);
        assert!(parse("a: ").unwrap_err().contains("no command"));
        assert!(parse("ar {out}").unwrap_err().contains("{out} needs a target"));
    }
}
