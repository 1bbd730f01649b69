//! The process groups that the guard kills and the directory that it removes, as lines in a pipe.
//!
//! The host holds both ends, and the guard inherits them. The host appends a line for each change, so the guard does not wake up for
//! changes and still finds the lines after the host has ended. A pipe, since a memfd obeys `RLIMIT_FSIZE`: a write beyond that limit
//! kills the host by SIGXFSZ.
//!
//! `+N` adds a group, `-N` removes it, `=` removes all groups; `/PATH` sets the directory of the host's sockets; `alive` says that the
//! host has asked for the cleanup, and keeps its tokens of a jobserver. Before the pipe fills
//! up, the host writes `=`, the directory and the present groups, and then reads the lines before them. If the host is killed in
//! between, the remaining lines have the same meaning.

use crate::sys::{fd, fifo};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The guard writes this line and reads the list up to it: end of file does not occur while a fork of the host holds the writing end.
pub(super) const END: &str = "end";
/// The host writes this line before it lets the guard clean up.
const ALIVE: &str = "alive";
/// Up to this many bytes the lines are not compacted, however few groups they describe.
const FEW_BYTES: usize = 4096;

/// What is killed and removed with the host.
#[derive(Debug)]
pub(crate) struct GroupList {
    pipe: Mutex<ListPipe>,
}

#[derive(Debug)]
struct ListPipe {
    reader: File,
    writer: File,
    groups: BTreeSet<u32>,
    /// One line, or empty. Its path contains no line feed.
    directory: String,
    /// Unread bytes in the pipe.
    bytes: usize,
    capacity: usize,
    /// The limit for enlarging the pipe.
    capacity_max: usize,
}

impl GroupList {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = fifo::pipe()?;
        // `bytes` and `capacity` prevent a full pipe. If they are wrong, a write fails instead of blocking.
        fd::set_nonblocking(writer.as_fd())?;
        let capacity = fifo::capacity(reader.as_fd())?;
        let pipe = ListPipe {
            reader,
            writer,
            groups: BTreeSet::new(),
            directory: String::new(),
            bytes: 0,
            capacity,
            capacity_max: fifo::LARGEST_BYTES,
        };
        Ok(Self { pipe: Mutex::new(pipe) })
    }

    /// Both ends for a guard, which reads the list and writes its last line.
    pub(super) fn ends(&self) -> io::Result<[OwnedFd; 2]> {
        let ends = self.lock();
        Ok([OwnedFd::from(ends.reader.try_clone()?), OwnedFd::from(ends.writer.try_clone()?)])
    }

    /// Adds a group to be killed with the host.
    ///
    /// # Errors
    ///
    /// If the user's pipe quota is used up, which takes thousands of groups. The group is not in the list then.
    pub(crate) fn add(&self, group: u32) -> io::Result<()> {
        self.lock().change(group, true)
    }

    /// Removes a group that has ended or is about to be reaped: its number can be reused afterwards.
    pub(crate) fn remove(&self, group: u32) {
        // Also if writing fails, the group is not in the list afterwards.
        drop(self.lock().change(group, false));
    }

    /// Sets the directory to be removed with the host, in place of an earlier one.
    pub(crate) fn set_directory(&self, path: &Path) {
        let mut ends = self.lock();
        let line = format!("{}\n", path.display());
        if ends.directory != line {
            ends.directory.clone_from(&line);
            // On failure the line is written with the next compaction, and the next supervisor removes the directory too.
            let written = ends.bytes + line.len() <= ends.room() && ends.write(&line).is_ok();
            drop(if written { Ok(()) } else { ends.renew() });
        }
    }

    /// Tells the guard, which is about to clean up, that the host goes on.
    pub(crate) fn set_alive(&self) {
        // There is room, as for the guard's own line.
        drop(self.lock().write(&format!("{ALIVE}\n")));
    }

    fn lock(&self) -> MutexGuard<'_, ListPipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListPipe {
    fn change(&mut self, group: u32, is_in: bool) -> io::Result<()> {
        let is_new = if is_in { self.groups.insert(group) } else { self.groups.remove(&group) };
        if !is_new {
            return Ok(());
        }
        let line = format!("{}{group}\n", if is_in { '+' } else { '-' });
        let all_bytes = 2 + self.directory.len() + self.groups.len() * line.len();
        let most = self.room().min(FEW_BYTES.max(2 * all_bytes));
        if self.bytes + line.len() <= most && self.write(&line).is_ok() {
            return Ok(());
        }
        let renewed = self.renew();
        if renewed.is_err() && is_in {
            // Without the new group the lines fit.
            self.groups.remove(&group);
            drop(self.renew());
        }
        renewed
    }

    /// The number of bytes that fit in any case. The kernel counts pages: one may be partly read, a long text starts a new page although
    /// the last is not full, and one is reserved for the guard's own line.
    fn room(&self) -> usize {
        self.capacity.saturating_sub(3 * fifo::page_bytes())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let written = self.writer.write(text.as_bytes());
        self.bytes += written.as_ref().copied().unwrap_or(0);
        if written? == text.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Replaces all lines by the present groups. Without room for both, the old lines are removed first; without room for the new ones
    /// alone, the list stays empty.
    fn renew(&mut self) -> io::Result<()> {
        let lines = self.groups.iter().map(|group| format!("+{group}\n"));
        let text: String = ["=\n".to_owned(), self.directory.clone()].into_iter().chain(lines).collect();
        while self.room() < 2 * text.len() && self.capacity < self.capacity_max {
            match fifo::set_capacity(self.writer.as_fd(), 2 * self.capacity) {
                Ok(capacity) if capacity > self.capacity => self.capacity = capacity,
                Ok(_) | Err(_) => break,
            }
        }
        let before = self.bytes;
        if before + text.len() <= self.room() && self.write(&text).is_ok() {
            return self.skip(before);
        }
        self.skip(self.bytes)?;
        let written = if text.len() + fifo::page_bytes() <= self.capacity {
            self.write(&text)
        } else {
            Err(io::ErrorKind::StorageFull.into())
        };
        if written.is_err() {
            self.skip(self.bytes)?;
        }
        written
    }

    /// Reads this many bytes, which are available.
    fn skip(&mut self, bytes: usize) -> io::Result<()> {
        let skipped = io::copy(&mut (&self.reader).take(bytes as u64), &mut io::sink());
        self.bytes = self.bytes.saturating_sub(bytes);
        skipped.map(drop)
    }
}

