//! The JSON compilation database, as CMake, Meson, Ninja and Bear write it.
//!
//! Format: <https://clang.llvm.org/docs/JSONCompilationDatabase.html>. Paths and commands are bytes: a file name need not be UTF-8.

use super::command::{self, Command};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use std::{
    collections::{HashMap, HashSet},
    error::Error,
    ffi::{OsStr, OsString},
    fmt, fs,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// One compilation.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Absolute.
    pub(crate) directory: OsString,
    /// As named in the database; `no file` if it is empty.
    pub(crate) file: OsString,
    /// The compiler and its arguments, including the output option.
    pub(crate) arguments: Vec<OsString>,
    /// Absolute path of the output; `None` if unknown.
    pub(crate) output: Option<OsString>,
    /// Absolute path of the source file, comparable with the outputs of other entries.
    pub(crate) input: OsString,
}

#[derive(Debug)]
pub(crate) struct Database {
    /// Where the build log is.
    pub(crate) directory: PathBuf,
    pub(crate) entries: Vec<Entry>,
    pub(crate) invalid: Vec<InvalidEntry>,
}

/// An entry that cannot be run.
#[derive(Debug)]
pub(crate) struct InvalidEntry {
    /// Counted from 1.
    number: usize,
    name: OsString,
    reason: String,
}

impl fmt::Display for InvalidEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, name, reason } = self;
        write!(formatter, "entry {number} ({}): {reason}", Path::new(name).display())
    }
}

/// An entry as in the file.
#[derive(Debug, Deserialize)]
struct RawEntry {
    directory: Option<Text>,
    file: Option<Text>,
    arguments: Option<Vec<Text>>,
    command: Option<Text>,
    output: Option<Text>,
}

/// A JSON string that may contain bytes that are not UTF-8.
#[derive(Debug)]
struct Text(OsString);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.into()))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(OsString::from_vec(bytes.to_vec())))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

impl Database {
    /// Loads the database at `path`, or that of the example project.
    pub(crate) fn load(path: Option<&Path>, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        if let Some(path) = path {
            let named = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
            let text = fs::read(path).map_err(|error| named(&error))?;
            // As in clang's tools, a relative `directory` starts at the directory of the database.
            let folder = std::path::absolute(path)?;
            let folder = folder.parent().unwrap_or(Path::new("/"));
            return Self::parse(&text, folder, out).map_err(|error| named(&error).into());
        }
        // In the target directory, so that `cargo clean` removes it.
        let beside = || Some(std::env::current_exe().ok()?.ancestors().nth(2)?.join("fanout-objects"));
        let out = out.map(Path::to_path_buf).or_else(beside).ok_or("no directory for objects: use --out")?;
        Self::of(own_project()?, Path::new("/"), Some(&out))
    }

    pub(crate) fn parse(text: &[u8], folder: &Path, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let raw = serde_json::from_slice(text).map_err(|error| format!("not a compilation database: {error}"))?;
        Self::of(raw, folder, out)
    }

    fn of(raw: Vec<RawEntry>, folder: &Path, out: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        if raw.is_empty() {
            return Err("no entries".into());
        }
        let (mut entries, mut invalid) = (Vec::new(), Vec::new());
        let mut directories = HashMap::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let name =
                |text: &Option<Text>| text.as_ref().map(|Text(text)| text.clone()).filter(|text| !text.is_empty());
            let name = name(&raw.file).or_else(|| name(&raw.output)).unwrap_or_else(|| "no file".into());
            match Entry::of(raw, folder, out.is_some(), &mut directories) {
                Ok(entry) => entries.push(entry),
                Err(reason) => invalid.push(InvalidEntry { number: index + 1, name, reason }),
            }
        }
        let directory = std::path::absolute(out.unwrap_or(folder))?;
        if out.is_some() {
            redirect(&mut entries, &directory);
        }
        Ok(Self { directory, entries, invalid })
    }
}

