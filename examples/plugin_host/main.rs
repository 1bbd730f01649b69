//! A plugin host: every executable file of a directory is a plugin, in any language.
//!
//! ```text
//! cargo run --example plugin_host -- DIRECTORY
//! ```
//!
//! **Start.** A plugin is a worker with a control connection (`docs/protocol.md`). Before the first call the host calls `initialize`, and
//! both sides agree on a version and on what the plugin may ask of the host (`handshake.rs`). A plugin that speaks another version is
//! not started again.
//!
//! **Calls** are typed on standard input or come from a pipe: `call words.py count ["a b"] within 2s`. `help` lists the commands. Each call
//! has a deadline, after which it is cancelled: the plugin receives `$/cancelRequest`. A plugin may call others through the host.
//!
//! **Failures.** A plugin that exits is started again after a pause, and its exit is shown with the end of its standard error. One that
//! hangs answers no pings: the watchdog stops it, and it is started again. Its open calls fail, all others continue.
//!
//! **Reload.** When a file has changed, its new version is started beside the old one. It gets the calls when it is ready, and the old one is
//! stopped when it has answered its own. A new version that does not become ready is stopped, and the old one stays. New files become
//! plugins, and plugins whose files are removed are stopped. A file behind a symbolic link is not watched, nor is what a
//! plugin imports: `reload` starts their new version. `plugins/` has plugins in Python and Node, and one in Rust that is built as
//! the example `prime_plugin`.
//!
//! **Debugging.** `attach words.py` prints the variable with which the plugin is started in another terminal, in a debugger or not: that
//! process gets the calls, by default for an hour each, until it ends.
//!
//! The exit code is 0 if all calls succeeded, 1 if one failed, 2 if the command line or the directory is invalid, 130 after Ctrl-C.

mod options; // the command line
mod prompt; // commands on standard input
mod screen; // output
mod directory; // files and their changes
mod handshake; // how a plugin is started
mod plugin; // one plugin
mod calls; // open calls
mod callbacks; // requests of plugins
mod host; // all plugins

use directory::DirectoryWatch;
use host::Host;
use options::{Invocation, Options};
use pipewright::Supervisor;
use std::{
    error::Error,
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

/// For all plugins together, at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // The guard process runs this program too, so no other program has to be installed.
    pipewright::guard::init();
    let code = match options::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Show(text)) => {
            screen::write(io::stdout(), &format!("{text}\n"));
            Ok(0)
        }
        Ok(Invocation::Run(options)) => run(options).map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        screen::write(io::stderr(), &format!("plugin_host: {error}\n"));
        2
    }))
}

/// Runs until `quit`, the end of the input or a signal. Returns the exit code.
fn run(mut options: Options) -> Result<u8, Box<dyn Error>> {
    let in_directory = |error: &dyn Error| format!("{}: {error}", options.directory.display());
    // Watched before it is read, so that no change is missed.
    let watch = DirectoryWatch::start(&options.directory).map_err(|error| in_directory(&error))?;
    let files = directory::scan(&options.directory).map_err(|error| in_directory(&error))?;
    options.directory = options.directory.canonicalize()?;

    let supervisor = Supervisor::new()?;
    let signals = supervisor.handle_signals()?;
    let mut commands = Some(prompt::read_lines()?);
    let mut host = Host::new(&supervisor, &options, files);
    host.screen.prompt();
    while !host.is_done(commands.is_some()) && signals.received().is_none() {
        let lines = commands.clone().filter(|_| host.reads_commands()).unwrap_or_else(crossbeam_channel::never);
        let timer = host.poll_timeout(now()).map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => match event {
                Ok(event) => host.handle_event(event),
                // After a signal all plugins were stopped and have ended.
                Err(_) => break,
            },
            recv(host.finished_calls()) -> call => host.call_finished(call?),
            recv(watch.notifications) -> changed => {
                changed?;
                host.directory_changed(now());
            }
            recv(lines) -> line => match line {
                Ok(line) => host.handle_line(line, now()),
                Err(_) => commands = None,
            },
            recv(timer) -> _ => host.handle_timeout(now()),
        }
    }
    let has_failures = host.close();
    for unfinished in supervisor.shutdown(STOP_TIMEOUT).unfinished() {
        screen::write(io::stderr(), &format!("{}: still runs\n", unfinished.name));
    }
    match signals.received() {
        Some(signal) => Ok(u8::try_from(128 + signal)?),
        None => Ok(u8::from(has_failures)),
    }
}

#[expect(clippy::disallowed_methods, reason = "calls have deadlines")]
fn now() -> Instant {
    Instant::now()
}
