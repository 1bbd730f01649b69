//! Resource limits and priorities.

/// A resource of setrlimit(2), for [`WorkerSpec::rlimit`](crate::WorkerSpec::rlimit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResourceLimit {
    /// CPU time in seconds; beyond it the kernel terminates the process (SIGXCPU, SIGKILL).
    CpuSeconds,
    /// Size in bytes of the largest file that the worker may write; beyond it the kernel sends SIGXFSZ.
    FileBytes,
    /// Stack size in bytes.
    StackBytes,
    /// Size of a core dump in bytes; 0 disables core dumps.
    CoreBytes,
    /// Highest file descriptor number plus one.
    OpenFiles,
    /// Address space in bytes.
    AddressSpaceBytes,
    /// Processes and threads of the worker's user, across the whole machine.
    Processes,
}

impl ResourceLimit {
    pub(super) fn resource(self) -> libc::c_int {
        let resource = match self {
            Self::CpuSeconds => libc::RLIMIT_CPU,
            Self::FileBytes => libc::RLIMIT_FSIZE,
            Self::StackBytes => libc::RLIMIT_STACK,
            Self::CoreBytes => libc::RLIMIT_CORE,
            Self::OpenFiles => libc::RLIMIT_NOFILE,
            Self::AddressSpaceBytes => libc::RLIMIT_AS,
            Self::Processes => libc::RLIMIT_NPROC,
        };
        // Unsigned in glibc, signed in musl; all values are below 16.
        libc::c_int::try_from(resource).unwrap_or(-1)
    }
}

/// I/O priority of `ioprio_set(2)`, for [`WorkerSpec::io_priority`](crate::WorkerSpec::io_priority). Only some of the kernel's I/O
/// schedulers honor it: BFQ, and mq-deadline in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoPriority {
    /// Served before other classes; requires root. Level 0 (highest) to 7.
    RealTime(u8),
    /// The default class, with level 4 as the default. Level 0 (highest) to 7.
    BestEffort(u8),
    /// Served only while no other process uses the disk.
    Idle,
}

impl IoPriority {
    pub(super) fn number(self) -> i32 {
        const CLASS_SHIFT: i32 = 13; // linux/ioprio.h
        match self {
            Self::RealTime(level) => 1 << CLASS_SHIFT | i32::from(level),
            Self::BestEffort(level) => 2 << CLASS_SHIFT | i32::from(level),
            Self::Idle => 3 << CLASS_SHIFT,
        }
    }

    pub(super) fn level(self) -> u8 {
        match self {
            Self::RealTime(level) | Self::BestEffort(level) => level,
            Self::Idle => 0,
        }
    }
}

/// A limit of cgroup v2 on a worker together with its descendants, for [`WorkerSpec::cgroup_limit`](crate::WorkerSpec::cgroup_limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CgroupLimit {
    /// `memory.max` in bytes, with swap disabled (`memory.swap.max` 0). Beyond the limit the kernel kills a process, which
    /// [`Exit::oom_killed`](crate::Exit::oom_killed) reports.
    MemoryMax(u64),
    /// `cpu.max` in thousandths of one processor; at least 10.
    #[doc(alias = "CPUQuota")]
    CpuMax(u32),
    /// `pids.max`: number of processes and threads.
    #[doc(alias = "TasksMax")]
    PidsMax(u32),
}
