//! Live objects and the totals of their sites.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use leaktrace_common::{Ktime, LiveObject, SiteCounters, SiteKey, StackId};

use crate::{
    loss::{self, Loss, add},
    maps::{COUNTERS, GC_CYCLES, LIVE},
};

/// An object of `size` bytes was allocated at `address`.
#[inline(always)]
pub fn born(address: u64, stack: StackId, kind: u32, size: u64) {
    let object = LiveObject {
        stack,
        // SAFETY: no arguments, no preconditions.
        born: Ktime(unsafe { bpf_ktime_get_ns() }),
        size,
        born_gc: GC_CYCLES.get(0).copied().unwrap_or(0) as u32,
        kind,
    };
    if LIVE.insert(address, object, 0).is_err() {
        loss::count(Loss::LiveMapFull);
    }
    count_allocation(stack, kind, size);
}

/// The object at `address`, which `stack` allocated with `size` bytes, was freed.
#[inline(always)]
pub fn freed(address: u64, stack: StackId, kind: u32, size: u64) {
    if LIVE.remove(address).is_err() {
        loss::count(Loss::FreeOfUnseen);
    }
    count_free(stack, kind, size);
}

/// Adds one free to the totals of a site.
#[inline(always)]
pub fn count_free(stack: StackId, kind: u32, size: u64) {
    with_counters(stack, kind, |counters| {
        add(&mut counters.frees, 1);
        add(&mut counters.free_bytes, size);
    });
}

/// Adds one allocation to the totals of a site.
#[inline(always)]
pub fn count_allocation(stack: StackId, kind: u32, size: u64) {
    with_counters(stack, kind, |counters| {
        add(&mut counters.allocs, 1);
        add(&mut counters.alloc_bytes, size);
    });
}

#[inline(always)]
fn with_counters(stack: StackId, kind: u32, update: impl FnOnce(&mut SiteCounters)) {
    const BPF_NOEXIST: u64 = 1;
    let key = SiteKey {
        stack,
        kind,
        reserved: 0,
    };
    let counters = match COUNTERS.get_ptr_mut(key) {
        Some(counters) => Some(counters),
        None => {
            // An error here means that another CPU was first, or that the map is full: the second
            // look-up tells.
            let _ = COUNTERS.insert(key, SiteCounters::default(), BPF_NOEXIST);
            COUNTERS.get_ptr_mut(key)
        }
    };
    match counters {
        // SAFETY: a value of this CPU in a preallocated map; fields change only by atomic adds.
        Some(counters) => update(unsafe { &mut *counters }),
        None => loss::count(Loss::CounterMapFull),
    }
}
