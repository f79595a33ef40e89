//! What a process has used of processors and memory.

use std::time::Duration;

use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use super::{Target, TargetError, refusal};

/// What `/proc/PID/status` says of a process's memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryUse {
    /// Resident set.
    pub rss: Option<u64>,
    /// The anonymous part of it.
    pub anonymous: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
    /// Whole address space.
    pub mapped: Option<u64>,
}

impl Target {
    /// Processor time that it has used so far, to the nanosecond; zero when it is gone.
    pub fn cpu_time(&self) -> Duration {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid));
        let time = clock.and_then(clock_gettime);
        time.map_or(Duration::ZERO, Duration::from)
    }

    /// Resident, anonymous, swapped and mapped bytes from `/proc/PID/status`: no page-table walk,
    /// so that nothing waits for the target's memory lock.
    ///
    /// # Errors
    ///
    /// The target is gone.
    pub fn memory_use(&self) -> Result<MemoryUse, TargetError> {
        let status = self.status().map_err(|e| refusal(self.pid, e))?;
        let bytes = |kib: Option<u64>| kib.map(|kib| kib * 1024);
        Ok(MemoryUse {
            rss: bytes(status.vmrss),
            anonymous: bytes(status.rssanon),
            swap: bytes(status.vmswap),
            mapped: bytes(status.vmsize),
        })
    }
}
