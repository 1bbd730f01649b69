//! Functions of this executable as workers of a pool.

use crate::{
    pool::{
        serve::worker,
        workers::{builder::PoolBuilder, pool::Pool},
    },
    supervisor::{Supervisor, spec::WorkerSpec},
    text::printable,
    wire::jsonrpc::error::RpcError,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{any::type_name, env, fmt, process, sync::OnceLock};

/// The first argument of a process that is a worker; the second one is the name of its function.
const ARGUMENT: &str = "--pipewright-function";

/// The names of the functions, once `init` was called.
static NAMES: OnceLock<Vec<&'static str>> = OnceLock::new();

/// The functions of a program that its pools may run in other processes, for [`init`].
#[derive(Default)]
pub struct Functions {
    functions: Vec<(&'static str, RunWorker)>,
}

/// Runs a worker. Returns whether it has ended well.
type RunWorker = Box<dyn FnOnce() -> bool>;

impl Functions {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function. It is known by its path, so a closure is possible only if it is the only one in its function.
    #[must_use]
    pub fn function<T, R, E, F>(mut self, run: F) -> Self
    where
        T: DeserializeOwned,
        R: Serialize,
        E: Into<RpcError>,
        F: Fn(T) -> Result<R, E> + Sync + 'static,
    {
        self.functions.push((type_name::<F>(), Box::new(|| serve(run))));
        self
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.functions.iter().map(|(name, _)| name)).finish()
    }
}

/// Runs a worker. Returns whether it has ended well.
#[expect(clippy::print_stderr, reason = "the process is a worker, and its supervisor captures or inherits the stream")]
fn serve<T, R, E>(run: impl Fn(T) -> Result<R, E> + Sync) -> bool
where
    T: DeserializeOwned,
    R: Serialize,
    E: Into<RpcError>,
{
    worker(run).inspect_err(|error| eprintln!("{error}")).is_ok()
}

/// Lets this executable run its functions as workers of its own pools ([`Pool::of_function`]). Call it as the first statement of `main`.
///
/// Returns at once in a normal start. In a process that a pool has started it never returns: it runs the tasks, and exits. A process is a
/// worker only by its arguments, so nothing else that the program starts is affected.
///
/// ```no_run
/// use pipewright::{Supervisor, pool::{self, Functions, Pool}};
///
/// fn count_lines(path: String) -> std::io::Result<usize> {
///     Ok(std::fs::read_to_string(path)?.lines().count())
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     pool::init(Functions::new().function(count_lines));
///     let supervisor = Supervisor::new()?;
///     let pool = Pool::of_function(&supervisor, count_lines)?.workers(4).build()?;
///     for lines in pool.map(std::env::args().skip(1)) {
///         println!("{}", lines?);
///     }
///     Ok(())
/// }
/// ```
#[doc(alias = "procspawn")]
#[expect(clippy::exit, reason = "the process is a worker, and must not run the program's main")]
#[expect(clippy::print_stderr, reason = "as in `serve`")]
pub fn init(functions: Functions) {
    let names = functions.functions.iter().map(|(name, _)| *name).collect();
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == ARGUMENT) {
        let name = arguments.next().unwrap_or_default();
        let Some((_, run)) = functions.functions.into_iter().find(|(known, _)| name == *known) else {
            eprintln!("no function {} was passed to pool::init", printable(name.as_encoded_bytes()));
            process::exit(1);
        };
        process::exit(i32::from(!run()));
    }
    // The functions of the first call are known.
    drop(NAMES.set(names));
}

impl<Request, Response> Pool<Request, Response> {
    /// Returns a builder for a pool whose workers run a function of this executable. [`init`] must have been called with it.
    ///
    /// # Errors
    ///
    /// [`FunctionError`], so that a program without [`init`] never starts itself.
    pub fn of_function<E, F>(
        supervisor: &Supervisor,
        function: F,
    ) -> Result<PoolBuilder<Request, Response>, FunctionError>
    where
        F: Fn(Request) -> Result<Response, E> + Sync + 'static,
    {
        let (name, _) = (type_name::<F>(), function);
        let names = NAMES.get().ok_or(FunctionError::NotInitialized)?;
        match names.iter().filter(|known| **known == name).count() {
            0 => return Err(FunctionError::Unknown { name }),
            1 => {}
            _ => return Err(FunctionError::Ambiguous { name }),
        }
        // Also if the file was replaced or deleted since: what runs, and no other version.
        let spec = WorkerSpec::new("/proc/self/exe").args([ARGUMENT, name]);
        Ok(Self::builder(supervisor, spec.name(name.rsplit("::").next().unwrap_or(name))))
    }
}

/// Why a function cannot be the worker of a pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// [`init`] was not called.
    #[error("pool::init was not called at the beginning of main")]
    NotInitialized,
    /// The function was not passed to [`init`].
    #[error("function {name} was not passed to pool::init")]
    Unknown {
        /// Its path.
        name: &'static str,
    },
    /// Several functions of this path were passed to [`init`]: closures, or instances of a generic function.
    #[error("several functions {name} were passed to pool::init")]
    Ambiguous {
        /// The path.
        name: &'static str,
    },
}
