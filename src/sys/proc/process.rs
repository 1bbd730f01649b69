//! What `/proc/PID` shows of one process: command line, users, threads, pipes.

use super::stat::Stat;
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The most file descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 1 << 16;
/// The most bytes of a command line that are reported.
const COMMAND_BYTES: u64 = 256;

/// The command line, with spaces between the arguments; the name in brackets where there are none. Cut after 256 bytes.
pub(crate) fn command_line(pid: i32) -> String {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        if let Ok(file) = fs::File::open(format!("/proc/{pid}/{name}")) {
            drop(file.take(COMMAND_BYTES).read_to_end(&mut bytes));
        }
        bytes
    };
    let bytes = read("cmdline");
    let words = String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() { format!("[{}]", String::from_utf8_lossy(&read("comm")).trim_end()) } else { words }
}

/// The file-system user id of a process: the effective one, unless the process has set another.
pub(crate) fn fs_uid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().nth(3)?.parse().ok()
}

/// Whether this is the id of a thread other than the main one. `/proc` has a directory for those too, without listing it.
pub(crate) fn is_thread(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    leader.is_some_and(|leader| leader != pid)
}

/// The real user id of a process.
pub(crate) fn real_uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

/// The directory of a process; where its main thread has ended, which empties that directory, those of its other threads.
pub(crate) fn directories(stat: &Stat) -> Vec<PathBuf> {
    let own = PathBuf::from(format!("/proc/{}", stat.pid));
    if !stat.is_leaderless {
        return vec![own];
    }
    let threads = fs::read_dir(own.join("task")).into_iter().flatten().flatten().map(|entry| entry.path());
    threads.filter(|path| !path.ends_with(stat.pid.to_string())).collect()
}

/// The inodes of the pipes of which a process holds the writing end and not the reading end. A process that holds both ends is a
/// fork of the process that made the pipe.
///
/// Only links are read: a target can be on a file system that does not respond.
pub(crate) fn pipes_written(directory: &Path) -> io::Result<Vec<u64>> {
    let (mut written, mut read) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory.join("fd"))?.take(DESCRIPTORS_MAX) {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let Some(inode) = target.to_str().and_then(pipe_inode) else { continue };
        // The permission bits of the link itself tell how the file is open.
        let mode = fs::symlink_metadata(&path).map_or(0, |link| link.permissions().mode());
        if mode & 0o200 != 0 {
            written.push(inode);
        }
        if mode & 0o400 != 0 {
            read.push(inode);
        }
    }
    written.retain(|inode| !read.contains(inode));
    Ok(written)
}

fn pipe_inode(target: &str) -> Option<u64> {
    target.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{fd, this_process, this_process::own_pid};
    use std::os::fd::AsFd;

    #[test]
    fn this_process_shows_its_command_user_and_threads() {
        let own = own_pid();
        assert!(!command_line(own).is_empty());
        assert_eq!(real_uid(own), Some(this_process::real_uid()));
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let threads: Vec<i32> = threads.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
        assert!(threads.iter().all(|thread| is_thread(*thread) == (*thread != own)), "{threads:?}");
    }

    #[test]
    fn pipe_is_written_once_its_reading_end_is_closed() {
        let (reader, writer) = io::pipe().unwrap();
        let inode = fd::inode(writer.as_fd()).unwrap();
        let own = Path::new("/proc/self");
        assert!(!pipes_written(own).unwrap().contains(&inode), "this process holds both ends");
        drop(reader);
        assert!(pipes_written(own).unwrap().contains(&inode));
        drop(writer);
        assert_eq!(pipe_inode("pipe:[12]"), Some(12));
        assert_eq!(pipe_inode("socket:[12]"), None);
    }
}
