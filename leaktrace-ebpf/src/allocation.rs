//! The outermost call of an allocator by a thread: what it begins with, and what comes of it.

use aya_ebpf::bindings::pt_regs;
use leaktrace_common::{
    ALLOCATOR_ALLOCATE, ALLOCATOR_CHUNKS, ALLOCATOR_EXPAND, ALLOCATOR_RESIZE, ALLOCATOR_STORE,
    ALLOCATOR_URETPROBE, AllocatorCall, BY_FRAME_POINTER, KIND_MALLOC, MALLOC_ALLOC_BYTES,
    MALLOC_ALLOCS, MALLOC_FREES, NO_ARGUMENT, SiteKey, WINDOW_LOOK,
};

use crate::{
    arguments::{argument, arguments},
    live,
    loss::Loss,
    sampling::{self, count},
    stack,
    thread::{self, Thread, read},
    windows,
};

/// Whether anything is to be learnt from the return of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Return {
    Needed,
    Unneeded,
}

/// Where the return address of a call lies that begins.
#[inline(always)]
pub fn place_of_return(regs: &pt_regs, call: &AllocatorCall) -> u64 {
    match call.depth {
        BY_FRAME_POINTER => regs.rbp.wrapping_add(8),
        depth => regs.rsp.wrapping_add(u64::from(depth)),
    }
}

/// The current thread. What it was in before this window is forgotten.
#[inline(always)]
pub fn current<'a>() -> Result<&'a mut Thread, Loss> {
    let thread = thread::current()?;
    let window = windows::number();
    if thread.window != window {
        // While no probe was live the thread went on: what was under way is over.
        (thread.window, thread.sp, thread.foretold) = (window, 0, 0);
    }
    Ok(thread)
}

/// A function begins. If that is part of a call under way, or goes on with one, that stays.
#[inline(always)]
pub fn enter(regs: &pt_regs, call: &AllocatorCall, thread: &mut Thread) -> Result<Return, Loss> {
    let sp = place_of_return(regs, call);
    if thread.is_within(sp) {
        return Ok(Return::Unneeded);
    }
    if thread.sp != 0 {
        // What was expected of another call.
        thread.foretold = 0;
    }
    let action = u64::from(call.action & !(ALLOCATOR_URETPROBE | ALLOCATOR_CHUNKS));
    let by_uretprobe = call.action & ALLOCATOR_URETPROBE;
    let arguments = arguments(regs);
    let block = argument(&arguments, call.block);
    // A function that ends by jumping to another: the same call goes on.
    let goes_on = thread.sp == sp && thread.action == action && thread.block == block;
    if !goes_on {
        thread.by_uretprobe = 0;
        if thread.sp != sp {
            thread.give_up();
        }
        thread.put_back();
        thread.block = block;
        let resizes =
            action == u64::from(ALLOCATOR_RESIZE) || action == u64::from(ALLOCATOR_EXPAND);
        if resizes && thread.window != 0 {
            thread.entered = windows::now();
            thread.old_class = u64::from(windows::class(call, block));
        } else if resizes && let Some(old) = live::take(block) {
            thread.old = old;
        }
    }
    let size = argument(&arguments, call.size);
    thread.size = match call.count {
        NO_ARGUMENT => size,
        count => size.wrapping_mul(argument(&arguments, count)),
    };
    thread.action = action;
    thread.has_chunks = u64::from(call.action & ALLOCATOR_CHUNKS);
    thread.by_uretprobe |= u64::from(by_uretprobe);
    thread.function = call.function;
    thread.ret = read(sp)?;
    thread.bp = regs.rbp;
    thread.sp = sp;
    Ok(Return::Needed)
}

/// The function whose return address lies at `sp` returns, or has just returned, to `ret` with `result`: the
/// thread, if that gives it a block.
#[inline(always)]
pub fn leave<'a>(
    regs: &pt_regs,
    sp: u64,
    ret: u64,
    result: u64,
) -> Result<Option<&'a mut Thread>, Loss> {
    let Some(thread) = thread::known() else {
        return Ok(None);
    };
    // Another function's: of an inner call, or of one that began before the attach.
    if thread.sp != sp {
        return Ok(None);
    }
    thread.sp = 0;
    let block = match thread.action as u8 {
        ALLOCATOR_ALLOCATE => {
            thread.check_foretold(result);
            result
        }
        ALLOCATOR_STORE if result as u32 == 0 => read(thread.block)?,
        ALLOCATOR_RESIZE => resized(thread, result != 0, result)?,
        ALLOCATOR_EXPAND => resized(thread, result >= thread.size, thread.block)?,
        _ => 0,
    };
    if block == 0 {
        return Ok(None);
    }
    (thread.block, thread.place, thread.ret, thread.bp) = (block, sp, ret, regs.rbp);
    Ok(Some(thread))
}

/// The call of a thread gives, or has given, its `block`; or no call gives any.
#[inline(always)]
pub fn handed_out(thread: Option<&mut Thread>) -> Result<(), Loss> {
    let Some(thread) = thread else {
        return Ok(());
    };
    count(MALLOC_ALLOCS, 1);
    count(MALLOC_ALLOC_BYTES, thread.size);
    let window = windows::number();
    let class = match window {
        0 => sampling::class(thread),
        WINDOW_LOOK => None,
        _ => Some(windows::class_of(thread.has_chunks, thread.block)),
    };
    let Some(class) = class else {
        return Ok(());
    };
    let site = SiteKey {
        stack: stack::of_call(thread),
        kind: KIND_MALLOC,
        class,
    };
    if window != 0 {
        return windows::born(thread.block, site.stack, thread.size, class);
    }
    live::born(thread.block, site, thread.size);
    Ok(())
}

/// What became of the block that was to be resized; gives the new one, which is `block` if that was
/// done. Nothing asked for and nothing given: the old block is freed.
#[inline(always)]
fn resized(thread: &mut Thread, done: bool, block: u64) -> Result<u64, Loss> {
    if !done && thread.size != 0 {
        thread.put_back();
        return Ok(0);
    }
    if thread.block != 0 {
        count(MALLOC_FREES, 1);
        if windows::number() != 0 {
            if thread.window != 0 {
                windows::freed(thread.block, thread.entered, thread.old_class as u32)?;
            }
        } else if thread.old.kind != 0 {
            live::count_free_of(&thread.old);
            thread.old.kind = 0;
        } else {
            sampling::unseen_free();
        }
    }
    Ok(if done { block } else { 0 })
}
