//! Who is at the other end, and acting as it. What needs another user needs root, and says so when it is skipped.

use std::{
    fs,
    io::{ErrorKind, Read},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{PermissionsExt, chown},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use pipewright::pipe::{
    Direction,
    named::{
        AcceptError, Access, ConnectError, ConnectOptions, ImpersonateError, ImpersonationLevel, Listener,
        ListenerOptions, PeerError, PipeName, Stream, connect, run_as_client,
    },
};

use crate::{kernel, support::FIXTURE};

use super::{PATIENCE, Pair, Place, Program, is_root, meet, shaking, text};

/// A user without a name, and a group that it only has as a supplementary one.
pub(super) const STRANGER: u32 = 65_500;
const CLUB: u32 = 65_501;

/// `true` where there is no other user to be had.
#[expect(clippy::print_stderr, reason = "who runs the tests should know")]
pub(super) fn skipped() -> bool {
    let skip = !is_root();
    if skip {
        eprintln!("skipped: to run a client as another user one must be root");
    }
    skip
}

/// Acting as somebody else shows in the whole process, and some of these tests look at that.
fn alone() -> MutexGuard<'static, ()> {
    static WHOLE_PROCESS: Mutex<()> = Mutex::new(());
    WHOLE_PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fixture, where another user can reach it.
fn reachable_fixture(directory: &Path) -> PathBuf {
    super::reachable(Path::new(env!("CARGO_BIN_EXE_child-fixture")), directory)
}

/// A client that runs as another user, with a supplementary group.
fn stranger(name: &PipeName, level: &str) -> Program {
    let path = name.path().unwrap();
    client_of([STRANGER, STRANGER, CLUB], path.parent().unwrap(), &[text(path), level])
}

/// A client with this user, group and supplementary group; its program is run from `directory`.
fn client_of([user, group, supplementary]: [u32; 3], directory: &Path, arguments: &[&str]) -> Program {
    let mut command = Command::new("setpriv");
    let ids = [format!("--reuid={user}"), format!("--regid={group}"), format!("--groups={supplementary}")];
    command.args(ids).arg(reachable_fixture(directory)).arg("named-client").args(arguments);
    Program::start(command.process_group(0))
}

fn accept_stranger(listener: &Listener, level: &str) -> (Stream, Program) {
    let client = stranger(listener.name(), level);
    let stream = listener.accept_timeout(PATIENCE).unwrap();
    (stream, client)
}

fn open_to_all(place: &Place) -> Listener {
    ListenerOptions::new().access(Access::Anyone).listen(&place.name("open")).unwrap()
}

#[test]
fn s97_same_user_is_admitted_with_any_access() {
    let place = Place::new();
    for server in [Access::CurrentUser, Access::Anyone] {
        for client in [Access::CurrentUser, Access::Anyone] {
            for (one, other) in [(Direction::In, Direction::Out), (Direction::InOut, Direction::InOut)] {
                let listener = ListenerOptions::new().access(server).direction(one).listen(&place.name("one")).unwrap();
                meet(&listener, &ConnectOptions::new().allowed_server(client).direction(other));
            }
        }
    }
}

#[test]
fn s97_many_servers_run_concurrently() {
    let place = Place::new();
    thread::scope(|scope| {
        for number in 0..20 {
            let place = &place;
            scope.spawn(move || {
                let listener = Listener::bind(&place.name(&format!("server-{number}"))).unwrap();
                meet(&listener, &ConnectOptions::new());
            });
        }
    });
}

#[test]
fn s98_other_users_are_rejected_and_accept_continues() {
    if skipped() {
        return;
    }
    let place = Place::new();
    // The file's mode keeps them out already; here somebody has opened it.
    let listener = Listener::bind(&place.name("ours")).unwrap();
    let mut kept_out = stranger(listener.name(), "plain");
    assert!(kept_out.line().contains("denied"));
    fs::set_permissions(place.path("ours"), fs::Permissions::from_mode(0o666)).unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept_timeout(PATIENCE));
        let mut refused = stranger(listener.name(), "plain");
        assert!(refused.line().starts_with("connected"), "it stands in the backlog");
        assert_eq!(refused.finish(), 0, "and then at the end of its stream");
        let _client = connect(listener.name(), PATIENCE).unwrap();
        assert_eq!(accepted.join().unwrap().unwrap().peer().unwrap().uid(), 0);
    });
    assert_eq!((listener.stats().accepted, listener.stats().refused), (1, 1));

    // With a handshake it is told why.
    let (listening, _) = shaking();
    let listener = listening.listen(&place.name("shaking")).unwrap();
    fs::set_permissions(place.path("shaking"), fs::Permissions::from_mode(0o666)).unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept_timeout(PATIENCE));
        let mut refused = stranger(listener.name(), "identification");
        assert!(refused.line().contains("denied"));
        listener.shutdown();
        assert!(matches!(accepting.join().unwrap(), Err(AcceptError::ShutDown)));
    });
    assert_eq!((listener.stats().accepted, listener.stats().refused), (0, 1));
}

