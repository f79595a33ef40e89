//! Keeps the kernel from giving our uprobe programs a stack that is not their own.
//!
//! From Linux 6.13 on the x86-64 JIT gives programs of the kprobe type one stack for each processor
//! (kernel/bpf/verifier.c, `bpf_enable_priv_stack`, commit a76ab5731e32), on the assumption that they cannot be
//! preempted by one another. Programs of uprobes can, since Linux 6.0 (commits 8c7dcb84e3b7 and 88bf18581375),
//! where the kernel preempts its own code. Then two threads write to one stack, and the kernel reads pointers
//! that are none: it crashed so on Linux 7.3. A program with a tail call keeps the stack of the thread.

use aya_ebpf::{
    EbpfContext,
    bindings::pt_regs,
    macros::map,
    maps::ProgramArray,
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

/// Always empty: the call that is never made leads nowhere.
#[map]
static NO_PRIVATE_STACK: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What one of our programs is called with.
pub trait Context: EbpfContext {
    /// Sees to it that the program runs on the stack of its thread.
    fn keep_stack(&self);
}

/// Nothing preempts these, or while something does the kernel does not run the same program on that processor.
impl Context for TracePointContext {
    #[inline(always)]
    fn keep_stack(&self) {}
}

impl Context for ProbeContext {
    #[inline(always)]
    fn keep_stack(&self) {
        refuse(self);
    }
}

impl Context for RetProbeContext {
    #[inline(always)]
    fn keep_stack(&self) {
        refuse(self);
    }
}

#[inline(always)]
fn refuse<C: EbpfContext>(ctx: &C) {
    // SAFETY: the context of a uprobe program is the target's registers.
    let regs = unsafe { &*ctx.as_ptr().cast::<pt_regs>() };
    // No instruction is there, which the verifier does not know.
    if regs.rip == 0 {
        // SAFETY: if there were a program, it would be one with the same context.
        unsafe { NO_PRIVATE_STACK.tail_call(ctx, 0) };
    }
}
