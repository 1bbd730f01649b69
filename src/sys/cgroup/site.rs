//! Where cgroups of ours may be made, as the mounts show it: beside our own in one that was delegated to us, else below our own.
//!
//! Below our own none can have limits: a cgroup that has processes passes no controllers on ("no internal processes",
//! cgroups(7)). Whoever is to set limits is therefore started in a leaf of what was delegated to it, as systemd's
//! `DelegateSubgroup=` does.

use std::{
    ffi::{CStr, OsStr},
    fs::{self, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{Absence, Act, Cgroup, CgroupError, has_processes, is_whole, refused, subtree};
use crate::sys::{identity, xattr};

/// Marks of systemd on what it has delegated. The second is the older one, and only root sees it.
const MARKS: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// The directory in which our cgroups lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    path: PathBuf,
}

impl Site {
    /// Looks for it. Whether anything may be made there shows only when it is made: see `create`.
    pub(crate) fn find() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            fs::read(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CgroupError::Absent(Absence::NoProc),
                _ => refused(Act::Read, Path::new(path), error),
            })
        };
        let places = places(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let path = places.map_err(CgroupError::Absent)?.into_iter().find(|path| is_cgroup(path));
        let own = path.ok_or(CgroupError::Absent(Absence::OutOfSight))?;
        let above = own.parent().filter(|above| is_delegated(above) && is_free(above));
        Ok(Self { path: above.map_or_else(|| own.clone(), Path::to_owned) })
    }

    /// Removes those cgroups here that nobody is in and `is_stale` wants away, by their names.
    pub(crate) fn clean(&self, is_stale: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(&is_stale) {
                // With those that its workers have made. The kernel refuses where somebody is in one.
                for path in subtree(&entry.path()).iter().rev() {
                    drop(fs::remove_dir(path));
                }
            }
        }
    }

    /// Where `create` makes the one of this name.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a cgroup.
    pub(crate) fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        Cgroup::make(&self.path, &self.path, name)
    }
}

/// Whether a cgroup was handed to us to be divided. That root may write everywhere does not say so: what is in a cgroup of somebody
/// else's, a service manager's slice, would escape the limits and the end of the service that we are.
fn is_delegated(path: &Path) -> bool {
    let is_marked = || MARKS.iter().any(|mark| xattr::get(path, mark).is_some_and(|value| value == b"1"));
    // The kernel's own two forms (cgroup-v2, "Delegation"): a cgroup namespace begins with it, or it belongs to us, and what is
    // above it does not.
    let Some(above) = path.parent() else { return false };
    let begins_what_we_see = || !is_cgroup(above) && !is_whole(path);
    let owner = |path: &Path| fs::metadata(path).map(|metadata| metadata.uid()).ok();
    let ours = identity::effective_uid();
    let is_ours = || ours != 0 && owner(path) == Some(ours) && is_cgroup(above) && owner(above) != Some(ours);
    is_cgroup(path) && (is_marked() || begins_what_we_see() || is_ours())
}

/// Whether we may move processes about in it and pass controllers on.
fn is_free(path: &Path) -> bool {
    let may_write = |file| OpenOptions::new().write(true).open(path.join(file)).is_ok();
    may_write("cgroup.procs") && may_write("cgroup.subtree_control") && !has_processes(path)
}

fn is_cgroup(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
}

/// A mount of the cgroup2 file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Which part of the hierarchy is mounted here.
    root: Vec<u8>,
    at: Vec<u8>,
}

/// The directories at which our own cgroup may be seen.
fn places(mountinfo: &[u8], own: &[u8]) -> Result<Vec<PathBuf>, Absence> {
    let mounts: Vec<Mount> = mountinfo.split(|&byte| byte == b'\n').filter_map(parse_mount).collect();
    if mounts.is_empty() {
        return Err(Absence::NotMounted);
    }
    let own = own.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    let own = own.ok_or(Absence::NotMounted)?;
    let places: Vec<PathBuf> = mounts.iter().filter_map(|mount| mount.place_of(own)).collect();
    if places.is_empty() { Err(Absence::OutOfSight) } else { Ok(places) }
}