#[test]
fn s98_other_users_are_rejected_on_abstract_name() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let name = format!("pipewright-test-{}", place.0.display());
    let listener = Listener::bind(&PipeName::abstract_name(&name).unwrap()).unwrap();
    let connect_as = |user, level| client_of([user, user, CLUB], &place.0, &[&format!("@{name}"), level]);
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept_timeout(PATIENCE));
        let mut refused = connect_as(STRANGER, "plain");
        assert!(refused.line().starts_with("connected"), "it stands in the backlog");
        assert_eq!(refused.finish(), 0, "and then at the end of its stream");
        let mut let_in = connect_as(0, "current-user");
        assert_eq!(accepting.join().unwrap().unwrap().peer().unwrap().pid(), Some(let_in.child.id()));
        assert!(let_in.line().starts_with("connected"));
    });
    assert_eq!((listener.stats().accepted, listener.stats().refused), (1, 1));
    // And the other way round: the name may have been taken by somebody else.
    assert!(connect_as(STRANGER, "current-user").line().contains("runs as untrusted user 0"));
}

#[test]
fn s98_client_rejects_server_of_other_user() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let listener = open_to_all(&place);
    let mut client = stranger(listener.name(), "current-user");
    assert!(client.line().contains("runs as untrusted user 0"));
    drop(listener);
    // Where neither side minds, they meet.
    let listener = open_to_all(&place);
    let (stream, mut client) = accept_stranger(&listener, "plain");
    assert!(client.line().starts_with("connected") && stream.is_connected());
    // And root the server of a user: a directory of the user's, and its server in there.
    fs::create_dir(place.path("theirs")).unwrap();
    chown(place.path("theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
    let mut command = Command::new(reachable_fixture(&place.0));
    let path = place.path("theirs/server");
    let mut server = Program::start(command.args(["named-serve", text(&path)]).uid(STRANGER).gid(STRANGER));
    assert_eq!(server.line(), "listening");
    let error = connect(&place.name("theirs/server"), PATIENCE).unwrap_err();
    assert!(matches!(error, ConnectError::WrongServer { uid: STRANGER, .. }), "{error}");
    ConnectOptions::new().allowed_server(Access::Anyone).connect(&place.name("theirs/server"), PATIENCE).unwrap();
}

#[test]
fn group_members_are_admitted() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let listener = ListenerOptions::new().access(Access::Group(CLUB)).listen(&place.name("club")).unwrap();
    let found = fs::metadata(place.path("club")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&found), CLUB);
    let (stream, mut client) = accept_stranger(&listener, "plain");
    assert_eq!(client.line(), format!("connected Groups:\t{CLUB}"));
    assert_eq!(stream.peer().unwrap().uid(), STRANGER);
    drop(listener);
    // Not in this group.
    let listener = ListenerOptions::new().access(Access::Group(1)).listen(&place.name("club")).unwrap();
    assert!(stranger(listener.name(), "plain").line().contains("denied"));
}

/// Of the kernel.
fn is_older_than(version: [u32; 2]) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    [(); 2].map(|()| numbers.next().unwrap_or(0)) < version
}

#[test]
fn s99_peer_reports_all_ids() {
    let Pair { server, client, .. } = Pair::bytes();
    for end in [&server, &client] {
        let peer = end.peer().unwrap();
        assert_eq!(peer.pid(), Some(std::process::id()));
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains(&format!("Uid:\t{0}\t{0}", peer.uid())));
        assert!(status.contains(&format!("Gid:\t{0}\t{0}", peer.gid())));
        let number = peer.pidfd().map(|pidfd| pidfd.as_raw_fd());
        assert!(number.map_or(is_older_than([6, 5]), |number| number > 2), "{number:?}");
        if is_root() {
            assert_eq!(peer.user_name().unwrap().as_deref(), Some("root"));
        }
    }
}

#[test]
fn s99_peer_reports_ids_of_other_user() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let listener = open_to_all(&place);
    let (stream, client) = accept_stranger(&listener, "plain");
    let peer = stream.peer().unwrap();
    assert_eq!((peer.uid(), peer.gid(), peer.groups()), (STRANGER, STRANGER, &[CLUB][..]));
    assert_eq!(peer.pid(), Some(client.child.id()));
    assert_eq!(peer.user_name().unwrap(), None, "it has no name");
}

