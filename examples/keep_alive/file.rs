//! The configuration file: the workers and their order. An error is one line with the position.

use super::{
    recipe::{Recipe, Stage},
    value::{self, Value, Wrong},
};
use pipewright::Restart;
use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use toml::de::{DeTable, DeValue, Error};

/// The contents of the file.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Each after its dependencies; otherwise in the order of the file.
    pub(crate) workers: Vec<(String, Recipe)>,
}

impl Plan {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let bytes = read(path).map_err(|error| format!("{name}: {error}"))?;
        Self::parse(&bytes).map_err(|Wrong { at, key: _, what }| match at {
            Some(offset) => format!("{name}:{}: {what}", line(&bytes, offset)),
            None => format!("{name}: {what}"),
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        let text = str::from_utf8(bytes).map_err(|error| Wrong::at(error.valid_up_to(), "not valid UTF-8"))?;
        let file = DeTable::parse(text).map_err(|error| invalid_toml(text, &error))?.into_inner();
        let mut workers = None;
        for (key, value) in &file {
            match (&**key.get_ref(), value.get_ref()) {
                ("workers", DeValue::Table(table)) => workers = Some(table),
                ("workers", _) => return Err(Wrong::at(key.span().start, "`workers` is not a table")),
                (other, _) => {
                    let what = format!("unknown key `{}`, expected `workers`", other.escape_debug());
                    return Err(Wrong::at(key.span().start, what));
                }
            }
        }
        let entries = workers.map(value::entries).unwrap_or_default();
        let entries =
            entries.into_iter().map(|(name, value)| Entry::read(name, value)).collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err(without_position("no workers defined"));
        }
        in_order(entries)
    }
}

/// Only regular files: anything else may have no end, and may differ when it is read again.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    // Does not block if the file was replaced by a FIFO meanwhile.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn invalid_toml(text: &str, error: &Error) -> Wrong {
    let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(place) = error.span() else { return without_position(&what) };
    let start = place.start;
    match text.get(place) {
        // The message does not name the key.
        Some(key) if what == "duplicate key" => Wrong::at(start, format!("duplicate key `{}`", key.escape_debug())),
        _ => Wrong::at(start, what),
    }
}

/// An error without a position.
fn without_position(what: &str) -> Wrong {
    Wrong { at: None, ..Wrong::at(0, what) }
}

/// The line number, from 1.
fn line(text: &[u8], offset: usize) -> usize {
    text.iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// A worker with its position.
struct Entry<'a> {
    name: &'a str,
    recipe: Recipe,
    value: &'a Value<'a>,
}

impl<'a> Entry<'a> {
    fn read(name: &'a str, value: &'a Value<'a>) -> Result<Self, Wrong> {
        if name.is_empty() || name.contains(char::is_control) {
            return Err(Wrong::with(value, format!("{name:?} is not a valid worker name")));
        }
        let recipe = Recipe::read(value).map_err(|wrong| about(name, wrong))?;
        Ok(Self { name, recipe, value })
    }

    /// An error about `after`.
    fn wrong_order(&self, what: &str) -> Wrong {
        about(self.name, Wrong::at(value::place(self.value, "after"), what).within("after"))
    }
}

/// Adds the name of the worker.
fn about(name: &str, Wrong { at, key, what }: Wrong) -> Wrong {
    let key = if key.is_empty() { key } else { format!(", `{}`", key.escape_debug()) };
    Wrong { at, key: String::new(), what: format!("worker `{name}`{key}: {what}").into() }
}

/// Sorts the workers after their dependencies.
fn in_order(mut entries: Vec<Entry<'_>>) -> Result<Plan, Wrong> {
    for entry in &entries {
        for (other, stage) in &entry.recipe.after.0 {
            let Some(on) = entries.iter().find(|entry| entry.name == other) else {
                return Err(entry.wrong_order(&format!("unknown worker `{other}`")));
            };
            if *stage == Stage::Exited && on.recipe.restart_mode() == Restart::Always {
                return Err(entry.wrong_order(&format!("`{other}` is always restarted, so it never exits")));
            }
        }
    }
    let mut workers: Vec<(String, Recipe)> = Vec::new();
    while !entries.is_empty() {
        let is_free =
            |entry: &Entry<'_>| entry.recipe.after.0.keys().all(|on| workers.iter().any(|(name, _)| name == on));
        let Some(index) = entries.iter().position(is_free) else { return Err(cycle(&entries)) };
        let Entry { name, recipe, .. } = entries.remove(index);
        workers.push((name.to_owned(), recipe));
    }
    Ok(Plan { workers })
}

