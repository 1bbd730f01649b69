//! What is reported to `tracing`. A process has one global subscriber, so each test runs in a process of its own.

use crate::support::{DEADLINE, FIXTURE, Story, alone, guarded, open_descriptors};
use pipewright::{
    Backoff, CallError, DependencyCondition, EventKind, OutputMode, Pass, Restart, RestartIntensity, RestartPolicy,
    StdinMode, StopPolicy, StopStep, Strategy, Worker, WorkerSpec, events::AfterExit,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Debug,
    fs,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::set_global_default,
};

/// Must not appear in any field.
const SECRET: &str = "hush";
/// The secret as parameters of a call.
const SECRETS: &[&str] = &[SECRET];

/// A span or an event as reported.
#[derive(Debug, Clone)]
struct Note {
    level: Level,
    /// The span of an event.
    within: Option<usize>,
    fields: Fields,
}

#[derive(Debug, Clone, Default)]
struct Fields(BTreeMap<&'static str, Value>);

/// Records the library's spans and events down to a level, and calls `then` at each event of the loop.
struct Recorder {
    finest: Level,
    spans: Mutex<Vec<Note>>,
    /// Number of handles per span.
    handles: Mutex<Vec<i32>>,
    events: Mutex<Vec<Note>>,
    then: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.0.insert(field.name(), value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}").into());
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "pipewright" && *metadata.level() <= self.finest
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        assert_eq!(attributes.metadata().name(), "worker");
        let mut note = Note { level: *attributes.metadata().level(), within: None, fields: Fields::default() };
        attributes.record(&mut note.fields);
        let mut spans = self.spans.lock().unwrap();
        spans.push(note);
        self.handles.lock().unwrap().push(1);
        Id::from_u64(spans.len() as u64)
    }

    fn event(&self, event: &Event<'_>) {
        let within = event.parent().map(index);
        let mut note = Note { level: *event.metadata().level(), within, fields: Fields::default() };
        event.record(&mut note.fields);
        self.events.lock().unwrap().push(note);
        if let (Some(then), Some(_)) = (self.then.get(), within) {
            then();
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.handles.lock().unwrap()[index(id)] += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut handles = self.handles.lock().unwrap();
        handles[index(&id)] -= 1;
        handles[index(&id)] == 0
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn index(id: &Id) -> usize {
    usize::try_from(id.into_u64() - 1).unwrap()
}

impl Recorder {
    fn install(finest: Level) -> Arc<Self> {
        let (spans, handles, events, then) = Default::default();
        let recorder = Arc::new(Self { finest, spans, handles, events, then });
        set_global_default(Arc::clone(&recorder)).unwrap();
        recorder
    }

    fn spans(&self) -> Vec<Fields> {
        self.spans.lock().unwrap().iter().map(|span| span.fields.clone()).collect()
    }

    fn events(&self, pick: impl Fn(&Note) -> bool) -> Vec<Note> {
        self.events.lock().unwrap().iter().filter(|event| pick(event)).cloned().collect()
    }

    /// Incarnation, level and message of each event above `TRACE`.
    fn outline(&self) -> Vec<String> {
        let spans = self.spans();
        let events = self.events(|event| event.level < Level::TRACE);
        let line = |event: &Note| {
            let incarnation = event.within.map_or(&Value::Null, |span| spans[span].of("incarnation"));
            format!("{incarnation} {} {}", event.level, event.fields.text())
        };
        events.iter().map(line).collect()
    }

    #[track_caller]
    fn the(&self, text: &str) -> Note {
        let found = self.events(|event| event.fields.text() == text);
        assert!(found.len() == 1, "one {text:?} in {:#?}", self.outline());
        found[0].clone()
    }

    /// Asserts that no field contains the secret and no span is open.
    fn check(&self) {
        let (spans, events) = (self.spans.lock().unwrap(), self.events.lock().unwrap());
        for note in spans.iter().chain(events.iter()) {
            assert!(!format!("{note:?}").contains(SECRET), "{note:?}");
        }
        assert!(!spans.is_empty() && self.handles.lock().unwrap().iter().all(|handles| *handles == 0), "{spans:#?}");
    }
}

impl Fields {
    fn of(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Null)
    }

    fn text(&self) -> &str {
        self.of("message").as_str().unwrap()
    }
}

/// Fails at once, three times, after writing its secret to all its streams.
fn crasher() -> WorkerSpec {
    let policy = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(Duration::from_millis(1)))
        .intensity(RestartIntensity::new(2, DEADLINE));
    let script = r#"echo '{"password":"hush"}'; echo '{hush'; echo hush >&2; exit 9"#;
    let spec = WorkerSpec::new("sh").args(["-c", script]).name("crasher").env("PASSWORD", SECRET);
    spec.messages_on_stdout().validate_json().stderr(OutputMode::Lines).restart(policy)
}

#[test]
fn each_incarnation_is_a_span_with_its_events() {
    if !alone("trace::each_incarnation_is_a_span_with_its_events", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::TRACE);
    let mut story = Story::new();
    story.supervisor.spawn(crasher()).unwrap();
    let events = story.rest();
    drop(story);
    let pids = events.iter().filter_map(|event| match event.kind {
        EventKind::Started { pid } => Some(pid),
        _ => None,
    });
    let spans: Vec<Value> = recorder.spans().iter().map(|span| json!(span.0)).collect();
    let expected = pids.zip(1..).map(|(pid, n)| json!({"id": 1, "name": "crasher", "incarnation": n, "pid": pid}));
    assert_eq!(spans, expected.collect::<Vec<_>>());
    let life = ["INFO started", "WARN invalid frame", "WARN exited", "INFO restarting"];
    let lives = (1..=3).flat_map(|n| life.map(|line| format!("{n} {line}"))).take(11);
    assert_eq!(recorder.outline(), lives.chain(["3 ERROR gave up".into()]).collect::<Vec<_>>());
    recorder.check();

    let first = |text: &str| recorder.events(|event| event.fields.text() == text)[0].fields.clone();
    let exited = first("exited");
    assert_eq!(exited.of("code"), &json!(9), "not a number");
    assert!(exited.of("duration_ms").is_u64() && exited.of("signal").is_null(), "{exited:?}");
    assert_eq!(first("restarting").of("after_ms"), &json!(1));
    assert_eq!(first("gave up").of("reason"), "IntensityExceeded");
    assert_eq!(
        (first("invalid frame").of("kind"), first("invalid frame").of("bytes")),
        (&json!("NotJson { offset: 1 }"), &json!(5))
    );
    let (message, line) = (first("message"), first("line"));
    assert_eq!((message.of("bytes"), line.of("bytes"), line.of("stream")), (&json!(19), &json!(4), &json!("Stderr")));
    let said = recorder.events(|event| event.level == Level::TRACE);
    assert_eq!(said.len(), 6, "{said:#?}");
}

#[test]
fn unrequested_exit_is_a_warning() {
    if !alone("trace::unrequested_exit_is_a_warning", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], DEADLINE);
    let spec = WorkerSpec::new("cat").stdin(StdinMode::Pipe).stop(stop);
    let asked = story.supervisor.spawn(spec.clone().name("asked")).unwrap();
    story.find(|event| matches!(event.kind, EventKind::Started { .. }).then_some(()));
    // Installed late: the span of the running worker is created now.
    let recorder = Recorder::install(Level::TRACE);
    asked.stop();
    story.exit();
    let surprised = story.supervisor.spawn(spec.name("surprised")).unwrap();
    surprised.signal(libc::SIGTERM).unwrap();
    story.exit();
    drop(story);
    assert_eq!(recorder.outline(), ["1 DEBUG stop stage", "1 INFO exited", "1 INFO started", "1 WARN exited"]);
    let spans = recorder.spans();
    assert_eq!([spans[0].of("name"), spans[1].of("name")], ["asked", "surprised"]);
    assert_eq!(spans[0].of("pid"), asked.pid().unwrap());
    let stage = recorder.the("stop stage").fields;
    assert_eq!((stage.of("stage"), stage.of("steps")), (&json!(0), &json!("[Signal(15)]")));
    recorder.check();
}

