//! What the mount of `/proc` shows.

use crate::sys::{identity, this_process};
use std::{fs, os::unix::fs::MetadataExt};

/// Which other processes `/proc` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    All,
    /// `/proc` is mounted with `hidepid`.
    Hidden,
    /// `/proc` is not mounted, or shows another PID namespace.
    Absent,
}

/// Which other processes `/proc` shows now.
pub(crate) fn visibility() -> Visibility {
    if !is_own() {
        return Visibility::Absent;
    }
    // Process 1 exists everywhere and mostly belongs to another user. Where it does not, the mount options decide.
    match fs::metadata("/proc/1") {
        Ok(first) if first.uid() != identity::effective_uid() => {
            if fs::read("/proc/1/stat").is_ok() {
                Visibility::All
            } else {
                Visibility::Hidden
            }
        }
        Ok(_) if identity::effective_uid() != 0 && is_mounted_hidden() => Visibility::Hidden,
        Ok(_) => Visibility::All,
        Err(_) => Visibility::Hidden,
    }
}

/// Whether `/proc` is mounted and shows this PID namespace: after `unshare --pid` it often still shows the outer one.
pub(crate) fn is_own() -> bool {
    let own = this_process::own_pid().to_string();
    fs::read_link("/proc/self").is_ok_and(|target| target.to_str() == Some(&own))
}

fn is_mounted_hidden() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut at_proc = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/proc"));
    at_proc.next_back().is_some_and(|line| {
        let options = line.split([' ', ',']);
        options.filter_map(|option| option.strip_prefix("hidepid=")).any(|value| !matches!(value, "0" | "off"))
    })
}
