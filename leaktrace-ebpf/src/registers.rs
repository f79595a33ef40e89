//! The registers of the target's threads, read out by user space through an iterator over tasks.

use aya_ebpf::{
    bindings::{pt_regs, seq_file, task_struct},
    helpers::{bpf_probe_read_kernel, bpf_seq_write, bpf_task_pt_regs},
};

/// `struct bpf_iter__task` (kernel/bpf/task_iter.c).
#[repr(C)]
struct Visit {
    meta: *const Meta,
    /// Null after the last one.
    task: *mut task_struct,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h), its first member.
#[repr(C)]
struct Meta {
    output: *mut seq_file,
}

/// Writes what a task had in its registers when it last entered the kernel: it waits there, or a tick has interrupted it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn thread_registers(visit: *const Visit) -> u32 {
    // SAFETY: the kernel calls the program with such a structure.
    let Visit { meta, task } = unsafe { visit.read() };
    if task.is_null() {
        return 0;
    }
    // SAFETY: the kernel holds the task while it is visited.
    let registers = unsafe { bpf_task_pt_regs(task) } as *const pt_regs;
    // SAFETY: the helper copies from kernel memory and fails rather than faults.
    if let Ok(registers) = unsafe { bpf_probe_read_kernel(registers) } {
        // SAFETY: the output is there as long as the visit; the bytes are those of the structure. What does not fit
        // makes the kernel call again with more room.
        unsafe {
            bpf_seq_write(
                (*meta).output,
                (&raw const registers).cast(),
                size_of::<pt_regs>() as u32,
            )
        };
    }
    0
}
