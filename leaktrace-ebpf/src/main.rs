//! Kernel side of leaktrace: the entry points.
//!
//! Those of native allocators are in [`native`], the one that attaches to nothing in [`registers`]. Each of the
//! others filters by process, then calls a `try_…` function that returns the cause of a loss as its error;
//! [`loss::count`] is where all of them end. Nothing here decides what a leak is: the kernel side counts, pairs and samples, never loops without a bound and never
//! blocks the target.

#![no_std]
#![no_main]
// For the one instruction in `loss::add`.
#![feature(asm_experimental_arch)]

mod filter;
mod maps;
mod loss;
mod unwind;
mod walk;
mod stack;
mod stack_copy;
mod live;
mod events;
mod processes;
mod oom;
mod call;
mod vm;
mod go;
mod refill;
mod poisson;
mod private_stack;
mod arguments;
mod thread;
mod foretell;
mod sampling;
mod windows;
mod allocation;
mod malloc;
mod free;
mod native;
mod registers;

use aya_ebpf::{
    macros::{tracepoint, uprobe},
    programs::{ProbeContext, TracePointContext},
};
use aya_log_ebpf::warn;

use private_stack::Context;

/// A system call that changes the address space begins.
#[tracepoint]
fn enter_call(ctx: TracePointContext) -> u32 {
    entry(&ctx, vm::try_enter)
}

/// It returns. One program for all of them: the kernel takes a tenth of a second to verify the walk of a stack.
#[tracepoint]
fn exit_call(ctx: TracePointContext) -> u32 {
    entry(&ctx, vm::try_exit)
}

/// `sched:sched_process_exec`: the target, or a process that it has made, becomes another program.
#[tracepoint]
fn exec(ctx: TracePointContext) -> u32 {
    followed(&ctx, |_| match filter::is_target() {
        true => events::exec(),
        false => processes::exec(),
    })
}

/// `task:task_newtask`: a followed process makes a task.
#[tracepoint]
fn new_task(ctx: TracePointContext) -> u32 {
    followed(&ctx, processes::try_new)
}

/// `oom:mark_victim`: the kernel kills a process for want of memory.
#[tracepoint]
fn oom_victim(ctx: TracePointContext) -> u32 {
    run(&ctx, true, oom::try_victim)
}

/// `runtime.setprofilebucket`: the Go sampler took an object.
#[uprobe]
fn go_sample(ctx: ProbeContext) -> u32 {
    entry(&ctx, go::try_sample)
}

/// `runtime.freeSpecial`: a sampled object of the Go heap dies.
#[uprobe]
fn go_free(ctx: ProbeContext) -> u32 {
    entry(&ctx, go::try_free)
}

/// `runtime.gcMarkTermination`: a garbage collection has finished marking.
#[uprobe]
fn go_gc(ctx: ProbeContext) -> u32 {
    entry(&ctx, |_| go::try_gc())
}

/// In `runtime.(*mcache).nextFree`: an allocation got a fresh span.
#[uprobe]
fn go_refill(ctx: ProbeContext) -> u32 {
    entry(&ctx, refill::try_refill)
}

/// In `runtime.(*mcache).allocLarge`: an object got a span of its own.
#[uprobe]
fn go_large(ctx: ProbeContext) -> u32 {
    entry(&ctx, refill::try_large)
}

/// `runtime.newproc1`: a goroutine is made.
#[uprobe]
fn go_created(ctx: ProbeContext) -> u32 {
    entry(&ctx, go::try_created)
}

/// `runtime.gdestroy` or, before Go 1.22, `runtime.goexit0`: a goroutine ends.
#[uprobe]
fn go_exited(ctx: ProbeContext) -> u32 {
    entry(&ctx, go::try_exited)
}

/// Runs `body` if the current process is the target.
#[inline(always)]
fn entry<C: Context>(ctx: &C, body: impl FnOnce(&C) -> Result<(), loss::Loss>) -> u32 {
    run(ctx, filter::is_target(), body)
}

/// The same if it is the target or another process that is followed.
#[inline(always)]
fn followed<C: Context>(ctx: &C, body: impl FnOnce(&C) -> Result<(), loss::Loss>) -> u32 {
    run(ctx, filter::is_followed(), body)
}

/// The log is for diagnosis: unless user space asks for it the kernel drops that code at load time.
#[inline(always)]
fn run<C: Context>(ctx: &C, is_ours: bool, body: impl FnOnce(&C) -> Result<(), loss::Loss>) -> u32 {
    ctx.keep_stack();
    if is_ours && let Err(cause) = body(ctx) {
        loss::count(cause);
        warn!(ctx, "lost an event, cause {}", cause as u32);
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
