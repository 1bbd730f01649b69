//! Identity of the peer, and impersonation. Tests with another user need root, and print a line when they are skipped.

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

use super::{DEADLINE, Pair, Place, Program, is_root, meet, text, with_handshake};

/// A user without a name, and a group that it has only as a supplementary one.
pub(super) const OTHER_USER: u32 = 65_500;
const OTHER_GROUP: u32 = 65_501;

/// Returns true without the privilege to run clients as another user.
#[expect(clippy::print_stderr, reason = "skipped tests must be visible")]
pub(super) fn skipped() -> bool {
    let skip = !is_root();
    if skip {
        eprintln!("skipped: running a client as another user needs root");
    }
    skip
}

/// Serializes impersonation: it changes the process, which some tests check.
fn alone() -> MutexGuard<'static, ()> {
    static WHOLE_PROCESS: Mutex<()> = Mutex::new(());
    WHOLE_PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fixture at a path that other users can reach.
fn reachable_fixture(directory: &Path) -> PathBuf {
    super::reachable(Path::new(env!("CARGO_BIN_EXE_child-fixture")), directory)
}

/// A client that runs as another user, with a supplementary group.
fn client_of_other_user(name: &PipeName, level: &str) -> Program {
    let path = name.path().unwrap();
    client_of([OTHER_USER, OTHER_USER, OTHER_GROUP], path.parent().unwrap(), &[text(path), level])
}

/// A client with this user, group and supplementary group; its program is run from `directory`.
fn client_of([user, group, supplementary]: [u32; 3], directory: &Path, arguments: &[&str]) -> Program {
    let mut command = Command::new("setpriv");
    let ids = [format!("--reuid={user}"), format!("--regid={group}"), format!("--groups={supplementary}")];
    command.args(ids).arg(reachable_fixture(directory)).arg("named-client").args(arguments);
    Program::start(command.process_group(0))
}

fn accept_other_user(listener: &Listener, level: &str) -> (Stream, Program) {
    let client = client_of_other_user(listener.name(), level);
    let stream = listener.accept_timeout(DEADLINE).unwrap();
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
    // The mode of the file rejects other users already, so it is changed.
    let listener = Listener::bind(&place.name("ours")).unwrap();
    let mut rejected = client_of_other_user(listener.name(), "plain");
    assert!(rejected.line().contains("denied"));
    fs::set_permissions(place.path("ours"), fs::Permissions::from_mode(0o666)).unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept_timeout(DEADLINE));
        let mut refused = client_of_other_user(listener.name(), "plain");
        assert!(refused.line().starts_with("connected"), "it is in the backlog");
        assert_eq!(refused.finish(), 0, "its stream ended");
        let _client = connect(listener.name(), DEADLINE).unwrap();
        assert_eq!(accepted.join().unwrap().unwrap().peer().unwrap().uid(), 0);
    });
    assert_eq!((listener.stats().accepted, listener.stats().refused), (1, 1));

    // With a handshake the client gets the reason.
    let (listening, _) = with_handshake();
    let listener = listening.listen(&place.name("shaking")).unwrap();
    fs::set_permissions(place.path("shaking"), fs::Permissions::from_mode(0o666)).unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept_timeout(DEADLINE));
        let mut refused = client_of_other_user(listener.name(), "identification");
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
    let connect_as = |user, level| client_of([user, user, OTHER_GROUP], &place.0, &[&format!("@{name}"), level]);
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept_timeout(DEADLINE));
        let mut refused = connect_as(OTHER_USER, "plain");
        assert!(refused.line().starts_with("connected"), "it is in the backlog");
        assert_eq!(refused.finish(), 0, "its stream ended");
        let mut admitted = connect_as(0, "current-user");
        assert_eq!(accepting.join().unwrap().unwrap().peer().unwrap().pid(), Some(admitted.child.id()));
        assert!(admitted.line().starts_with("connected"));
    });
    assert_eq!((listener.stats().accepted, listener.stats().refused), (1, 1));
    // A client rejects a server of another user in the same way.
    assert!(connect_as(OTHER_USER, "current-user").line().contains("runs as untrusted user 0"));
}

#[test]
fn s98_client_rejects_server_of_other_user() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let listener = open_to_all(&place);
    let mut client = client_of_other_user(listener.name(), "current-user");
    assert!(client.line().contains("runs as untrusted user 0"));
    drop(listener);
    // If both sides allow it, they connect.
    let listener = open_to_all(&place);
    let (stream, mut client) = accept_other_user(&listener, "plain");
    assert!(client.line().starts_with("connected") && stream.is_connected());
    // Root rejects a server of another user, in a directory of that user.
    fs::create_dir(place.path("theirs")).unwrap();
    chown(place.path("theirs"), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let mut command = Command::new(reachable_fixture(&place.0));
    let path = place.path("theirs/server");
    let mut server = Program::start(command.args(["named-serve", text(&path)]).uid(OTHER_USER).gid(OTHER_USER));
    assert_eq!(server.line(), "listening");
    let error = connect(&place.name("theirs/server"), DEADLINE).unwrap_err();
    assert!(matches!(error, ConnectError::WrongServer { uid: OTHER_USER, .. }), "{error}");
    ConnectOptions::new().allowed_server(Access::Anyone).connect(&place.name("theirs/server"), DEADLINE).unwrap();
}

