//! Jobservers: tokens shared with `make` and other programs.

use crate::{
    guard::guard_of,
    kernel,
    support::{Chance, DEADLINE, FIXTURE, Story, Way, alone, becomes_true, both_ways, children, switches, wait_gone},
};
use pipewright::{
    Backoff, EventKind, OutputMode, Pass, Process, Restart, RestartPolicy, StdinMode, Supervisor, WorkerId, WorkerSpec,
    jobserver::{JobserverClient, JobserverError},
    pipe::anonymous::{PipeReader, PipeWriter},
    pool::{JobOutcome, JobSpec, Jobs},
};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    time::Duration,
};
use tempfile::TempDir;

/// How a jobserver is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Pipe,
    Fifo,
}

const STYLES: [Style; 2] = [Style::Pipe, Style::Fifo];

/// A jobserver as `make` has it: descriptors whose reads and writes block.
struct Make {
    reader: File,
    writer: File,
    style: Style,
    directory: TempDir,
}

impl Make {
    fn new(style: Style, tokens: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (reader, mut writer) = match style {
            Style::Pipe => {
                let (reader, writer) = io::pipe().unwrap();
                (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
            }
            Style::Fifo => {
                let path = directory.path().join("fifo");
                assert_eq!(kernel::make_fifo(&path), 0);
                let both = File::options().read(true).write(true).open(path).unwrap();
                (both.try_clone().unwrap(), both)
            }
        };
        writer.write_all(tokens).unwrap();
        Self { reader, writer, style, directory }
    }

    fn flags(&self) -> String {
        match self.style {
            Style::Pipe => " -j3 --jobserver-auth=3,4".to_owned(),
            Style::Fifo => format!(" -j3 --jobserver-auth=fifo:{}", self.directory.path().join("fifo").display()),
        }
    }

    /// What a recipe with `+` gets.
    fn pass(&self, spec: WorkerSpec) -> WorkerSpec {
        let spec = spec.env("MAKEFLAGS", self.flags()).env_remove("MFLAGS").env_remove("CARGO_MAKEFLAGS");
        match self.style {
            Style::Pipe => spec
                .inherit_fd(self.reader.try_clone().unwrap(), Pass::fd(3))
                .inherit_fd(self.writer.try_clone().unwrap(), Pass::fd(4)),
            Style::Fifo => spec,
        }
    }

    /// The number of free tokens.
    fn free(&self) -> usize {
        kernel::unread(self.reader.as_fd())
    }

    /// Takes the free tokens.
    fn take_all(&mut self) -> Vec<u8> {
        let mut tokens = vec![0; self.free()];
        self.reader.read_exact(&mut tokens).unwrap();
        tokens.sort_unstable();
        tokens
    }

    fn client(&self, options: &[&str]) -> Client {
        Client::start(self.pass(WorkerSpec::new(FIXTURE).arg("jobserver-client").args(options)))
    }
}

/// A program that takes and returns tokens on command.
pub(crate) struct Client {
    pub(crate) process: Process,
    input: PipeWriter,
    output: BufReader<PipeReader>,
}

impl Client {
    pub(crate) fn start(spec: WorkerSpec) -> Self {
        let mut process = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
        let (input, output) = (process.take_stdin().unwrap(), process.take_stdout().unwrap());
        let mut client = Self { process, input, output: BufReader::new(output) };
        assert_eq!(client.line(), "jobserver");
        client
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn tell(&mut self, word: &str) {
        self.input.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    pub(crate) fn ask(&mut self, word: &str) -> String {
        self.tell(word);
        self.line()
    }

    pub(crate) fn end(mut self) {
        drop(self.input);
        let exit = self.process.wait_timeout(DEADLINE).unwrap().expect("it ends");
        assert!(exit.success(), "{exit}");
    }
}

#[test]
fn jobserver_client_takes_tokens_and_returns_them_unchanged() {
    for style in STYLES {
        let mut make = Make::new(style, b"ab");
        let mut client = make.client(&[]);
        let answers = ["try", "acquire", "try", "try", "release", "try", "release"].map(|word| client.ask(word));
        assert_eq!(answers, ["implicit", "token", "token", "none", "returned", "token", "returned"], "{style:?}");
        assert_eq!(make.free(), 1, "{style:?}");
        client.end();
        assert_eq!(make.take_all(), b"ab", "{style:?}");
        assert!(kernel::is_blocking(make.reader.as_fd()) && kernel::is_blocking(make.writer.as_fd()), "{style:?}");
    }
}

#[test]
fn jobserver_client_waits_for_a_token_that_others_race_for() {
    for style in STYLES {
        let mut make = Make::new(style, b"");
        let mut clients: Vec<Client> = (0..4).map(|_| make.client(&[])).collect();
        for client in &mut clients {
            assert_eq!(client.ask("acquire"), "implicit");
            client.tell("acquire");
            client.tell("release");
        }
        // All wake up for each of the tokens.
        make.writer.write_all(b"+").unwrap();
        for mut client in clients {
            assert_eq!([client.line(), client.line()], ["token", "returned"], "{style:?}");
            client.end();
        }
        assert_eq!(make.take_all(), b"+", "{style:?}");
    }
}

/// The text that a client prints instead of taking tokens.
fn refusal(prepare: impl FnOnce(WorkerSpec) -> WorkerSpec) -> String {
    let spec = WorkerSpec::new(FIXTURE).arg("jobserver-client").env_remove("MFLAGS").env_remove("CARGO_MAKEFLAGS");
    let process = prepare(spec).stdout(OutputMode::Lines).stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
    let output = process.wait_with_output(DEADLINE).unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap().trim_end().to_owned()
}

#[test]
fn p16_jobserver_that_cannot_be_used_says_why() {
    let flags = |flags: &'static str| refusal(|spec| spec.env("MAKEFLAGS", flags));
    assert_eq!(flags(" -j3"), "no jobserver");
    let prefix = "child-fixture jobserver-client: ";
    let advice =
        "begin the line of this command in the makefile with `+`, and let programs in between pass the descriptor on";
    for (given, expected) in [
        (" -j3 --jobserver-auth=3,4", format!("fd 3 of the jobserver in `MAKEFLAGS` is closed: {advice}")),
        (" -j3 --jobserver-auth=0,4", format!("fd 0 of the jobserver in `MAKEFLAGS` is a character device: {advice}")),
        (
            " -j3 --jobserver-auth=-2,-2",
            "jobserver in `MAKEFLAGS` is disabled for this command: begin its line in the makefile with `+`".to_owned(),
        ),
        (
            "--jobserver-auth=sem:4\u{1b}",
            r#"invalid jobserver in `MAKEFLAGS`: "--jobserver-auth=sem:4\\u{1b}" is neither `fifo:PATH` nor two fd numbers"#
                .to_owned(),
        ),
        (
            "--jobserver-auth=fifo:/nowhere/fifo",
            "failed to open the jobserver's FIFO /nowhere/fifo named in `MAKEFLAGS`: No such file or directory (os error 2)"
                .to_owned(),
        ),
        (
            "--jobserver-auth=fifo:/dev/null",
            "failed to open the jobserver's FIFO /dev/null named in `MAKEFLAGS`: it is a character device".to_owned(),
        ),
    ] {
        assert_eq!(flags(given), format!("{prefix}{expected}"), "{given:?}");
    }
    let make = Make::new(Style::Pipe, b"");
    let swapped = refusal(|spec| make.pass(spec).env("MAKEFLAGS", "--jobserver-auth=4,3"));
    assert_eq!(swapped, format!("{prefix}fd 4 of the jobserver in `MAKEFLAGS` is the other end of a pipe: {advice}"));
    // The first variable whose jobserver can be used.
    let stale = |spec: WorkerSpec| make.pass(spec).env("CARGO_MAKEFLAGS", "--jobserver-auth=8,9");
    assert_eq!(refusal(stale), "jobserver");
}

#[test]
fn p09_tokens_of_a_killed_host_are_returned_by_its_guard() {
    for style in STYLES {
        for guard in ["shell", "own"] {
            let mut make = Make::new(style, b"+++");
            let mut client = make.client(&["--guard", guard]);
            let answers = ["try", "spawn", "try", "try", "release", "try"].map(|word| client.ask(word));
            assert_eq!(answers, ["implicit", "spawned", "token", "token", "returned", "token"], "{style:?}, {guard}");
            assert_eq!(make.free(), 1);
            let below = children(client.process.pid());
            client.process.signal(libc::SIGKILL).unwrap();
            client.process.wait().unwrap();
            assert!(becomes_true(|| make.free() == 3), "{style:?}, {guard}: {} of 3 tokens", make.free());
            below.into_iter().for_each(wait_gone);
            assert_eq!(make.take_all(), b"+++", "{style:?}, {guard}");
        }
    }
}

/// A host is killed while its threads take and return tokens. Only the one that is just being returned may be lost.
#[test]
fn p09_host_killed_at_any_moment_loses_one_token_at_most_and_creates_none() {
    const TOKENS: usize = 3;
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    let mut lost = 0;
    for round in 0..40 {
        let make = Make::new(STYLES[round % 2], &[b'+'; TOKENS]);
        let mut client = make.client(&["--guard", if round % 4 < 2 { "own" } else { "shell" }]);
        assert_eq!(["spawn", "churn"].map(|word| client.ask(word)), ["spawned", "churning"]);
        let guard = guard_of(client.process.pid());
        // The moment is what matters: none is waited for.
        assert!(never.recv_timeout(Duration::from_micros(chance.below(3000))).is_err());
        client.process.signal(libc::SIGKILL).unwrap();
        client.process.wait().unwrap();
        wait_gone(guard);
        let free = make.free();
        assert!((TOKENS - 1..=TOKENS).contains(&free), "round {round}: {free} of {TOKENS} tokens");
        lost += TOKENS - free;
    }
    println!("{lost} of 40 hosts have lost a token");
}

/// The guard was started first. The next worker brings one that returns tokens.
#[test]
fn p09_tokens_of_a_host_that_opens_its_jobserver_late_are_returned() {
    for guard in ["shell", "own"] {
        let mut make = Make::new(Style::Pipe, b"++");
        let mut client = make.client(&["--late", "--guard", guard]);
        let old = guard_of(client.process.pid());
        assert_eq!(["try", "try", "spawn"].map(|word| client.ask(word)), ["implicit", "token", "spawned"]);
        wait_gone(old);
        let new = guard_of(client.process.pid());
        client.process.signal(libc::SIGKILL).unwrap();
        client.process.wait().unwrap();
        wait_gone(new);
        assert_eq!(make.take_all(), b"++", "{guard}");
    }
}

/// The guard that cleans up for a host that goes on must not create tokens.
#[test]
fn p09_tokens_of_a_host_without_its_supervisor_stay_with_it() {
    for guard in ["shell", "own"] {
        let mut make = Make::new(Style::Pipe, b"++");
        let mut client = make.client(&["--guard", guard]);
        assert_eq!(["try", "try", "spawn"].map(|word| client.ask(word)), ["implicit", "token", "spawned"]);
        let old = guard_of(client.process.pid());
        assert_eq!(client.ask("drop"), "dropped");
        wait_gone(old);
        assert_eq!(make.free(), 1, "{guard}: the token is still held");
        client.end();
        assert_eq!(make.take_all(), b"++", "{guard}");
    }
}

both_ways! {
    fn inherited_jobserver_is_the_workers_too(way: Way) {
        for style in STYLES {
            let name = format!(
                "jobserver::{}::inherited_jobserver_is_the_workers_too",
                if way == Way::Direct { "direct" } else { "command" }
            );
            let mut make = Make::new(style, b"ab");
            if !alone(&name, |spec| make.pass(spec).env("CARGO_MAKEFLAGS", "")) {
                assert_eq!(make.take_all(), b"ab", "{style:?}");
                continue;
            }
            let own = JobserverClient::from_env().unwrap().unwrap();
            let implicit = own.try_acquire().unwrap().expect("the implicit token");
            let token = own.try_acquire().unwrap().expect("a token");
            assert!(implicit.is_implicit() && !token.is_implicit());
            let spec = way.program(FIXTURE).arg("jobserver-client").inherit_jobserver();
            let mut worker = Client::start(spec.clone());
            assert_eq!(["try", "try", "try"].map(|word| worker.ask(word)), ["implicit", "token", "none"]);
            drop(token);
            assert_eq!(worker.ask("acquire"), "token");
            worker.end();
            // Another number, and what the environment says otherwise.
            let text = |spec: WorkerSpec| {
                let process = spec.stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
                String::from_utf8(process.wait_with_output(DEADLINE).unwrap().stdout).unwrap()
            };
            let echo = way.program("sh").args(["-c", "echo \"$MAKEFLAGS|$CARGO_MAKEFLAGS\""]);
            let said = text(echo.inherit_jobserver());
            assert!(said.starts_with(" -j3 --jobserver-auth=") && said.contains("|--jobserver-auth="), "{said}");
            return;
        }
    }
}

#[test]
fn jobserver_that_cannot_be_used_is_not_passed_on() {
    const NAME: &str = "jobserver::jobserver_that_cannot_be_used_is_not_passed_on";
    if !alone(NAME, |spec| spec.env("MAKEFLAGS", "--jobserver-auth=8,9").env_remove("CARGO_MAKEFLAGS")) {
        return;
    }
    let error = JobserverClient::from_env().unwrap_err();
    assert!(matches!(error, JobserverError::Closed { variable: "MAKEFLAGS", fd: 8 }), "{error:?}");
    let refused = WorkerSpec::new("true").inherit_jobserver().validate().unwrap_err();
    assert_eq!(refused.to_string(), error.to_string());
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
}

/// The crate takes tokens in the same process, from the same pipe.
#[test]
fn jobserver_crate_and_client_share_tokens() {
    for style in STYLES {
        let mut make = Make::new(style, b"+");
        if !alone("jobserver::jobserver_crate_and_client_share_tokens", |spec| make.pass(spec)) {
            assert_eq!(make.take_all(), b"+", "{style:?}");
            continue;
        }
        let theirs = kernel::client_of_crate();
        let ours = JobserverClient::from_env().unwrap().unwrap();
        let _implicit = ours.try_acquire().unwrap().expect("the implicit token");
        for _ in 0..100 {
            let token = theirs.acquire().unwrap();
            assert!(ours.try_acquire().unwrap().is_none());
            drop(token);
            let token = ours.try_acquire().unwrap().expect("what the crate has returned");
            assert!(theirs.try_acquire().unwrap().is_none());
            drop(token);
        }
        return;
    }
}

/// The worker of the next event for which `is_meant` is true.
#[track_caller]
pub(crate) fn next_of(story: &mut Story, is_meant: impl Fn(&EventKind) -> bool) -> WorkerId {
    story.find(|event| is_meant(&event.kind).then_some(event.worker))
}

#[test]
fn jobs_run_under_tokens_and_return_them_whatever_happens() {
    const NAME: &str = "jobserver::jobs_run_under_tokens_and_return_them_whatever_happens";
    for style in STYLES {
        let mut make = Make::new(style, b"a");
        if !alone(NAME, |spec| make.pass(spec)) {
            assert_eq!(make.take_all(), b"a", "{style:?}");
            continue;
        }
        let client = JobserverClient::from_env().unwrap().unwrap();
        let mut story = Story::new();
        let jobs = Jobs::new(&story.supervisor, 4).jobserver(&client);
        // Each takes a token for every attempt.
        let at_once = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::ZERO));
        let fails = |spec: WorkerSpec| jobs.submit(spec).unwrap().wait();
        assert!(matches!(fails(WorkerSpec::new("/nowhere/program")), JobOutcome::SpawnFailed { .. }));
        let retried = JobSpec::new(WorkerSpec::new("false").restart(at_once)).retries(5);
        assert!(matches!(jobs.submit(retried).unwrap().wait(), JobOutcome::Failed { .. }));
        while story.supervisor.events().try_recv().is_ok() {}
        let waiting = || WorkerSpec::new("cat").stdin(StdinMode::Pipe);
        let [first, second, third, last] = [(); 4].map(|()| jobs.submit(waiting()).unwrap());
        let started = [(); 2].map(|()| next_of(&mut story, |kind| matches!(kind, EventKind::Started { .. })));
        assert_eq!(started, [first.id(), second.id()]);
        assert!(client.try_acquire().unwrap().is_none(), "both are held");
        // One that has a slot and waits for a token.
        third.cancel();
        assert!(matches!(third.wait(), JobOutcome::NotStarted { .. }));
        assert_eq!(last.outcome().map(|outcome| outcome.to_string()), None);
        second.cancel();
        assert_eq!(next_of(&mut story, |kind| matches!(kind, EventKind::Started { .. })), last.id());
        // While it runs, it has the token.
        assert!(client.try_acquire().unwrap().is_none());
        drop(story);
        let tokens = [(); 3].map(|()| client.try_acquire().unwrap());
        assert_eq!(tokens.each_ref().map(Option::is_some), [true, true, false], "{style:?}");
        return;
    }
}

/// Another client returns the token for which the loop waits, and an idle wait costs nothing.
#[test]
fn p14_jobs_wait_for_tokens_of_others_without_using_the_processor() {
    const NAME: &str = "jobserver::p14_jobs_wait_for_tokens_of_others_without_using_the_processor";
    let mut make = Make::new(Style::Pipe, b"");
    if !alone(NAME, |spec| make.pass(spec).inherit_fd(make.writer.try_clone().unwrap(), Pass::fd(9))) {
        assert_eq!(make.take_all(), b"b");
        return;
    }
    let client = JobserverClient::from_env().unwrap().unwrap();
    let implicit = client.try_acquire().unwrap().unwrap();
    let supervisor = Supervisor::new().unwrap();
    let job = Jobs::new(&supervisor, 1).jobserver(&client).submit(WorkerSpec::new("true")).unwrap();
    let before = switches();
    assert!(job.wait_timeout(Duration::from_millis(300)).is_none());
    let woken = switches() - before;
    assert!(woken < 20, "{woken} context switches");
    File::options().write(true).open("/proc/self/fd/9").unwrap().write_all(b"b").unwrap();
    assert!(job.wait_timeout(DEADLINE).expect("it has a token").success());
    drop(implicit);
}

/// Counts how many of it run. The first three end when all three have begun.
pub(crate) const COMPILER: &str = r#"#!/bin/sh
mkdir "$COMPILERS/$$" || exit 1
count=0
for running in "$COMPILERS"/*; do
    kill -0 "${running##*/}" 2>/dev/null && count=$((count + 1))
