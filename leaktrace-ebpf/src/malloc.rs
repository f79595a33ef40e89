//! Native allocators: `malloc` and its like, whatever library or executable they are in.
//!
//! A probe at the beginning of each function keeps the arguments (`allocation::enter`), one at its return has the
//! block (`allocation::leave`): a uretprobe, or a probe on each of its `ret` instructions. Where the kernel lets a program say
//! which returns it wants to see, one does both, and wants none whose block is known before. The block that is freed
//! or resized leaves the live set before the allocator has it back, and a new one enters before the
//! program has it, so that no other thread can come between.

use aya_ebpf::{
    bindings::pt_regs,
    programs::{ProbeContext, RetProbeContext},
};

use crate::{
    allocation::{Return, current, enter, handed_out, leave},
    go::registers,
    loss::Loss,
    maps::ALLOCATOR_CALLS,
    thread::{self, Thread, read},
};

/// An allocator's function begins.
#[inline(always)]
pub fn try_enter(ctx: &ProbeContext) -> Result<(), Loss> {
    let regs = registers(ctx);
    // SAFETY: user space has written the entry before the attach and does not change it.
    match unsafe { ALLOCATOR_CALLS.get(regs.rip) } {
        Some(call) => enter(regs, call, current()?).map(drop),
        None => Ok(()),
    }
}

/// A uretprobe: a function has returned.
#[inline(always)]
pub fn try_returned(ctx: &RetProbeContext) -> Result<(), Loss> {
    // SAFETY: the context of a uretprobe program is the target's registers.
    let regs = unsafe { &*ctx.regs };
    handed_out(returned(regs)?)
}

/// An allocator's function begins, or has returned: both are told to one program, which says at the beginning
/// whether it is to be told of the return. No function returns to where a probe stands.
#[inline(always)]
pub fn try_call(ctx: &ProbeContext) -> Result<Return, Loss> {
    let regs = registers(ctx);
    // SAFETY: user space has written the entry before the attach and does not change it.
    let thread = match unsafe { ALLOCATOR_CALLS.get(regs.rip) } {
        Some(call) => {
            let thread = current()?;
            if thread.sp != 0 || !thread.foretell(regs, call) {
                return enter(regs, call, thread);
            }
            Some(thread)
        }
        None => returned(regs)?,
    };
    handed_out(thread)?;
    Ok(Return::Unneeded)
}

/// Where it returned to is in the instruction pointer: in the return address's place the kernel had put its own when
/// the probe at the beginning was met.
#[inline(always)]
fn returned<'a>(regs: &pt_regs) -> Result<Option<&'a mut Thread>, Loss> {
    leave(regs, regs.rsp.wrapping_sub(8), regs.rip, regs.rax)
}

/// On a `ret` instruction.
#[inline(always)]
pub fn try_return(ctx: &ProbeContext) -> Result<(), Loss> {
    let regs = registers(ctx);
    leave_here(regs, regs.rax)
}

/// On a jump to `memset`, which fills its first argument and returns it.
#[inline(always)]
pub fn try_fill(ctx: &ProbeContext) -> Result<(), Loss> {
    let regs = registers(ctx);
    leave_here(regs, regs.rdi)
}

/// The return address is on top of the stack, unless a uretprobe waits there.
#[inline(always)]
fn leave_here(regs: &pt_regs, result: u64) -> Result<(), Loss> {
    match thread::known() {
        Some(thread) if thread.sp == regs.rsp && thread.by_uretprobe == 0 => {
            handed_out(leave(regs, regs.rsp, read(regs.rsp)?, result)?)
        }
        _ => Ok(()),
    }
}
