//! Which blocks of a native allocator are taken, and how many there are in all.

use aya_ebpf::{Global, helpers::bpf_get_prandom_u32};
use leaktrace_common::{CLASS_BITS, LIVE_LEVEL, SAMPLING_LEVELS};

use crate::{
    live,
    loss::{self, Loss, add},
    maps::{LIVE_STATE, MALLOC_CALLS, MALLOC_RATE},
    poisson,
    thread::Thread,
};

/// Objects for which the `LIVE` map has room.
#[unsafe(no_mangle)]
static LIVE_CAPACITY: Global<u32> = Global::new(0);

/// The rate at which every block is taken.
const ALL: u64 = 1;

/// Whether the block that the thread has just got is taken: its class, as in
/// [`SiteKey`](leaktrace_common::SiteKey).
#[inline(always)]
pub fn class(thread: &mut Thread) -> Option<u32> {
    let level = coarsened(level());
    match rate(level) {
        0 => None,
        ALL => Some(0),
        rate => {
            let class = poisson::class(thread.size, rate);
            if thread.level != level {
                // How far it is to the next sample does not depend on how far one has come.
                (thread.level, thread.countdown) = (level, 0);
            }
            let is_taken = class >= rate || is_drawn(thread, class, rate);
            is_taken.then_some(class as u32 | (level as u32) << CLASS_BITS)
        }
    }
}

/// The level of sampling, one more than `level` if as many objects live as that may fill: half of the
/// room, three quarters, seven eighths and so on. So a flood of blocks is sampled rather than lost.
#[inline(always)]
fn coarsened(level: u64) -> u64 {
    let capacity = u64::from(LIVE_CAPACITY.load());
    let next = level + 1;
    if next >= u64::from(SAMPLING_LEVELS) || live::objects() < capacity - (capacity >> next) {
        return level;
    }
    if let Some(shared) = LIVE_STATE.get_ptr_mut(LIVE_LEVEL) {
        // SAFETY: a value of an array. Threads that meet here write the same.
        unsafe { *shared = next };
    }
    next
}

/// Whether one of the next `class` bytes that the thread allocates is drawn.
#[inline(always)]
fn is_drawn(thread: &mut Thread, class: u64, rate: u64) -> bool {
    if thread.countdown == 0 {
        // SAFETY: no arguments, no preconditions.
        thread.countdown = poisson::gap(rate, unsafe { bpf_get_prandom_u32() });
    }
    if class < thread.countdown {
        thread.countdown -= class;
        return false;
    }
    thread.countdown = 0;
    true
}

/// A block was freed whose birth was not seen. Where blocks are sampled that says nothing.
#[inline(always)]
pub fn unseen_free() {
    if takes_all() {
        loss::count(Loss::FreeOfUnseen);
    }
}

/// Whether every block is taken.
#[inline(always)]
pub fn takes_all() -> bool {
    rate(level()) == ALL
}

/// Whether any block is taken for its own sake, and not only in windows.
#[inline(always)]
pub fn takes_any() -> bool {
    rate(level()) != 0
}

/// Adds to one of the counters of all calls, `MALLOC_…`.
#[inline(always)]
pub fn count(counter: u32, n: u64) {
    if let Some(counter) = MALLOC_CALLS.get_ptr_mut(counter) {
        add(counter, n);
    }
}

#[inline(always)]
fn level() -> u64 {
    LIVE_STATE.get(LIVE_LEVEL).copied().unwrap_or(0)
}

#[inline(always)]
fn rate(level: u64) -> u64 {
    MALLOC_RATE.get(level as u32).copied().unwrap_or(0)
}
