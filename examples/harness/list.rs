//! The tests of all programs.

use super::{
    output::KeptOutput,
    program::{ProgramKind, Test, TestProgram},
};
use pipewright::{
    Event, EventKind, Exit, Supervisor, WorkerId,
    events::OutputStream::{Stderr, Stdout},
    pool::Jobs,
    printable,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// The time that a program has to list its tests.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a program's unexpected output an error shows, in characters.
const EXCERPT_MAX: usize = 500;

/// A program that lists its tests, or those with `#[ignore]`.
struct Listing {
    program: usize,
    only_ignored: bool,
    stdout: Vec<u8>,
    stderr: KeptOutput,
}

/// What a program has listed.
#[derive(Default)]
struct Names {
    all: Vec<String>,
    ignored: BTreeSet<String>,
}

/// Returns the tests in the order of the programs, and of each program's list.
pub(crate) fn tests(supervisor: &Supervisor, jobs: &Jobs, programs: &[Arc<TestProgram>]) -> Result<Vec<Test>, String> {
    let mut listings = HashMap::new();
    for (number, program) in programs.iter().enumerate().filter(|(_, program)| program.kind == ProgramKind::Libtest) {
        for only_ignored in [false, true] {
            let ignored = if only_ignored { &["--ignored"][..] } else { &[] };
            let spec = program.spec().args(["--list", "--format", "terse"]).args(ignored).runtime_max(LIST_TIMEOUT);
            let job = jobs.submit(spec).map_err(|error| failed(program, &error.to_string()))?;
            let listing = Listing { program: number, only_ignored, stdout: Vec::new(), stderr: KeptOutput::default() };
            listings.insert(job.id(), listing);
        }
    }
    let mut names: Vec<Names> = programs.iter().map(|_| Names::default()).collect();
    while !listings.is_empty() {
        let event = supervisor.events().recv().map_err(|_| "the supervisor has ended")?;
        let Some((listing, list)) = handle(&mut listings, programs, event)? else { continue };
        if let Some(names) = names.get_mut(listing.program) {
            if listing.only_ignored {
                names.ignored = list.into_iter().collect();
            } else {
                names.all = list;
            }
        }
    }
    Ok(programs.iter().zip(names).flat_map(|(program, names)| tests_of(program, names)).collect())
}

/// Returns what a program has listed, when it has ended.
fn handle(
    listings: &mut HashMap<WorkerId, Listing>,
    programs: &[Arc<TestProgram>],
    event: Event,
) -> Result<Option<(Listing, Vec<String>)>, String> {
    let Some(listing) = listings.get_mut(&event.worker) else { return Ok(None) };
    let error = |why: &str| match programs.get(listing.program) {
        Some(program) => failed(program, why),
        None => why.to_owned(),
    };
    match event.kind {
        EventKind::Output { stream: Stdout, bytes } => listing.stdout.extend(bytes.as_bytes()),
        EventKind::Output { stream: Stderr, bytes } => listing.stderr.push(bytes.as_bytes()),
        EventKind::Exited { exit, .. } => {
            let list = finish(&exit, listing).map_err(|why| error(&why))?;
            return Ok(listings.remove(&event.worker).map(|listing| (listing, list)));
        }
        EventKind::SpawnFailed { error: why, next } if next.is_final() => return Err(error(&why.to_string())),
        EventKind::NotStarted { .. } => return Err(error("not started")),
        _ => {}
    }
    Ok(None)
}

fn failed(program: &TestProgram, why: &str) -> String {
    format!("{}: failed to list tests: {why}", program.id)
}

fn finish(exit: &Exit, listing: &Listing) -> Result<Vec<String>, String> {
    if !exit.success() {
        return Err(format!("{exit}{}", excerpt(&listing.stderr.text())));
    }
    parse_list(&listing.stdout)
}

fn tests_of(program: &Arc<TestProgram>, names: Names) -> Vec<Test> {
    let test = |name, is_ignored| Test { program: Arc::clone(program), name, is_ignored };
    match program.kind {
        ProgramKind::Tap => {
            let name = program.path.file_name().unwrap_or_default().display().to_string();
            vec![test(name, false)]
        }
        ProgramKind::Libtest => {
            let Names { all, ignored } = names;
            all.into_iter()
                .map(|name| (ignored.contains(&name), name))
                .map(|(is_ignored, name)| test(name, is_ignored))
                .collect()
        }
    }
}

/// The beginning of a text on lines of its own.
fn excerpt(text: &str) -> String {
    let text: String = text.trim_end().chars().take(EXCERPT_MAX).collect();
    if text.is_empty() { String::new() } else { format!("\n{}", printable(&text).lines()) }
}

/// The names of tests and benchmarks in a terse list.
fn parse_list(output: &[u8]) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for line in String::from_utf8_lossy(output).lines() {
        let Some(name) = line.strip_suffix(": test").or_else(|| line.strip_suffix(": benchmark")) else {
            return Err(format!("a line that is not `NAME: test`:{}", excerpt(line)));
        };
        if !seen.insert(name.to_owned()) {
            return Err(format!("two tests are called {}", printable(name)));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_list_is_parsed() {
        assert_eq!(parse_list(b"a::b: test\nc: benchmark\nd: e: test\n").unwrap(), ["a::b", "c", "d: e"]);
        assert!(parse_list(b"").unwrap().is_empty());
        assert_eq!(parse_list(b"hello\x1b\n").unwrap_err(), "a line that is not `NAME: test`:\nhello\\u{1b}");
        assert_eq!(parse_list(b"a: test\na: test\n").unwrap_err(), "two tests are called a");
    }
}