/// The list as its guard reads it.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) groups: BTreeSet<i32>,
    pub(super) directory: Option<PathBuf>,
    /// Whether the host has asked for the cleanup.
    pub(super) is_host_alive: bool,
}

/// Reads a list to its end, in the guard.
pub(super) fn read(reader: impl Read, writer: BorrowedFd<'_>) -> io::Result<Listed> {
    File::from(writer.try_clone_to_owned()?).write_all(format!("{END}\n").as_bytes())?;
    let mut listed = Listed::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        if line == END.as_bytes() {
            break;
        }
        let number = || str::from_utf8(line.get(1..)?).ok()?.parse::<i32>().ok();
        match (line.first(), number()) {
            (Some(b'+'), Some(group)) => drop(listed.groups.insert(group)),
            (Some(b'-'), Some(group)) => drop(listed.groups.remove(&group)),
            (Some(b'='), _) => listed.groups.clear(),
            (Some(b'a'), _) if line == ALIVE.as_bytes() => listed.is_host_alive = true,
            (Some(b'/'), _) => listed.directory = Some(OsString::from_vec(line).into()),
            // The end of a line whose beginning the host has read.
            _ => {}
        }
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn groups_of(list: &GroupList) -> BTreeSet<i32> {
        listed_by(list).groups
    }

    fn listed_by(list: &GroupList) -> Listed {
        let [reader, writer] = list.ends().unwrap();
        read(File::from(reader), writer.as_fd()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn p09_group_list_holds_what_was_entered_and_has_not_left(
            changes in proptest::collection::vec((1..300_u32, any::<bool>()), 0..1000),
            small: bool,
        ) {
            let list = GroupList::new().unwrap();
            if small {
                let mut ends = list.lock();
                // As for a user whose pipe quota is used up.
                ends.capacity = fifo::set_capacity(ends.writer.as_fd(), 2 * fifo::page_bytes()).unwrap();
                ends.capacity_max = ends.capacity;
            }
            let mut model = BTreeSet::new();
            let mut directory = None;
            for (group, enters) in changes {
                if group % 64 == 0 {
                    let path = PathBuf::from(format!("/run/user/{group}/pipewright-0123456789abcdef"));
                    list.set_directory(&path);
                    directory = Some(path);
                }
                if enters {
                    list.add(group).unwrap();
                    model.insert(group.cast_signed());
                } else {
                    list.remove(group);
                    model.remove(&group.cast_signed());
                }
            }
            let listed = listed_by(&list);
            prop_assert_eq!(listed.groups, model);
            prop_assert_eq!(listed.directory, directory);
        }
    }

    #[test]
    fn p09_group_list_holds_thirty_thousand_groups() {
        let list = GroupList::new().unwrap();
        let many = 4_000_000..4_030_000;
        many.clone().for_each(|group| list.add(group).unwrap());
        many.clone().step_by(2).for_each(|group| list.remove(group));
        assert_eq!(groups_of(&list), many.skip(1).step_by(2).map(u32::cast_signed).collect());
    }
}