#[test]
fn span_closes_with_its_process() {
    if !alone("trace::span_closes_with_its_process", |spec| spec) {
        return;
    }
    let mut story = Story::of(guarded());
    let recorder = Recorder::install(Level::TRACE);
    let before = open_descriptors();
    let policy = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(DEADLINE))
        .intensity(RestartIntensity::new(1, 9 * DEADLINE));
    let spec = WorkerSpec::new("cat").stdin(StdinMode::Pipe).restart(policy);
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.signal(libc::SIGTERM).unwrap();
    story.exit();
    // Once the loop answers, it has reported the earlier events.
    story.supervisor.status();
    assert_eq!(*recorder.handles.lock().unwrap(), [0], "the span is still open during the backoff");
    worker.stop().wait(DEADLINE);
    drop(worker);
    story.supervisor.status();
    assert_eq!(open_descriptors(), before, "a pipe of the worker is still open");
    recorder.check();
}

#[test]
fn failed_spawn_has_the_reason() {
    if !alone("trace::failed_spawn_has_the_reason", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::TRACE);
    let mut story = Story::new();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    fs::copy("/bin/cat", &program).unwrap();
    let spec = WorkerSpec::new(&program).name("gone").stdin(StdinMode::Pipe).restart(Restart::Always);
    let worker = story.supervisor.spawn(spec).unwrap();
    // The first incarnation exits at the end of its input; by then its program is gone.
    fs::remove_file(&program).unwrap();
    drop(worker.take_stdin());
    story.rest();
    drop(story);
    let outline = recorder.outline();
    assert_eq!(outline[outline.len() - 2..], ["2 WARN spawn failed", "2 ERROR gave up"]);
    let spawn_failed = recorder.the("spawn failed");
    let error = spawn_failed.fields.of("error").as_str().unwrap().to_owned();
    assert!(error.contains("failed to start") && error.contains(program.to_str().unwrap()), "{error}");
    let span = &recorder.spans()[spawn_failed.within.unwrap()];
    assert_eq!(
        json!(span.0),
        json!({"id": 1, "name": "gone", "incarnation": 2}),
        "a span without a process has no pid"
    );
    recorder.check();
}

