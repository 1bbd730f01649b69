//! Processes that are safe to signal: identified by pidfd, or by PID and start time.

use super::stat::Stat;
use crate::sys::{
    kill,
    pidfd::{self, PidFd},
    poll,
};
use std::{io, os::fd::AsFd};

/// A process that cannot be mistaken for another one that reuses its PID.
#[derive(Debug)]
pub(crate) struct PinnedProcess {
    pub(crate) pid: i32,
    start: u64,
    /// `None` where pidfds are denied: then the PID is used as long as its process has this start time.
    pidfd: Option<PidFd>,
}

impl PinnedProcess {
    /// Pins the process that was seen; `ESRCH` if it is gone.
    pub(crate) fn open(seen: &Stat) -> io::Result<Self> {
        let pidfd = match PidFd::open(seen.pid) {
            Ok(pidfd) => Some(pidfd),
            Err(error) if pidfd::is_open_denied(&error) => None,
            Err(error) => return Err(error),
        };
        let pinned = Self { pid: seen.pid, start: seen.start, pidfd };
        // The PID may have been reused before the process was opened.
        if pinned.has_its_pid() { Ok(pinned) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }

    fn has_its_pid(&self) -> bool {
        Stat::of(self.pid).is_ok_and(|stat| stat.start == self.start)
    }

    /// Sends a signal; `ESRCH` if the process is gone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let sent = self.pidfd.as_ref().map(|pidfd| pidfd.signal(signal));
        match sent {
            Some(Err(error)) if !pidfd::is_send_denied(&error) => Err(error),
            Some(Ok(())) => Ok(()),
            _ if self.has_its_pid() => kill::kill(self.pid, signal),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Closes the file descriptor: PID and start time identify the process from then on.
    pub(crate) fn close_pidfd(&mut self) {
        self.pidfd = None;
    }

    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self) -> Option<&PidFd> {
        self.pidfd.as_ref()
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => poll::is_readable(pidfd.as_fd()).unwrap_or(true),
            None => !Stat::of(self.pid).is_ok_and(|stat| stat.start == self.start && !stat.is_zombie),
        }
    }
}

/// Pins the listed processes. They are listed again afterwards, and only those in both lists are returned.
pub(crate) fn pin(list: impl Fn() -> Vec<i32>) -> Vec<PinnedProcess> {
    let open = |pid| PinnedProcess::open(&Stat::of(pid).ok()?).ok();
    let mut pinned: Vec<PinnedProcess> = list().into_iter().filter_map(open).collect();
    if !pinned.is_empty() {
        let still = list();
        pinned.retain(|process| still.contains(&process.pid));
    }
    pinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::this_process;

    #[test]
    fn pins_what_exists() {
        let own = this_process::own_pid();
        let pinned = pin(|| vec![own, i32::MAX]);
        assert_eq!(pinned.iter().map(|process| process.pid).collect::<Vec<_>>(), [own]);
    }
}
