//! From facts about the target to a list of probes, and of things that cannot be seen.
//!
//! Contract: pure. Every probe says where it stands and what it is for; everything that a user
//! could expect and will not get is a [`Limit`] with its reason.

mod frame_state;
pub mod placement;
pub mod refill;
pub mod frame_rule;
pub mod frame_table;
pub mod cgo;
mod go;
mod goroutine;
pub mod native;

use std::sync::Arc;

use leaktrace_common::AllocatorCall;

use self::native::{NativeFacts, ProbedFile};
use crate::go::{FoundBy, GoBinary, GoVariable, layout::Layout};

/// Which families of probes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// mmap, munmap, mremap, brk.
    pub vm: bool,
    /// The Go runtime's heap sampler.
    pub go: bool,
    /// Native allocators.
    pub malloc: bool,
    /// Goroutines as they are made and end.
    pub goroutine: bool,
}

/// What the plan is made from.
pub struct Facts<'a> {
    /// The Go executable, if it is one; the error says why it could not be read as one.
    pub go: Option<Result<GoFacts<'a>, String>>,
    /// Native code; `None` where there is none to look at.
    pub native: Option<NativeFacts>,
}

/// What is known of a Go target.
pub struct GoFacts<'a> {
    /// The executable.
    pub binary: &'a GoBinary,
    /// Address in the process minus link-time address.
    pub bias: u64,
    /// `runtime.MemProfileRate` now, in bytes; the error says why it could not be read.
    pub sample_rate: Result<u64, String>,
}

/// What will be attached and read, and what cannot be seen.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tracepoints, in the order in which they must be attached.
    pub tracepoints: Vec<Tracepoint>,
    /// Probes in the target's code.
    pub uprobes: Vec<Uprobe>,
    /// Variables of the target that are read.
    pub reads: Vec<Read>,
    /// `runtime.MemProfileRate` when the plan was made, in bytes, if it could be read.
    pub sample_rate: Option<u64>,
    /// How to read the Go heap sampler, if it is to be read.
    pub go: Option<GoSampler>,
    /// How to sample the Go heap ourselves, if the runtime does not.
    pub refill: Option<GoRefill>,
    /// Offset of `gopc` in `runtime.g`, if goroutines are counted as they are made and end.
    pub gopc: Option<u64>,
    /// Whether native allocators are probed.
    pub malloc: bool,
    /// Whether it is kept what each thread of the target is in.
    pub follows_threads: bool,
    /// Whether code that is mapped later is searched for more of them.
    pub watches_objects: bool,
    /// What cannot be seen, and why.
    pub limits: Vec<Limit>,
}

/// A tracepoint and the program for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// Name of the program in the kernel object.
    pub program: &'static str,
    /// Category in tracefs.
    pub category: &'static str,
    /// Name in tracefs.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// A probe on one instruction of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uprobe {
    /// Name of the program in the kernel object.
    pub program: &'static str,
    /// The function it stands in.
    pub function: &'static str,
    /// The file it stands in; `None`: the executable.
    pub file: Option<Arc<ProbedFile>>,
    /// Offset of the instruction in that file.
    pub file_offset: u64,
    /// Its address in the process.
    pub address: u64,
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// The instruction, as `push %rbp`.
    pub instruction: String,
    /// What the kernel does with it, and so what a hit costs.
    pub class: placement::Class,
    /// How the function was found.
    pub found_by: FoundBy,
    /// The function's first bytes, past the instruction, as the file has them. The process must
    /// have the same before a probe may be placed.
    pub code: Vec<u8>,
    /// Address in the process of the first byte of `code`.
    pub code_address: u64,
    /// What it is for.
    pub purpose: &'static str,
    /// What it is for, where it stands, what a hit costs and how the function was found.
    pub reason: String,
    /// What a call of an allocator means, by the address at which the probe is met.
    pub calls: Vec<(u64, AllocatorCall)>,
    /// Whether it is attached for a share of the time only.
    pub in_windows: bool,
}

/// A variable of the target that is read from its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The variable.
    pub variable: GoVariable,
    /// Its address in the process.
    pub address: u64,
    /// How it was found.
    pub found_by: FoundBy,
    /// What it is for.
    pub purpose: &'static str,
}

/// Where the Go heap sampler keeps its numbers.
#[derive(Clone, Debug)]
pub struct GoSampler {
    /// Address in the process of `runtime.mbuckets`.
    pub buckets: u64,
    /// Address in the process of `runtime.MemProfileRate`.
    pub rate: u64,
    /// Its value when the plan was made, in bytes.
    pub sample_rate: u64,
    /// Layouts of this Go version.
    pub layout: Layout,
    /// What to subtract from an address in the process to get a link-time address.
    pub bias: u64,
}