#[test]
fn survivors_and_leaks_are_a_warning() {
    if !alone("trace::survivors_and_leaks_are_a_warning", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::WARN);
    let mut story = Story::new();
    let spec = WorkerSpec::new("sh").args(["-c", "sleep 1000 & exit 0"]).name("forgetful").stderr(OutputMode::Lines);
    story.supervisor.spawn(spec).unwrap();
    story.rest();
    drop(story);
    assert_eq!(recorder.outline(), ["1 WARN left something behind"], "the exit itself was a success");
    let left = recorder.the("left something behind");
    assert_eq!((left.fields.of("leaks"), left.fields.of("survivors")), (&json!(1), &json!(1)));
    assert_eq!(recorder.spans()[0].of("name"), "forgetful", "the span exists for subscribers of warnings only");
    recorder.check();
}

#[test]
fn member_that_is_not_started_has_its_name() {
    if !alone("trace::member_that_is_not_started_has_its_name", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::INFO);
    let mut story = Story::new();
    let group = story.supervisor.group(Strategy::OneForOne).unwrap();
    let stop = StopPolicy::kill();
    group.add(WorkerSpec::new("cat").name("database").stdin(StdinMode::Pipe).stop(stop)).unwrap();
    let migration = group.add(WorkerSpec::new("false").name("migration")).unwrap();
    group.add(WorkerSpec::new("true").name("web").depends_on(&migration, DependencyCondition::Completed)).unwrap();
    story.find(|event| matches!(event.kind, EventKind::DependencyFailed { .. }).then_some(()));
    let failed = recorder.the("dependency failed");
    let span = &recorder.spans()[failed.within.unwrap()];
    assert_eq!(json!(span.0), json!({"id": 4, "name": "web", "incarnation": 0}));
    assert_eq!(failed.fields.of("on"), &json!(3), "{:#?}", story.told);
    group.stop();
    story.find(|event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(()));
    drop(story);
    let killed = recorder.events(|event| event.fields.of("signal") == 9);
    assert_eq!(killed.iter().map(|event| event.level).collect::<Vec<_>>(), [Level::INFO], "the stop was requested");
    assert_eq!(recorder.the("group ended").fields.of("group"), &json!(1));
    recorder.check();
}

#[test]
fn completed_call_is_an_event() {
    if !alone("trace::completed_call_is_an_event", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::TRACE);
    let story = Story::new();
    let worker = story.supervisor.spawn(WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}")));
    let worker = worker.unwrap();
    let told: Value = worker.call("echo", SECRETS, DEADLINE).unwrap();
    assert_eq!(told, json!(SECRETS));
    assert!(matches!(worker.call::<_, Value>("fail", SECRETS, DEADLINE), Err(CallError::Rpc(_))));
    assert!(matches!(worker.call::<_, u8>("echo", SECRETS, DEADLINE), Err(CallError::InvalidResult(_))));
    let started = worker.start_call("echo", SECRETS).unwrap();
    assert_eq!(started.wait::<Value>(DEADLINE).unwrap(), json!(SECRETS));
    drop(worker.start_call("until cancelled", SECRETS).unwrap());
    drop(worker.call::<_, Value>("until cancelled", SECRETS, Duration::ZERO).unwrap_err());
    drop(story);
    drop(worker.call::<_, Value>("echo", SECRETS, DEADLINE).unwrap_err());
    let calls = recorder.events(|event| event.fields.text() == "call");
    let ends = calls.iter().map(|call| [call.fields.of("method").clone(), call.fields.of("outcome").clone()]);
    assert_eq!(
        json!(ends.collect::<Vec<_>>()),
        json!([
            ["echo", "answered"],
            ["fail", "refused"],
            ["echo", "not understood"],
            ["echo", "answered"],
            ["until cancelled", "cancelled"],
            ["until cancelled", "timed out"],
            ["echo", "worker gone"],
        ])
    );
    for call in &calls {
        assert_eq!((call.level, call.fields.of("worker")), (Level::DEBUG, &json!(1)));
        assert!(call.fields.of("took_us").is_u64(), "{call:?}");
    }
    recorder.check();
}

