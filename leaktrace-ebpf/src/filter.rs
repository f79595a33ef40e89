//! Which process is the target. User space sets these before it loads the object.

use aya_ebpf::{Global, helpers::bpf_get_current_pid_tgid};

/// Thread-group id of the target in the initial pid namespace.
#[unsafe(no_mangle)]
static TARGET_TGID: Global<u32> = Global::new(0);

/// Whether the current task belongs to the target.
#[inline(always)]
pub fn is_target() -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == TARGET_TGID.load()
}
