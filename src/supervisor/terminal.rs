//! Ctrl-C and Ctrl-Z, where the program asks for it: the one place of this library that touches signals.
//!
//! One thread listens for all supervisors of the process: two that each stopped the process would need two to go on.

use super::{
    Jobs,
    clock::now,
    driver::{Command, Mailbox, StopAll},
    lock,
};
use crate::sys::{conduct, pidfd};
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGTSTP},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// What [`Supervisor::terminal_signals`](super::Supervisor::terminal_signals) gives. Dropping it ends the listening; when the last
/// one of the process is dropped the signals do again what they did before.
#[derive(Debug)]
pub struct TerminalSignals {
    number: u64,
    owner: i32,
}

/// So soon after the first signal a second one is no second wish: `timeout(1)` signals the process and then its group, and whoever
/// passes Ctrl-C on to a child tells it what the terminal has told it already.
const SAME_WISH: Duration = Duration::from_millis(50);

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
    mailbox: Mailbox,
    jobs: Arc<Jobs>,
    /// When it was asked for the end.
    asked: Option<Instant>,
}

impl TerminalSignals {
    pub(super) fn listen(mailbox: Mailbox, jobs: Arc<Jobs>) -> io::Result<Self> {
        let mut listening = lock(&LISTENING);
        let owner = pidfd::own_pid();
        if listening.owner != owner {
            // The host's own handlers go on being called, also when nobody listens here.
            let defaults: Vec<i32> =
                SIGNALS.into_iter().filter(|signal| conduct::has_default_action(*signal)).collect();
            let mut signals = Signals::new(SIGNALS)?;
            thread::Builder::new().name("pipewright-signals".into()).spawn(move || {
                conduct::block_all_signals();
                signals.forever().for_each(|signal| hear(signal, &defaults));
            })?;
            *listening = Listening { supervisors: Vec::new(), last_number: 0, owner };
        }
        listening.last_number += 1;
        let number = listening.last_number;
        listening.supervisors.push(Listener { number, mailbox, jobs, asked: None });
        Ok(Self { number, owner })
    }
}

fn hear(signal: i32, defaults: &[i32]) {
    let is_wanted = !lock(&LISTENING).supervisors.is_empty();
    match signal {
        SIGTSTP if is_wanted => stop_with_everybody(),
        _ if is_wanted => end_everybody(),
        // It fails only for signals that there are not.
        _ if defaults.contains(&signal) => drop(emulate_default_handler(signal)),
        _ => {}
    }
}

/// By their ladders, or at once where that was asked for already; and nobody comes any more.
fn end_everybody() {
    let now = now();
    for Listener { mailbox, jobs, asked, .. } in &mut lock(&LISTENING).supervisors {
        lock(jobs).take();
        let wanted = match asked {
            Some(first) if now.saturating_duration_since(*first) < SAME_WISH => continue,
            Some(_) => StopAll::Within(Duration::ZERO),
            None => StopAll::ForGood,
        };
        asked.get_or_insert(now);
        ask(mailbox, |answer| Command::StopAll(wanted, answer));
    }
}

/// First the workers, then we; and the other way round.
fn stop_with_everybody() {
    let mailboxes: Vec<Mailbox> = lock(&LISTENING).supervisors.iter().map(|one| one.mailbox.clone()).collect();
    for mailbox in &mailboxes {
        ask(mailbox, Command::Freeze);
    }
    // Returns when somebody has us go on. It fails only for signals that there are not.
    drop(emulate_default_handler(SIGTSTP));
    for mailbox in &mailboxes {
        mailbox.send(Command::Thaw);
    }
}

/// Waits until the loop has done it, or has ended.
fn ask<T>(mailbox: &Mailbox, command: impl FnOnce(crossbeam_channel::Sender<T>) -> Command) {
    let (answer, answered) = crossbeam_channel::bounded(1);
    mailbox.send(command(answer));
    drop(answered.recv());
}

impl Drop for TerminalSignals {
    fn drop(&mut self) {
        if pidfd::own_pid() != self.owner {
            // A fork of the host: the thread is not here.
            return;
        }
        lock(&LISTENING).supervisors.retain(|one| one.number != self.number);
    }
}
