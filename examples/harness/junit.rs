//! The results as XML in the form of `JUnit`, as the schema of Jenkins' plugin `xunit` describes it.

use crate::{
    runner::TestResult,
    verdict::{Attempt, Verdict},
};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};
use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

pub(crate) fn write(path: &Path, results: &[TestResult], elapsed: Duration) -> io::Result<()> {
    let text = report(results, elapsed).map_err(io::Error::other)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}

fn report(results: &[TestResult], elapsed: Duration) -> Result<String, quick_junit::SerializeError> {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for result in results {
        let id = &*result.test.program.id;
        suites.entry(id).or_insert_with(|| TestSuite::new(id)).add_test_case(test_case(result));
    }
    let mut report = Report::new("harness");
    report.set_time(elapsed).add_test_suites(suites.into_values());
    // The schema has no number of skipped tests at the root, only in each suite. The root is the first element.
    let number = format!(" skipped=\"{}\"", report.skipped);
    Ok(report.to_string()?.replacen(&number, "", 1))
}

fn test_case(result: &TestResult) -> TestCase {
    let mut case = TestCase::new(&*result.test.name, status(result));
    case.set_classname(&*result.test.program.id);
    let Some(last) = result.last() else { return case };
    case.set_time(last.duration);
    // The first failure has its output here; later attempts have theirs in a rerun.
    let shown = if last.verdict.is_failure() { result.attempts.first().unwrap_or(last) } else { last };
    if let Some(output) = &shown.output {
        case.set_system_out(&**output);
    }
    if !last.leaks.is_empty() {
        case.set_system_err(last.leaks.join("\n"));
    }
    case
}

fn status(result: &TestResult) -> TestCaseStatus {
    let skipped = |why: &str| {
        let mut status = TestCaseStatus::skipped();
        status.set_message(why);
        status
    };
    let (Some(first), Some(last)) = (result.attempts.first(), result.last()) else { return skipped("not run") };
    let others = |attempts: &[Attempt]| attempts.iter().map(rerun).collect::<Vec<_>>();
    match last.verdict {
        Verdict::Interrupted => skipped("interrupted"),
        Verdict::Skipped => skipped(last.reason.as_deref().unwrap_or_default()),
        Verdict::Passed => {
            let mut status = TestCaseStatus::success();
            let earlier = result.attempts.split_last().map_or(&[][..], |(_, earlier)| earlier);
            status.add_reruns(others(earlier));
            status
        }
        _ => {
            let mut status = TestCaseStatus::non_success(kind(first));
            status.set_type(type_of(first)).set_message(message(first));
            status.add_reruns(others(result.attempts.get(1..).unwrap_or_default()));
            status
        }
    }
}

fn rerun(attempt: &Attempt) -> TestRerun {
    let mut rerun = TestRerun::new(kind(attempt));
    rerun.set_type(type_of(attempt)).set_message(message(attempt));
    if let Some(output) = &attempt.output {
        rerun.set_system_out(&**output);
    }
    rerun
}

fn kind(attempt: &Attempt) -> NonSuccessKind {
    if attempt.verdict == Verdict::NotStarted { NonSuccessKind::Error } else { NonSuccessKind::Failure }
}

fn type_of(attempt: &Attempt) -> &'static str {
    match attempt.verdict {
        Verdict::TimedOut => "test timeout",
        Verdict::LeakFailed => "test leak",
        Verdict::NotStarted => "execution failure",
        _ => "test failure",
    }
}

fn message(attempt: &Attempt) -> String {
    let leaks = || attempt.leaks.join("; ");
    let timeout = || format!("stopped after {:.3} s", attempt.duration.as_secs_f64());
    match attempt.verdict {
        Verdict::TimedOut => timeout(),
        Verdict::LeakFailed => leaks(),
        _ => attempt.reason.clone().unwrap_or_default(),
    }
}