/// The error for workers that all depend on each other.
fn cycle(entries: &[Entry<'_>]) -> Wrong {
    let mut path: Vec<&Entry<'_>> = entries.first().into_iter().collect();
    loop {
        let last = path.last().copied();
        let next = entries.iter().find(|entry| last.is_some_and(|last| last.recipe.after.0.contains_key(entry.name)));
        let Some(next) = next else { return without_position("dependency cycle") };
        if let Some(start) = path.iter().position(|entry| entry.name == next.name) {
            let names: Vec<_> =
                path.iter().skip(start).chain([&next]).map(|entry| format!("`{}`", entry.name)).collect();
            return next.wrong_order(&format!("dependency cycle: {}", names.join(" -> ")));
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_sorted_after_their_dependencies() {
        let plan = Plan::parse(
            br#"[workers]
            web = { command = ["web"], after = { db = "started", migrate = "exited" } }
            log = { command = ["log"] }
            migrate = { command = ["migrate"], after = ["db"] }
            db = { command = ["db"], restart = "always" }"#,
        )
        .unwrap();
        let names: Vec<_> = plan.workers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["log", "db", "migrate", "web"]);
    }

    /// The line, a part of the error, and the file.
    const WRONG_FILES: &[(usize, &str, &str)] = &[
        (1, "unclosed table", "[workers.web\ncommand = 1"),
        (0, "no workers defined", ""),
        (0, "no workers defined", "[workers]"),
        (1, "unknown key `worker`, expected `workers`", "[worker.web]\ncommand = ['x']"),
        (1, "`workers` is not a table", "workers = 1"),
        (1, "worker `web`: expected a table, found an integer", "workers.web = 1"),
        (1, "\"a\\nb\" is not a valid worker name", "[workers.\"a\\nb\"]\ncommand = ['x']"),
        (1, "worker `web`: missing key `command`", "[workers.web]\n"),
        (3, "duplicate key `command`", "[workers.web]\ncommand = ['x']\ncommand = ['y']"),
        (4, "duplicate key `web`", "[workers.web]\ncommand = ['x']\n\n[workers.web]\ncommand = ['x']"),
        (
            2,
            "worker `web`, `comand`: unknown key, expected one of `command`, `restart`, ",
            "[workers.web]\ncomand = ['x']\nzzz = 1",
        ),
        (
            2,
            "`db` is always restarted",
            "[workers]\nweb = { command = ['x'], after = { db = 'exited' } }\ndb = { command = ['x'], restart = 'always' }",
        ),
        (
            3,
            "`a` -> `b` -> `a`",
            "[workers]\nc = { command = ['x'], after = ['a'] }\na = { command = ['x'], after = ['b'] }\nb = { command = ['x'], after = ['a'] }",
        ),
    ];

    /// The key of a worker, a part of the error, and the text from the second line on.
    const WRONG_KEYS: &[(&str, &str, &str)] = &[
        ("command", "the command is empty", "command = []"),
        (
            "command",
            "expected an array of strings such as [\"program\", \"argument\"], found a string",
            "command = 'x'",
        ),
        ("command", "expected a string, found an integer", "command = ['x', 1]"),
        ("command", "the string contains a NUL byte", "command = [\"x\\u0000\"]"),
        ("restart", "\"some\" is not one of \"never\", \"on-failure\", \"always\"", "restart = 'some'"),
        ("restart", "expected \"never\", \"on-failure\", \"always\" or a table, found `true`", "restart = true"),
        ("restart", "missing key `when`", "restart = { first = '1s' }"),
        ("restart", "make `period` longer", "restart = { when = 'always', first = '20s' }"),
        ("restart.frist", "unknown key, expected one of `when`, ", "restart = { when = 'always', frist = '1s' }"),
        ("restart.first", "is longer than the maximum delay", "restart = { when = 'always', first = '40s' }"),
        (
            "restart.restarts",
            "-1 is out of range, expected an integer of at least 0",
            "restart = { when = 'always', restarts = -1 }",
        ),
        (
            "restart.fatal_codes",
            "256 is out of range, expected an integer from 0 to 255",
            "restart = { when = 'always', fatal_codes = [1, 256] }",
        ),
        ("stop", "expected an array of tables, found a string", "stop = 'TERM'"),
        ("stop", "expected a table such as { signal = \"TERM\", wait = \"5s\" }, found a string", "stop = ['TERM']"),
        ("stop", "missing key `wait`", "stop = [{ signal = 'TERM' }]"),
        ("stop.signal", "unknown signal \"TREM\"", "stop = [{ signal = 'TREM', wait = '1s' }]"),
        ("stop.signal", "unknown signal \"SIGSIGTERM\"", "stop = [{ signal = 'SIGSIGTERM', wait = '1s' }]"),
        ("stop.wait", "\"1\" is not a duration such as \"10s\"", "stop = [{ signal = 'SIGTERM', wait = '1' }]"),
        ("stop.wait", "expected a string, found an integer", "stop = [{ signal = 'TERM', wait = 1 }]"),
        ("ready", "expected a table, found `true`", "ready = true"),
        ("ready", "expected exactly one of", "ready = { within = '1s' }"),
        ("ready", "expected exactly one of", "ready = { line = 'x', notify = true }"),
        ("ready.notify", "expected `true`, found `false`", "ready = { notify = false }"),
        ("ready.line", "invalid regular expression \"(\": found open group", "ready = { line = '(' }"),
        ("ready.line", "seen only with `output = \"show\"`", "ready = { line = 'x' }\noutput = 'null'"),
        ("ready.within", "no time at all", "ready = { line = 'x', within = '0s' }"),
        ("ready.connect", "\"80\" is not `host:port`", "ready = { connect = '80' }"),
        ("ready.connect", "\"localhost\" is not `host:port`", "ready = { connect = 'localhost', within = '1s' }"),
        ("output.raw", "expected `true` or `false`, found a string", "output = { file = 'x', raw = 'yes' }"),
        ("ready.line", "seen only with `output", "ready = { line = 'x' }\noutput = { file = 'x', raw = true }"),
        ("limits.nice", "expected an integer from -20 to 19, found a string", "limits = { nice = 'very' }"),
        ("limits.open_files", "found a float", "limits = { open_files = 1.5 }"),
        (
            "limits.cpu_seconds",
            "-1 is out of range, expected an integer of at least 0",
            "limits = { cpu_seconds = -1 }",
        ),
        ("limits.tree_processes", "expected an integer of at least 0", "limits = { tree_processes = 4294967296 }"),
        ("limits.run_time", "to become ready", "limits = { run_time = '1s' }\nready = { notify = true }"),
        ("limits.run_time", "it would be stopped at once", "limits = { run_time = '0s' }"),
        ("output", "\"file\" is not \"show\", \"inherit\", \"null\" or { file = \"..\" }", "output = 'file'"),
        ("output.path", "unknown key, expected one of `file`, `raw`", "output = { path = 'x' }"),
        ("dir", "expected a string, found a date", "dir = 2020-01-01"),
        ("env", "expected a table of strings, found an array", "env = ['A=1']"),
        ("env.PORT", "expected a string, found an integer", "env = { PORT = 80 }"),
        ("env", "invalid environment variable name \"A=B\"", "env = { 'A=B' = '1' }"),
        ("after", "unknown worker `db`", "after = ['db']"),
        ("after", "dependency cycle: `web` -> `web`", "after = ['web']"),
        ("after.db", "\"up\" is not one of \"started\", \"ready\", \"exited\"", "after = { db = 'up' }"),
        (
            "after",
            "expected an array of names, or a table such as { name = \"ready\" }, found a string",
            "after = 'db'",
        ),
    ];

    #[track_caller]
    fn assert_wrong(text: &str, line_number: usize, expected: [&str; 2]) {
        let wrong = Plan::parse(text.as_bytes()).unwrap_err();
        assert!(
            expected.iter().all(|part| wrong.what.contains(part)) && !wrong.what.contains('\n'),
            "{text}: {wrong:?}"
        );
        assert_eq!(wrong.at.map_or(0, |at| line(text.as_bytes(), at)), line_number, "{text}: {wrong:?}");
        let foreign = ["invalid type", "invalid value", "struct", "i128", "u64", "Duration"];
        assert!(foreign.iter().all(|word| !wrong.what.contains(word)), "{wrong:?}");
    }

    #[test]
    fn errors_have_position_and_reason() {
        for &(line_number, expected, text) in WRONG_FILES {
            assert_wrong(text, line_number, [expected, ""]);
        }
        for &(key, expected, text) in WRONG_KEYS {
            let command = if key == "command" { "" } else { "command = ['x']\n" };
            let text = format!("{command}{text}").replacen('\n', "\n\n", 1);
            let line_number = if key == "command" { 2 } else { 4 };
            assert_wrong(
                &format!("[workers.web]\n{text}"),
                line_number,
                [&format!("worker `web`, `{key}`: "), expected],
            );
        }
        let section = "[workers.web]\ncommand = ['x']\n[workers.web.restart]\nwhen = 'always'\ncap = [\n'1s']";
        assert_wrong(section, 5, ["worker `web`, `restart.cap`: ", "found an array"]);
        let wrong = Plan::parse(b"[workers.web]\n\xff").unwrap_err();
        assert_eq!((wrong.at, &*wrong.what), (Some(14), "not valid UTF-8"));
    }
}
