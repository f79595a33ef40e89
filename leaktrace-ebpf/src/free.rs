//! A native allocator takes a block back: one probe and, if the block is not known, one look-up.

use aya_ebpf::{bindings::pt_regs, programs::ProbeContext};
use leaktrace_common::{ALLOCATOR_FREE_AGAIN, MALLOC_FREES};

use crate::{
    go::registers,
    live,
    loss::Loss,
    malloc::place_of_return,
    maps::ALLOCATOR_CALLS,
    sampling::{self, count},
    thread::{self, read},
};

/// `free` and its like begin: the block is the first argument.
#[inline(always)]
pub fn try_free(ctx: &ProbeContext) -> Result<(), Loss> {
    let block = registers(ctx).rdi;
    if block == 0 {
        return Ok(());
    }
    match live::take(block) {
        Some(object) => live::count_free_of(&object),
        None if sampling::takes_all() && is_inner(registers(ctx), block) => return Ok(()),
        None => sampling::unseen_free(),
    }
    count(MALLOC_FREES, 1);
    Ok(())
}

/// Whether it is the allocator itself that calls `free`: for the block that it is resizing, or for one that
/// the program has freed before.
#[inline(always)]
fn is_inner(regs: &pt_regs, block: u64) -> bool {
    // SAFETY: user space has written the entries before the attach and does not change them.
    let known = |address| unsafe { ALLOCATOR_CALLS.get(address) };
    let Some(call) = known(regs.rip) else {
        return false;
    };
    let place = place_of_return(regs, call);
    if thread::known().is_some_and(|thread| thread.block == block && thread.is_within(place)) {
        return true;
    }
    let caller = read(place).unwrap_or(0);
    known(caller).is_some_and(|call| call.action == ALLOCATOR_FREE_AGAIN)
}
