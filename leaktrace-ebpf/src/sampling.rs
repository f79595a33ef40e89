//! Which blocks of a native allocator are taken, and how many there are in all.

use aya_ebpf::helpers::bpf_get_prandom_u32;

use crate::{
    loss::{self, Loss, add},
    maps::{MALLOC_CALLS, MALLOC_RATE},
    poisson,
    thread::Thread,
};

/// The rate at which every block is taken.
const ALL: u64 = 1;

/// Whether the block that the thread has just got is taken: its class, as in
/// [`SiteKey`](leaktrace_common::SiteKey).
#[inline(always)]
pub fn class(thread: &mut Thread) -> Option<u32> {
    match rate() {
        0 => None,
        ALL => Some(0),
        rate => {
            let class = poisson::class(thread.size, rate);
            (class >= rate || is_drawn(thread, class, rate)).then_some(class as u32)
        }
    }
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
    rate() == ALL
}

/// Adds to one of the counters of all calls, `MALLOC_…`.
#[inline(always)]
pub fn count(counter: u32, n: u64) {
    if let Some(counter) = MALLOC_CALLS.get_ptr_mut(counter) {
        add(counter, n);
    }
}

#[inline(always)]
fn rate() -> u64 {
    MALLOC_RATE.get(0).copied().unwrap_or(0)
}
