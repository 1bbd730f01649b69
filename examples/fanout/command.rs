//! The command of an entry, split into words or left to the shell as make does, and its output options.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// A program and its arguments.
    Words(Vec<OsString>),
    /// A line with shell syntax: Ninja writes `cd DIR && tool`, `: && linker && :`.
    Shell(OsString),
}

/// Unquoted characters that need a shell: lists, pipes, redirections, expansions, globs.
const SHELL_CHARACTERS: &[u8] = b";&|<>()$`*?[\n";
/// First words that are shell builtins or keywords.
const SHELL_WORDS: [&str; 15] =
    [":", ".", "cd", "exec", "eval", "export", "set", "unset", "umask", "if", "for", "while", "case", "{", "!"];

impl Command {
    pub(crate) fn parse(line: &OsStr) -> Result<Self, String> {
        let text = line.as_bytes();
        let words = shlex::bytes::split(text)
            .ok_or_else(|| format!("open quote in command: {:?}", String::from_utf8_lossy(text)))?;
        let first = words.first().map(Vec::as_slice).unwrap_or_default();
        let is_assignment = first.split(|byte| *byte == b'=').nth(1).is_some();
        if is_assignment || SHELL_WORDS.iter().any(|word| word.as_bytes() == first) || has_shell_characters(text) {
            return Ok(Self::Shell(line.to_owned()));
        }
        Ok(Self::Words(words.into_iter().map(OsString::from_vec).collect()))
    }
}

fn has_shell_characters(text: &[u8]) -> bool {
    let (mut quote, mut is_escaped, mut at_word) = (None, false, true);
    for &byte in text {
        let begins_word = at_word;
        at_word = false;
        match (quote, byte) {
            _ if is_escaped => is_escaped = false,
            (Some(b'\''), b'\'') | (Some(b'"'), b'"') => quote = None,
            (Some(b'\''), _) => {}
            (_, b'\\') => is_escaped = true,
            (Some(_), b'$' | b'`') => return true,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'~' | b'#') if begins_word => return true,
            (None, byte) if SHELL_CHARACTERS.contains(&byte) => return true,
            (None, byte) => at_word = byte.is_ascii_whitespace(),
        }
    }
    false
}

/// Options whose operand is passed on to another tool.
const PASS_THROUGH: [&str; 7] =
    ["-Xclang", "-Xlinker", "-Xassembler", "-Xpreprocessor", "-Xcompiler", "-Xptxas", "-mllvm"];

/// The position of an option and its operand.
struct FoundOption {
    at: usize,
    /// Number of words.
    words: usize,
    /// Start of the operand within the last word.
    operand_at: usize,
}

impl FoundOption {
    fn operand<'a>(&self, arguments: &'a [OsString]) -> Option<&'a OsStr> {
        let word = arguments.get(self.at + self.words - 1)?.as_bytes();
        word.get(self.operand_at..).map(OsStr::from_bytes)
    }
}

/// Finds the last `-o FILE`, or else the last `-oFILE` whose operand looks like a file: `-openmp` and `-object-file-name=x` do not
/// name the output.
fn find_output(arguments: &[OsString]) -> Option<FoundOption> {
    let is_own = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| arguments.get(before));
        !before.is_some_and(|before| PASS_THROUGH.iter().any(|option| *option == before))
    };
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let last = |is_one: &dyn Fn(&[u8]) -> bool| {
        (1..end).rev().find(|&at| is_own(at) && arguments.get(at).is_some_and(|word| is_one(word.as_bytes())))
    };
    let looks_like_a_file =
        |operand: &[u8]| operand.contains(&b'/') || operand.ends_with(b".o") || operand.ends_with(b".obj");
    if let Some(at) = last(&|word| word == b"-o").filter(|at| at + 1 < arguments.len()) {
        return Some(FoundOption { at, words: 2, operand_at: 0 });
    }
    let at = last(&|word| word.strip_prefix(b"-o").is_some_and(looks_like_a_file))?;
    Some(FoundOption { at, words: 1, operand_at: 2 })
}

