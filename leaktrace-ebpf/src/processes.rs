//! Processes that the target makes, and those that they make, if they are followed (`--follow-forks`).
//!
//! Each has a number. Blocks are kept by their address with the number above it, since the same address is
//! another block in each process.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::TracePointContext};
use leaktrace_common::{EVENT_CHILD_EXEC, EVENT_FORK, PROCESS_SHIFT, VmEvent};

use crate::{
    events::{WAKE_UP, send_and},
    loss::Loss,
    maps::{PROCESS_NUMBERS, PROCESSES},
};

/// `task:task_newtask`: the current process makes a task. One with memory of its own is another process.
#[inline(always)]
pub fn try_new(ctx: &TracePointContext) -> Result<(), Loss> {
    // The record's members (include/trace/events/task.h, Linux 6.18).
    const PID: usize = 8;
    const CLONE_FLAGS: usize = 32;
    const CLONE_VM: u64 = 0x100;
    // SAFETY: the record has a pid and a word of flags there.
    let (pid, flags) = unsafe { (ctx.read_at::<u32>(PID), ctx.read_at::<u64>(CLONE_FLAGS)) };
    let (Ok(pid), Ok(flags)) = (pid, flags) else {
        return Err(Loss::ArgumentUnreadable);
    };
    if flags & CLONE_VM != 0 {
        return Ok(());
    }
    let Ok(Some(number)) = PROCESS_NUMBERS.pop() else {
        return Err(Loss::ProcessNotFollowed);
    };
    let event = VmEvent {
        event: EVENT_FORK,
        addr: u64::from(pid),
        len: number,
        ..VmEvent::default()
    };
    let told = PROCESSES
        .insert(pid, number << PROCESS_SHIFT, 0)
        .map_err(|_| Loss::ProcessNotFollowed)
        .and_then(|()| send_and(WAKE_UP, event));
    if told.is_err() {
        let _ = PROCESSES.remove(pid);
        let _ = PROCESS_NUMBERS.push(number, 0);
        return Err(Loss::ProcessNotFollowed);
    }
    Ok(())
}

/// A followed child became another program: its memory, and the probes in it, are gone.
#[inline(always)]
pub fn exec() -> Result<(), Loss> {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let _ = PROCESSES.remove(pid);
    send_and(
        WAKE_UP,
        VmEvent {
            event: EVENT_CHILD_EXEC,
            addr: u64::from(pid),
            ..VmEvent::default()
        },
    )
}
