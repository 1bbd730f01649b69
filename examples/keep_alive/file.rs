//! The file: which workers there are, and in which order they come. What is wrong with it is one line that says where.

use super::recipe::{Recipe, Stage};
use pipewright::Restart;
use serde::Deserialize;
use std::{fs, path::Path};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error, ValueDeserializer},
};

/// What the file wants.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Each behind those that it comes after; otherwise as in the file.
    pub(crate) workers: Vec<(String, Recipe)>,
}

impl Plan {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        Self::parse(&text).map_err(|wrong| match wrong.at {
            Some(offset) => format!("{name}:{}: {}", line(&text, offset), wrong.what),
            None => format!("{name}: {}", wrong.what),
        })
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let file = DeTable::parse(text).map_err(|error| Wrong::of(&error, ""))?;
        let mut entries = Vec::new();
        for (key, value) in file.into_inner() {
            match (&**key.get_ref(), value.into_inner()) {
                ("workers", DeValue::Table(workers)) => entries.extend(workers),
                ("workers", _) => return Err(Wrong::new(key.span().start, "`workers` is no table")),
                (other, _) => {
                    return Err(Wrong::new(key.span().start, &format!("there is no key `{other}`, only `workers`")));
                }
            }
        }
        entries.sort_by_key(|(name, _)| name.span().start);
        let entries = entries.into_iter().map(|(name, value)| Entry::read(name.into_inner().into(), value));
        let entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
        if entries.is_empty() {
            return Err(Wrong { at: None, what: "there are no workers in it".into() });
        }
        in_order(entries)
    }
}

/// What is wrong, and where, in bytes from the beginning.
#[derive(Debug)]
struct Wrong {
    at: Option<usize>,
    what: String,
}

impl Wrong {
    fn new(at: usize, what: &str) -> Self {
        // Some of what serde says has several lines.
        Self { at: Some(at), what: what.split_whitespace().collect::<Vec<_>>().join(" ") }
    }

    fn of(error: &Error, whose: &str) -> Self {
        let wrong = Self::new(0, &format!("{whose}{}", error.message()));
        Self { at: error.span().map(|span| span.start), ..wrong }
    }
}

/// Of everything in a value: a table's own place is no more than its header.
fn end(value: &Spanned<DeValue<'_>>) -> usize {
    let inner = value.get_ref().as_table().into_iter().flat_map(DeTable::values).map(end);
    inner.fold(value.span().end, usize::max)
}

/// Counted from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// A worker with where its keys stand.
struct Entry {
    name: String,
    recipe: Recipe,
    places: Vec<(String, usize)>,
}

impl Entry {
    fn read(name: String, value: Spanned<DeValue<'_>>) -> Result<Self, Wrong> {
        let start = value.span().start;
        if name.is_empty() || name.contains(char::is_control) {
            return Err(Wrong::new(start, &format!("{name:?} is no name for a worker")));
        }
        let table: &[_] = match value.get_ref() {
            DeValue::Table(table) => &table.iter().collect::<Vec<_>>(),
            _ => return Err(Wrong::new(start, &format!("worker `{name}` is no table"))),
        };
        let reaches: Vec<_> = table.iter().map(|(key, value)| (key.span().start, end(value))).collect();
        let places: Vec<_> = table.iter().map(|(key, _)| (key.get_ref().to_string(), key.span().start)).collect();
        let recipe = Recipe::deserialize(ValueDeserializer::from(value)).map_err(|error| {
            let at = error.span().map(|span| span.start);
            let is_there = |&(from, to): &(usize, usize)| at.is_some_and(|at| (from..to).contains(&at));
            let key = reaches.iter().position(is_there).and_then(|index| places.get(index));
            let key = key.map(|(key, _)| format!(", `{key}`")).unwrap_or_default();
            Wrong::of(&error, &format!("worker `{name}`{key}: "))
        })?;
        let entry = Self { name, recipe, places };
        entry.recipe.check().map_err(|(key, what)| entry.wrong(key, &what))?;
        Ok(entry)
    }

    /// Something about one of its keys.
    fn wrong(&self, key: &str, what: &str) -> Wrong {
        let place = |key: &str| self.places.iter().find(|(name, _)| name == key).map(|(_, at)| *at);
        let wrong = Wrong::new(0, &format!("worker `{}`, `{key}`: {what}", self.name));
        Wrong { at: place(key).or_else(|| self.places.first().map(|(_, at)| *at)), ..wrong }
    }
}

/// Puts each behind those that it comes after.
fn in_order(mut entries: Vec<Entry>) -> Result<Plan, Wrong> {
    for entry in &entries {
        for (other, stage) in &entry.recipe.after.0 {
            let Some(on) = entries.iter().find(|entry| entry.name == *other) else {
                return Err(entry.wrong("after", &format!("there is no worker `{other}`")));
            };
            if *stage == Stage::Exited && on.recipe.comes_back() == Restart::Always {
                return Err(entry.wrong("after", &format!("`{other}` is always restarted, so it never ends")));
            }
        }
    }
    let mut workers: Vec<(String, Recipe)> = Vec::new();
    while !entries.is_empty() {
        let is_free = |entry: &Entry| entry.recipe.after.0.keys().all(|on| workers.iter().any(|(name, _)| name == on));
        let Some(index) = entries.iter().position(is_free) else { return Err(circle(&entries)) };
        let Entry { name, recipe, .. } = entries.remove(index);
        workers.push((name, recipe));
    }
    Ok(Plan { workers })
}