#[test]
fn s100_anonymous_client_is_not_identified() {
    for level in [ImpersonationLevel::Anonymous, ImpersonationLevel::Identification, ImpersonationLevel::Impersonation]
    {
        let pair = Pair::with(&ListenerOptions::new().handshake(), &ConnectOptions::new().handshake(level));
        assert_eq!(pair.server.impersonation_level(), Some(level));
        match pair.server.peer() {
            Err(PeerError::Anonymous) => assert_eq!(level, ImpersonationLevel::Anonymous),
            other => assert_eq!(other.unwrap().pid(), Some(std::process::id())),
        }
        pair.client.peer().unwrap();
    }
}

fn own_status(name: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find(|line| line.starts_with(name)).unwrap().replace('\t', " ")
}

#[test]
fn s101_only_the_closure_runs_with_ids_of_client() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let place = Place::new();
    let listener = open_to_all(&place);
    let (stream, _client) = accept_stranger(&listener, "impersonation");
    let (stream_2, _client_2) = accept_stranger(&listener, "plain");
    drop(stream);
    let before = (own_status("Uid"), own_status("Gid"), own_status("Groups"), own_status("CapEff"), kernel::dumpable());
    let inside = run_as_client(&stream_2, || {
        let others = fs::read_dir("/proc/self/task").map(|tasks| {
            tasks
                .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
                .filter(|status| status.contains("Uid:\t0\t0\t0\t0"))
                .count()
        });
        let ids = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb"].map(own_status);
        (ids, others.is_ok_and(|count| count > 0), kernel::dumpable())
    })
    .unwrap();
    let uid = STRANGER;
    let none = "0000000000000000";
    assert_eq!(
        inside.0,
        [
            format!("Uid: {uid} {uid} {uid} {uid}"),
            format!("Gid: {uid} {uid} {uid} {uid}"),
            format!("Groups: {CLUB} "),
            format!("CapInh: {none}"),
            format!("CapPrm: {none}"),
            format!("CapEff: {none}"),
            format!("CapAmb: {none}"),
        ]
    );
    assert!(inside.1, "the host's other threads are root still");
    assert_eq!(inside.2, 0, "or the client could trace the thread, and own the server");
    let after = (own_status("Uid"), own_status("Gid"), own_status("Groups"), own_status("CapEff"), kernel::dumpable());
    assert_eq!(before, after);
}

#[test]
fn s101_closure_opens_files_of_client_only() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let place = Place::new();
    let write = |name: &str, owner: u32, group: u32, mode| {
        fs::write(place.path(name), name).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
        chown(place.path(name), Some(owner), Some(group)).unwrap();
        place.path(name)
    };
    let theirs = write("theirs", STRANGER, STRANGER, 0o600);
    let clubs = write("clubs", 0, CLUB, 0o640);
    let roots = write("roots", 0, 0, 0o600);
    let roots_group = write("roots-group", 0, 0, 0o640);
    let (listening, _) = shaking();
    let listener = listening.access(Access::Anyone).listen(&place.name("open")).unwrap();
    let (stream, _client) = accept_stranger(&listener, "impersonation");
    let read = |path: &PathBuf| stream.run_as_client(|| fs::read_to_string(path)).unwrap();
    assert_eq!(read(&theirs).unwrap(), "theirs");
    assert_eq!(read(&clubs).unwrap(), "clubs");
    assert_eq!(read(&roots).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(read(&roots_group).unwrap_err().kind(), ErrorKind::PermissionDenied, "not by root's group either");
    let shell = stream.run_as_client(|| Command::new("sh").args(["-c", "id -u; id -G"]).output()).unwrap().unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap(), format!("{STRANGER}\n{STRANGER} {CLUB}\n"));
    assert!(fs::read_to_string(&roots).is_ok(), "we are root as before");
}

#[test]
fn s102_impersonation_needs_permission_of_client() {
    for (level, runs) in [
        (ImpersonationLevel::Anonymous, false),
        (ImpersonationLevel::Identification, false),
        (ImpersonationLevel::Impersonation, true),
    ] {
        let pair = Pair::with(&ListenerOptions::new().handshake(), &ConnectOptions::new().handshake(level));
        let mut ran = false;
        let outcome = pair.server.run_as_client(|| ran = true);
        assert_eq!((outcome.is_ok(), ran), (runs, runs), "{level:?}");
        if let Err(error) = outcome {
            assert!(matches!(error, ImpersonateError::NotAllowed { allowed } if allowed == level), "{error}");
        }
    }
}

