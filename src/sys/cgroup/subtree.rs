//! Where this process may make cgroups: as siblings of its own cgroup if their parent was delegated to it, else as children of its
//! own.
//!
//! Children of its own cgroup cannot have limits: a cgroup with processes enables no controllers for its children ("no internal
//! processes", cgroups(7)). To set limits, a program is started in a leaf of the delegated subtree, as systemd's
//! `DelegateSubgroup=` does.

use std::{
    ffi::{CStr, OsStr},
    fs::{self, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    error::{CgroupError, CgroupOperation, CgroupUnavailable},
    files::{has_processes, is_root, subtree},
    group::Cgroup,
};
use crate::sys::{identity, xattr};

/// Extended attributes that systemd sets on a delegated cgroup. The second is the older one and readable only by root.
const MARKS: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// The directory in which this process makes its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DelegatedSubtree {
    path: PathBuf,
}

impl DelegatedSubtree {
    /// Finds the directory. Whether cgroups may be made there shows only in `create`.
    pub(crate) fn find() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            fs::read(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CgroupError::Unavailable(CgroupUnavailable::NoProc),
                _ => CgroupError::refused(CgroupOperation::Read, Path::new(path), error),
            })
        };
        let candidates = candidates(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let path = candidates.map_err(CgroupError::Unavailable)?.into_iter().find(|path| is_cgroup(path));
        let own = path.ok_or(CgroupError::Unavailable(CgroupUnavailable::OutOfSight))?;
        let above = own.parent().filter(|above| is_delegated(above) && is_free(above));
        Ok(Self { path: above.map_or_else(|| own.clone(), Path::to_owned) })
    }

    /// Removes the unpopulated cgroups whose names satisfy `is_stale`.
    pub(crate) fn clean(&self, is_stale: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(&is_stale) {
                // With the cgroups that its workers have made. The kernel refuses to remove a populated cgroup.
                for path in subtree(&entry.path()).iter().rev() {
                    drop(fs::remove_dir(path));
                }
            }
        }
    }

    /// The directory that `create` makes for this name.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a cgroup.
    pub(crate) fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        Cgroup::make(&self.path, &self.path, name)
    }
}

/// Whether a cgroup was delegated to this process. That root may write everywhere is not enough: processes in another program's
/// cgroup, such as a service manager's slice, would escape the limits and the end of the service that this process belongs to.
fn is_delegated(path: &Path) -> bool {
    let is_marked = || MARKS.iter().any(|mark| xattr::get(path, mark).is_some_and(|value| value == b"1"));
    // The kernel's own two forms (cgroup-v2, "Delegation"): it is the root of a cgroup namespace, or this user owns it and not its
    // parent.
    let Some(above) = path.parent() else { return false };
    let is_namespace_root = || !is_cgroup(above) && !is_root(path);
    let owner = |path: &Path| fs::metadata(path).map(|metadata| metadata.uid()).ok();
    let ours = identity::effective_uid();
    let is_ours = || ours != 0 && owner(path) == Some(ours) && is_cgroup(above) && owner(above) != Some(ours);
    is_cgroup(path) && (is_marked() || is_namespace_root() || is_ours())
}

/// Whether this process may move processes in it and enable controllers for its children.
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
    /// The part of the hierarchy that is mounted here.
    root: Vec<u8>,
    at: Vec<u8>,
}

/// The directories that can be this process's cgroup.
fn candidates(mountinfo: &[u8], own: &[u8]) -> Result<Vec<PathBuf>, CgroupUnavailable> {
    let mounts: Vec<Mount> = mountinfo.split(|&byte| byte == b'\n').filter_map(parse_mount).collect();
    if mounts.is_empty() {
        return Err(CgroupUnavailable::NotMounted);
    }
    let own = own.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    let own = own.ok_or(CgroupUnavailable::NotMounted)?;
    let candidates: Vec<PathBuf> = mounts.iter().filter_map(|mount| mount.path_of_cgroup(own)).collect();
    if candidates.is_empty() { Err(CgroupUnavailable::OutOfSight) } else { Ok(candidates) }
}

impl Mount {
    /// A cgroup namespace shows cgroups outside of it with `..`; those are below no mount.
    fn path_of_cgroup(&self, own: &[u8]) -> Option<PathBuf> {
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

/// The kernel writes a blank or a backslash in a path as a backslash and three octal digits.
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

    fn only_candidate(mountinfo: &str, own: &str) -> PathBuf {
        let candidates = candidates(mountinfo.as_bytes(), own.as_bytes()).unwrap();
        assert_eq!(candidates.len(), 1, "{candidates:?}");
        candidates.into_iter().next().unwrap()
    }

    const V2: &str = "\
        22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn unified_layout_has_one_mount() {
        let own = "0::/user.slice/user-1000.slice/session-2.scope\n";
        assert_eq!(only_candidate(V2, own), Path::new("/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope"));
        assert_eq!(only_candidate(V2, "0::/\n"), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn hybrid_layout_has_v2_beside_v1() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/elsewhere\n1:name=systemd:/\n0::/a\n";
        assert_eq!(only_candidate(mounts, own), Path::new("/sys/fs/cgroup/unified/a"));
    }

    #[test]
    fn v1_layout_has_none() {
        let mounts = b"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(candidates(mounts, b"4:memory:/\n"), Err(CgroupUnavailable::NotMounted));
        assert_eq!(
            candidates(V2.as_bytes(), b"4:memory:/\n"),
            Err(CgroupUnavailable::NotMounted),
            "mounted, but this process is not in it"
        );
        assert_eq!(candidates(b"", b""), Err(CgroupUnavailable::NotMounted));
    }

    #[test]
    fn container_may_see_part_of_the_hierarchy() {
        let bound = "35 24 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(only_candidate(bound, "0::/docker/abc\n"), Path::new("/sys/fs/cgroup"));
        assert_eq!(only_candidate(bound, "0::/docker/abc/worker\n"), Path::new("/sys/fs/cgroup/worker"));
        let out_of_sight = |own: &str| candidates(bound.as_bytes(), own.as_bytes());
        assert_eq!(
            out_of_sight("0::/docker/abcdef\n"),
            Err(CgroupUnavailable::OutOfSight),
            "a longer name is another one"
        );
        assert_eq!(out_of_sight("0::/\n"), Err(CgroupUnavailable::OutOfSight));
        assert_eq!(out_of_sight("0::/../other\n"), Err(CgroupUnavailable::OutOfSight));
        let above = b"35 24 0:30 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(candidates(above, b"0::/\n"), Err(CgroupUnavailable::OutOfSight));
    }

    #[test]
    fn several_mounts_are_several_candidates() {
        let two = format!("{V2}36 24 0:30 /a /mnt/part rw - cgroup2 none rw\n");
        let candidates = candidates(two.as_bytes(), b"0::/a/b\n").unwrap();
        assert_eq!(candidates, [Path::new("/sys/fs/cgroup/a/b"), Path::new("/mnt/part/b")]);
    }

    #[test]
    fn escaped_paths_are_unescaped() {
        let mounts = "35 24 0:30 / /mnt/my\\040own\\134x rw - cgroup2 none rw\n";
        assert_eq!(only_candidate(mounts, "0::/a b\n"), Path::new("/mnt/my own\\x/a b"));
        assert_eq!(unescape(b"\\04"), b"\\04");
    }
}
