//! Records that cross the kernel boundary, and nothing else.
//!
//! Everything here is `repr(C)`, made of integers and transparent newtypes, without padding, so
//! that the kernel side can write a record byte by byte and the user side can read it back. There
//! is no logic here.

#![no_std]

/// Deepest stack the kernel side keeps, in frames; deeper ones are cut and flagged
/// [`STACK_TRUNCATED`].
pub const MAX_FRAMES: usize = 128;

/// The stack was deeper than [`MAX_FRAMES`]; the outermost frames are missing.
pub const STACK_TRUNCATED: u32 = 1 << 0;
/// The frame-pointer chain ended in memory that could not be read.
pub const STACK_UNREADABLE: u32 = 1 << 1;
/// The frame pointer is not of the stack that is being walked: code without frame pointers.
pub const STACK_BROKEN: u32 = 1 << 2;
/// The second frame was read from the top of the stack, because the innermost function had not
/// set up a frame of its own. It looks like a return address (a `call` precedes it).
pub const STACK_LEAF_CALLER: u32 = 1 << 3;
/// The call frame information of the outermost frame that was reached is of a form that is not followed
/// ([`RULE_UNKNOWN`]).
pub const STACK_NO_RULE: u32 = 1 << 4;

/// Where an allocation came from.
///
/// For kinds that the kernel side unwinds it is a hash of the frames and a key of the `STACKS`
/// map; for [`KIND_GO_HEAP`] it is the address of the Go runtime's own profile bucket, which holds
/// the stack as the runtime walked it. Zero means that the stack could not be kept.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// Moment on `CLOCK_MONOTONIC`, in nanoseconds (`bpf_ktime_get_ns`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ktime(pub u64);

/// Objects of the Go heap seen by the runtime's own sampler.
pub const KIND_GO_HEAP: u32 = 1;
/// Mappings made by `mmap` and `mremap`.
pub const KIND_MMAP: u32 = 2;
/// Memory gained by moving the program break.
pub const KIND_BRK: u32 = 3;

/// Not memory but goroutines made and ended; the "stack" is the return address of the go statement.
pub const KIND_GOROUTINE: u32 = 4;

/// Blocks of a native allocator: `malloc` and its like.
pub const KIND_MALLOC: u32 = 5;

/// Where the size ends in [`SiteKey::class`] and the level of sampling begins.
pub const CLASS_BITS: u32 = 28;
/// Levels of sampling. Each leaves half of the room for live objects that the one before has left.
pub const SAMPLING_LEVELS: u32 = 8;

/// Index into the `LIVE_STATE` array: objects in the `LIVE` map.
pub const LIVE_OBJECTS: u32 = 0;
/// The level of sampling.
pub const LIVE_LEVEL: u32 = 1;
/// Objects that user space has taken out of the map.
pub const LIVE_REMOVED: u32 = 2;
/// Entries of that array.
pub const LIVE_STATES: u32 = 3;

/// In the value of the `ENDING` array: the kernel has chosen the target to be killed for want of memory.
pub const OOM_VICTIM: u64 = 1 << 0;

/// Key of the per-CPU counters: one allocation site, one kind of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteKey {
    /// Where the memory was allocated.
    pub stack: StackId,
    /// One of the `KIND_…` constants.
    pub kind: u32,
    /// Where a native allocator's blocks are sampled, the size in bytes by which these were: their own
    /// size rounded up, or the rate where that is less; and from bit [`CLASS_BITS`] on the level, how often
    /// sampling had been coarsened. Otherwise zero.
    pub class: u32,
}

/// Running totals of one site on one CPU since the attach.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteCounters {
    /// Allocations.
    pub allocs: u64,
    /// Bytes allocated.
    pub alloc_bytes: u64,
    /// Frees, of objects older than the attach too.
    pub frees: u64,
    /// Bytes freed.
    pub free_bytes: u64,
}

/// One live object, keyed by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveObject {
    /// Where it was allocated.
    pub stack: StackId,
    /// When it was allocated.
    pub born: Ktime,
    /// Its size in bytes, as the allocator rounds it.
    pub size: u64,
    /// As in its site's [`SiteKey`].
    pub class: u32,
    /// One of the `KIND_…` constants.
    pub kind: u32,
}