#[test]
fn closure_returns_results_and_panics_without_privilege_for_equal_ids() {
    let Pair { server, .. } = Pair::bytes();
    let borrowed = String::from("borrowed");
    assert_eq!(server.run_as_client(|| borrowed.len()).unwrap(), 8);
    let name = server.run_as_client(|| thread::current().name().map(str::to_owned)).unwrap();
    assert_ne!(name.as_deref(), thread::current().name(), "a thread of its own");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.run_as_client(|| panic!("inside"))));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"inside"));
}

#[test]
fn closure_does_not_run_without_privilege() {
    if skipped() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("theirs")).unwrap();
    chown(place.path("theirs"), Some(STRANGER), Some(STRANGER)).unwrap();
    let path = place.path("theirs/server");
    let mut command = Command::new(reachable_fixture(&place.0));
    let mut server = Program::start(command.args(["named-as-client", text(&path)]).uid(STRANGER).gid(STRANGER));
    assert_eq!(server.line(), "listening");
    let mut client =
        ConnectOptions::new().allowed_server(Access::Anyone).connect(&place.name("theirs/server"), PATIENCE).unwrap();
    assert_eq!(server.line(), "no privilege to act as user 0: needs CAP_SETUID and CAP_SETGID; ran: false");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

/// Debian's `nobody` and `nogroup`, and what the kernel shows for ids that are not mapped.
const OVERFLOW: u32 = 65_534;
const WITH_OVERFLOW: [[u32; 3]; 3] =
    [[OVERFLOW, STRANGER, CLUB], [STRANGER, OVERFLOW, CLUB], [STRANGER, STRANGER, OVERFLOW]];

#[test]
fn unmapped_ids_are_rejected() {
    // Nobody is mapped there but root.
    let apart = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        command
    };
    if skipped() {
        return;
    }
    if !apart().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    for ids in WITH_OVERFLOW.into_iter().chain([[STRANGER, STRANGER, CLUB]]) {
        let place = Place::new();
        let path = place.path("open");
        let mut server = Program::start(apart().arg(FIXTURE).args(["named-as-client", text(&path)]));
        assert_eq!(server.line(), "listening");
        let _client = client_of(ids, &place.0, &[text(&path), "plain"]);
        assert_eq!(server.line(), "client id 65534 is the overflow id of unmapped ids; ran: false", "{ids:?}");
    }
}

#[test]
fn overflow_id_is_accepted_if_all_ids_are_mapped() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let place = Place::new();
    let listener = open_to_all(&place);
    for ids in WITH_OVERFLOW {
        let _client = client_of(ids, &place.0, &[text(&place.path("open")), "plain"]);
        let stream = listener.accept_timeout(PATIENCE).unwrap();
        let inside = stream.run_as_client(|| ["Uid", "Gid", "Groups"].map(own_status)).unwrap();
        assert_eq!(
            inside.map(|line| line.split_whitespace().nth(1).map(str::to_owned)),
            ids.map(|id| Some(id.to_string()))
        );
    }
}

#[test]
fn impersonation_keeps_parent_death_signal_and_dumpable_flag() {
    if skipped() {
        return;
    }
    if !crate::support::alone("named::identity::impersonation_keeps_parent_death_signal_and_dumpable_flag", |spec| spec)
    {
        return;
    }
    let place = Place::new();
    let listener = open_to_all(&place);
    let (stream, _client) = accept_stranger(&listener, "plain");
    for (dump, signal) in [(1, libc::SIGTERM), (0, libc::SIGUSR1)] {
        kernel::prctl(libc::PR_SET_DUMPABLE, dump);
        kernel::prctl(libc::PR_SET_PDEATHSIG, signal);
        let ids = own_status("Uid");
        let inside = stream.run_as_client(|| (own_status("Uid"), kernel::death_signal(), kernel::dumpable())).unwrap();
        assert_ne!(inside.0, ids);
        assert_eq!((inside.1, inside.2), (0, 0));
        assert_eq!((own_status("Uid"), kernel::death_signal(), kernel::dumpable()), (ids, signal, dump));
    }
}

#[test]
fn concurrent_impersonations_leave_process_unchanged() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let place = Place::new();
    let listener = open_to_all(&place);
    let (stream, _client) = accept_stranger(&listener, "plain");
    let before = kernel::dumpable();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (uid, inside) = stream.run_as_client(|| (own_status("Uid"), kernel::dumpable())).unwrap();
                    assert_eq!((uid, inside), (format!("Uid: {STRANGER} {STRANGER} {STRANGER} {STRANGER}"), 0));
                }
            });
        }
    });
    assert_eq!(kernel::dumpable(), before);
    assert_eq!(own_status("Uid"), "Uid: 0 0 0 0");
}