#[test]
fn group_members_are_admitted() {
    if skipped() {
        return;
    }
    let place = Place::new();
    let listener = ListenerOptions::new().access(Access::Group(OTHER_GROUP)).listen(&place.name("club")).unwrap();
    let found = fs::metadata(place.path("club")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&found), OTHER_GROUP);
    let (stream, mut client) = accept_other_user(&listener, "plain");
    assert_eq!(client.line(), format!("connected Groups:\t{OTHER_GROUP}"));
    assert_eq!(stream.peer().unwrap().uid(), OTHER_USER);
    drop(listener);
    // The client is not in this group.
    let listener = ListenerOptions::new().access(Access::Group(1)).listen(&place.name("club")).unwrap();
    assert!(client_of_other_user(listener.name(), "plain").line().contains("denied"));
}

/// Compares with the version of the running kernel.
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
    let (stream, client) = accept_other_user(&listener, "plain");
    let peer = stream.peer().unwrap();
    assert_eq!((peer.uid(), peer.gid(), peer.groups()), (OTHER_USER, OTHER_USER, &[OTHER_GROUP][..]));
    assert_eq!(peer.pid(), Some(client.child.id()));
    assert_eq!(peer.user_name().unwrap(), None, "the user has no name");
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
    let (stream, _client) = accept_other_user(&listener, "impersonation");
    let (stream_2, _client_2) = accept_other_user(&listener, "plain");
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
    let uid = OTHER_USER;
    let none = "0000000000000000";
    assert_eq!(
        inside.0,
        [
            format!("Uid: {uid} {uid} {uid} {uid}"),
            format!("Gid: {uid} {uid} {uid} {uid}"),
            format!("Groups: {OTHER_GROUP} "),
            format!("CapInh: {none}"),
            format!("CapPrm: {none}"),
            format!("CapEff: {none}"),
            format!("CapAmb: {none}"),
        ]
    );
    assert!(inside.1, "other threads are still root");
    assert_eq!(inside.2, 0, "otherwise the client could trace the thread");
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
    let theirs = write("theirs", OTHER_USER, OTHER_USER, 0o600);
    let clubs = write("clubs", 0, OTHER_GROUP, 0o640);
    let roots = write("roots", 0, 0, 0o600);
    let roots_group = write("roots-group", 0, 0, 0o640);
    let (listening, _) = with_handshake();
    let listener = listening.access(Access::Anyone).listen(&place.name("open")).unwrap();
    let (stream, _client) = accept_other_user(&listener, "impersonation");
    let read = |path: &PathBuf| stream.run_as_client(|| fs::read_to_string(path)).unwrap();
    assert_eq!(read(&theirs).unwrap(), "theirs");
    assert_eq!(read(&clubs).unwrap(), "clubs");
    assert_eq!(read(&roots).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(read(&roots_group).unwrap_err().kind(), ErrorKind::PermissionDenied, "not by root's group either");
    let shell = stream.run_as_client(|| Command::new("sh").args(["-c", "id -u; id -G"]).output()).unwrap().unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap(), format!("{OTHER_USER}\n{OTHER_USER} {OTHER_GROUP}\n"));
    assert!(fs::read_to_string(&roots).is_ok(), "this thread is still root");
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
    assert_ne!(name.as_deref(), thread::current().name(), "runs on another thread");
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
    chown(place.path("theirs"), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let path = place.path("theirs/server");
    let mut command = Command::new(reachable_fixture(&place.0));
    let mut server = Program::start(command.args(["named-as-client", text(&path)]).uid(OTHER_USER).gid(OTHER_USER));
    assert_eq!(server.line(), "listening");
    let mut client =
        ConnectOptions::new().allowed_server(Access::Anyone).connect(&place.name("theirs/server"), DEADLINE).unwrap();
    assert_eq!(server.line(), "no privilege to act as user 0: needs CAP_SETUID and CAP_SETGID; ran: false");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

/// Overflow id, which the kernel reports for unmapped ids. Debian's `nobody` and `nogroup`.
const OVERFLOW: u32 = 65_534;
const WITH_OVERFLOW: [[u32; 3]; 3] =
    [[OVERFLOW, OTHER_USER, OTHER_GROUP], [OTHER_USER, OVERFLOW, OTHER_GROUP], [OTHER_USER, OTHER_USER, OVERFLOW]];

#[test]
fn unmapped_ids_are_rejected() {
    // Only root is mapped there.
    let in_user_namespace = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        command
    };
    if skipped() {
        return;
    }
    if !in_user_namespace().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    for ids in WITH_OVERFLOW.into_iter().chain([[OTHER_USER, OTHER_USER, OTHER_GROUP]]) {
        let place = Place::new();
        let path = place.path("open");
        let mut server = Program::start(in_user_namespace().arg(FIXTURE).args(["named-as-client", text(&path)]));
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
        let stream = listener.accept_timeout(DEADLINE).unwrap();
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
    let (stream, _client) = accept_other_user(&listener, "plain");
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
    let (stream, _client) = accept_other_user(&listener, "plain");
    let before = kernel::dumpable();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (uid, inside) = stream.run_as_client(|| (own_status("Uid"), kernel::dumpable())).unwrap();
                    assert_eq!((uid, inside), (format!("Uid: {OTHER_USER} {OTHER_USER} {OTHER_USER} {OTHER_USER}"), 0));
                }
            });
        }
    });
    assert_eq!(kernel::dumpable(), before);
    assert_eq!(own_status("Uid"), "Uid: 0 0 0 0");
}