/// What a probe at the beginning of an allocator's function does, keyed by its address.
///
/// Arguments are numbered as the System V ABI passes them: 0 is RDI, 1 RSI, 2 RDX, 3 RCX, 4 R8;
/// [`NO_ARGUMENT`] is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AllocatorCall {
    /// Address of the function, which stands for the innermost frame.
    pub function: u64,
    /// How far the return address lies above the stack pointer at the probe, in bytes, or
    /// [`BY_FRAME_POINTER`].
    pub depth: u32,
    /// One of the `ALLOCATOR_…` constants.
    pub action: u8,
    /// The argument that is the size in bytes.
    pub size: u8,
    /// The argument by which the size is multiplied.
    pub count: u8,
    /// The argument that is the block to be resized, or where the result is stored.
    pub block: u8,
    /// How a thread's variable is found that points to its cache of free blocks: negative, how far it lies from the
    /// thread pointer; positive, where in the process that stands; zero, there is none, or none that is known.
    pub cache: i64,
}

/// Added to the action: a uretprobe tells when the function returns. Then a `ret` instruction that it shares
/// with others says nothing, and the address to which that returns is the kernel's.
pub const ALLOCATOR_URETPROBE: u8 = 1 << 7;

/// Added to the action: the allocator is glibc's, which keeps the size of a block's chunk in the word before
/// the block.
pub const ALLOCATOR_CHUNKS: u8 = 1 << 6;

/// The return address lies above the place to which the frame pointer points.
pub const BY_FRAME_POINTER: u32 = u32::MAX;

/// Instead of the number of a window: calls of native allocators are counted, and nothing is sent.
pub const WINDOW_LOOK: u64 = u64::MAX;

/// No argument.
pub const NO_ARGUMENT: u8 = 0xff;

/// The function returns the new block or null.
pub const ALLOCATOR_ALLOCATE: u8 = 1;
/// It returns zero and stores the new block where its argument `block` points (`posix_memalign`).
pub const ALLOCATOR_STORE: u8 = 2;
/// It returns the block, moved or not, or null, which leaves the old one as it was.
pub const ALLOCATOR_RESIZE: u8 = 3;
/// Not a function but the return address of a call of `free` by the allocator itself, for a block that the
/// program has freed before.
pub const ALLOCATOR_FREE_AGAIN: u8 = 5;
/// It resizes the block in place, and returns the size that it has now (`xallocx`).
pub const ALLOCATOR_EXPAND: u8 = 4;

/// A stack as the kernel side walked it: `frames[..len]`, innermost first. The first is the
/// instruction pointer itself, the others are return addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRecord {
    /// Frames in use.
    pub len: u32,
    /// `STACK_…` flags.
    pub flags: u32,
    /// Code addresses in the target.
    pub frames: [u64; MAX_FRAMES],
}

/// Bytes of code for which the unwind rows are kept together; files are mapped by whole pages.
pub const UNWIND_PAGE: u32 = 1 << 12;

/// Unwind rows are kept in chunks of so many: the rows of one page of code do not cross from one to the next.
pub const UNWIND_CHUNK: u32 = 1 << 16;

/// Where the rows of one page of code are, keyed by its address divided by [`UNWIND_PAGE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwindPage {
    /// Index of its first row, which is that of its first byte.
    pub first: u32,
    /// Its rows: at least one, at most [`UNWIND_PAGE`].
    pub rows: u32,
}

/// How to leave the frame of code that stands at one of the instructions from this row's to the next
/// row's. The return address is in the eight bytes below the canonical frame address (CFA), the caller's
/// stack pointer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UnwindRow {
    /// Bytes from a register to the CFA or to where that is stored, as the kind of rule says.
    pub cfa: i32,
    /// Bytes from the CFA to where the caller's frame pointer is saved; zero: it is still in its register.
    pub saved_bp: i16,
    /// The kind of rule, one of `RULE_…`, times [`UNWIND_PAGE`], plus the offset in its page of the first
    /// instruction.
    pub at: u16,
}

/// Nothing is known: the frame is left by the frame pointer, if that is of the same stack.
pub const RULE_FRAME_POINTER: u8 = 0;
/// The CFA is the stack pointer plus `cfa`.
pub const RULE_SP: u8 = 1;
/// The CFA is the frame pointer plus `cfa`.
pub const RULE_BP: u8 = 2;
/// The CFA is stored at the frame pointer plus `cfa`, the caller's frame pointer where the frame pointer
/// points to: a function that has realigned its stack.
pub const RULE_AT_BP: u8 = 3;
/// What a signal handler returns to: the interrupted registers are in the kernel's `struct rt_sigframe`.
pub const RULE_SIGNAL: u8 = 4;
/// The function has changed stacks: it is left by the frame pointer, wherever that points.
pub const RULE_CHANGED_STACKS: u8 = 5;
/// The outermost frame of its thread.
pub const RULE_END: u8 = 6;
/// The call frame information is of a form that is not followed.
pub const RULE_UNKNOWN: u8 = 7;

