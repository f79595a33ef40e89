//! Windows: while one is open, each birth and death of a native allocator's block is sent as it happens.
//!
//! User space opens a window once all probes are live and closes it before it takes any of them away
//! (docs/sampling.md). In between windows nothing is sent and nothing is kept.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use leaktrace_common::{
    ALLOCATOR_CHUNKS, AllocatorCall, BlockEvent, Ktime, NO_SIZE, StackId, WINDOW_LOOK,
};

use crate::{
    loss::Loss,
    maps::{BLOCKS, MALLOC_WINDOW},
    poisson,
    thread::read,
};

/// Do not wake the reader: it comes by when the window is over.
const NO_WAKEUP: u64 = 1;

/// The number of the window that is open; zero: none is.
#[inline(always)]
pub fn number() -> u64 {
    MALLOC_WINDOW.get(0).copied().unwrap_or(0)
}

/// Now, in the window's time.
#[inline(always)]
pub fn now() -> Ktime {
    // SAFETY: no arguments, no preconditions.
    Ktime(unsafe { bpf_ktime_get_ns() })
}

/// A block of `size` bytes was handed out to the site with that stack.
#[inline(always)]
pub fn born(block: u64, stack: StackId, size: u64, class: u32) -> Result<(), Loss> {
    send(BlockEvent {
        at: now(),
        address: block,
        stack,
        size,
        class,
        ..BlockEvent::default()
    })
}

/// A block was given back at that moment.
#[inline(always)]
pub fn freed(block: u64, at: Ktime, class: u32) -> Result<(), Loss> {
    send(BlockEvent {
        at,
        address: block,
        size: NO_SIZE,
        class,
        ..BlockEvent::default()
    })
}

/// The size class of a block, by the allocator that the function belongs to; zero where it cannot be told.
#[inline(always)]
pub fn class(call: &AllocatorCall, block: u64) -> u32 {
    class_of(u64::from(call.action & ALLOCATOR_CHUNKS), block)
}

/// The same where `has_chunks` says that the word before the block is the size of its chunk, as glibc keeps it:
/// its lowest three bits are flags (`mchunk_size` in malloc/malloc.c).
#[inline(always)]
pub fn class_of(has_chunks: u64, block: u64) -> u32 {
    const FLAGS: u64 = 7;
    /// Exact up to here, and by quarters of a power of two above: both births and deaths of a block are
    /// of the same class, and classes are few.
    const EXACT: u64 = 1024;
    const LARGEST: u64 = 1 << 31;
    if has_chunks == 0 {
        return 0;
    }
    match read(block.wrapping_sub(8)).map(|word| word & !FLAGS) {
        Ok(chunk) if chunk <= EXACT => chunk as u32,
        Ok(chunk) => poisson::class(chunk, LARGEST) as u32,
        Err(_) => 0,
    }
}

#[inline(always)]
fn send(event: BlockEvent) -> Result<(), Loss> {
    if number() == WINDOW_LOOK {
        return Ok(());
    }
    let mut slot = BLOCKS.reserve::<BlockEvent>(0).ok_or(Loss::BlockRingFull)?;
    slot.write(BlockEvent {
        thread: bpf_get_current_pid_tgid() as u32,
        ..event
    });
    slot.submit(NO_WAKEUP);
    Ok(())
}