impl Mount {
    /// A cgroup namespace shows what lies outside of it with `..`, and that has no place below any mount.
    fn place_of(&self, own: &[u8]) -> Option<PathBuf> {
        let outside = |path: &[u8]| path == b"/.." || path.starts_with(b"/../");
        if outside(own) || outside(&self.root) {
            return None;
        }
        let root = self.root.strip_suffix(b"/").unwrap_or(&self.root);
        let below = own.strip_prefix(root)?;
        if !below.is_empty() && !below.starts_with(b"/") {
            return None;
        }
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let at = Path::new(OsStr::from_bytes(&self.at));
        Some(if below.is_empty() { at.to_owned() } else { at.join(OsStr::from_bytes(below)) })
    }
}

/// A line of proc(5) mountinfo: id, parent, device, root, mount point, options, tags, `-`, type, and more.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (root, at) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|&field| field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| Mount { root: unescape(root), at: unescape(at) })
}

/// The kernel writes blanks and backslashes of a path as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_place(mountinfo: &str, own: &str) -> PathBuf {
        let places = places(mountinfo.as_bytes(), own.as_bytes()).unwrap();
        assert_eq!(places.len(), 1, "{places:?}");
        places.into_iter().next().unwrap()
    }

    const V2: &str = "\
        22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_pure_layout_has_one_mount() {
        let own = "0::/user.slice/user-1000.slice/session-2.scope\n";
        assert_eq!(only_place(V2, own), Path::new("/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope"));
        assert_eq!(only_place(V2, "0::/\n"), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn a_hybrid_layout_has_it_beside_the_old_ones() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/elsewhere\n1:name=systemd:/\n0::/a\n";
        assert_eq!(only_place(mounts, own), Path::new("/sys/fs/cgroup/unified/a"));
    }

    #[test]
    fn an_old_layout_has_none() {
        let mounts = b"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(places(mounts, b"4:memory:/\n"), Err(Absence::NotMounted));
        assert_eq!(places(V2.as_bytes(), b"4:memory:/\n"), Err(Absence::NotMounted), "mounted, but not for us");
        assert_eq!(places(b"", b""), Err(Absence::NotMounted));
    }

    #[test]
    fn a_container_may_see_a_part_of_the_hierarchy() {
        let bound = "35 24 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(only_place(bound, "0::/docker/abc\n"), Path::new("/sys/fs/cgroup"));
        assert_eq!(only_place(bound, "0::/docker/abc/worker\n"), Path::new("/sys/fs/cgroup/worker"));
        let out_of_sight = |own: &str| places(bound.as_bytes(), own.as_bytes());
        assert_eq!(out_of_sight("0::/docker/abcdef\n"), Err(Absence::OutOfSight), "a longer name is another one");
        assert_eq!(out_of_sight("0::/\n"), Err(Absence::OutOfSight));
        assert_eq!(out_of_sight("0::/../other\n"), Err(Absence::OutOfSight));
        let above = b"35 24 0:30 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(places(above, b"0::/\n"), Err(Absence::OutOfSight));
    }

    #[test]
    fn several_mounts_are_several_places() {
        let two = format!("{V2}36 24 0:30 /a /mnt/part rw - cgroup2 none rw\n");
        let places = places(two.as_bytes(), b"0::/a/b\n").unwrap();
        assert_eq!(places, [Path::new("/sys/fs/cgroup/a/b"), Path::new("/mnt/part/b")]);
    }

    #[test]
    fn escaped_paths_become_what_they_are() {
        let mounts = "35 24 0:30 / /mnt/my\\040own\\134x rw - cgroup2 none rw\n";
        assert_eq!(only_place(mounts, "0::/a b\n"), Path::new("/mnt/my own\\x/a b"));
        assert_eq!(unescape(b"\\04"), b"\\04");
    }
}