impl Entry {
    /// `directories` remembers which directories exist.
    fn of(
        raw: RawEntry,
        folder: &Path,
        is_redirected: bool,
        directories: &mut HashMap<PathBuf, bool>,
    ) -> Result<Self, String> {
        let RawEntry { directory, file, arguments, command, output } = raw;
        let Text(directory) = directory.ok_or("missing `directory`")?;
        let directory = folder.join(directory);
        let exists = match directories.get(&directory) {
            Some(exists) => *exists,
            None => *directories.entry(directory.clone()).or_insert(directory.is_dir()),
        };
        if !exists {
            return Err(format!("no such directory: {}", directory.display()));
        }
        let command = match (arguments, command) {
            (Some(arguments), _) => Command::Words(arguments.into_iter().map(|Text(text)| text).collect()),
            (None, Some(Text(command))) => Command::parse(&command)?,
            (None, None) => return Err("missing `arguments` or `command`".into()),
        };
        let file = file.map(|Text(file)| file).unwrap_or_default();
        let output = output.map(|Text(output)| output);
        let (mut arguments, named) = match command {
            Command::Words(words) => {
                let named = command::output(&words).map(OsStr::to_owned);
                (words, named)
            }
            Command::Shell(_) if is_redirected => {
                return Err("its command needs a shell, so --out cannot change its output".into());
            }
            Command::Shell(line) => {
                (vec!["/bin/sh".into(), "-c".into(), line], Some(output.clone().unwrap_or_default()))
            }
        };
        let Some(compiler) = arguments.first_mut().filter(|compiler| !compiler.is_empty()) else {
            return Err("empty command".into());
        };
        // A relative compiler starts at the entry's directory.
        if compiler.as_encoded_bytes().contains(&b'/') {
            *compiler = directory.join(&*compiler).into();
        }
        // The default output of a compiler without `-o` comes last.
        let by_default = || Path::new(&file).file_name().map(|name| Path::new(name).with_extension("o").into());
        let output = named.or_else(|| output.clone()).or_else(by_default).filter(|output| !output.is_empty());
        Ok(Self {
            output: output.map(|output| normal(&directory.join(output)).into()),
            input: normal(&directory.join(&file)).into(),
            file: if file.is_empty() { "no file".into() } else { file },
            directory: directory.into(),
            arguments,
        })
    }
}

/// Removes `.` and `..` without reading the file system: for comparing paths, not for opening them.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// Moves every output below `out`, with its path relative to the common directory, so that equal file names do not collide.
fn redirect(entries: &mut [Entry], out: &Path) {
    let outputs =
        |entries: &[Entry]| entries.iter().filter_map(|entry| entry.output.as_ref().map(PathBuf::from)).collect();
    let outputs: Vec<PathBuf> = outputs(entries);
    let Some(mut common) = outputs.first().and_then(|output| output.parent()).map(Path::to_path_buf) else { return };
    for output in &outputs {
        while !output.starts_with(&common) && common.pop() {}
    }
    let mut taken = HashSet::new();
    for entry in entries {
        let Some(before) = entry.output.as_ref().map(Path::new) else { continue };
        let below = before.strip_prefix(&common).unwrap_or(before);
        // `..` must not lead out of `out`.
        let below: PathBuf = below.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let mut output = out.join(&below);
        let mut copy = 1;
        while !taken.insert(output.clone()) {
            // The same file is compiled twice, with different options.
            copy += 1;
            output = out.join(below.with_extension(format!("{copy}.o")));
        }
        command::redirect(&mut entry.arguments, output.as_os_str());
        entry.output = Some(output.into());
    }
}

