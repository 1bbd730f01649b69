//! Signals of the user as a channel, for `select!` with events.

use crossbeam_channel::Receiver;
use std::{io, thread};

/// Returns a channel of the given signals, which a thread receives.
pub(crate) fn signal_channel<const N: usize>(signals: [i32; N]) -> io::Result<Receiver<i32>> {
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let (sender, receiver) = crossbeam_channel::unbounded();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