/// The output file that the command names.
pub(crate) fn output(arguments: &[OsString]) -> Option<&OsStr> {
    find_output(arguments)?.operand(arguments)
}

/// Options that name the dependency file, as the next word or attached.
const DEPENDENCY_FILES: [&str; 3] = ["-MF", "-Wp,-MD,", "-Wp,-MMD,"];

fn find_dependency_files(arguments: &[OsString]) -> Vec<FoundOption> {
    let mut found = Vec::new();
    for (at, word) in arguments.iter().enumerate() {
        let option = DEPENDENCY_FILES.iter().find(|option| word.as_bytes().starts_with(option.as_bytes()));
        match option {
            Some(option) if word.len() > option.len() => {
                found.push(FoundOption { at, words: 1, operand_at: option.len() });
            }
            Some(option) if option.len() == 3 && at + 1 < arguments.len() => {
                found.push(FoundOption { at, words: 2, operand_at: 0 });
            }
            _ => {}
        }
    }
    found
}

/// Dependency files that the command writes; their directories must exist.
pub(crate) fn dependency_files(arguments: &[OsString]) -> Vec<&OsStr> {
    find_dependency_files(arguments).iter().filter_map(|found| found.operand(arguments)).collect()
}

/// Changes the output of a command to `output`, and its dependency file to `output.d`.
pub(crate) fn redirect(arguments: &mut Vec<OsString>, output: &OsStr) {
    let mut dependencies = output.to_owned();
    dependencies.push(".d");
    for FoundOption { at, words, operand_at } in find_dependency_files(arguments) {
        if let Some(word) = arguments.get_mut(at + words - 1) {
            let mut changed = OsStr::from_bytes(word.as_bytes().get(..operand_at).unwrap_or_default()).to_owned();
            changed.push(&dependencies);
            *word = changed;
        }
    }
    if let Some(FoundOption { at, words, .. }) = find_output(arguments) {
        arguments.drain(at..at + words);
    }
    add_options(arguments, ["-o".into(), output.to_owned()]);
}

/// Inserts options before `--`: after it, they would be file names.
pub(crate) fn add_options(arguments: &mut Vec<OsString>, options: impl IntoIterator<Item = OsString>) {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    drop(arguments.splice(end..end, options));
}

/// The dependency file of a command.
#[derive(Debug, PartialEq)]
pub(crate) enum Depfile {
    /// The command writes it by itself.
    Own(OsString),
    /// It is written if these options are added.
    Added { path: OsString, options: [OsString; 3] },
}

/// The dependency file of a command whose output is `output`; `None` for other tools than GCC and Clang, and for linking.
pub(crate) fn depfile(arguments: &[OsString], output: &OsStr) -> Option<Depfile> {
    if let Some(named) = dependency_files(arguments).last() {
        return Some(Depfile::Own((*named).to_owned()));
    }
    let has = |options: &[&str]| arguments.iter().any(|word| options.iter().any(|option| *option == word));
    if !is_gcc_or_clang(arguments) || !has(&["-c", "-S"]) {
        return None;
    }
    if has(&["-MD", "-MMD"]) {
        return Some(Depfile::Own(Path::new(output).with_extension("d").into()));
    }
    let mut path = output.to_owned();
    path.push(".d");
    Some(Depfile::Added { options: ["-MD".into(), "-MF".into(), path.clone()], path })
}

