//! The entry points for native allocators, in all processes that are followed.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

use crate::{allocation::Return, followed, free, malloc, thread};

/// A native allocator's function begins.
#[uprobe]
fn malloc_enter(ctx: ProbeContext) -> u32 {
    followed(&ctx, malloc::try_enter)
}

/// It begins, or has returned: the program of a link of many that is a session. What it gives at the beginning says
/// whether it will be told of the return, zero that it will, and so it cannot be one of aya's, which give zero.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn malloc_call(ctx: *mut c_void) -> u32 {
    let mut is_over = 1;
    followed(&ProbeContext::new(ctx), |ctx| {
        if malloc::try_call(ctx)? == Return::Needed {
            is_over = 0;
        }
        Ok(())
    });
    is_over
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
