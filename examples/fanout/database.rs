//! The JSON compilation database: what CMake, Meson and Bear write.
//!
//! Format: <https://clang.llvm.org/docs/JSONCompilationDatabase.html>.

use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    error::Error,
    fs,
    path::{Component, Path, PathBuf},
};

/// One compilation, ready to be run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) directory: PathBuf,
    pub(crate) file: PathBuf,
    /// The compiler and its arguments, with where the object goes.
    pub(crate) arguments: Vec<String>,
    /// The object file, absolute.
    pub(crate) output: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) entries: Vec<Entry>,
}

/// An entry as it stands in the file.
#[derive(Debug, Deserialize)]
struct Raw {
    directory: PathBuf,
    file: PathBuf,
    arguments: Option<Vec<String>>,
    command: Option<String>,
    output: Option<PathBuf>,
}

impl Database {
    /// The database that the command line names, or the example's own.
    pub(crate) fn load(path: Option<&Path>, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        if let Some(path) = path {
            let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let text = fs::read_to_string(path).map_err(|error| named(&error))?;
            return Self::parse(&text, out).map_err(|error| named(&error).into());
        }
        // Beside the program, so that `cargo clean` removes it.
        let beside = || Some(std::env::current_exe().ok()?.ancestors().nth(2)?.join("fanout-objects"));
        let out = out.map(Path::to_path_buf).or_else(beside).ok_or("there is no place for the objects: give --out")?;
        Self::of(own_project()?, Some(&out))
    }

    fn parse(text: &str, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        Self::of(serde_json::from_str(text).map_err(|error| format!("not a compilation database: {error}"))?, out)
    }

    fn of(raw: Vec<Raw>, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let mut entries = raw.into_iter().map(Entry::of).collect::<Result<Vec<_>, _>>()?;
        if let Some(out) = out {
            redirect(&mut entries, &std::path::absolute(out)?);
        }
        if entries.is_empty() {
            return Err("there is nothing to compile".into());
        }
        Ok(Self { entries })
    }
}

impl Entry {
    fn of(raw: Raw) -> Result<Self, Box<dyn Error>> {
        let Raw { directory, file, arguments, command, output } = raw;
        let name = file.display();
        let arguments = match (arguments, command) {
            (Some(arguments), _) => arguments,
            (None, Some(command)) => {
                shlex::split(&command).ok_or_else(|| format!("{name}: the command has an open quote: {command:?}"))?
            }
            (None, None) => return Err(format!("{name}: neither `arguments` nor `command`").into()),
        };
        if arguments.is_empty() {
            return Err(format!("{name}: the command is empty").into());
        }
        if !directory.is_dir() {
            return Err(format!("{name}: there is no directory {}", directory.display()).into());
        }
        let directory = std::path::absolute(directory)?;
        let named = output_argument(&arguments).map(PathBuf::from).or(output);
        // What a compiler does that is told nothing.
        let output = named.unwrap_or_else(|| Path::new(file.file_name().unwrap_or_default()).with_extension("o"));
        let output = directory.join(output);
        Ok(Self { directory, file, arguments, output })
    }
}

/// The operand of `-o`.
fn output_argument(arguments: &[String]) -> Option<&str> {
    let at = arguments.iter().rposition(|argument| argument.starts_with("-o"))?;
    match arguments.get(at)?.strip_prefix("-o")? {
        "" => arguments.get(at + 1).map(String::as_str),
        attached => Some(attached),
    }
}

/// Puts options among the others: what stands behind `--` would be taken for a file.
pub(crate) fn add_options(arguments: &mut Vec<String>, options: impl IntoIterator<Item = String>) {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    drop(arguments.splice(end..end, options));
}

