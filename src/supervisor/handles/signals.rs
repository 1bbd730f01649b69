//! Ctrl-C and Ctrl-Z, on request of the program: the only place of the library that handles signals.
//!
//! One thread handles the signals for all supervisors of the process: with two threads that each stop the process, it would have to be
//! continued twice.

use crate::{
    supervisor::{
        clock::now,
        commands::{Command, CommandSender, StopAll},
        spawner::queue::SpawnQueue,
        sync::lock,
    },
    sys::{signals, this_process},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGTSTP},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use std::{
    collections::VecDeque,
    io, mem,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

/// Handles SIGINT, SIGTERM and SIGTSTP for a supervisor, from
/// [`Supervisor::handle_signals`](crate::supervisor::Supervisor::handle_signals). When the last value of the process is dropped, the
/// signals have their former effect again.
#[derive(Debug)]
pub struct SignalGuard {
    number: u64,
    owner: i32,
    received: Arc<OnceLock<i32>>,
}

/// A second signal within this time is ignored: `timeout(1)` signals the process and then its group, and a parent that forwards Ctrl-C
/// repeats the terminal's signal.
const REPEAT_WINDOW: Duration = Duration::from_millis(50);

/// The time to stop the workers before the program is stopped: the inspection of a process can block.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(1);

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGTSTP];

static REGISTRATIONS: Mutex<Registrations> =
    Mutex::new(Registrations { supervisors: Vec::new(), last_number: 0, owner: 0 });

struct Registrations {
    supervisors: Vec<Registration>,
    last_number: u64,
    /// The process whose thread handles the signals. The thread never ends: a handler cannot be removed, so the thread also performs the
    /// default actions.
    owner: i32,
}

struct Registration {
    number: u64,
    commands: CommandSender,
    starts: Arc<SpawnQueue>,
    was_stopped: bool,
    received: Arc<OnceLock<i32>>,
}

impl SignalGuard {
    /// Returns the signal that stopped the workers: SIGINT or SIGTERM, the first that was handled, in no particular order if both arrive at
    /// once. `None` if there was none.
    ///
    /// A program that ends because of a signal conventionally exits with 128 and the number of the signal, as shells report it:
    ///
    /// ```no_run
    /// # let supervisor = pipewright::Supervisor::new()?;
    /// let signals = supervisor.handle_signals()?;
    /// supervisor.events().iter().for_each(drop); // ends with the last worker
    /// let received = signals.received();
    /// drop(supervisor); // `exit` runs no destructors
    /// if let Some(signal) = received {
    ///     std::process::exit(128 + signal); // 130 after Ctrl-C
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn received(&self) -> Option<i32> {
        self.received.get().copied()
    }

    pub(crate) fn listen(commands: CommandSender, starts: Arc<SpawnQueue>) -> io::Result<Self> {
        let mut registrations = lock(&REGISTRATIONS);
        let owner = this_process::own_pid();
        if registrations.owner != owner {
            // The host's own handlers are still called.
            let defaults: Vec<i32> =
                SIGNALS.into_iter().filter(|signal| signals::has_default_action(*signal)).collect();
            let signals = Signals::new(SIGNALS)?;
            thread::Builder::new().name("pipewright-signals".into()).spawn(move || {
                signals::block_all();
                SignalThread { signals, defaults, last_stop: None }.run();
            })?;
            *registrations = Registrations { supervisors: Vec::new(), last_number: 0, owner };
        }
        registrations.last_number += 1;
        let number = registrations.last_number;
        let received = Arc::default();
        let registration =
            Registration { number, commands, starts, was_stopped: false, received: Arc::clone(&received) };
        registrations.supervisors.push(registration);
        Ok(Self { number, owner, received })
    }
}

/// The thread that handles the signals.
struct SignalThread {
    signals: Signals,
    /// The signals that had their default action.
    defaults: Vec<i32>,
    /// When all workers had been stopped last.
    last_stop: Option<Instant>,
}

impl SignalThread {
    fn run(mut self) {
        loop {
            let mut pending: VecDeque<i32> = self.signals.wait().collect();
            while let Some(signal) = pending.pop_front() {
                pending.extend(self.handle(signal));
            }
        }
    }

    /// Returns the signals that arrived meanwhile.
    fn handle(&mut self, signal: i32) -> Vec<i32> {
        let is_wanted = !lock(&REGISTRATIONS).supervisors.is_empty();
        match signal {
            SIGTSTP if is_wanted => return self.suspend(),
            _ if is_wanted => self.stop_workers(signal),
            SIGTSTP if self.defaults.contains(&signal) => return self.stop(),
            // Fails only for numbers that are not signals.
            _ if self.defaults.contains(&signal) => drop(emulate_default_handler(signal)),
            _ => {}
        }
        Vec::new()
    }

    /// Stops all workers by their stop policies, or kills them at the second signal; new workers are refused.
    fn stop_workers(&mut self, signal: i32) {
        if self.last_stop.is_some_and(|at| now().saturating_duration_since(at) < REPEAT_WINDOW) {
            return;
        }
        let note = |one: &mut Registration| {
            // The first signal counts.
            one.received.get_or_init(|| signal);
            one.starts.close();
            (one.commands.clone(), mem::replace(&mut one.was_stopped, true))
        };
        let noted: Vec<_> = lock(&REGISTRATIONS).supervisors.iter_mut().map(note).collect();
        // Without the lock: user code on a loop may drop its `SignalGuard`.
        for (commands, was_stopped) in noted {
            let wanted = if was_stopped { StopAll::Within(Duration::ZERO) } else { StopAll::ForGood };
            // Fails if the loop has ended, or does not run: it then stops the workers when it does.
            drop(commands.ask(|answer| Command::StopAll(wanted, answer)));
        }
        // Not the time of the signal: a busy loop delays the answer, and the second signal has arrived meanwhile.
        self.last_stop = Some(now());
    }

    /// Stops the workers and then the process; continues them in the reverse order.
    fn suspend(&mut self) -> Vec<i32> {
        let senders: Vec<CommandSender> =
            lock(&REGISTRATIONS).supervisors.iter().map(|one| one.commands.clone()).collect();
        for commands in &senders {
            // The loop answers by dropping the sender.
            commands.ask_within(SUSPEND_TIMEOUT, Command::Suspend).unwrap_or_default();
        }
        let others = self.stop();
        for commands in &senders {
            commands.send(Command::Resume);
        }
        others
    }

    /// Stops the process. A second SIGTSTP that has arrived meanwhile is dropped (docs/gotchas.md, "Ctrl-Z without a shell").
    fn stop(&mut self) -> Vec<i32> {
        signals::stop_by(SIGTSTP);
        self.signals.pending().filter(|signal| *signal != SIGTSTP).collect()
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        if this_process::own_pid() != self.owner {
            // In a fork of the host the thread does not exist.
            return;
        }
        lock(&REGISTRATIONS).supervisors.retain(|one| one.number != self.number);
    }
}
