//! How the processes of a worker are held together, found and killed.

pub(crate) mod cgroup_pool;
pub(crate) mod guard;
pub(crate) mod inspector;
pub(crate) mod process_tree;
pub(crate) mod report;
pub(crate) mod scan;
pub(crate) mod teardown;
pub(crate) mod token;
