//! mmap, munmap, mremap and brk: arguments at the entry, paired with the result at the exit.

use aya_ebpf::programs::TracePointContext;
use leaktrace_common::{
    EVENT_BRK, EVENT_MMAP, EVENT_MREMAP, EVENT_MUNMAP, KIND_BRK, KIND_MMAP, MAPPED_CODE, StackId,
    VmEvent,
};

use crate::{
    call::{self, Call, argument, enter, exit},
    events, live,
    loss::Loss,
    stack,
};

/// Numbers of the system calls (arch/x86/entry/syscalls/syscall_64.tbl).
const MMAP: u32 = 9;
const MUNMAP: u32 = 11;
const BRK: u32 = 12;
const MREMAP: u32 = 25;

/// What a system call does, if it is one of these.
#[inline(always)]
fn event_of(ctx: &TracePointContext) -> Result<u32, Loss> {
    Ok(match call::number(ctx)? {
        MMAP => EVENT_MMAP,
        MUNMAP => EVENT_MUNMAP,
        MREMAP => EVENT_MREMAP,
        BRK => EVENT_BRK,
        _ => return Err(Loss::ArgumentUnreadable),
    })
}

#[inline(always)]
pub fn try_enter(ctx: &TracePointContext) -> Result<(), Loss> {
    const PROT_EXEC: u64 = 4;
    const MAP_ANONYMOUS: u64 = 0x20;
    const MAP_HUGETLB: u64 = 0x4_0000;
    let event = event_of(ctx)?;
    let addr = argument(ctx, 0)?;
    if event == EVENT_BRK {
        return enter(event, addr, 0, 0, 0);
    }
    let len = argument(ctx, 1)?;
    if event == EVENT_MUNMAP {
        return enter(event, addr, len, 0, 0);
    }
    let third = argument(ctx, 2)?;
    let mut flags = argument(ctx, 3)?;
    if event == EVENT_MREMAP {
        return enter(event, addr, len, third, flags);
    }
    if third & PROT_EXEC != 0 && flags & (MAP_ANONYMOUS | MAP_HUGETLB) == 0 {
        flags |= u64::from(MAPPED_CODE);
    }
    enter(event, addr, len, 0, flags)
}

#[inline(always)]
pub fn try_exit(ctx: &TracePointContext) -> Result<(), Loss> {
    let event = event_of(ctx)?;
    let Some(thread) = exit(ctx, event)? else {
        return Ok(());
    };
    // Read again, so that the verifier knows nothing of it: it would follow the walk of the stack for each event by
    // itself.
    // SAFETY: a reference is valid.
    let call = unsafe { (&raw const thread.call).read_volatile() };
    if !was_done(&call) {
        return Ok(());
    }
    let stack = match call.event as u32 {
        EVENT_MUNMAP => StackId(0),
        _ => stack::of_system_call(&mut thread.walk),
    };
    // SAFETY: as above.
    let call = unsafe { (&raw const thread.call).read_volatile() };
    match call.event as u32 {
        EVENT_MUNMAP => {}
        EVENT_BRK => live::count_allocation(live::site(stack, KIND_BRK), 0),
        EVENT_MREMAP => live::count_allocation(
            live::site(stack, KIND_MMAP),
            call.new_len.saturating_sub(call.len),
        ),
        _ => live::count_allocation(live::site(stack, KIND_MMAP), call.len),
    }
    events::send(sent(&call, stack))
}

/// Whether a call has done what it was asked.
#[inline(always)]
fn was_done(call: &Call) -> bool {
    const MAX_ERRNO: i64 = 4095;
    match call.event as u32 {
        // brk returns the break, changed or not: only a granted request moved it.
        EVENT_BRK => call.addr != 0 && call.result as u64 == call.addr,
        _ => !(-MAX_ERRNO..0).contains(&call.result),
    }
}

/// The record of a call that was done.
#[inline(always)]
fn sent(call: &Call, stack: StackId) -> VmEvent {
    let event = call.event as u32;
    let any = VmEvent {
        event,
        entered: call.entered,
        stack,
        ..VmEvent::default()
    };
    match event {
        EVENT_MMAP => VmEvent {
            flags: call.flags as u32,
            addr: call.result as u64,
            len: call.len,
            ..any
        },
        EVENT_MREMAP => VmEvent {
            flags: call.flags as u32,
            addr: call.result as u64,
            len: call.new_len,
            old_addr: call.addr,
            old_len: call.len,
            ..any
        },
        EVENT_MUNMAP => VmEvent {
            addr: call.addr,
            len: call.len,
            ..any
        },
        _ => VmEvent {
            addr: call.addr,
            ..any
        },
    }
}
