//! A jobserver for workers: each has a pipe of its own, so that what a killed one held is known.

use crate::{
    jobserver::error::JobserverError,
    policy::token_shares::{HolderId, TokenMove, TokenShares},
    sys::{fd, fifo, signals, splice},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// The shortest and the longest time between two rounds, while several workers have pipes. A round follows at once when one comes or ends.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(128);

/// The byte that `make` uses.
const TOKEN: &[u8; 1] = b"+";

/// A jobserver for workers, with [`WorkerSpec::jobserver`](crate::WorkerSpec::jobserver): they and all their descendants together run as many
/// jobs as there are workers and tokens. Cheap to clone: clones are the same tokens, which workers of any supervisors share.
///
/// Each incarnation of a worker has a pipe of its own, into which the server puts tokens, and from which it takes those that lie there unused
/// while others have none. When the worker and all its descendants have ended, what they have not returned is there again: no token is lost
/// or created, however they end.
///
/// A thread moves the tokens, as long as two workers have pipes. It looks every 2 ms while tokens are taken and returned, and every 128 ms while
/// nothing changes: a pipe does not report that it was read.
///
/// ```
/// use pipewright::{Supervisor, WorkerSpec, jobserver::JobserverServer};
///
/// let server = JobserverServer::new(6)?;
/// let supervisor = Supervisor::new()?;
/// for directory in ["one", "two"] {
///     // Both run eight jobs together: their own, and those of six tokens.
///     supervisor.spawn(WorkerSpec::new("make").args(["--version", directory]).jobserver(&server))?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct JobserverServer {
    owner: Arc<Owner>,
}

impl_debug!(JobserverServer, |server| { tokens: server.owner.tokens });

impl JobserverServer {
    /// Creates a jobserver with `tokens`: how many jobs its workers may run together, in addition to one for each worker.
    ///
    /// # Errors
    ///
    /// [`Failed`](JobserverError::Failed), if the process is out of file descriptors or threads.
    pub fn new(tokens: usize) -> Result<Self, JobserverError> {
        let failed = || JobserverError::failed("create a jobserver");
        let transit = fifo::pipe().map_err(failed())?;
        let state = ServerState {
            shares: TokenShares::new(tokens),
            pipes: HashMap::new(),
            transit,
            is_closed: false,
            is_changed: false,
        };
        let shared = Arc::new(SharedServer { state: Mutex::new(state), changed: Condvar::new() });
        let served = Arc::clone(&shared);
        let builder = thread::Builder::new().name("pipewright-tokens".into());
        builder.spawn(move || served.serve()).map_err(failed())?;
        Ok(Self { owner: Arc::new(Owner { tokens, shared }) })
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.owner.tokens
    }

    /// Creates the pipe of a new process, with its share of the tokens. Returns the ends for the process, whose reads and writes block.
    pub(crate) fn open_pipe(&self) -> io::Result<(TokenPipe, [OwnedFd; 2])> {
        let (reader, writer) = fifo::pipe()?;
        let ends = [fd::duplicate(reader.as_fd(), 3)?, fd::duplicate(writer.as_fd(), 3)?];
        // Each token may take a page, and one is left for what the process returns, so that it never waits.
        let needed = (self.owner.tokens + 1).saturating_mul(fifo::page_bytes());
        let capacity = fifo::capacity(reader.as_fd())?;
        // Without a larger one, which counts against the user's quota, the process gets fewer tokens.
        let capacity =
            if capacity < needed { fifo::set_capacity(reader.as_fd(), needed).unwrap_or(capacity) } else { capacity };
        let mut state = self.owner.shared.lock();
        let id = state.shares.add((capacity / fifo::page_bytes()).saturating_sub(1));
        state.pipes.insert(id, (reader, writer));
        state.play_round();
        self.owner.shared.wake(state);
        Ok((TokenPipe { id, owner: Arc::clone(&self.owner) }, ends))
    }
}

/// The pipe of one process, until it has ended with its descendants. Dropping it returns what they hold.
#[derive(Debug)]
pub(crate) struct TokenPipe {
    id: HolderId,
    owner: Arc<Owner>,
}

impl Drop for TokenPipe {
    fn drop(&mut self) {
        let mut state = self.owner.shared.lock();
        state.shares.remove(self.id);
        let ends = state.pipes.remove(&self.id);
        state.play_round();
        self.owner.shared.wake(state);
        drop(ends);
    }
}

