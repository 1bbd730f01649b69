//! cgroup v2: a set of processes that none of them leaves by forking, by changing its session or by losing its parent. See
//! cgroups(7) and the kernel's cgroup-v2 document.

pub(crate) mod error;
mod files;
pub(crate) mod group;
pub(crate) mod subtree;
