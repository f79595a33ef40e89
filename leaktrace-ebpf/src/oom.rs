//! Whom the kernel kills for want of memory.

use aya_ebpf::{EbpfContext as _, programs::TracePointContext};
use leaktrace_common::OOM_VICTIM;

use crate::{filter, loss::Loss, maps::ENDING};

/// `oom:mark_victim`: a thread of the process that is to die. It is the leader, or where that has ended
/// another one, which can be told if it is the one that wanted memory.
#[inline(always)]
pub fn try_victim(ctx: &TracePointContext) -> Result<(), Loss> {
    // The record's member (include/trace/events/oom.h, Linux 4.14 to 6.18).
    const PID: usize = 8;
    // SAFETY: the record has a pid there.
    let victim = unsafe { ctx.read_at::<u32>(PID) };
    let victim = victim.map_err(|_| Loss::ArgumentUnreadable)?;
    let is_current = filter::is_target() && victim == ctx.pid();
    if (filter::is_leader(victim) || is_current)
        && let Some(ending) = ENDING.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to a value of the map, which outlives the program.
        unsafe { *ending |= OOM_VICTIM };
    }
    Ok(())
}