/// Whether the program, possibly after a wrapper such as ccache, has the name of a GCC compiler or of Clang:
/// `x86_64-linux-gnu-gcc-12`.
fn is_gcc_or_clang(arguments: &[OsString]) -> bool {
    let named = |word: Option<&OsString>, stems: &[&str]| {
        let name = word.map(|word| word.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default());
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let stem = name.trim_end_matches(|char: char| char.is_ascii_digit() || matches!(char, '.' | '-'));
        stems.iter().any(|known| stem.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('-')))
    };
    let compilers = ["gcc", "g++", "cc", "c++", "clang", "clang++"];
    let is_wrapped = named(arguments.first(), &["ccache", "sccache", "distcc", "icecc"]);
    named(arguments.get(usize::from(is_wrapped)), &compilers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn shell_syntax_needs_shell() {
        let is_shell = |line: &str| matches!(Command::parse(OsStr::new(line)).unwrap(), Command::Shell(_));
        for line in [
            ": && gcc a.o -o b && :",
            "cd /x && touch y",
            "PYTHONPATH=/x python3 -c pass",
            "gcc -c a.c -o $OUT",
            "gcc -DX=\"$Y\" a.c",
            "gcc `cat flags` a.c",
            "gcc *.c",
            "gcc a.c >log",
            "gcc ~/a.c",
            "gcc a.c # b",
            "exec gcc a.c",
        ] {
            assert!(is_shell(line), "{line}");
        }
        for line in ["gcc -DX='$a;b' a.c", r"gcc -DX=\$a -DY=\;b a.c", "gcc -DX=a#b a~.c", r#"gcc -DX="\"a;\"" a.c"#] {
            assert!(!is_shell(line), "{line}");
        }
        assert!(Command::parse(OsStr::new("cc 'a")).unwrap_err().contains("open quote"));
    }

    #[test]
    fn option_beginning_with_o_is_not_output() {
        for (line, expected) in [
            ("cc -c a.c -o a.o -Xclang -object-file-name=x", Some("a.o")),
            ("cc -c a.c -openmp", None),
            ("icc -openmp -c a.c -ob/a.o", Some("b/a.o")),
            ("cc -c a.c -oa.o", Some("a.o")),
            ("cc -c a.c -oa.o -o b.o", Some("b.o")),
            ("cc -Xlinker -o -Xlinker x -o y a.c", Some("y")),
            ("cc -c -o", None),
            ("cc -c -- -o a.o", None),
        ] {
            assert_eq!(output(&words(line)), expected.map(OsStr::new), "{line}");
        }
    }

    #[test]
    fn dependency_files_follow_redirected_output() {
        let mut arguments = words("gcc -MD -MF .deps/a.Tpo -Wp,-MMD,d/.a.d -c a.c -o a.o -Xclang -object-file-name=x");
        assert_eq!(dependency_files(&arguments), [OsStr::new(".deps/a.Tpo"), OsStr::new("d/.a.d")]);
        redirect(&mut arguments, OsStr::new("/o/a.o"));
        assert_eq!(
            arguments,
            words("gcc -MD -MF /o/a.o.d -Wp,-MMD,/o/a.o.d -c a.c -Xclang -object-file-name=x -o /o/a.o")
        );
    }

    #[test]
    fn depfile_is_that_of_the_command_or_added() {
        let own = |path: &str| Some(Depfile::Own(path.into()));
        let added = Some(Depfile::Added { path: "a.o.d".into(), options: ["-MD", "-MF", "a.o.d"].map(OsString::from) });
        for line in
            ["gcc", "/usr/bin/x86_64-linux-gnu-g++-12", "ccache cc", "c++", "/opt/gcc-12.2/bin/gcc-12.2", "clang"]
        {
            assert_eq!(depfile(&words(&format!("{line} -c a.c")), OsStr::new("a.o")), added, "{line}");
        }
        for line in ["nasm", "rustc", "as", "nvcc", "/bin/sh -c gcc", "ccache rustc", "tcc", "gcc a.o -o"] {
            assert_eq!(
                depfile(&words(&format!("{line} -o a.o").replace(" -o -o", " -o")), OsStr::new("a.o")),
                None,
                "{line}"
            );
        }
        for (line, path) in
            [("gcc -MD -c a.c", "b/a.d"), ("tcc -MD -MF x.d -c a.c", "x.d"), ("gcc -Wp,-MD,y.d -c a.c", "y.d")]
        {
            assert_eq!(depfile(&words(line), OsStr::new("b/a.o")), own(path), "{line}");
        }
    }
}
