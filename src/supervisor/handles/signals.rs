//! Ctrl-C and Ctrl-Z, where the program asks for it: the one place of this library that touches signals.
//!
//! One thread listens for all supervisors of the process: two that each stopped the process would need two to go on.

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
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// What [`Supervisor::handle_signals`](crate::supervisor::Supervisor::handle_signals) gives. Dropping it ends the listening; when the last
/// one of the process is dropped the signals do again what they did before.
#[derive(Debug)]
pub struct SignalGuard {
    number: u64,
    owner: i32,
}

/// So soon after what a signal wants was done the next one is no other wish: `timeout(1)` signals the process and then its group,
/// and whoever passes Ctrl-C on to a child tells it what the terminal has told it already.
const SAME_WISH: Duration = Duration::from_millis(50);

/// How long the workers have to be stopped before the program is: a process of theirs can hang in a way in which it cannot be
/// looked at.
const STOP_TIME: Duration = Duration::from_secs(1);

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGTSTP];

static LISTENING: Mutex<Listening> = Mutex::new(Listening { supervisors: Vec::new(), last_number: 0, owner: 0 });

struct Listening {
    supervisors: Vec<Listener>,
    last_number: u64,
    /// The process whose thread listens, for good: a handler cannot be taken back, so somebody has to do what would be done
    /// without it.
    owner: i32,
}

struct Listener {
    number: u64,
    commands: CommandSender,
    starts: Arc<SpawnQueue>,
    was_asked: bool,
}

impl SignalGuard {
    pub(crate) fn listen(commands: CommandSender, starts: Arc<SpawnQueue>) -> io::Result<Self> {
        let mut listening = lock(&LISTENING);
        let owner = this_process::own_pid();
        if listening.owner != owner {
            // The host's own handlers go on being called, also when nobody listens here.
            let defaults: Vec<i32> =
                SIGNALS.into_iter().filter(|signal| signals::has_default_action(*signal)).collect();
            let signals = Signals::new(SIGNALS)?;
            thread::Builder::new().name("pipewright-signals".into()).spawn(move || {
                signals::block_all();
                Ear { signals, defaults, obeyed: None }.hear_all();
            })?;
            *listening = Listening { supervisors: Vec::new(), last_number: 0, owner };
        }
        listening.last_number += 1;
        let number = listening.last_number;
        listening.supervisors.push(Listener { number, commands, starts, was_asked: false });
        Ok(Self { number, owner })
    }
}

/// The thread that listens.
struct Ear {
    signals: Signals,
    /// Nobody else of this process has said what is to be done at these.
    defaults: Vec<i32>,
    /// When everybody had been told to end.
    obeyed: Option<Instant>,
}

impl Ear {
    fn hear_all(mut self) {
        loop {
            let mut heard: VecDeque<i32> = self.signals.wait().collect();
            while let Some(signal) = heard.pop_front() {
                heard.extend(self.hear(signal));
            }
        }
    }

    /// Gives what else was heard meanwhile.
    fn hear(&mut self, signal: i32) -> Vec<i32> {
        let is_wanted = !lock(&LISTENING).supervisors.is_empty();
        match signal {
            SIGTSTP if is_wanted => return self.stop_with_everybody(),
            _ if is_wanted => self.end_everybody(),
            SIGTSTP if self.defaults.contains(&signal) => return self.stop(),
            // It fails only for signals that there are not.
            _ if self.defaults.contains(&signal) => drop(emulate_default_handler(signal)),
            _ => {}
        }
        Vec::new()
    }

    /// By their ladders, or at once where that was asked for already; and nobody comes any more.
    fn end_everybody(&mut self) {
        if self.obeyed.is_some_and(|at| now().saturating_duration_since(at) < SAME_WISH) {
            return;
        }
        let note = |one: &mut Listener| {
            one.starts.close();
            (one.commands.clone(), mem::replace(&mut one.was_asked, true))
        };
        let noted: Vec<_> = lock(&LISTENING).supervisors.iter_mut().map(note).collect();
        // Without the lock: a user's code on a loop may drop what it listens with.
        for (commands, was_asked) in noted {
            let wanted = if was_asked { StopAll::Within(Duration::ZERO) } else { StopAll::ForGood };
            // Fails where the loop has ended, or is not run: then it is done when it is.
            drop(commands.ask(|answer| Command::StopAll(wanted, answer)));
        }
        // Not when it was heard: a loop that has much to do lets us wait, and the second signal has come meanwhile.
        self.obeyed = Some(now());
    }

    /// First the workers, then we; and the other way round.
    fn stop_with_everybody(&mut self) -> Vec<i32> {
        let senders: Vec<CommandSender> = lock(&LISTENING).supervisors.iter().map(|one| one.commands.clone()).collect();
        for commands in &senders {
            // There is no answer but the end of the wait.
            commands.ask_within(STOP_TIME, Command::Suspend).unwrap_or_default();
        }
        let others = self.stop();
        for commands in &senders {
            commands.send(Command::Resume);
        }
        others
    }

    /// Whoever was impatient and has typed Ctrl-Z twice meant one stop (docs/gotchas.md, "Ctrl-Z without a shell").
    fn stop(&mut self) -> Vec<i32> {
        signals::stop_by(SIGTSTP);
        self.signals.pending().filter(|signal| *signal != SIGTSTP).collect()
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        if this_process::own_pid() != self.owner {
            // A fork of the host: the thread is not here.
            return;
        }
        lock(&LISTENING).supervisors.retain(|one| one.number != self.number);
    }
}