/// Among these, each waits for another.
fn circle(entries: &[Entry]) -> Wrong {
    let mut path: Vec<&Entry> = entries.first().into_iter().collect();
    loop {
        let last = path.last().copied();
        let next = entries.iter().find(|entry| last.is_some_and(|last| last.recipe.after.0.contains_key(&entry.name)));
        let Some(next) = next else { return Wrong { at: None, what: "workers wait for each other".into() } };
        if let Some(start) = path.iter().position(|entry| entry.name == next.name) {
            let names: Vec<_> =
                path.iter().skip(start).chain([&next]).map(|entry| format!("`{}`", entry.name)).collect();
            return next.wrong("after", &format!("they wait for each other: {}", names.join(" for ")));
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
            r#"[workers]
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
    const WRONG: &[(usize, &str, &str)] = &[
        (1, "unclosed table", "[workers.web\ncommand = 1"),
        (0, "there are no workers", ""),
        (1, "no key `worker`", "[worker.web]\ncommand = ['x']"),
        (1, "`workers` is no table", "workers = 1"),
        (1, "worker `web` is no table", "workers.web = 1"),
        (2, "worker `web`, `comand`: unknown field `comand`", "[workers.web]\ncomand = ['x']"),
        (1, "worker `web`: missing field `command`", "[workers.web]\n"),
        (2, "worker `web`, `command`: it names no program", "[workers.web]\ncommand = []"),
        (2, "worker `web`, `command`: invalid type: string", "[workers.web]\ncommand = 'x'"),
        (3, "worker `web`, `restart`: \"some\" is none of", "[workers.web]\ncommand = ['x']\nrestart = 'some'"),
        (
            4,
            "worker `web`, `restart`: unknown field `frist`",
            "[workers.web]\ncommand = ['x']\n[workers.web.restart]\nfrist = '1s'",
        ),
        (
            3,
            "worker `web`, `restart`: `intensity` and `backoff` do not fit",
            "[workers.web]\ncommand = ['x']\nrestart = { when = 'always', first = '20s' }",
        ),
        (
            3,
            "worker `web`, `stop`: there is no signal \"TREM\"",
            "[workers.web]\ncommand = ['x']\nstop = [{ signal = 'TREM', wait = '1s' }]",
        ),
        (
            3,
            "worker `web`, `stop`: \"1\" is no time",
            "[workers.web]\ncommand = ['x']\nstop = [{ signal = 'TERM', wait = '1' }]",
        ),
        (3, "worker `web`, `ready`: it needs one of", "[workers.web]\ncommand = ['x']\nready = { within = '1s' }"),
        (3, "worker `web`, `ready`: \"(\" is not a regular", "[workers.web]\ncommand = ['x']\nready = { line = '(' }"),
        (
            4,
            "worker `web`, `ready`: a `line` is seen",
            "[workers.web]\ncommand = ['x']\noutput = 'null'\nready = { line = 'x' }",
        ),
        (3, "worker `web`, `limits`: invalid type", "[workers.web]\ncommand = ['x']\nlimits = { nice = 'very' }"),
        (
            3,
            "worker `web`, `limits`: `time_limit` and `ready` do not fit",
            "[workers.web]\ncommand = ['x']\nlimits = { run_time = '1s' }\nready = { notify = true }",
        ),
        (3, "worker `web`, `output`: \"file\" is none of", "[workers.web]\ncommand = ['x']\noutput = 'file'"),
        (3, "worker `web`, `env`: \"A=B\" cannot be the name", "[workers.web]\ncommand = ['x']\nenv = { 'A=B' = '1' }"),
        (3, "worker `web`, `after`: there is no worker `db`", "[workers.web]\ncommand = ['x']\nafter = ['db']"),
        (
            3,
            "worker `web`, `after`: they wait for each other: `web` for `web`",
            "[workers.web]\ncommand = ['x']\nafter = ['web']",
        ),
        (
            3,
            "`a` for `b` for `a`",
            "[workers]\nc = { command = ['x'], after = ['a'] }\na = { command = ['x'], after = ['b'] }\nb = { command = ['x'], after = ['a'] }",
        ),
        (
            2,
            "`db` is always restarted",
            "[workers]\nweb = { command = ['x'], after = { db = 'exited' } }\ndb = { command = ['x'], restart = 'always' }",
        ),
        (1, "\"a\\nb\" is no name", "[workers.\"a\\nb\"]\ncommand = ['x']"),
    ];

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for &(line_number, expected, text) in WRONG {
            let wrong = Plan::parse(text).unwrap_err();
            assert!(wrong.what.contains(expected) && !wrong.what.contains('\n'), "{text}: {wrong:?}");
            assert_eq!(wrong.at.map_or(0, |at| line(text, at)), line_number, "{text}: {wrong:?}");
        }
    }
}