done
echo $count >>"$COMPILERS.counts"
until [ "$(wc -l <"$COMPILERS.counts")" -ge 3 ]; do sleep 0.01; done
rmdir "$COMPILERS/$$"
"#;

/// A makefile's directory, and the compiler that its programs run.
pub(crate) fn project(makefile: &str, compiler: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("Makefile"), makefile).unwrap();
    fs::create_dir(path("running")).unwrap();
    File::options()
        .create_new(true)
        .write(true)
        .mode(0o755)
        .open(path("cc"))
        .unwrap()
        .write_all(compiler.as_bytes())
        .unwrap();
    directory
}

fn make_in(directory: &TempDir) -> WorkerSpec {
    let spec = WorkerSpec::new("make").args(["--no-print-directory", "-j3"]).current_dir(directory.path());
    let spec = spec.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL").env_remove("CARGO_MAKEFLAGS");
    spec.env("COMPILERS", directory.path().join("running")).env("FIXTURE", FIXTURE).stdout(OutputMode::Lines)
}

#[test]
#[ignore = "needs make"]
fn three_programs_below_make_run_three_compilers_at_once() {
    const MAKEFILE: &str = "all: one two inner\n\
        one:\n\t+$$FIXTURE jobserver-build --jobs 40 --program ./cc\n\
        two:\n\t+$$FIXTURE jobserver-build --jobs 20 --program ./cc\n\
        OBJECTS = $(addprefix object,1 2 3 4 5 6 7 8 9 10)\n\
        inner:\n\t+$(MAKE) objects\n\
        objects: $(OBJECTS)\n\
        $(OBJECTS):\n\t./cc\n";
    let directory = project(MAKEFILE, COMPILER);
    let process = make_in(&directory).stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
    let output = process.wait_with_output(DEADLINE).unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.exit.success() && stderr.is_empty(), "{}: {stdout}{stderr}", output.exit);
    let counts = fs::read_to_string(directory.path().join("running.counts")).unwrap();
    let counts: Vec<u32> = counts.lines().map(|count| count.parse().unwrap()).collect();
    assert_eq!(counts.len(), 70, "{counts:?}");
    assert_eq!(counts.iter().max(), Some(&3), "{counts:?}");
}