/// The entries of `examples/c-project`.
fn own_project() -> Result<Vec<RawEntry>, Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c-project");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    files.sort();
    let raw = |file: PathBuf| {
        let options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-c"].map(OsString::from);
        let words = [compiler.clone()].into_iter().chain(options).chain([file.clone().into()]);
        RawEntry {
            arguments: Some(words.map(Text).collect()),
            directory: Some(Text(directory.clone().into())),
            file: Some(Text(file.into())),
            command: None,
            output: None,
        }
    };
    Ok(files.into_iter().map(raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn load(text: &[u8], out: Option<&str>) -> Database {
        Database::parse(text, Path::new("/tmp"), out.map(Path::new)).unwrap()
    }

    fn entries(text: &str, out: Option<&str>) -> Vec<Entry> {
        let Database { entries, invalid, .. } = load(text.as_bytes(), out);
        assert!(invalid.is_empty(), "{invalid:?}");
        entries
    }

    fn words(entry: &Entry) -> Vec<&str> {
        entry.arguments.iter().map(|word| word.to_str().unwrap()).collect()
    }

    fn output(entry: &Entry) -> &str {
        entry.output.as_ref().unwrap().to_str().unwrap()
    }

    #[test]
    fn entry_has_arguments_or_command() {
        let entries = entries(
            r#"[{"directory":"/","file":"a.c","command":"cc -DX='a b' -c a.c -o o/a.o"},
                {"directory":"/tmp","file":"b.c","arguments":["cc","-c","b.c","-oc/b.o"],"extra":1},
                {"directory":"/tmp","file":"d/c.c","arguments":["cc","-c","d/c.c"]}]"#,
            None,
        );
        assert_eq!(words(&entries[0]), ["cc", "-DX=a b", "-c", "a.c", "-o", "o/a.o"]);
        assert_eq!(output(&entries[0]), "/o/a.o");
        assert_eq!(output(&entries[1]), "/tmp/c/b.o");
        assert_eq!(output(&entries[2]), "/tmp/c.o");
    }

    #[test]
    fn relative_directory_resolves_from_database_file() {
        let entries = entries(
            r#"[{"directory":".","file":"../a.c","command":"../tc/gcc -c ../a.c -o x/../a.o"},
                {"directory":"/usr","file":"a.o","command":"gcc a.o -o liba.so && :","output":"liba.so"}]"#,
            None,
        );
        assert_eq!(words(&entries[0])[0], "/tmp/./../tc/gcc");
        assert_eq!((output(&entries[0]), entries[0].input.to_str().unwrap()), ("/tmp/a.o", "/a.c"));
        assert_eq!(words(&entries[1]), ["/bin/sh", "-c", "gcc a.o -o liba.so && :"]);
        assert_eq!(output(&entries[1]), "/usr/liba.so");
    }

    #[test]
    fn file_names_need_not_be_utf8() {
        let text =
            b"[{\"directory\":\"/tmp\",\"file\":\"\xe9.c\",\"command\":\"cc -c \xe9.c -o \xe9.o\",\"x\":\"\xe9\"}]";
        let Database { entries, invalid, .. } = load(text, None);
        assert!(invalid.is_empty(), "{invalid:?}");
        assert_eq!(entries[0].output.as_ref().unwrap().as_bytes(), b"/tmp/\xe9.o");
        assert_eq!(entries[0].arguments[2].as_bytes(), b"\xe9.c");
    }

    #[test]
    fn redirected_objects_do_not_collide() {
        let found = entries(
            r#"[{"directory":"/tmp","file":"x/a.c","arguments":["cc","-c","x/a.c","-o","x/a.o"]},
                {"directory":"/tmp","file":"y/a.c","arguments":["cc","-c","y/a.c","-oy/a.o"]},
                {"directory":"/tmp","file":"y/a.c","arguments":["cc","-g","-c","y/a.c","-oy/a.o"]}]"#,
            Some("/out"),
        );
        let outputs: Vec<_> = found.iter().map(output).collect();
        assert_eq!(outputs, ["/out/x/a.o", "/out/y/a.o", "/out/y/a.2.o"]);
        assert_eq!(words(&found[1]), ["cc", "-c", "y/a.c", "-o", "/out/y/a.o"]);
        let text = r#"[{"directory":"/","file":"a.c","arguments":["cc","-c","-o","a.o","--","a.c"]}]"#;
        assert_eq!(words(&entries(text, Some("/out"))[0]), ["cc", "-c", "-o", "/out/a.o", "--", "a.c"]);
    }

    #[test]
    fn invalid_database_is_one_line_error() {
        for (text, expected) in [
            ("[", "not a compilation database"),
            ("{}", "not a compilation database"),
            (r#"[{"directory":1}]"#, "not a compilation database: invalid type: integer `1`, expected a string"),
            ("[]", "no entries"),
        ] {
            let error = Database::parse(text.as_bytes(), Path::new("/"), None).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn invalid_entry_is_reported_and_others_kept() {
        const GOOD: &str = r#"{"directory":"/","file":"b.c","command":"cc -c b.c"}"#;
        for (text, expected) in [
            (r#"{"file":"a.c"}"#, "entry 1 (a.c): missing `directory`"),
            (r#"{"directory":"/","file":"a.c"}"#, "entry 1 (a.c): missing `arguments` or `command`"),
            (r#"{"directory":"/","file":"a.c","arguments":[]}"#, "entry 1 (a.c): empty command"),
            (r#"{"directory":"/","command":"","file":"","output":"all"}"#, "entry 1 (all): empty command"),
            (r#"{"directory":"/","file":"a.c","command":"cc\n'a"}"#, "entry 1 (a.c): open quote in command"),
            (r#"{"directory":"/no/such","file":"a.c","command":"cc"}"#, "entry 1 (a.c): no such directory: /no/such"),
        ] {
            let Database { entries, invalid, .. } = load(format!("[{text},{GOOD}]").as_bytes(), None);
            assert_eq!((entries.len(), invalid.len()), (1, 1), "{text}");
            let line = invalid[0].to_string();
            assert!(line.starts_with(expected) && !line.contains('\n'), "{text}: {line}");
        }
        let shell = load(br#"[{"directory":"/","file":"a.c","command":"cc -c a.c && :"}]"#, Some("/out"));
        assert!(shell.invalid[0].to_string().contains("needs a shell"), "{:?}", shell.invalid);
    }
}