#[test]
fn subscriber_may_use_worker_handles() {
    if !alone("trace::subscriber_may_use_worker_handles", |spec| spec) {
        return;
    }
    let recorder = Recorder::install(Level::TRACE);
    let mut story = Story::new();
    let spec = WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap();
    let used = worker.clone();
    assert!(recorder.then.set(Box::new(move || use_all(&used))).is_ok());
    // All of these return: the subscriber holds no lock.
    assert!(worker.restart().wait(DEADLINE).is_ok(), "{:#?}", recorder.outline());
    assert_eq!(worker.call::<_, i64>("add", &[3, 4], DEADLINE).unwrap(), 7);
    worker.stop();
    story.rest();
    drop(story);
    let outline = recorder.outline();
    assert!(outline.contains(&"2 INFO started".into()) && outline.contains(&"2 INFO exited".into()), "{outline:#?}");
    recorder.check();
}

/// Calls everything that does not block.
fn use_all(worker: &Worker) {
    drop((worker.pid().unwrap(), worker.containment(), worker.incarnation(), worker.take_stdin(), worker.signal(0)));
    drop((worker.notify("told", &()), worker.wait_timeout(Duration::ZERO), worker.wait_ready(Duration::ZERO)));
    drop(worker.start_call("add", &[1]));
}

#[test]
fn works_without_a_subscriber() {
    let mut story = Story::new();
    story.supervisor.spawn(crasher()).unwrap();
    let events = story.rest();
    assert!(
        matches!(events.last().map(|event| &event.kind), Some(EventKind::Exited { next: AfterExit::GaveUp(_), .. })),
        "{events:#?}"
    );
}

/// Panics in every method, also while it is panicking; counts the panics.
struct PanickingSubscriber(Mutex<u32>);

impl PanickingSubscriber {
    fn count_and_panic(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        panic!("on purpose");
    }

    fn count(&self) -> u32 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for PanickingSubscriber {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        // Every second span is created, so that spans are cloned and closed.
        if self.count().is_multiple_of(2) {
            self.count_and_panic();
        }
        attributes.record(&mut Fields::default());
        Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        self.count_and_panic();
    }

    fn clone_span(&self, id: &Id) -> Id {
        id.clone()
    }

    fn try_close(&self, _: Id) -> bool {
        self.count_and_panic();
        true
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn panicking_subscriber_harms_no_worker() {
    if !alone("trace::panicking_subscriber_harms_no_worker", |spec| spec) {
        return;
    }
    let panicking = Arc::new(PanickingSubscriber(Mutex::default()));
    set_global_default(Arc::clone(&panicking)).unwrap();
    let mut story = Story::new();
    let spec = WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}")).restart(Restart::Always);
    let worker = story.supervisor.spawn(spec).unwrap();
    story.supervisor.spawn(crasher()).unwrap();
    assert_eq!(worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap(), 3);
    drop(worker.start_call("until cancelled", &()).unwrap());
    assert!(worker.restart().wait(DEADLINE).is_ok(), "{:#?}", story.told);
    story.find(|event| matches!(event.kind, EventKind::Exited { next: AfterExit::GaveUp(_), .. }).then_some(()));
    assert_eq!(worker.call::<_, i64>("add", &[3, 4], DEADLINE).unwrap(), 7);
    assert_eq!(story.supervisor.status().workers.len(), 1);
    let before = panicking.count();
    assert!(worker.stop().wait(DEADLINE).unfinished().next().is_none());
    let told = story.rest();
    let ends =
        told.iter().filter(|event| event.worker == worker.id() && matches!(event.kind, EventKind::Exited { .. }));
    assert!(ends.count() > 0, "{told:#?}");
    assert!(before > 10 && panicking.count() > before, "no events after the stop: {before}, {}", panicking.count());
}