/// A compiler that ends when three of it have begun since one client was killed.
const MEETING: &str = r#"#!/bin/sh
echo begun >>"$COMPILERS/begun"
read -r end <"$COMPILERS/end"
"#;

#[test]
#[ignore = "needs make"]
fn killed_client_below_make_loses_no_token() {
    // Both run under a token of make; the third goes to one of them.
    const MAKEFILE: &str = "all: one two\n\
        one:\n\t-+echo $$$$ >one.pid; exec $$FIXTURE jobserver-build --jobs 9 --program ./cc\n\
        two:\n\t+read -r go <go; exec $$FIXTURE jobserver-build --jobs 3 --program ./cc\n";
    let directory = project(MAKEFILE, MEETING);
    let path = |name: &str| directory.path().join(name);
    assert_eq!([kernel::make_fifo(&path("go")), kernel::make_fifo(&path("running/end"))], [0; 2]);
    let begun = || fs::read_to_string(path("running/begun")).unwrap_or_default().lines().count();
    let mut process = make_in(&directory).stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
    // One holds its implicit token and the only free one.
    assert!(becomes_true(|| begun() == 2), "{} compilers", begun());
    let one: u32 = fs::read_to_string(path("one.pid")).unwrap().trim().parse().unwrap();
    let below = children(one);
    kernel::kill(one, libc::SIGKILL);
    below.into_iter().for_each(wait_gone);
    // The other one gets the token of one, and that of its recipe.
    fs::write(path("go"), "go\n").unwrap();
    assert!(becomes_true(|| begun() == 5), "{} compilers", begun());
    let end = File::options().read(true).write(true).open(path("running/end")).unwrap();
    (&end).write_all(b"1\n2\n3\n").unwrap();
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("it ends").clone();
    let stderr = String::from_utf8(crate::support::read_to_end(&process.take_stderr().unwrap())).unwrap();
    assert!(exit.success() && !stderr.contains("INTERNAL"), "{exit}: {stderr}");
}
