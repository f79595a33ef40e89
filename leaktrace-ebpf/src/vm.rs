//! mmap, munmap, mremap and brk: arguments at the entry, paired with the result at the exit.
//!
//! The tracepoint's record has its first argument, and its result, at offset 16 on every kernel
//! and flavour (BTF's `trace_event_raw_sys_enter` says 24 on 5.10 and 6.1 RT kernels, and is
//! wrong there).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::TracePointContext,
};
use leaktrace_common::{
    EVENT_BRK, EVENT_MMAP, EVENT_MREMAP, EVENT_MUNMAP, KIND_BRK, KIND_MMAP, Ktime, StackId, VmEvent,
};

use crate::{events, live, loss::Loss, maps::INFLIGHT, stack};

/// A system call under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    entered: Ktime,
    addr: u64,
    len: u64,
    new_len: u64,
    flags: u64,
}

const ARGUMENTS: usize = 16;
const RESULT: usize = 16;

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
    live::count_allocation(stack, KIND_MMAP, call.len);
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
    live::count_allocation(stack, KIND_MMAP, call.new_len.saturating_sub(call.len));
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
    live::count_allocation(stack, KIND_BRK, 0);
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

#[inline(always)]
fn enter(addr: u64, len: u64, new_len: u64, flags: u64) -> Result<(), Loss> {
    let call = Call {
        // SAFETY: no arguments, no preconditions.
        entered: Ktime(unsafe { bpf_ktime_get_ns() }),
        addr,
        len,
        new_len,
        flags,
    };
    INFLIGHT
        .insert(bpf_get_current_pid_tgid(), call, 0)
        .map_err(|_| Loss::InflightFull)
}

/// The arguments of the call that returns now, and its result.
#[inline(always)]
fn exit(ctx: &TracePointContext) -> Result<(Call, i64), Loss> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry belongs to the current thread: nobody else writes or removes it.
    let call = *unsafe { INFLIGHT.get(thread) }.ok_or(Loss::ReturnWithoutEntry)?;
    let _ = INFLIGHT.remove(thread);
    // SAFETY: the result is a long at this offset of every sys_exit record.
    let result = unsafe { ctx.read_at::<i64>(RESULT) }.map_err(|_| Loss::ArgumentUnreadable)?;
    Ok((call, result))
}

#[inline(always)]
fn argument(ctx: &TracePointContext, n: usize) -> Result<u64, Loss> {
    // SAFETY: each argument is a long in every sys_enter record.
    unsafe { ctx.read_at(ARGUMENTS + 8 * n) }.map_err(|_| Loss::ArgumentUnreadable)
}

/// The result as an address or zero; `None` for an error number.
#[inline(always)]
fn succeeded(result: i64) -> Option<u64> {
    const MAX_ERRNO: i64 = 4095;
    (!(-MAX_ERRNO..0).contains(&result)).then_some(result as u64)
}
