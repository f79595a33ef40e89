//! mmap, munmap, mremap and brk: arguments at the entry, paired with the result at the exit.

use aya_ebpf::programs::TracePointContext;
use leaktrace_common::{
    EVENT_BRK, EVENT_MMAP, EVENT_MREMAP, EVENT_MUNMAP, KIND_BRK, KIND_MMAP, MAPPED_CODE, StackId,
    VmEvent,
};

use crate::{
    call::{Call, Returned, argument, enter, exit, succeeded},
    events, live,
    loss::Loss,
    stack,
};

#[inline(always)]
pub fn try_enter_mmap(ctx: &TracePointContext) -> Result<(), Loss> {
    const PROT_EXEC: u64 = 4;
    const MAP_ANONYMOUS: u64 = 0x20;
    const MAP_HUGETLB: u64 = 0x4_0000;
    let mut flags = argument(ctx, 3)?;
    if argument(ctx, 2)? & PROT_EXEC != 0 && flags & (MAP_ANONYMOUS | MAP_HUGETLB) == 0 {
        flags |= u64::from(MAPPED_CODE);
    }
    enter(EVENT_MMAP, argument(ctx, 0)?, argument(ctx, 1)?, 0, flags)
}

#[inline(always)]
pub fn try_enter_munmap(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(EVENT_MUNMAP, argument(ctx, 0)?, argument(ctx, 1)?, 0, 0)
}

#[inline(always)]
pub fn try_enter_mremap(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(
        EVENT_MREMAP,
        argument(ctx, 0)?,
        argument(ctx, 1)?,
        argument(ctx, 2)?,
        argument(ctx, 3)?,
    )
}

#[inline(always)]
pub fn try_enter_brk(ctx: &TracePointContext) -> Result<(), Loss> {
    enter(EVENT_BRK, argument(ctx, 0)?, 0, 0, 0)
}

#[inline(always)]
pub fn try_exit_mmap(ctx: &TracePointContext) -> Result<(), Loss> {
    let Some(Returned { call, result, walk }) = exit(ctx, EVENT_MMAP)? else {
        return Ok(());
    };
    let Some(addr) = succeeded(result) else {
        return Ok(());
    };
    let stack = stack::of_system_call(walk);
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
    let Some(Returned { call, result, .. }) = exit(ctx, EVENT_MUNMAP)? else {
        return Ok(());
    };
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
    let Some(Returned { call, result, walk }) = exit(ctx, EVENT_MREMAP)? else {
        return Ok(());
    };
    let Some(addr) = succeeded(result) else {
        return Ok(());
    };
    let stack = stack::of_system_call(walk);
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
    let Some(Returned { call, result, walk }) = exit(ctx, EVENT_BRK)? else {
        return Ok(());
    };
    // brk returns the break, changed or not: only a granted request moved it.
    if call.addr == 0 || result as u64 != call.addr {
        return Ok(());
    }
    let stack = stack::of_system_call(walk);
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
