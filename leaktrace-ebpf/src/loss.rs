//! Nothing is dropped without being counted, by cause.

use leaktrace_common::loss;

use crate::maps::LOSSES;

/// Why something could not be kept.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Loss {
    RingFull = loss::RING_FULL,
    StackMapFull = loss::STACK_MAP_FULL,
    LiveMapFull = loss::LIVE_MAP_FULL,
    CounterMapFull = loss::COUNTER_MAP_FULL,
    ReturnWithoutEntry = loss::RETURN_WITHOUT_ENTRY,
    StackTruncated = loss::STACK_TRUNCATED,
    StackUnreadable = loss::STACK_UNREADABLE,
    FreeOfUnseen = loss::FREE_OF_UNSEEN,
    ArgumentUnreadable = loss::ARGUMENT_UNREADABLE,
    SampleRingFull = loss::SAMPLE_RING_FULL,
    CallAbandoned = loss::CALL_ABANDONED,
    ThreadsFull = loss::THREADS_FULL,
    BlockRingFull = loss::BLOCK_RING_FULL,
    ProcessNotFollowed = loss::PROCESS_NOT_FOLLOWED,
    BlockMistaken = loss::BLOCK_MISTAKEN,
}

/// Adds one to the count of `cause`.
#[inline(always)]
pub fn count(cause: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(cause as u32) {
        add(counter, 1);
    }
}

/// Adds to a counter in a map. Atomic, since a uprobe program can be preempted by another one on
/// the same CPU.
#[inline(always)]
pub fn add(counter: *mut u64, n: u64) {
    // `fetch_add` does not exist for this target: cpu v2 has an atomic add that returns nothing.
    // SAFETY: callers pass a pointer into a map value, which is aligned and outlives the program.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {n}", counter = in(reg) counter, n = in(reg) n);
    }
}
