//! The files of the directory: which are plugins, and when a change is complete.

use crossbeam_channel::Receiver;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind, event::AccessMode};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// What distinguishes two versions of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
}

/// The plugins of a directory by their names.
pub(crate) type Files = BTreeMap<String, Fingerprint>;

/// Returns the executable files. Left out are hidden files, and backups and locks of editors (`name~`, `#name#`).
pub(crate) fn scan(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Names that cannot be typed as one word of a command.
        let Some(name) = entry.file_name().to_str().filter(|name| is_plugin_name(name)).map(str::to_owned) else {
            continue;
        };
        // Follows links. A file may vanish meanwhile.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            files.insert(name, Fingerprint::of(&metadata));
        }
    }
    Ok(files)
}

fn is_plugin_name(name: &str) -> bool {
    let is_word = !name.chars().any(|character| character.is_whitespace() || character.is_control());
    is_word && !name.starts_with(['.', '#']) && !name.ends_with('~')
}

impl Fingerprint {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A difference that has lasted for the settle time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    New(String),
    Changed(String),
    Removed(String),
}

/// Finds out when a change is complete: editors write in several steps, or rename a new file to the name of the old one, which is
/// missing for a moment. A change counts when two scans have found the same, with the settle time between them.
#[derive(Debug)]
pub(crate) struct Settling {
    settle_time: Duration,
    /// As reported.
    known: Files,
    /// Differences that have been seen: what was found, `None` for nothing, and when it counts.
    unsettled: BTreeMap<String, (Option<Fingerprint>, Instant)>,
    /// The time of the next scan.
    next_scan: Option<Instant>,
}

impl Settling {
    /// The files of the start are complete.
    pub(crate) fn new(settle_time: Duration, known: Files) -> Self {
        Self { settle_time, known, unsettled: BTreeMap::new(), next_scan: None }
    }

    /// The directory has changed in some way.
    pub(crate) fn notice(&mut self, now: Instant) {
        // A flood of notifications does not postpone the scan.
        self.next_scan.get_or_insert(now + self.settle_time / 2);
    }

    /// When to scan.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next_scan
    }

    /// The directory cannot be read. The next notification asks for another scan.
    pub(crate) fn give_up_scan(&mut self) {
        self.next_scan = None;
    }

    /// Returns the changes that are complete.
    pub(crate) fn handle(&mut self, found: &Files, now: Instant) -> Vec<Change> {
        let names: Vec<String> = self.known.keys().chain(found.keys()).cloned().collect();
        let mut changes = Vec::new();
        for name in names {
            let (before, after) = (self.known.get(&name).copied(), found.get(&name).copied());
            if before == after {
                self.unsettled.remove(&name);
                continue;
            }
            let (seen, due) = *self.unsettled.entry(name.clone()).or_insert((after, now + self.settle_time));
            if seen != after {
                self.unsettled.insert(name, (after, now + self.settle_time));
            } else if now >= due {
                self.unsettled.remove(&name);
                changes.push(self.settle(name, after));
            }
        }
        // Names that came and went.
        self.unsettled.retain(|name, _| self.known.contains_key(name) || found.contains_key(name));
        self.next_scan = self.unsettled.values().map(|(_, due)| *due).min();
        changes
    }

    fn settle(&mut self, name: String, after: Option<Fingerprint>) -> Change {
        match after {
            None => {
                self.known.remove(&name);
                Change::Removed(name)
            }
            Some(file) if self.known.insert(name.clone(), file).is_some() => Change::Changed(name),
            Some(_) => Change::New(name),
        }
    }
}

/// Notifies when something in the directory may have changed. Dropping it ends that.
pub(crate) struct DirectoryWatch {
    pub(crate) notifications: Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl DirectoryWatch {
    pub(crate) fn start(directory: &Path) -> notify::Result<Self> {
        // One notification in the channel stands for any number: each scan reads the whole directory.
        let (sender, notifications) = crossbeam_channel::bounded(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error may be an overflow of the kernel's queue. Scans and plugins open files, which is no change.
            if event.is_err() || event.is_ok_and(|event| is_change(event.kind)) {
                // Full: the other side is already notified.
                let _is_full = sender.try_send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self { notifications, _watcher: watcher })
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
