//! The file: which workers there are, and in which order they come. What is wrong with it is one line that says where.

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

/// What the file wants.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Each behind those that it comes after; otherwise as in the file.
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
        let text = str::from_utf8(bytes).map_err(|error| Wrong::at(error.valid_up_to(), "this is not UTF-8"))?;
        let file = DeTable::parse(text).map_err(|error| no_toml(text, &error))?.into_inner();
        let mut workers = None;
        for (key, value) in &file {
            match (&**key.get_ref(), value.get_ref()) {
                ("workers", DeValue::Table(table)) => workers = Some(table),
                ("workers", _) => return Err(Wrong::at(key.span().start, "`workers` is no table")),
                (other, _) => {
                    let what = format!("there is no key `{}`, only `workers`", other.escape_debug());
                    return Err(Wrong::at(key.span().start, what));
                }
            }
        }
        let entries = workers.map(value::entries).unwrap_or_default();
        let entries =
            entries.into_iter().map(|(name, value)| Entry::read(name, value)).collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err(nowhere("there are no workers in it"));
        }
        in_order(entries)
    }
}

/// What is no file may have no end, and would not be the same when it is read again.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("this is not a regular file"));
    }
    let mut bytes = Vec::new();
    // A pipe that has taken its place since then is not waited for.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn no_toml(text: &str, error: &Error) -> Wrong {
    let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(place) = error.span() else { return nowhere(&what) };
    let start = place.start;
    match text.get(place) {
        // It does not say which.
        Some(key) if what == "duplicate key" => Wrong::at(start, format!("`{}` is there twice", key.escape_debug())),
        _ => Wrong::at(start, what),
    }
}

/// About no place of the file.
fn nowhere(what: &str) -> Wrong {
    Wrong { at: None, ..Wrong::at(0, what) }
}

/// Counted from 1.
fn line(text: &[u8], offset: usize) -> usize {
    text.iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// A worker with its place.
struct Entry<'a> {
    name: &'a str,
    recipe: Recipe,
    value: &'a Value<'a>,
}

impl<'a> Entry<'a> {
    fn read(name: &'a str, value: &'a Value<'a>) -> Result<Self, Wrong> {
        if name.is_empty() || name.contains(char::is_control) {
            return Err(Wrong::with(value, format!("{name:?} is no name for a worker")));
        }
        let recipe = Recipe::read(value).map_err(|wrong| about(name, wrong))?;
        Ok(Self { name, recipe, value })
    }

    /// Something about whom it comes after.
    fn wrong_order(&self, what: &str) -> Wrong {
        about(self.name, Wrong::at(value::place(self.value, "after"), what).within("after"))
    }
}

/// Says whose it is.
fn about(name: &str, Wrong { at, key, what }: Wrong) -> Wrong {
    let key = if key.is_empty() { key } else { format!(", `{}`", key.escape_debug()) };
    Wrong { at, key: String::new(), what: format!("worker `{name}`{key}: {what}").into() }
}

/// Puts each behind those that it comes after.
fn in_order(mut entries: Vec<Entry<'_>>) -> Result<Plan, Wrong> {
    for entry in &entries {
        for (other, stage) in &entry.recipe.after.0 {
            let Some(on) = entries.iter().find(|entry| entry.name == other) else {
                return Err(entry.wrong_order(&format!("there is no worker `{other}`")));
            };
            if *stage == Stage::Exited && on.recipe.comes_back() == Restart::Always {
                return Err(entry.wrong_order(&format!("`{other}` is always restarted, so it never ends")));
            }
        }
    }
    let mut workers: Vec<(String, Recipe)> = Vec::new();
    while !entries.is_empty() {
        let is_free =
            |entry: &Entry<'_>| entry.recipe.after.0.keys().all(|on| workers.iter().any(|(name, _)| name == on));
        let Some(index) = entries.iter().position(is_free) else { return Err(circle(&entries)) };
        let Entry { name, recipe, .. } = entries.remove(index);
        workers.push((name.to_owned(), recipe));
    }
    Ok(Plan { workers })
}

