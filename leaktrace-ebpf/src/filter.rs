//! Which processes are followed. User space sets these before it loads the object.

use aya_ebpf::{Global, helpers::bpf_get_current_pid_tgid};

use crate::maps::PROCESSES;

/// Thread-group id of the target in the initial pid namespace.
#[unsafe(no_mangle)]
static TARGET_TGID: Global<u32> = Global::new(0);

/// Whether the processes that it makes are followed, too.
#[unsafe(no_mangle)]
static FOLLOWS_FORKS: Global<u32> = Global::new(0);

/// Whether the current task belongs to the target.
#[inline(always)]
pub fn is_target() -> bool {
    tgid() == TARGET_TGID.load()
}

/// Whether the thread is the target's first, by which the process is known.
#[inline(always)]
pub fn is_leader(tid: u32) -> bool {
    tid == TARGET_TGID.load()
}

/// Whether it belongs to the target or to another process that is followed.
#[inline(always)]
pub fn is_followed() -> bool {
    is_target() || (FOLLOWS_FORKS.load() != 0 && PROCESSES.get_ptr(tgid()).is_some())
}

/// What an address of the current process's memory is kept as: with the number of the process above it, which
/// is zero for the target.
#[inline(always)]
pub fn key(address: u64) -> u64 {
    if FOLLOWS_FORKS.load() == 0 {
        return address;
    }
    // SAFETY: the map is preallocated; an entry changes only while its process has no probes.
    address | unsafe { PROCESSES.get(tgid()) }.copied().unwrap_or(0)
}

#[inline(always)]
fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}
