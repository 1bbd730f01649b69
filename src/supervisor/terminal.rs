//! Ctrl-C and Ctrl-Z, where the program asks for it: the one place of this library that touches signals.

use super::driver::{Command, Mailbox};
use crate::sys::conduct;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGTSTP},
    iterator::{Handle, Signals},
    low_level::emulate_default_handler,
};
use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

/// What [`Supervisor::terminal_signals`](super::Supervisor::terminal_signals) gives. Dropping it ends the listening; the signals
/// are then ignored, since nobody can know what they were for before.
#[derive(Debug)]
pub struct TerminalSignals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl TerminalSignals {
    pub(super) fn listen(mailbox: Mailbox) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGTSTP])?;
        let handle = signals.handle();
        let listen = move || {
            conduct::block_all_signals();
            let mut has_asked = false;
            for signal in &mut signals {
                if signal == SIGTSTP {
                    stop_with_everybody(&mailbox);
                } else {
                    let within = has_asked.then_some(Duration::ZERO);
                    has_asked = true;
                    ask(&mailbox, |answer| Command::StopAll(within, answer));
                }
            }
        };
        let thread = thread::Builder::new().name("pipewright-signals".into()).spawn(listen)?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

/// First the workers, then we; and the other way round.
fn stop_with_everybody(mailbox: &Mailbox) {
    ask(mailbox, Command::Freeze);
    // Returns when somebody has us go on. It fails only for signals that there are not.
    drop(emulate_default_handler(SIGTSTP));
    mailbox.send(Command::Thaw);
}

/// Waits until the loop has done it, or has ended.
fn ask<T>(mailbox: &Mailbox, command: impl FnOnce(crossbeam_channel::Sender<T>) -> Command) {
    let (answer, answered) = crossbeam_channel::bounded(1);
    mailbox.send(command(answer));
    drop(answered.recv());
}

impl Drop for TerminalSignals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // A panic of ours has been printed by then.
            drop(thread.join());
        }
    }
}