/// A change of the target's address space, in the order in which system calls returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmEvent {
    /// One of the `EVENT_…` constants.
    pub event: u32,
    /// Flags of the system call: `MAP_…` for mmap, `MREMAP_…` for mremap, otherwise zero.
    pub flags: u32,
    /// When the system call was entered.
    pub entered: Ktime,
    /// When it returned.
    pub returned: Ktime,
    /// Who called: the site of mmap, mremap and brk; zero for munmap.
    pub stack: StackId,
    /// Start of the range: the result of mmap and mremap, the first argument of munmap, the new
    /// program break.
    pub addr: u64,
    /// Length as asked for, in bytes; zero for brk.
    pub len: u64,
    /// First argument of mremap: where the mapping was; otherwise zero.
    pub old_addr: u64,
    /// Second argument of mremap: the old length; otherwise zero.
    pub old_len: u64,
}

/// Among the flags of an [`EVENT_MMAP`]: it mapped a file, and with `PROT_EXEC`. No flag of mmap on x86-64.
pub const MAPPED_CODE: u32 = 1 << 31;

/// `mmap` succeeded.
pub const EVENT_MMAP: u32 = 1;
/// `munmap` succeeded.
pub const EVENT_MUNMAP: u32 = 2;
/// `mremap` succeeded.
pub const EVENT_MREMAP: u32 = 3;
/// `brk` moved the program break.
pub const EVENT_BRK: u32 = 4;
/// The Go runtime finished marking: `len` is the number of collections since the attach.
pub const EVENT_GC: u32 = 5;
/// The target called `execve` and is another program now.
pub const EVENT_EXEC: u32 = 6;
/// A followed process has made another one: `addr` is its id, `len` its number.
pub const EVENT_FORK: u32 = 7;
/// A followed process other than the target, with the id `addr`, called `execve`.
pub const EVENT_CHILD_EXEC: u32 = 8;

/// A block of a process other than the target is kept by its address with the number of the process from this
/// bit on: addresses are shorter.
pub const PROCESS_SHIFT: u32 = 48;

/// An object of the Go heap that our own sampling took, where the runtime's sampler is off.
///
/// The probe stands where an allocation has just got a fresh span: the object is the first of all that
/// will be allocated in that span's free slots, and stands for them. Objects of more than 32 KiB have a
/// span each and stand for themselves. A hit that stands for `stands_for` bytes is taken with the chance
/// `stands_for / rate`, at most 1, while the probe is attached, which it is for `share` of the time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GoSample {
    /// When it was allocated.
    pub born: Ktime,
    /// Its address.
    pub address: u64,
    /// Address of its span's `runtime.mspan`.
    pub span: u64,
    /// Its size in bytes, as the allocator rounds it.
    pub size: u64,
    /// Bytes that the hit stands for.
    pub stands_for: u64,
    /// The rate in force, in bytes.
    pub rate: u64,
    /// The share in force, in millionths.
    pub share: u32,
    /// `runtime.mheap_.sweepgen` at its birth.
    pub sweepgen: u32,
    /// Frames in use.
    pub len: u16,
    /// Its size class (`spanclass >> 1`); zero for an object with a span of its own.
    pub size_class: u16,
    /// `STACK_…` flags.
    pub flags: u32,
    /// The thread that allocated it.
    pub thread: u32,
    /// Zero: keeps the record free of padding.
    pub reserved: u32,
    /// Code addresses in the target, innermost first: the instruction pointer, then return addresses.
    pub frames: [u64; MAX_FRAMES],
}

/// How densely our own sampling takes Go objects, for one kind of hit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoSampling {
    /// Bytes for each sample on average, while the probe is attached.
    pub rate: u64,
    /// Share of the time for which the probe is attached, in millionths.
    pub share: u32,
    /// Zero: keeps the record free of padding.
    pub reserved: u32,
}

/// Index of [`GoSampling`] and of the hit counters: a span was refilled for objects of up to 32 KiB.
pub const GO_REFILL: u32 = 0;
/// The same for an object with a span of its own.
pub const GO_LARGE: u32 = 1;
/// Kinds of hits.
pub const GO_HIT_KINDS: u32 = 2;

/// A block of a native allocator was handed out or given back while a window was open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockEvent {
    /// When: the end of the call that handed it out, the beginning of the one that took it back.
    pub at: Ktime,
    /// Its address.
    pub address: u64,
    /// Where it was allocated.
    pub stack: StackId,
    /// Bytes asked for; [`NO_SIZE`] for a death.
    pub size: u64,
    /// Its size class: the chunk's size, rounded up where that is large. Zero: it cannot be told.
    pub class: u32,
    /// The thread.
    pub thread: u32,
}

