//! The maps. User space sets their real sizes from the plan before it loads the object.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, Queue, RingBuf},
};
use leaktrace_common::{
    AllocatorCall, GO_HIT_KINDS, GoSampling, LIVE_STATES, LiveObject, MALLOC_COUNTS,
    SAMPLING_LEVELS, SiteCounters, SiteKey, StackId, StackRecord, UNWIND_CHUNK, UnwindPage,
    UnwindRow, loss,
};

/// Every distinct stack, by the hash of its frames.
#[map]
pub static STACKS: HashMap<StackId, StackRecord> = HashMap::with_max_entries(1, 0);

/// Where the unwind rows of each page of code are, by the page's address divided by its size. User space
/// adds the pages of what is mapped later.
#[map]
pub static UNWIND_PAGES: HashMap<u64, UnwindPage> = HashMap::with_max_entries(1, 0);

/// How to leave frames, from the call frame information of the mapped files. User space writes it through
/// a mapping of its own, rows before the page that leads to them. The rows of a page are in one chunk.
#[map]
pub static UNWIND_ROWS: Array<[UnwindRow; UNWIND_CHUNK as usize]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Objects born since the attach and not freed yet, by [`key`](crate::filter::key).
#[map]
pub static LIVE: HashMap<u64, LiveObject> = HashMap::with_max_entries(1, 0);

/// Running totals per site.
#[map]
pub static COUNTERS: PerCpuHashMap<SiteKey, SiteCounters> = PerCpuHashMap::with_max_entries(1, 0);

/// Processes other than the target that are followed, by id, with what the addresses of their blocks are marked
/// with. An entry stays until user space takes their blocks out, or the process becomes another program.
#[map]
pub static PROCESSES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Numbers for new ones; user space puts them there.
#[map]
pub static PROCESS_NUMBERS: Queue<u64> = Queue::with_max_entries(1, 0);

/// What could not be kept, by cause.
#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(loss::COUNT, 0);

/// Changes of the address space and collections, in order.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How the target is about to end: one value. Not an event, so that no flood of these can lose it.
#[map]
pub static ENDING: Array<u64> = Array::with_max_entries(1, 0);

/// Garbage collections completed since the attach: one value.
#[map]
pub static GC_CYCLES: Array<u64> = Array::with_max_entries(1, 0);

/// Objects of the Go heap that our own sampling took.
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How densely it takes them, by kind of hit; user space changes it during the run.
#[map]
pub static GO_SAMPLING: Array<GoSampling> = Array::with_max_entries(GO_HIT_KINDS, 0);

/// Hits of its probes, by kind.
#[map]
pub static GO_HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(GO_HIT_KINDS, 0);

/// What the probes at the beginning of an allocator's functions do, by their address. User space
/// writes an entry before it attaches the probe.
#[map]
pub static ALLOCATOR_CALLS: HashMap<u64, AllocatorCall> = HashMap::with_max_entries(1, 0);

/// Threads that have called a native allocator or changed the address space, by thread.
#[map]
pub static THREADS: HashMap<u64, crate::thread::Thread> = HashMap::with_max_entries(1, 0);

/// A thread before its first call: too large for a program's own stack. Nobody writes it.
#[map]
pub static NEW_THREAD: Array<crate::thread::Thread> = Array::with_max_entries(1, 0);

/// Bytes for each sample of a native allocator's blocks, by level of sampling: 1 takes all of them, 0
/// none. User space changes it during the run.
#[map]
pub static MALLOC_RATE: Array<u64> = Array::with_max_entries(SAMPLING_LEVELS, 0);

/// How many objects live, and the level of sampling that follows from it.
#[map]
pub static LIVE_STATE: Array<u64> = Array::with_max_entries(LIVE_STATES, 0);

/// The number of the window in which each block of native allocators is sent; zero: none is open. User
/// space changes it during the run.
#[map]
pub static MALLOC_WINDOW: Array<u64> = Array::with_max_entries(1, 0);

/// What happens to blocks while a window is open.
#[map]
pub static BLOCKS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// All calls of native allocators, sampled or not.
#[map]
pub static MALLOC_CALLS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MALLOC_COUNTS, 0);
