//! Ctrl-C and Ctrl-Z, where the program asks for it: the one place of this library that touches signals.
//!
//! One thread listens for all supervisors of the process: two that each stopped the process would need two to go on.

use super::{
    Jobs,
    driver::{Command, Mailbox, StopAll},
    lock,
};
use crate::sys::{conduct, pidfd};
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGTSTP},
    iterator::{Handle, Signals},
    low_level::emulate_default_handler,
};
use std::{
    io,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

/// What [`Supervisor::terminal_signals`](super::Supervisor::terminal_signals) gives. Dropping it ends the listening; when the last
/// one of the process is dropped the signals are ignored, since nobody can know what they were for before.
#[derive(Debug)]
pub struct TerminalSignals {
    number: u64,
    owner: i32,
}

static LISTENING: Mutex<Listening> = Mutex::new(Listening { supervisors: Vec::new(), last_number: 0, thread: None });

struct Listening {
    supervisors: Vec<Listener>,
    last_number: u64,
    /// As long as there are any.
    thread: Option<(Handle, JoinHandle<()>)>,
}

struct Listener {
    number: u64,
    mailbox: Mailbox,
    jobs: Arc<Jobs>,
    was_asked: bool,
}

impl TerminalSignals {
    pub(super) fn listen(mailbox: Mailbox, jobs: Arc<Jobs>) -> io::Result<Self> {
        let mut listening = lock(&LISTENING);
        if listening.thread.is_none() {
            let mut signals = Signals::new([SIGINT, SIGTERM, SIGTSTP])?;
            let handle = signals.handle();
            let thread = thread::Builder::new().name("pipewright-signals".into()).spawn(move || {
                conduct::block_all_signals();
                signals
                    .forever()
                    .for_each(|signal| if signal == SIGTSTP { stop_with_everybody() } else { end_everybody() });
            })?;
            listening.thread = Some((handle, thread));
        }
        listening.last_number += 1;
        let number = listening.last_number;
        listening.supervisors.push(Listener { number, mailbox, jobs, was_asked: false });
        Ok(Self { number, owner: pidfd::own_pid() })
    }
}

/// By their ladders, or at once where that was asked for already; and nobody comes any more.
fn end_everybody() {
    for Listener { mailbox, jobs, was_asked, .. } in &mut lock(&LISTENING).supervisors {
        lock(jobs).take();
        let wanted = if *was_asked { StopAll::Within(Duration::ZERO) } else { StopAll::ForGood };
        *was_asked = true;
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
        let mut listening = lock(&LISTENING);
        listening.supervisors.retain(|one| one.number != self.number);
        let thread = if listening.supervisors.is_empty() { listening.thread.take() } else { None };
        drop(listening);
        if let Some((handle, thread)) = thread {
            handle.close();
            // A panic of ours has been printed by then.
            drop(thread.join());
        }
    }
}