/// The size in the record of a block that was given back.
pub const NO_SIZE: u64 = u64::MAX;

/// Index of the counter of a native allocator's blocks, sampled or not: blocks allocated.
pub const MALLOC_ALLOCS: u32 = 0;
/// Bytes of these.
pub const MALLOC_ALLOC_BYTES: u32 = 1;
/// Blocks freed.
pub const MALLOC_FREES: u32 = 2;
/// Counters.
pub const MALLOC_COUNTS: u32 = 3;

/// Causes of loss, counted by the kernel side: index into the `LOSSES` per-CPU array.
pub mod loss {
    /// A record did not fit the ring buffer.
    pub const RING_FULL: u32 = 0;
    /// An event's stack was new and the stack map was full.
    pub const STACK_MAP_FULL: u32 = 1;
    /// An allocation did not fit the live-object map.
    pub const LIVE_MAP_FULL: u32 = 2;
    /// An event's site did not fit the counter map.
    pub const COUNTER_MAP_FULL: u32 = 3;
    /// More threads than the map of them holds; their calls, of allocators and of the kernel, are not seen.
    pub const THREADS_FULL: u32 = 4;
    /// A system call returned whose entry had not been seen: it was under way at the attach.
    pub const RETURN_WITHOUT_ENTRY: u32 = 5;
    /// An event's stack was cut at the depth limit.
    pub const STACK_TRUNCATED: u32 = 6;
    /// An event's stack could not be walked at all: its registers could not be read.
    pub const STACK_UNREADABLE: u32 = 7;
    /// A freed object was not in the live-object map: older than the attach, or lost at birth.
    pub const FREE_OF_UNSEEN: u32 = 8;
    /// The target's memory at a probe's argument could not be read.
    pub const ARGUMENT_UNREADABLE: u32 = 9;
    /// A sampled object did not fit its ring buffer.
    pub const SAMPLE_RING_FULL: u32 = 10;
    /// A call of a native allocator was left without returning (`longjmp`, an exception, the end of the
    /// thread): what it may have allocated is not known.
    pub const CALL_ABANDONED: u32 = 11;
    /// The record of a block's birth or death in a window did not fit the ring buffer.
    pub const BLOCK_RING_FULL: u32 = 12;
    /// A process was made for which there was no room among those that are followed.
    pub const PROCESS_NOT_FOLLOWED: u32 = 13;
    /// A block of a native allocator was taken to be another one: its address was told before the call returned
    /// it, and wrongly. Few of these are checked.
    pub const BLOCK_MISTAKEN: u32 = 14;
    /// Number of causes.
    pub const COUNT: u32 = 15;
}

const _: () = assert!(size_of::<SiteKey>() == 16, "SiteKey has padding");
const _: () = assert!(size_of::<SiteCounters>() == 32, "SiteCounters has padding");
const _: () = assert!(size_of::<LiveObject>() == 32, "LiveObject has padding");
const _: () = assert!(
    size_of::<StackRecord>() == 8 + 8 * MAX_FRAMES,
    "StackRecord has padding"
);
const _: () = assert!(size_of::<UnwindPage>() == 8, "UnwindPage has padding");
const _: () = assert!(size_of::<UnwindRow>() == 8, "UnwindRow has padding");
const _: () = assert!(
    size_of::<AllocatorCall>() == 24,
    "AllocatorCall has padding"
);
const _: () = assert!(size_of::<VmEvent>() == 64, "VmEvent has padding");
const _: () = assert!(
    size_of::<GoSample>() == 72 + 8 * MAX_FRAMES,
    "GoSample has padding"
);
const _: () = assert!(size_of::<BlockEvent>() == 40, "BlockEvent has padding");
const _: () = assert!(size_of::<GoSampling>() == 16, "GoSampling has padding");

#[cfg(feature = "user")]
mod user {
    use super::{
        AllocatorCall, BlockEvent, GoSample, GoSampling, LiveObject, SiteCounters, SiteKey,
        StackRecord, UnwindPage, UnwindRow, VmEvent,
    };

    // SAFETY: repr(C), integers only, no padding (asserted above): any bytes are a valid value.
    unsafe impl aya::Pod for SiteKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SiteCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LiveObject {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StackRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for UnwindPage {}
    // SAFETY: as above.
    unsafe impl aya::Pod for UnwindRow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AllocatorCall {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BlockEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for VmEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GoSample {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GoSampling {}
}