/// Sends every object below `out`, where it keeps its place among the others: two files of one name do not meet.
fn redirect(entries: &mut [Entry], out: &Path) {
    let Some(mut common) = entries.first().and_then(|entry| entry.output.parent()).map(Path::to_path_buf) else {
        return;
    };
    for entry in &*entries {
        while !entry.output.starts_with(&common) && common.pop() {}
    }
    let mut taken = HashSet::new();
    for entry in entries {
        let below = entry.output.strip_prefix(&common).unwrap_or(&entry.output);
        // `..` must not lead out of the directory again.
        let below: PathBuf = below.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let mut output = out.join(&below);
        let mut copy = 1;
        while !taken.insert(output.clone()) {
            // One file compiled twice, with different options.
            copy += 1;
            output = out.join(below.with_extension(format!("{copy}.o")));
        }
        if let Some(at) = entry.arguments.iter().rposition(|argument| argument.starts_with("-o")) {
            let attached = entry.arguments.get(at).is_some_and(|argument| argument.len() > 2);
            entry.arguments.drain(at..entry.arguments.len().min(if attached { at + 1 } else { at + 2 }));
        }
        add_options(&mut entry.arguments, ["-o".to_owned(), output.to_string_lossy().into_owned()]);
        entry.output = output;
    }
}

/// The C project beside this example.
fn own_project() -> Result<Vec<Raw>, Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c-project");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    files.sort();
    let raw = |file: PathBuf| Raw {
        arguments: Some(
            [&compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-c", &file.to_string_lossy()].map(str::to_owned).into(),
        ),
        directory: directory.clone(),
        file,
        command: None,
        output: None,
    };
    Ok(files.into_iter().map(raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, out: Option<&str>) -> Result<Vec<Entry>, String> {
        Database::parse(text, out.map(Path::new)).map(|database| database.entries).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_of_an_entry() {
        let entries = parse(
            r#"[{"directory":"/","file":"a.c","command":"cc -DX='a b' -c a.c -o o/a.o"},
                {"directory":"/tmp","file":"b.c","arguments":["cc","-c","b.c","-oc/b.o"],"extra":1},
                {"directory":"/tmp","file":"d/c.c","arguments":["cc","-c","d/c.c"]}]"#,
            None,
        )
        .unwrap();
        assert_eq!(entries[0].arguments, ["cc", "-DX=a b", "-c", "a.c", "-o", "o/a.o"]);
        assert_eq!(entries[0].output, Path::new("/o/a.o"));
        assert_eq!(entries[1].output, Path::new("/tmp/c/b.o"));
        assert_eq!(entries[2].output, Path::new("/tmp/c.o"));
    }

    #[test]
    fn objects_of_one_name_do_not_meet() {
        let entries = parse(
            r#"[{"directory":"/tmp","file":"x/a.c","arguments":["cc","-c","x/a.c","-o","x/a.o"]},
                {"directory":"/tmp","file":"y/a.c","arguments":["cc","-c","y/a.c","-oy/a.o"]},
                {"directory":"/tmp","file":"y/a.c","arguments":["cc","-g","-c","y/a.c","-oy/a.o"]}]"#,
            Some("/out"),
        )
        .unwrap();
        let outputs: Vec<_> = entries.iter().map(|entry| entry.output.to_str().unwrap()).collect();
        assert_eq!(outputs, ["/out/x/a.o", "/out/y/a.o", "/out/y/a.2.o"]);
        assert_eq!(entries[1].arguments, ["cc", "-c", "y/a.c", "-o", "/out/y/a.o"]);
        let text = r#"[{"directory":"/","file":"a.c","arguments":["cc","-c","-o","a.o","--","a.c"]}]"#;
        assert_eq!(parse(text, Some("/out")).unwrap()[0].arguments, ["cc", "-c", "-o", "/out/a.o", "--", "a.c"]);
    }

    #[test]
    fn bad_databases_are_told_in_one_line() {
        for (text, expected) in [
            ("[", "not a compilation database"),
            ("{}", "not a compilation database"),
            ("[]", "there is nothing to compile"),
            (r#"[{"file":"a.c"}]"#, "missing field `directory`"),
            (r#"[{"directory":"/","file":"a.c"}]"#, "neither `arguments` nor `command`"),
            (r#"[{"directory":"/","file":"a.c","arguments":[]}]"#, "the command is empty"),
            (r#"[{"directory":"/","file":"a.c","command":"cc\n'a"}]"#, "open quote"),
            (r#"[{"directory":"/no/such","file":"a.c","command":"cc"}]"#, "there is no directory /no/such"),
        ] {
            let error = parse(text, None).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
