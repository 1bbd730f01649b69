//! The files of a cgroup directory.

use super::error::{Controller, ControllerUnavailable};
use crate::sys::fd;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How deep the cgroups that a worker has made inside its own are followed.
const DEEPEST: u32 = 16;

/// The value of a key in a flat-keyed file: one key and one number on each line.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Enables a controller for the children of a cgroup.
pub(super) fn pass_down(parent: &Path, controller: Controller) -> Result<(), ControllerUnavailable> {
    let control = parent.join("cgroup.subtree_control");
    let names = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().any(|name| name == controller.name())
    };
    if !names(&parent.join("cgroup.controllers")) {
        return Err(ControllerUnavailable::NotDelegated);
    }
    // For a cgroup with processes the kernel enables some controllers all the same, and turns its children into threaded cgroups:
    // no process can be cloned into those any more.
    if !is_root(parent) && has_processes(parent) {
        return Err(ControllerUnavailable::Occupied);
    }
    if names(&control) {
        return Ok(());
    }
    write(&control, &format!("+{}", controller.name())).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => ControllerUnavailable::Occupied,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ControllerUnavailable::NotPermitted,
        _ => ControllerUnavailable::NotDelegated,
    })
}

/// Whether this is the root of the hierarchy, which may contain processes and enable controllers.
pub(super) fn is_root(path: &Path) -> bool {
    !path.join("cgroup.type").exists()
}

/// Whether processes are in the cgroup itself; those in its descendants do not count.
pub(super) fn has_processes(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

/// A directory and all directories below it, parents first.
pub(super) fn subtree(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut level = all.clone();
    for _ in 0..DEEPEST {
        let inside = level.iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        level = inside
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        if level.is_empty() {
            break;
        }
        all.extend(level.iter().cloned());
    }
    all
}

pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
    // In a host that has closed 0, 1 or 2, the file would get that number, which the child's standard streams replace.
    fd::dup_above(file.into(), fd::MIN_FD)
}

pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
