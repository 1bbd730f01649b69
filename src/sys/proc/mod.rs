//! `/proc` (proc(5)): which processes exist, what they were started with and what they hold.
//!
//! `stat`, `status`, `task` and the links of `fd` are answered from the kernel's own tables. `environ` and `cmdline` are read from
//! the memory of the process, which can block for as long as one of its page faults: read those on a thread of their own.
//!
//! A PID read here may belong to another process by the time it is used: pin the process ([`pinned`]) before acting on it.

pub(crate) mod environ;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod pinned;
pub(crate) mod process;
pub(crate) mod stat;
