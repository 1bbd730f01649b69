//! The protocol between a supervisor and its guard. `shell.sh` is the second implementation of the guard's side.

/// The title of the process in `ps`.
pub(super) const TITLE: &str = "pipewright-guard";
/// The running executable, also where its file was replaced or removed.
pub(super) const EXECUTABLE: &str = "/proc/self/exe";
/// Set in the environment of a guard that is the host's own executable.
pub(super) const VARIABLE: &str = "PIPEWRIGHT_GUARD";

/// The pipe with the guard's configuration. Its end of file is the end of the host.
pub(super) const CONFIG_FD: i32 = 3;
/// The two ends of the pipe that holds the group list.
pub(super) const LIST_READER_FD: i32 = 4;
pub(super) const LIST_WRITER_FD: i32 = 5;

/// The pipe with the tokens of a jobserver that the host holds, and the jobserver's end to which they are returned. Passed if the
/// configuration says [`JOBSERVER`].
pub(super) const HELD_TOKENS_FD: i32 = 6;
pub(super) const JOBSERVER_FD: i32 = 7;
pub(super) const JOBSERVER: &str = "jobserver";

/// The guard's first line: it will notice the end of the host and has everything that it needs. Optional things that are missing follow
/// [`WITHOUT`].
pub(super) const READY: &str = "ready";
/// The second line: the slow part of the self-test has passed.
pub(super) const TESTED: &str = "tested";
pub(super) const WITHOUT: &str = " without ";
