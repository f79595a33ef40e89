//! Stacks of the target, each kept once under the hash of its frames.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
};
use leaktrace_common::{STACK_TRUNCATED, StackId};

use crate::{
    loss::{self, Loss},
    maps::STACKS,
    thread::Thread,
    walk::Walk,
};

/// The stack of the system call that the thread is in, put together in `walk`: its id, or zero if it could not be
/// kept (counted).
#[inline(always)]
pub fn of_system_call(walk: &mut Walk) -> StackId {
    // SAFETY: no arguments; the helper returns the current task.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: `task` is the current task, whose user registers were saved at kernel entry.
    let regs = unsafe { bpf_task_pt_regs(task.cast()) } as *const pt_regs;
    // SAFETY: the helper copies from kernel memory and fails rather than faults.
    match unsafe { bpf_probe_read_kernel(regs) } {
        Ok(regs) => {
            let id = walk.take_here(regs.rip, regs.rsp, regs.rbp);
            keep(id, walk)
        }
        Err(_) => {
            loss::count(Loss::StackUnreadable);
            StackId(0)
        }
    }
}

/// The stack of the allocator's call by the thread, put together in its `walk`.
#[inline(always)]
pub fn of_call(thread: &mut Thread) -> StackId {
    let walk = &mut thread.walk;
    walk.copy.forget();
    if thread.ret == 0 {
        match walk.copy.word(thread.place) {
            Some(ret) => thread.ret = ret,
            None => {
                loss::count(Loss::StackUnreadable);
                return StackId(0);
            }
        }
    }
    let sp = thread.place.wrapping_add(8);
    let id = walk.take_from_caller(thread.function, thread.ret, sp, thread.bp);
    keep(id, walk)
}

#[inline(always)]
fn keep(id: StackId, walk: &mut Walk) -> StackId {
    if walk.record.flags & STACK_TRUNCATED != 0 {
        loss::count(Loss::StackTruncated);
    }
    if id == walk.kept {
        return id;
    }
    const BPF_NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    let record = &walk.record;
    if STACKS.get_ptr(id).is_none()
        && let Err(code) = STACKS.insert(id, record, BPF_NOEXIST)
        && code != EEXIST
    {
        loss::count(Loss::StackMapFull);
        return StackId(0);
    }
    walk.kept = id;
    id
}
