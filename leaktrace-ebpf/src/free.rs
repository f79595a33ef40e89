//! A native allocator takes a block back: one probe and, if the block is not known, one look-up.

use aya_ebpf::{bindings::pt_regs, programs::ProbeContext};
use leaktrace_common::{ALLOCATOR_FREE_AGAIN, MALLOC_FREES};

use crate::{
    allocation::place_of_return,
    go::registers,
    live,
    loss::Loss,
    maps::ALLOCATOR_CALLS,
    sampling::{self, count},
    thread::{self, Thread, read},
    windows,
};

/// `free` and its like begin: the block is the first argument.
#[inline(always)]
pub fn try_free(ctx: &ProbeContext) -> Result<(), Loss> {
    let block = registers(ctx).rdi;
    if block == 0 {
        return Ok(());
    }
    let window = windows::number();
    if window != 0 {
        return try_free_in(window, registers(ctx), block);
    }
    match live::take(block) {
        Some(object) => live::count_free_of(&object),
        None if sampling::takes_all() && is_inner(registers(ctx), block, 0) => return Ok(()),
        None => sampling::unseen_free(),
    }
    count(MALLOC_FREES, 1);
    Ok(())
}

/// The same while a window is open.
#[inline(always)]
fn try_free_in(window: u64, regs: &pt_regs, block: u64) -> Result<(), Loss> {
    let at = windows::now();
    if is_inner(regs, block, window) {
        return Ok(());
    }
    count(MALLOC_FREES, 1);
    // SAFETY: user space has written the entry before the attach and does not change it.
    let call = unsafe { ALLOCATOR_CALLS.get(regs.rip) };
    windows::freed(
        block,
        at,
        call.map_or(0, |call| windows::class(call, block)),
    )
}

/// Whether it is the allocator itself that calls `free`: for the block that it is resizing, or for one that
/// the program has freed before.
#[inline(always)]
fn is_inner(regs: &pt_regs, block: u64, window: u64) -> bool {
    // SAFETY: user space has written the entries before the attach and does not change them.
    let known = |address| unsafe { ALLOCATOR_CALLS.get(address) };
    let Some(call) = known(regs.rip) else {
        return false;
    };
    let place = place_of_return(regs, call);
    let is_within = |thread: &mut Thread| {
        thread.block == block && thread.window == window && thread.is_within(place)
    };
    if thread::known().is_some_and(is_within) {
        return true;
    }
    let caller = read(place).unwrap_or(0);
    known(caller).is_some_and(|call| call.action == ALLOCATOR_FREE_AGAIN)
}