/// Held by all handles and pipes; the thread ends with the last of them.
#[derive(Debug)]
struct Owner {
    tokens: usize,
    shared: Arc<SharedServer>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        self.shared.wake(state);
    }
}

#[derive(Debug)]
struct SharedServer {
    state: Mutex<ServerState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ServerState {
    shares: TokenShares,
    pipes: HashMap<HolderId, (File, File)>,
    /// A pipe that a token passes on its way, so that neither direction can block.
    transit: (File, File),
    is_closed: bool,
    /// A process has come or ended since the thread has looked.
    is_changed: bool,
}

impl SharedServer {
    fn lock(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut state: MutexGuard<'_, ServerState>) {
        state.is_changed = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Plays rounds until the last handle is dropped.
    fn serve(&self) {
        signals::block_all();
        let mut pause = SHORTEST;
        let mut state = self.lock();
        while !state.is_closed {
            if state.shares.is_settled() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            }
            let is_changed = std::mem::take(&mut state.is_changed);
            pause = if state.play_round() || is_changed { SHORTEST } else { (pause * 2).min(LONGEST) };
        }
    }
}

impl ServerState {
    /// Moves tokens until each pipe has its share. Returns whether a token was taken or returned since the last round.
    fn play_round(&mut self) -> bool {
        let Self { shares, pipes, transit, .. } = self;
        let unread = |id| pipes.get(&id).and_then(|(reader, _)| fifo::unread(reader.as_fd()).ok()).unwrap_or(0);
        let is_changed = shares.begin_round(unread);
        while let Some(next) = shares.next_move() {
            let (TokenMove::Give(id) | TokenMove::Take(id)) = next;
            let is_moved = pipes.get(&id).is_some_and(|(reader, writer)| match next {
                TokenMove::Give(_) => give(transit, writer).unwrap_or(false),
                TokenMove::Take(_) => take(transit, reader).unwrap_or(false),
            });
            if is_moved {
                shares.moved(next);
            } else {
                shares.refused(next);
            }
        }
        is_changed
    }
}

/// Puts a new token into a pipe, whose writes block: a process can have filled it.
fn give(transit: &mut (File, File), writer: &File) -> io::Result<bool> {
    transit.1.write_all(TOKEN)?;
    let moved = splice::move_byte(transit.0.as_fd(), writer.as_fd());
    if !matches!(moved, Ok(true)) {
        transit.0.read_exact(&mut [0])?;
    }
    moved
}

/// Takes a token out of a pipe, whose reads block: a process can be faster to take it.
fn take(transit: &mut (File, File), reader: &File) -> io::Result<bool> {
    let is_moved = splice::move_byte(reader.as_fd(), transit.1.as_fd())?;
    if is_moved {
        transit.0.read_exact(&mut [0])?;
    }
    Ok(is_moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pipe(ends: &[OwnedFd; 2]) -> usize {
        fifo::unread(ends[0].as_fd()).unwrap()
    }

    #[test]
    fn each_pipe_has_its_share_and_the_rest_comes_back() {
        let server = JobserverServer::new(20).unwrap();
        let (first, ends) = server.open_pipe().unwrap();
        assert_eq!(in_pipe(&ends), 20, "the only one has them all");
        let mut reader = File::from(ends[0].try_clone().unwrap());
        reader.read_exact(&mut [0; 19]).unwrap();
        let (_second, others) = server.open_pipe().unwrap();
        // The only token that lies idle moves, or not, until the first takes it.
        assert!(in_pipe(&ends) + in_pipe(&others) <= 1);
        drop(first);
        assert_eq!(in_pipe(&others), 20, "whatever the first has held");
    }

    /// A process that fills its pipe harms itself only.
    #[test]
    fn filled_pipe_blocks_nothing() {
        let server = JobserverServer::new(2).unwrap();
        let (first, ends) = server.open_pipe().unwrap();
        let mut reader = File::from(ends[0].try_clone().unwrap());
        reader.read_exact(&mut [0; 2]).unwrap();
        fd::set_nonblocking(ends[1].as_fd()).unwrap();
        let mut writer = File::from(ends[1].try_clone().unwrap());
        while writer.write(&[b'x'; 4096]).is_ok() {}
        fd::set_blocking(ends[1].as_fd()).unwrap();
        let (_second, others) = server.open_pipe().unwrap();
        drop(first);
        assert_eq!(in_pipe(&others), 2);
    }
}
