//! mmap, munmap, mremap and brk: arguments at the entry, paired with the result at the exit.

use aya_ebpf::programs::TracePointContext;
use leaktrace_common::{
    EVENT_BRK, EVENT_MMAP, EVENT_MREMAP, EVENT_MUNMAP, KIND_BRK, KIND_MMAP, StackId, VmEvent,
};

use crate::{
    call::{Call, argument, enter, exit, succeeded},
    events, live,
    loss::Loss,
    stack,
};

#[inline(always)]
pub fn try_enter_mmap(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(argument(ctx, 0)?, argument(ctx, 1)?, 0, argument(ctx, 3)?)
}

#[inline(always)]
pub fn try_enter_munmap(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(argument(ctx, 0)?, argument(ctx, 1)?, 0, 0)
}

#[inline(always)]
pub fn try_enter_mremap(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(
        argument(ctx, 0)?,
        argument(ctx, 1)?,
        argument(ctx, 2)?,
        argument(ctx, 3)?,
    )
}

#[inline(always)]
pub fn try_enter_brk(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(argument(ctx, 0)?, 0, 0, 0)
}

#[inline(always)]
pub fn try_exit_mmap(ctx: &TracePointContext) -> Result<(), Loss> {
    let (call, result) = exit(ctx)?;
    let Some(addr) = succeeded(result) else {
        return Ok(());
    };
    let stack = stack::of_system_call();
    live::count_allocation(live::site(stack, KIND_MMAP), call.len);
    events::send(VmEvent {
        flags: call.flags as u32,
        addr,
        len: call.len,
        ..event(EVENT_MMAP, &call, stack)
    })
}

#[inline(always)]
pub fn try_exit_munmap(ctx: &TracePointContext) -> Result<(), Loss> {
    let (call, result) = exit(ctx)?;
    if succeeded(result).is_none() {
        return Ok(());
    }
    events::send(VmEvent {
        addr: call.addr,
        len: call.len,
        ..event(EVENT_MUNMAP, &call, StackId(0))
    })
}

#[inline(always)]
pub fn try_exit_mremap(ctx: &TracePointContext) -> Result<(), Loss> {
    let (call, result) = exit(ctx)?;
    let Some(addr) = succeeded(result) else {
        return Ok(());
    };
    let stack = stack::of_system_call();
    live::count_allocation(
        live::site(stack, KIND_MMAP),
        call.new_len.saturating_sub(call.len),
    );
    events::send(VmEvent {
        flags: call.flags as u32,
        addr,
        len: call.new_len,
        old_addr: call.addr,
        old_len: call.len,
        ..event(EVENT_MREMAP, &call, stack)
    })
}

#[inline(always)]
pub fn try_exit_brk(ctx: &TracePointContext) -> Result<(), Loss> {
    let (call, result) = exit(ctx)?;
    // brk returns the break, changed or not: only a granted request moved it.
    if call.addr == 0 || result as u64 != call.addr {
        return Ok(());
    }
    let stack = stack::of_system_call();
    live::count_allocation(live::site(stack, KIND_BRK), 0);
    events::send(VmEvent {
        addr: call.addr,
        ..event(EVENT_BRK, &call, stack)
    })
}

#[inline(always)]
fn event(event: u32, call: &Call, stack: StackId) -> VmEvent {
    VmEvent {
        event,
        entered: call.entered,
        stack,
        ..VmEvent::default()
    }
}