/// Among these, each waits for another.
fn circle(entries: &[Entry<'_>]) -> Wrong {
    let mut path: Vec<&Entry<'_>> = entries.first().into_iter().collect();
    loop {
        let last = path.last().copied();
        let next = entries.iter().find(|entry| last.is_some_and(|last| last.recipe.after.0.contains_key(entry.name)));
        let Some(next) = next else { return nowhere("workers wait for each other") };
        if let Some(start) = path.iter().position(|entry| entry.name == next.name) {
            let names: Vec<_> =
                path.iter().skip(start).chain([&next]).map(|entry| format!("`{}`", entry.name)).collect();
            return next.wrong_order(&format!("they wait for each other: {}", names.join(" for ")));
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_come_behind_those_they_wait_for() {
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

    /// The line, a part of what is said, and the file.
    const WRONG_FILES: &[(usize, &str, &str)] = &[
        (1, "unclosed table", "[workers.web\ncommand = 1"),
        (0, "there are no workers", ""),
        (0, "there are no workers", "[workers]"),
        (1, "no key `worker`, only `workers`", "[worker.web]\ncommand = ['x']"),
        (1, "`workers` is no table", "workers = 1"),
        (1, "worker `web`: there is a whole number where a table belongs", "workers.web = 1"),
        (1, "\"a\\nb\" is no name", "[workers.\"a\\nb\"]\ncommand = ['x']"),
        (1, "worker `web`: `command` is missing", "[workers.web]\n"),
        (3, "`command` is there twice", "[workers.web]\ncommand = ['x']\ncommand = ['y']"),
        (4, "`web` is there twice", "[workers.web]\ncommand = ['x']\n\n[workers.web]\ncommand = ['x']"),
        (
            2,
            "worker `web`, `comand`: there is no such key, only `command`, `restart`, ",
            "[workers.web]\ncomand = ['x']\nzzz = 1",
        ),
        (
            2,
            "`db` is always restarted",
            "[workers]\nweb = { command = ['x'], after = { db = 'exited' } }\ndb = { command = ['x'], restart = 'always' }",
        ),
        (
            3,
            "`a` for `b` for `a`",
            "[workers]\nc = { command = ['x'], after = ['a'] }\na = { command = ['x'], after = ['b'] }\nb = { command = ['x'], after = ['a'] }",
        ),
    ];

    /// Which key of a worker, a part of what is said of it, and what stands in the second line and those after it.
    const WRONG_KEYS: &[(&str, &str, &str)] = &[
        ("command", "it names no program", "command = []"),
        ("command", "there is a text where a list of texts, as [\"program\", \"argument\"], belongs", "command = 'x'"),
        ("command", "there is a whole number where a text in quotes belongs", "command = ['x', 1]"),
        ("command", "no program can be told a zero byte", "command = [\"x\\u0000\"]"),
        ("restart", "\"some\" is none of \"never\", \"on-failure\", \"always\"", "restart = 'some'"),
        ("restart", "there is `true` where \"never\", \"on-failure\", \"always\" or a table belongs", "restart = true"),
        ("restart", "`when` is missing", "restart = { first = '1s' }"),
        ("restart", "make `period` longer", "restart = { when = 'always', first = '20s' }"),
        ("restart.frist", "there is no such key, only `when`, ", "restart = { when = 'always', frist = '1s' }"),
        ("restart.first", "is longer than the maximum delay", "restart = { when = 'always', first = '40s' }"),
        (
            "restart.restarts",
            "-1 is too much or too little, it has to be from 0 on",
            "restart = { when = 'always', restarts = -1 }",
        ),
        (
            "restart.fatal_codes",
            "256 is too much or too little, it has to be from 0 to 255",
            "restart = { when = 'always', fatal_codes = [1, 256] }",
        ),
        ("stop", "there is a text where a list of tables belongs", "stop = 'TERM'"),
        ("stop", "there is a text where a table, as { signal = \"TERM\", wait = \"5s\" }, belongs", "stop = ['TERM']"),
        ("stop", "`wait` is missing", "stop = [{ signal = 'TERM' }]"),
        ("stop.signal", "there is no signal \"TREM\"", "stop = [{ signal = 'TREM', wait = '1s' }]"),
        ("stop.signal", "there is no signal \"SIGSIGTERM\"", "stop = [{ signal = 'SIGSIGTERM', wait = '1s' }]"),
        ("stop.wait", "\"1\" is no time, as \"10s\" is", "stop = [{ signal = 'SIGTERM', wait = '1' }]"),
        (
            "stop.wait",
            "there is a whole number where a text in quotes belongs",
            "stop = [{ signal = 'TERM', wait = 1 }]",
        ),
        ("ready", "there is `true` where a table belongs", "ready = true"),
        ("ready", "it needs one of", "ready = { within = '1s' }"),
        ("ready", "it needs one of", "ready = { line = 'x', notify = true }"),
        ("ready.notify", "there is `false` where `true` belongs", "ready = { notify = false }"),
        ("ready.line", "\"(\" is not a regular", "ready = { line = '(' }"),
        ("ready.line", "seen only where `output` is \"show\"", "ready = { line = 'x' }\noutput = 'null'"),
        ("ready.within", "no time at all", "ready = { line = 'x', within = '0s' }"),
        ("ready.connect", "\"80\" is not `host:port`", "ready = { connect = '80' }"),
        ("ready.connect", "\"localhost\" is not `host:port`", "ready = { connect = 'localhost', within = '1s' }"),
        ("output.raw", "there is a text where `true` or `false` belongs", "output = { file = 'x', raw = 'yes' }"),
        ("ready.line", "seen only where `output` is", "ready = { line = 'x' }\noutput = { file = 'x', raw = true }"),
        ("limits.nice", "there is a text where a whole number from -20 to 19 belongs", "limits = { nice = 'very' }"),
        ("limits.open_files", "there is a number that is not whole where", "limits = { open_files = 1.5 }"),
        ("limits.cpu_seconds", "-1 is too much or too little, it has to be from 0 on", "limits = { cpu_seconds = -1 }"),
        ("limits.tree_processes", "it has to be from 0 on", "limits = { tree_processes = 4294967296 }"),
        ("limits.run_time", "to become ready", "limits = { run_time = '1s' }\nready = { notify = true }"),
        ("limits.run_time", "it would be stopped at once", "limits = { run_time = '0s' }"),
        ("output", "\"file\" is not \"show\", \"inherit\", \"null\" or { file = \"..\" }", "output = 'file'"),
        ("output.path", "there is no such key, only `file`, `raw`", "output = { path = 'x' }"),
        ("dir", "there is a date where a text in quotes belongs", "dir = 2020-01-01"),
        ("env", "there is a list where a table of texts belongs", "env = ['A=1']"),
        ("env.PORT", "there is a whole number where a text in quotes belongs", "env = { PORT = 80 }"),
        ("env", "\"A=B\" cannot be the name", "env = { 'A=B' = '1' }"),
        ("after", "there is no worker `db`", "after = ['db']"),
        ("after", "they wait for each other: `web` for `web`", "after = ['web']"),
        ("after.db", "\"up\" is none of \"started\", \"ready\", \"exited\"", "after = { db = 'up' }"),
        ("after", "there is a text where a list of names, or a table as { name = \"ready\" }, belongs", "after = 'db'"),
    ];

    #[track_caller]
    fn assert_wrong(text: &str, line_number: usize, expected: [&str; 2]) {
        let wrong = Plan::parse(text.as_bytes()).unwrap_err();
        assert!(
            expected.iter().all(|part| wrong.what.contains(part)) && !wrong.what.contains('\n'),
            "{text}: {wrong:?}"
        );
        assert_eq!(wrong.at.map_or(0, |at| line(text.as_bytes(), at)), line_number, "{text}: {wrong:?}");
        let foreign = ["invalid type", "invalid value", "expected a", "struct", "i128", "u64", "Duration"];
        assert!(foreign.iter().all(|word| !wrong.what.contains(word)), "{wrong:?}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
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
        assert_wrong(section, 5, ["worker `web`, `restart.cap`: ", "there is a list where"]);
        let wrong = Plan::parse(b"[workers.web]\n\xff").unwrap_err();
        assert_eq!((wrong.at, &*wrong.what), (Some(14), "this is not UTF-8"));
    }
}
