//! System calls: arguments at the entry, paired with the result at the exit.
//!
//! The tracepoint's record has its first argument, and its result, at offset 16 on every kernel
//! and flavour (BTF's `trace_event_raw_sys_enter` says 24 on 5.10 and 6.1 RT kernels, and is
//! wrong there).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    programs::TracePointContext,
};
use leaktrace_common::Ktime;

use crate::{loss::Loss, maps::INFLIGHT};

/// A system call under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    /// When it was entered.
    pub entered: Ktime,
    /// First argument.
    pub addr: u64,
    /// Length, or old length.
    pub len: u64,
    /// New length of mremap.
    pub new_len: u64,
    /// Flags of mmap and mremap.
    pub flags: u64,
}

const ARGUMENTS: usize = 16;
const RESULT: usize = 16;

/// Keeps the arguments of the call that begins now.
#[inline(always)]
pub fn enter(addr: u64, len: u64, new_len: u64, flags: u64) -> Result<(), Loss> {
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
pub fn exit(ctx: &TracePointContext) -> Result<(Call, i64), Loss> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the entry belongs to the current thread: nobody else writes or removes it.
    let call = *unsafe { INFLIGHT.get(thread) }.ok_or(Loss::ReturnWithoutEntry)?;
    let _ = INFLIGHT.remove(thread);
    // SAFETY: the result is a long at this offset of every sys_exit record.
    let result = unsafe { ctx.read_at::<i64>(RESULT) }.map_err(|_| Loss::ArgumentUnreadable)?;
    Ok((call, result))
}

/// Argument `n` of the call that begins now.
#[inline(always)]
pub fn argument(ctx: &TracePointContext, n: usize) -> Result<u64, Loss> {
    // SAFETY: each argument is a long in every sys_enter record.
    unsafe { ctx.read_at(ARGUMENTS + 8 * n) }.map_err(|_| Loss::ArgumentUnreadable)
}

/// The result as an address or zero; `None` for an error number.
#[inline(always)]
pub fn succeeded(result: i64) -> Option<u64> {
    const MAX_ERRNO: i64 = 4095;
    (!(-MAX_ERRNO..0).contains(&result)).then_some(result as u64)
}
