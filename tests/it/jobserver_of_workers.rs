//! The jobserver of workers.

use crate::{
    jobserver::{COMPILER, Client, next_of, project},
    support::{DEADLINE, FIXTURE, Story, Way, both_ways},
};
use pipewright::{
    Backoff, EventKind, OutputMode, Restart, RestartIntensity, RestartPolicy, SpecError, WorkerSpec,
    jobserver::JobserverServer,
};
use std::{fs, time::Duration};

both_ways! {
    fn workers_of_a_jobserver_share_its_tokens(way: Way) {
        let server = JobserverServer::new(2).unwrap();
        let spec = way.program(FIXTURE).arg("jobserver-client").env_remove("CARGO_MAKEFLAGS").jobserver(&server);
        let mut first = Client::start(spec.clone().env("A", "1"));
        assert_eq!(["try", "acquire", "acquire", "try"].map(|word| first.ask(word)), ["implicit", "token", "token", "none"]);
        let mut second = Client::start(spec.clone());
        assert_eq!(second.ask("try"), "implicit");
        second.tell("acquire");
        assert_eq!(first.ask("release"), "returned");
        assert_eq!(second.line(), "token");
        // The process ends with a token, and its server has it again.
        first.process.kill().unwrap();
        drop(first);
        assert_eq!(second.ask("acquire"), "token");
        assert_eq!(second.ask("try"), "none");
        second.end();
        let text = |spec: WorkerSpec| {
            let process = spec.stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
            String::from_utf8(process.wait_with_output(DEADLINE).unwrap().stdout).unwrap()
        };
        let echo = way.program("sh").args(["-c", "echo \"$MAKEFLAGS|$CARGO_MAKEFLAGS\""]).env("MAKEFLAGS", "k -j8");
        let said = text(echo.env_remove("CARGO_MAKEFLAGS").jobserver(&server));
        assert!(said.starts_with("k -j3 --jobserver-auth=") && said.contains("|-j3 --jobserver-auth="), "{said}");
        let error = way.program("true").jobserver(&server).jobserver(&server).validate().unwrap_err();
        assert!(matches!(error, SpecError::Conflict { settings: ["jobserver", "inherit_jobserver"], .. }), "{error}");
    }
}

/// Whatever its workers held when they were killed with their descendants, no token is lost or created.
#[test]
fn p09_tokens_of_killed_workers_are_there_again() {
    const TOKENS: usize = 3;
    let server = JobserverServer::new(TOKENS).unwrap();
    let mut story = Story::new();
    let hold = "for i in 1 2 3 4; do echo acquire; done | $FIXTURE jobserver-client & wait";
    let at_once = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(Duration::ZERO))
        .intensity(RestartIntensity::unlimited());
    let spec = WorkerSpec::new("sh").args(["-c", hold]).env("FIXTURE", FIXTURE).jobserver(&server);
    let spec = spec.env_remove("CARGO_MAKEFLAGS").stdout(OutputMode::Lines).restart(at_once);
    let workers = [(); 2].map(|()| story.supervisor.spawn(spec.clone()).unwrap());
    for _ in 0..30 {
        let worker = next_of(&mut story, |kind| matches!(kind, EventKind::Line { line, .. } if line.text() == "token"));
        // Fails if it has just ended.
        drop(workers.iter().find(|one| one.id() == worker).unwrap().kill());
    }
    drop(story);
    let spec = WorkerSpec::new(FIXTURE).arg("jobserver-client").env_remove("CARGO_MAKEFLAGS").jobserver(&server);
    let mut last = Client::start(spec);
    assert_eq!(last.ask("acquire"), "implicit");
    for token in 0..TOKENS {
        assert_eq!(last.ask("acquire"), "token", "{token}");
    }
    assert_eq!(last.ask("try"), "none");
    last.end();
}

#[test]
#[ignore = "needs make"]
fn two_makes_of_a_jobserver_run_three_compilers_at_once() {
    const MAKEFILE: &str = "OBJECTS = $(addprefix object,1 2 3 4 5 6 7 8 9 10)\n\
        all: $(OBJECTS)\n\
        $(OBJECTS):\n\t./cc\n";
    let directory = project(MAKEFILE, COMPILER);
    let server = JobserverServer::new(1).unwrap();
    let mut story = Story::new();
    for _ in 0..2 {
        let make = WorkerSpec::new("make").current_dir(directory.path()).jobserver(&server).stdout(OutputMode::Null);
        let make = make.env_remove("MFLAGS").env_remove("MAKELEVEL").env("COMPILERS", directory.path().join("running"));
        story.supervisor.spawn(make.stderr(OutputMode::Lines)).unwrap();
    }
    for _ in 0..2 {
        let exit = story.exit();
        assert!(exit.success() && exit.stderr_tail.is_empty(), "{exit}: {}", exit.stderr_text());
    }
    let counts = fs::read_to_string(directory.path().join("running.counts")).unwrap();
    let counts: Vec<u32> = counts.lines().map(|count| count.parse().unwrap()).collect();
    assert_eq!((counts.len(), counts.iter().max()), (20, Some(&3)), "{counts:?}");
}
