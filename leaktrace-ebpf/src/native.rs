//! The entry points for native allocators, in all processes that are followed.

use aya_ebpf::{
    macros::{tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

use crate::{followed, free, malloc, thread};

/// A native allocator's function begins.
#[uprobe]
fn malloc_enter(ctx: ProbeContext) -> u32 {
    followed(&ctx, malloc::try_enter)
}

/// It has returned.
#[uretprobe]
fn malloc_returned(ctx: RetProbeContext) -> u32 {
    followed(&ctx, malloc::try_returned)
}

/// It returns: on one of its `ret` instructions.
#[uprobe]
fn malloc_return(ctx: ProbeContext) -> u32 {
    followed(&ctx, malloc::try_return)
}

/// It lets `memset` return the block.
#[uprobe]
fn malloc_fill(ctx: ProbeContext) -> u32 {
    followed(&ctx, malloc::try_fill)
}

/// `free` and its like begin.
#[uprobe]
fn malloc_free(ctx: ProbeContext) -> u32 {
    followed(&ctx, free::try_free)
}

/// `__cxa_allocate_exception`: an allocator is about to throw, if the thread is in one.
#[uprobe]
fn malloc_throw(ctx: ProbeContext) -> u32 {
    followed(&ctx, |_| thread::try_throw())
}

/// `sched:sched_process_exit`: a thread of the target ends.
#[tracepoint]
fn thread_exit(ctx: TracePointContext) -> u32 {
    followed(&ctx, |_| thread::try_exit())
}
