//! System calls: arguments at the entry, paired with the result at the exit.
//!
//! The tracepoint's record has its first argument, and its result, at offset 16 on every kernel
//! and flavour (BTF's `trace_event_raw_sys_enter` says 24 on 5.10 and 6.1 RT kernels, and is
//! wrong there).
//!
//! Where the kernel may preempt these programs there are several copies of each, and a call is seen by those that
//! it does not leave out: each keeps the same arguments, and the first that sees the return has them. User space
//! (`loader`) says why.

use aya_ebpf::{Global, helpers::bpf_ktime_get_ns, programs::TracePointContext};
use leaktrace_common::Ktime;

use crate::{
    loss::Loss,
    thread::{self, Thread},
};

/// How many copies of each program are attached. User space sets it before it loads the object.
#[unsafe(no_mangle)]
static SYSTEM_CALL_COPIES: Global<u32> = Global::new(1);

/// The system call that a thread is in, or was in last.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    /// [`UNDER_WAY`] or [`RETURNED`]; zero: none was seen yet.
    state: u64,
    /// One of the `EVENT_…` constants.
    pub event: u64,
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
    /// What it returned.
    pub result: i64,
}

const UNDER_WAY: u64 = 1;
const RETURNED: u64 = 2;

const NUMBER: usize = 8;
const ARGUMENTS: usize = 16;
const RESULT: usize = 16;

/// Keeps the arguments of the call that begins now.
#[inline(always)]
pub fn enter(event: u32, addr: u64, len: u64, new_len: u64, flags: u64) -> Result<(), Loss> {
    thread::current()?.call = Call {
        state: UNDER_WAY,
        event: u64::from(event),
        // SAFETY: no arguments, no preconditions.
        entered: Ktime(unsafe { bpf_ktime_get_ns() }),
        addr,
        len,
        new_len,
        flags,
        result: 0,
    };
    Ok(())
}

/// The thread whose call returns now, with the result in it; `None` if another copy has seen it.
#[inline(always)]
pub fn exit<'a>(ctx: &TracePointContext, event: u32) -> Result<Option<&'a mut Thread>, Loss> {
    let thread = thread::current()?;
    let call = &mut thread.call;
    let before = core::mem::replace(&mut call.state, RETURNED);
    if before == RETURNED && SYSTEM_CALL_COPIES.load() > 1 {
        return Ok(None);
    }
    if before != UNDER_WAY || call.event != u64::from(event) {
        return Err(Loss::ReturnWithoutEntry);
    }
    // SAFETY: the result is a long at this offset of every sys_exit record.
    call.result = unsafe { ctx.read_at(RESULT) }.map_err(|_| Loss::ArgumentUnreadable)?;
    Ok(Some(thread))
}

/// The number of the system call.
#[inline(always)]
pub fn number(ctx: &TracePointContext) -> Result<u32, Loss> {
    // SAFETY: the number is an int in every record of a system call, before its arguments or its result.
    unsafe { ctx.read_at(NUMBER) }.map_err(|_| Loss::ArgumentUnreadable)
}

/// Argument `n` of the call that begins now.
#[inline(always)]
pub fn argument(ctx: &TracePointContext, n: usize) -> Result<u64, Loss> {
    // SAFETY: each argument is a long in every sys_enter record.
    unsafe { ctx.read_at(ARGUMENTS + 8 * n) }.map_err(|_| Loss::ArgumentUnreadable)
}
