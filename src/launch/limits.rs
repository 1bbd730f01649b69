//! What of the machine a worker may use, as a process.

/// A limit of setrlimit(2), for [`WorkerSpec::rlimit`](crate::WorkerSpec::rlimit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResourceLimit {
    /// Seconds of CPU time; then SIGXCPU and SIGKILL.
    CpuSeconds,
    /// Bytes of the largest file it may write; then SIGXFSZ.
    FileBytes,
    /// Bytes of its stack.
    StackBytes,
    /// Bytes of a core dump; 0 for none.
    CoreBytes,
    /// One more than the highest descriptor number.
    OpenFiles,
    /// Bytes of its address space.
    AddressSpaceBytes,
    /// Processes and threads of its user, all together.
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
        // Unsigned in glibc, signed in musl; the numbers are below 16.
        libc::c_int::try_from(resource).unwrap_or(-1)
    }
}

/// Whose disk requests come first: `ioprio_set(2)`, for [`WorkerSpec::io_priority`](crate::WorkerSpec::io_priority). Only some
/// of the kernel's I/O schedulers look at it (BFQ, and mq-deadline in part).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoPriority {
    /// Before everybody else; only root may. From 0, the first, to 7.
    RealTime(u8),
    /// What everybody has, at level 4. From 0, the first, to 7.
    BestEffort(u8),
    /// When nobody else wants the disk.
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

/// A limit on a worker with all it has started, for [`WorkerSpec::cgroup_limit`](crate::WorkerSpec::cgroup_limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CgroupLimit {
    /// Bytes of memory; beyond that the kernel kills one of them, which [`Exit::oom_killed`](crate::Exit::oom_killed) tells. None of
    /// it is swapped out.
    MemoryMax(u64),
    /// Processor time, in thousandths of one processor; at least 10.
    #[doc(alias = "CPUQuota")]
    CpuMax(u32),
    /// Processes and threads.
    #[doc(alias = "TasksMax")]
    PidsMax(u32),
}
