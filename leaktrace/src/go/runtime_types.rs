//! What has to be known of a Go runtime to read its memory and to probe its functions: structs,
//! constants, and in which registers arguments arrive.
//!
//! `dwarf.rs` reads it from a program's debug information, `table.rs` from the table that `cargo
//! xtask go-layouts` makes so for each known release. This file and `dwarf.rs` belong to that chore
//! too, and name no other module.

use std::collections::BTreeMap;

/// The part of a runtime's types that leaktrace knows about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuntimeTypes {
    /// By name, as in `runtime.mspan`.
    pub(crate) structs: BTreeMap<String, Struct>,
    /// Integer constants by name, as in `runtime._PageSize`.
    pub(crate) constants: BTreeMap<String, i64>,
    /// Arguments of functions by name, as in `runtime.(*mcache).refill`.
    pub(crate) functions: BTreeMap<String, Vec<Argument>>,
}

/// A struct.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Struct {
    /// Size in bytes.
    pub(crate) size: u32,
    /// By name; blank fields are left out.
    pub(crate) fields: BTreeMap<String, Field>,
}

/// A field of a struct, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// From the beginning of the struct.
    pub(crate) offset: u32,
    /// Size of the field.
    pub(crate) size: u32,
}

/// An argument of a function, the receiver included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    /// As in the source; `_` for a blank one.
    pub(crate) name: String,
    /// The registers that hold it at the entry, one for each of its words, by Go's ABIInternal
    /// (cmd/compile/abi-internal.md): `RAX`, `RBX`, …, `X0`, …; none when it is on the stack.
    pub(crate) registers: Vec<&'static str>,
}

/// ABIInternal's registers for integers and pointers, in their order.
pub(crate) const INTEGER_REGISTERS: [&str; 9] =
    ["RAX", "RBX", "RCX", "RDI", "RSI", "R8", "R9", "R10", "R11"];
/// ABIInternal's registers for floating-point numbers, in their order.
pub(crate) const FLOAT_REGISTERS: [&str; 15] = [
    "X0", "X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "X9", "X10", "X11", "X12", "X13", "X14",
];

/// The structs that are kept, with all their fields.
pub(crate) const STRUCTS: &[&str] = &[
    // Goroutines, and what they wait for.
    "runtime.g",
    "runtime.gobuf",
    "runtime.stack",
    "runtime.sudog",
    "runtime.hchan",
    "runtime.waitq",
    "runtime.m",
    "runtime.p",
    "runtime.schedt",
    "runtime.mutex",
    "runtime.timer",
    "runtime._defer",
    "runtime._panic",
    // The heap sampler.
    "runtime.bucket",
    "runtime.memRecord",
    "runtime.memRecordCycle",
    "runtime.special",
    "runtime.specialprofile",
    "runtime.specialfinalizer",
    "runtime.mProfCycleHolder",
    // The heap.
    "runtime.mspan",
    "runtime.spanInlineMarkBits",
    "runtime.mheap",
    "runtime.mcentral",
    "runtime.mcache",
    "runtime.heapArena",
    "runtime.pageAlloc",
    "runtime.fixalloc",
    "runtime.mSpanList",
    // Its statistics.
    "runtime.mstats",
    "runtime.consistentHeapStats",
    "runtime.heapStatsDelta",
    "runtime.gcControllerState",
    "runtime.workType",
    // The binary's own tables.
    "runtime.moduledata",
    "runtime.pcHeader",
    "runtime._func",
    "runtime.inlinedCall",
    "runtime.functab",
    // Values.
    "runtime.slice",
    "runtime.eface",
    "runtime.iface",
    "internal/abi.Type",
    "runtime._type",
];

/// The constants that are kept.
pub(crate) const CONSTANTS: &[&str] = &[
    "runtime._PageSize",
    "runtime._KindSpecialFinalizer",
    "runtime._KindSpecialWeakHandle",
    "runtime._KindSpecialProfile",
    "runtime._KindSpecialReachable",
    "runtime._KindSpecialPinCounter",
    "runtime._KindSpecialCleanup",
    "runtime.memProfile",
    "runtime.maxStack",
    "runtime.maxProfStackDepth",
    "runtime.mSpanDead",
    "runtime.mSpanInUse",
    "runtime.mSpanManual",
    "runtime.numSpanClasses",
    "runtime._NumSizeClasses",
    "runtime.heapArenaBytes",
    "runtime.arenaL1Bits",
    "runtime.arenaL2Bits",
    "runtime.arenaBaseOffset",
    "runtime.pagesPerArena",
    "runtime._GCoff",
    "runtime._GCmark",
    "runtime._GCmarktermination",
    "runtime.minSizeForMallocHeader",
    "runtime._Gidle",
    "runtime._Grunnable",
    "runtime._Grunning",
    "runtime._Gsyscall",
    "runtime._Gwaiting",
    "runtime._Gdead",
    "runtime._Gcopystack",
    "runtime._Gpreempted",
    "runtime._Gscan",
];

/// The functions whose arguments are kept.
pub(crate) const FUNCTIONS: &[&str] = &[
    "runtime.setprofilebucket",
    "runtime.freeSpecial",
    "runtime.gcMarkTermination",
    "runtime.gcStart",
    "runtime.gcSweep",
    "runtime.mProf_Malloc",
    "runtime.mProf_Free",
    "runtime.profilealloc",
    "runtime.mallocgc",
    "runtime.(*mcache).nextFree",
    "runtime.(*mcache).refill",
    "runtime.(*mcache).allocLarge",
    "runtime.(*mspan).nextFreeIndex",
    "runtime.(*mheap).alloc",
    "runtime.(*mheap).allocSpan",
    "runtime.(*mheap).freeSpanLocked",
    "runtime.(*sweepLocked).sweep",
    "runtime.newproc1",
    "runtime.goexit0",
    "runtime.gdestroy",
    "runtime.gopark",
];
