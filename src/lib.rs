//! Supervisor of worker processes: pipes, messages, lifecycle.

// The floors, bottom to top: a module imports only from those that stand above it in this list.
mod sys; // the kernel; the only unsafe
