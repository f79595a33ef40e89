//! What a thread is in: a system call, and the outermost call of a native allocator.
//!
//! Allocators call one another (`calloc` calls `malloc`, `operator new` too), and what a program asked
//! for is the outermost call. So a thread has one call under way, told by the place of its return
//! address on the stack. A call is left without returning by `longjmp` or an exception: then that place
//! lies below the stack pointer or holds something else, and the call is given up.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use leaktrace_common::{Ktime, LiveObject, WINDOW_LOOK};

use crate::{
    call::Call,
    foretell::Cache,
    live,
    loss::{self, Loss},
    maps::{NEW_THREAD, THREADS},
    sampling,
    walk::Walk,
    windows,
};

/// A thread of the target. Only programs that run on behalf of the thread itself touch it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Thread {
    /// Where the return address of its call lies; zero: it is in none.
    pub sp: u64,
    /// The return address; zero, once the block is known: it is to be read.
    pub ret: u64,
    /// The frame pointer of its caller, unless the function had changed it before the probe.
    pub bp: u64,
    /// The function's address.
    pub function: u64,
    /// Bytes asked for.
    pub size: u64,
    /// The block to be resized, or where the result will be stored; then the block that is taken.
    pub block: u64,
    /// What was known of the block that is resized; its kind is zero if nothing was.
    pub old: LiveObject,
    /// One of the `ALLOCATOR_…` constants.
    pub action: u64,
    /// Not zero: a uretprobe tells when it returns.
    pub by_uretprobe: u64,
    /// When it began, if it resizes a block in a window.
    pub entered: Ktime,
    /// The size class of that block.
    pub old_class: u64,
    /// The window that was open when it began; zero: none was.
    pub window: u64,
    /// Not zero: see [`ALLOCATOR_CHUNKS`](leaktrace_common::ALLOCATOR_CHUNKS).
    pub has_chunks: u64,
    /// Where the return address lies, or lay, of the call whose block is taken.
    pub place: u64,
    /// The block that the call under way is expected to give; zero: none is.
    pub foretold: u64,
    /// Its free blocks, where glibc keeps some for each thread.
    pub cache: Cache,
    /// Bytes until the next sample; zero: not drawn.
    pub countdown: u64,
    /// The level of sampling at which that was drawn.
    pub level: u64,
    /// The system call that it is in.
    pub call: Call,
    /// Where a stack is put together.
    pub walk: Walk,
}

/// The current thread, if it is known.
#[inline(always)]
pub fn known<'a>() -> Option<&'a mut Thread> {
    let thread = THREADS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: a value of a preallocated map that belongs to the current thread; its programs do not
    // run inside one another.
    Some(unsafe { &mut *thread })
}

/// The current thread.
#[inline(always)]
pub fn current<'a>() -> Result<&'a mut Thread, Loss> {
    if let Some(thread) = known() {
        return Ok(thread);
    }
    let new = NEW_THREAD.get(0).ok_or(Loss::ThreadsFull)?;
    let _ = THREADS.insert(bpf_get_current_pid_tgid(), new, 0);
    known().ok_or(Loss::ThreadsFull)
}

/// The call under way in which the current thread's stack pointer is `sp`, if there is one.
#[inline(always)]
pub fn call_around<'a>(sp: u64) -> Option<&'a Thread> {
    known()
        .filter(|thread| thread.sp.wrapping_add(8) >= sp)
        .map(|thread| &*thread)
}

/// `sched:sched_process_exit`: a thread of the target ends, in a call or not.
#[inline(always)]
pub fn try_exit() -> Result<(), Loss> {
    if let Some(thread) = known() {
        thread.give_up();
        let _ = THREADS.remove(bpf_get_current_pid_tgid());
    }
    Ok(())
}

/// An exception is made. If the thread is in a call of an allocator then that has refused, and the exception
/// is a block like any other.
#[inline(always)]
pub fn try_throw() -> Result<(), Loss> {
    if let Some(thread) = known() {
        thread.end();
    }
    Ok(())
}

/// Whether it may be the address of the kernel's trampoline, which stands in the return address's place
/// while a uretprobe waits for the return: the beginning of a page.
#[inline(always)]
pub fn is_trampoline(address: u64) -> bool {
    const PAGE: u64 = 4096;
    address != 0 && address.is_multiple_of(PAGE)
}

impl Thread {
    /// Whether a call that begins now, with its return address at `sp`, is part of the one under way.
    #[inline(always)]
    pub fn is_within(&self, sp: u64) -> bool {
        if self.sp <= sp {
            return false;
        }
        let at = read(self.sp).unwrap_or(0);
        at == self.ret || is_trampoline(at)
    }

    /// Notes that the call under way, if there is one, was left without returning.
    #[inline(always)]
    pub fn give_up(&mut self) {
        if self.sp == 0 {
            return;
        }
        if self.is_followed() {
            loss::count(Loss::CallAbandoned);
        }
        self.end();
    }

    /// Whether the block would have been taken. Between windows none is, and returns may go unseen.
    #[inline(always)]
    fn is_followed(&self) -> bool {
        match windows::number() {
            0 => sampling::takes_any(),
            WINDOW_LOOK => false,
            window => window == self.window,
        }
    }

    /// The call under way, if there is one, gives no block.
    #[inline(always)]
    fn end(&mut self) {
        self.sp = 0;
        self.foretold = 0;
        self.put_back();
    }

    /// The block that was to be resized is as it was.
    #[inline(always)]
    pub fn put_back(&mut self) {
        if self.old.kind != 0 {
            live::put_back(self.block, &self.old);
            self.old.kind = 0;
        }
    }
}

/// A word of the target's memory.
#[inline(always)]
pub fn read(address: u64) -> Result<u64, Loss> {
    // SAFETY: the helper copies from the target's memory and fails rather than faults.
    unsafe { bpf_probe_read_user(address as *const u64) }.map_err(|_| Loss::ArgumentUnreadable)
}