/// What our own sampling of the Go heap reads.
#[derive(Clone, Debug)]
pub struct GoRefill {
    /// Address in the process of `runtime.mheap_.sweepgen`.
    pub sweepgen: u64,
    /// Where the runtime counts allocations.
    pub stats: GoStats,
    /// Layouts of this Go version.
    pub layout: Layout,
    /// Offset in `struct pt_regs` of the register that holds the span at the probe behind a refill.
    pub span_register: u32,
}

/// `runtime.memstats.heapStats.stats`: counts of allocations, in shards that add up
/// (runtime/mstats.go, `consistentHeapStats`). Offsets and sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoStats {
    /// Address in the process of the first shard.
    pub address: u64,
    /// Number of shards.
    pub shards: u64,
    /// Size of a shard.
    pub shard_size: u64,
    /// Offset in a shard of the counts by size class, eight bytes each.
    pub small_allocs: u64,
    /// Size classes.
    pub classes: u64,
}

/// Something that cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is missing.
    pub what: String,
    /// Why.
    pub reason: String,
}

impl placement::Class {
    /// What a hit costs, in words.
    pub fn cost(self) -> &'static str {
        match self {
            Self::SingleStep => "single-stepped, up to 16 µs a hit",
            Self::Return => "the kernel changes the return address, about 0.3 µs a hit",
            _ => "emulated by the kernel, about 0.5 µs a hit",
        }
    }
}

impl Uprobe {
    /// Whether it is for native allocators.
    pub fn is_native(&self) -> bool {
        self.program.starts_with("malloc_")
    }
}

impl Plan {
    /// Makes the plan.
    pub fn new(facts: &Facts<'_>, families: Families) -> Self {
        let mut plan = Self::default();
        plan.tracepoints.push(Tracepoint {
            program: "exec",
            category: "sched",
            name: "sched_process_exec",
            purpose: "the process becomes another program",
        });
        plan.tracepoints.push(Tracepoint {
            program: "oom_victim",
            category: "oom",
            name: "mark_victim",
            purpose: "the kernel kills the process for want of memory",
        });
        if families.vm {
            plan.tracepoints.extend(VM);
        }
        if let Some(Ok(go)) = &facts.go {
            plan.sample_rate = go.sample_rate.as_ref().ok().copied();
        }
        match &facts.go {
            _ if !families.goroutine => {}
            Some(Ok(go)) => goroutine::plan(go, &mut plan),
            Some(Err(reason)) => plan.limit(goroutine::COUNTS, reason),
            None => plan.limit(goroutine::COUNTS, "it is not a Go program"),
        }
        match &facts.go {
            _ if !families.go => {}
            Some(Ok(go)) => go::plan(go, &mut plan),
            Some(Err(reason)) => plan.limit("Go heap allocations", reason),
            None => {}
        }
        match &facts.native {
            Some(native) if families.malloc => native::plan(native, facts.go.is_some(), &mut plan),
            _ => {}
        }
        plan.follows_threads = families.vm || plan.malloc;
        if plan.follows_threads {
            plan.tracepoints.push(Tracepoint {
                program: "thread_exit",
                category: "sched",
                name: "sched_process_exit",
                purpose: "a thread ends, in a call or not",
            });
        }
        if let Some(Ok(go)) = &facts.go
            && (families.go || families.goroutine)
        {
            go::inventory(go, &mut plan);
        }
        plan
    }

    /// Notes something that cannot be seen.
    pub fn limit(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.limits.push(Limit {
            what: what.into(),
            reason: reason.into(),
        });
    }
}

/// Entry before exit: a call under way at the attach then counts as a return without entry.
const VM: [Tracepoint; 8] = [
    syscall("enter_call", "sys_enter_mmap"),
    syscall("enter_call", "sys_enter_munmap"),
    syscall("enter_call", "sys_enter_mremap"),
    syscall("enter_call", "sys_enter_brk"),
    syscall("exit_call", "sys_exit_mmap"),
    syscall("exit_call", "sys_exit_munmap"),
    syscall("exit_call", "sys_exit_mremap"),
    syscall("exit_call", "sys_exit_brk"),
];

const fn syscall(program: &'static str, name: &'static str) -> Tracepoint {
    Tracepoint {
        program,
        category: "syscalls",
        name,
        purpose: "changes of the address space; those of other processes are dropped at once",
    }
}
