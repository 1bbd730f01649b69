//! The client of the jobserver that this process was started with.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use crate::{
    jobserver::{
        error::JobserverError,
        held::HeldTokens,
        source::{self, JobserverSource, SharedAddress},
    },
    pipe::timeout::{StartedTimeout, Timeout},
    sys::{epoll::Poller, eventfd::Semaphore, this_process},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The client of this process, once it was opened: there is one implicit token, whatever the number of clients.
static CLIENT: Mutex<Option<JobserverClient>> = Mutex::new(None);

/// Takes tokens from the jobserver that this process was started with: by `make`, cargo, ninja, or as a worker that has one.
///
/// A program holds a [`JobserverToken`] for each job that it runs. The first is the process's implicit one, which is always there; the
/// others come from the jobserver, and are shared with all programs below the same `make -jN`.
///
/// Clones, and further calls of [`from_env`](Self::from_env), are the same client. The descriptors that `make` has passed are neither
/// closed nor changed, and no signal handler is installed.
///
/// To wait for tokens together with other things, poll the client's descriptor ([`AsFd`]): it is readable while a token may be there, which
/// another program can be faster to take.
///
/// ```no_run
/// use pipewright::{WorkerSpec, jobserver::JobserverClient, pipe::Timeout};
///
/// let jobserver = JobserverClient::from_env()?;
/// for source in ["a.c", "b.c", "c.c"] {
///     // Without a jobserver nothing limits the jobs.
///     let token = jobserver.as_ref().map(|jobserver| jobserver.acquire_timeout(Timeout::never())).transpose()?;
///     let mut compiler = WorkerSpec::new("cc").args(["-c", source]).spawn_unsupervised()?;
///     std::thread::spawn(move || {
///         let exit = compiler.wait().map(ToString::to_string);
///         drop(token); // the job has ended
///         exit
///     });
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct JobserverClient {
    shared: Arc<SharedClient>,
}

impl_debug!(JobserverClient, |client| { reader: client.shared.source.reader });

#[derive(Debug)]
struct SharedClient {
    source: JobserverSource,
    /// Readable while the implicit token is free.
    implicit: Semaphore,
    held: Mutex<HeldTokens>,
    /// Readable while the implicit token is free, or a token is in the jobserver.
    ready: Poller,
    /// The process that has opened it; a forked child must not return its tokens.
    owner: i32,
}

impl JobserverClient {
    /// Returns the client of the jobserver that `CARGO_MAKEFLAGS`, `MAKEFLAGS` or `MFLAGS` names; `None` if none of them names one. The
    /// first counts whose jobserver can be used.
    ///
    /// The variables are read by the first call that succeeds.
    ///
    /// # Errors
    ///
    /// If a jobserver is named and none can be used. The error is that of the first variable. A program that goes on without a jobserver
    /// should say so, and run one job at a time, as `make` does.
    pub fn from_env() -> Result<Option<Self>, JobserverError> {
        let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
        if client.is_none()
            && let Some(source) = source::open()?
        {
            *client = Some(Self::of(source).map_err(JobserverError::failed("prepare the jobserver's client"))?);
        }
        Ok(client.clone())
    }

    fn of(source: JobserverSource) -> io::Result<Self> {
        let (implicit, ready, held) = (Semaphore::new(1)?, Poller::new()?, Mutex::new(HeldTokens::new()?));
        ready.add(&implicit, 0)?;
        ready.add(&source.reader, 1)?;
        let owner = this_process::own_pid();
        Ok(Self { shared: Arc::new(SharedClient { source, implicit, held, ready, owner }) })
    }

    /// Takes a token if there is one. Never blocks.
    ///
    /// # Errors
    ///
    /// [`TooManyTokens`](JobserverError::TooManyTokens), or [`Failed`](JobserverError::Failed) if the kernel is out of memory.
    pub fn try_acquire(&self) -> Result<Option<JobserverToken>, JobserverError> {
        let failed = || JobserverError::failed("take a token from the jobserver");
        let token = |is_implicit| Some(JobserverToken { client: Arc::clone(&self.shared), is_implicit });
        if self.shared.implicit.take().map_err(failed())? {
            return Ok(token(true));
        }
        let mut held = self.shared.held();
        if !held.has_room() {
            return Err(JobserverError::TooManyTokens { limit: held.limit() });
        }
        let is_taken = held.take_from(self.shared.source.reader.as_fd()).map_err(failed())?;
        Ok(if is_taken { token(false) } else { None })
    }

    /// Waits for a token. A wait that ends without one takes none.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire). [`Failed`](JobserverError::Failed) with [`TimedOut`](io::ErrorKind::TimedOut) when the timeout
    /// has expired, and with [`Cancelled`](crate::pipe::Cancelled) when it was cancelled.
    pub fn acquire_timeout<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<JobserverToken, JobserverError> {
        let timeout = StartedTimeout::now(timeout.into());
        loop {
            if let Some(token) = self.try_acquire()? {
                return Ok(token);
            }
            let ready = timeout.wait_readable(self.shared.ready.as_fd());
            ready.map_err(JobserverError::failed("wait for a token of the jobserver"))?;
        }
    }
}

/// What a worker gets that inherits the jobserver of this process; `None` without one.
pub(crate) fn inherited() -> Result<Option<SharedAddress>, JobserverError> {
    Ok(JobserverClient::from_env()?.map(|client| client.shared.source.address.clone()))
}

/// The client of this process, if it was opened.
fn opened() -> Option<JobserverClient> {
    CLIENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Whether this process may hold tokens.
pub(crate) fn is_open() -> bool {
    opened().is_some()
}

/// For the guard: the pipe with the tokens that this process holds, and the jobserver's end to which they are returned. `None` in a
/// process that has not opened its client.
pub(crate) fn guarded_ends() -> io::Result<Option<[OwnedFd; 2]>> {
    let Some(JobserverClient { shared }) = opened() else { return Ok(None) };
    let held = shared.held().reader().try_clone_to_owned()?;
    Ok(Some([held, shared.source.writer.try_clone()?]))
}

/// Readable while a token may be there.
impl AsFd for JobserverClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }
}

impl SharedClient {
    fn held(&self) -> MutexGuard<'_, HeldTokens> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run one job, until it is dropped: then it is returned to the jobserver.
///
/// Drop it when the processes of the job have ended. If this process is killed, the [guard](crate::guard) of a supervisor that has started a
/// worker since the client was opened returns the tokens when the trees of its workers have ended. Without one they are lost.
#[must_use = "dropping the token returns it"]
pub struct JobserverToken {
    client: Arc<SharedClient>,
    is_implicit: bool,
}

impl_debug!(JobserverToken, |token| { is_implicit: token.is_implicit });

impl JobserverToken {
    /// Whether it is the process's implicit token.
    pub fn is_implicit(&self) -> bool {
        self.is_implicit
    }
}

impl Drop for JobserverToken {
    fn drop(&mut self) {
        if self.client.owner != this_process::own_pid() {
            return;
        }
        if self.is_implicit {
            self.client.implicit.free();
        } else {
            // Fails if another program has filled the pipe or the kernel is out of memory; then the guard returns the token.
            drop(self.client.held().return_to(self.client.source.writer.as_fd()));
        }
    }
}
