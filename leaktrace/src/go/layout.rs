//! What differs between Go releases in the memory of a running program (linux/amd64).
//!
//! [`Layout`] has what leaktrace reads as typed fields, all made from the runtime's types; anything
//! else of them can be asked for by name. They come from the table of measured releases. A release
//! that is not there is refused, and so is one that lacks a field or has it in another size: a wrong
//! offset would give wrong numbers, not an error.

mod from_types;

use std::{fmt, sync::Arc};

use iced_x86::Register;

use super::runtime_types::RuntimeTypes;
use super::{GoVersion, table};

/// Layouts of one release. Offsets and sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `runtime.bucket`.
    pub bucket: Bucket,
    /// `runtime.special` and `runtime.specialprofile`.
    pub special: Special,
    /// `runtime.g`.
    pub g: G,
    /// `runtime.sudog` and `runtime.hchan`.
    pub channel: Channel,
    /// `runtime.mspan`.
    pub span: Span,
    /// `runtime.mheap`.
    pub heap: Heap,
    /// Where they were learned from.
    pub source: Source,
    /// What the binary's own debug information says otherwise than the table of measured releases.
    pub differences: Vec<String>,
    types: Arc<RuntimeTypes>,
}

/// Where the runtime's types were learned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The table of measured releases: this release's column, as in `1.27.3`.
    Table(&'static str),
    /// The binary's own debug information.
    Dwarf,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Table(release) => write!(out, "the table for Go {release}"),
            Source::Dwarf => out.write_str("its debug information (DWARF)"),
        }
    }
}

/// `runtime.bucket`: a header, then `nstk` pcs of eight bytes, then a `memRecord`: the published
/// cycle (`active`) and three of the future, each a `memRecordCycle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Size of the header.
    pub header_size: u64,
    /// Pointer to the next older bucket.
    pub allnext: u64,
    /// `bucketType`, [`Bucket::MEM_PROFILE`] for the heap profile.
    pub typ: u64,
    /// Size of each object of the bucket.
    pub size: u64,
    /// Number of pcs.
    pub nstk: u64,
    /// Size of a `memRecordCycle`: `allocs` at 0 and `frees` at 8, both u64. When it is 32 the
    /// bytes of both follow; when it is 16 they are count times `size`.
    pub cycle_size: u64,
    /// Most pcs that a bucket can have: GODEBUG=profstackdepth goes to 1024 in Go ≥ 1.23.
    pub max_stack: u64,
}

impl Bucket {
    /// `memProfile` of `runtime.bucketType`.
    pub const MEM_PROFILE: u64 = 1;
    /// Cycles in a `memRecord`: `active`, then `future[3]`.
    pub const CYCLES: u64 = 4;

    /// Size of a bucket with `nstk` pcs.
    pub const fn total_size(&self, nstk: u64) -> u64 {
        self.header_size + 8 * nstk + Self::CYCLES * self.cycle_size
    }
}

/// `runtime.special`, the record by which a sampled object finds its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// `next`, pointer to the span's next special.
    pub next: u64,
    /// `offset`, of the object from the span's start: its low two bytes.
    pub offset: u64,
    /// Offset of `kind`, one byte.
    pub kind: u64,
    /// `_KindSpecialProfile`.
    pub kind_profile: u8,
    /// Offset of `specialprofile.b`, the pointer to the bucket.
    pub bucket: u64,
}

/// `runtime.g`: a goroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct G {
    /// Bytes to read for all of these.
    pub size: u64,
    /// `stack.lo` and, eight bytes on, `stack.hi`.
    pub stack: u64,
    /// `sched.sp` and, eight bytes on, `sched.pc`.
    pub sched: u64,
    /// `sched.bp`.
    pub sched_bp: u64,
    /// `atomicstatus`, four bytes.
    pub status: u64,
    /// `goid`.
    pub goid: u64,
    /// `waitsince`: nanoseconds of `CLOCK_MONOTONIC`, set by a collection that finds it waiting.
    pub waitsince: u64,
    /// `waitreason`, one byte.
    pub waitreason: u64,
    /// `trackingSeq`, one byte: one more each time the goroutine stops running (runtime/proc.go,
    /// `casgstatus`). Begins anywhere.
    pub tracking_seq: u64,
    /// `gopc`: return address of the go statement.
    pub gopc: u64,
    /// `startpc`: entry of the goroutine's function.
    pub startpc: u64,
    /// `parentGoid`: goid of its creator; Go ≥ 1.21.
    pub parent_goid: Option<u64>,
    /// `waiting`: the first `sudog` it waits with.
    pub waiting: u64,
}

/// What a goroutine that is blocked on a channel leads to. In `hchan` (runtime/chan.go) `qcount`
/// is at 0, `dataqsiz` at 8, `elemsize` (two bytes) at 24, `closed` (four bytes) at 28; other
/// layouts are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// `sudog.c` (its low word since Go 1.26, where it is a pair).
    pub sudog_c: u64,
    /// `hchan.recvq.first`; `sendq.first` is 16 bytes on.
    pub recvq: u64,
}

/// `runtime.mspan`: a run of pages with objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Size of the struct.
    pub size: u64,
    /// `startAddr`: its first byte.
    pub start_addr: u64,
    /// `npages`: its pages, of [`Span::PAGE_SIZE`].
    pub npages: u64,
    /// `freeindex`: the slot from which on to look for a free one; `freeindex_size` bytes.
    pub freeindex: u64,
    /// Bytes of `freeindex`: 8 before Go 1.22, 2 from it on.
    pub freeindex_size: u64,
    /// `freeIndexForScan`: slots from here on are not looked at by the collector; as wide as
    /// `freeindex`.
    pub free_index_for_scan: u64,
    /// `nelems`: slots in the span; `nelems_size` bytes.
    pub nelems: u64,
    /// Bytes of `nelems`: 8 before Go 1.22, 2 from it on.
    pub nelems_size: u64,
    /// `allocCache`: complement of the 64 bits of `allocBits` at `freeindex`, shifted.
    pub alloc_cache: u64,
    /// `allocBits`: pointer to a bit for each slot, set when it was in use at the last sweep.
    pub alloc_bits: u64,
    /// `gcmarkBits`: pointer to a bit for each slot, set when the collection under way found it
    /// alive.
    pub gcmark_bits: u64,
    /// `sweepgen`, four bytes: against `mheap.sweepgen` it tells whether the span is swept.
    pub sweepgen: u64,
    /// `allocCount`, two bytes: slots in use.
    pub alloc_count: u64,
    /// `spanclass`, one byte: size class times two, plus one when its objects have no pointers.
    pub spanclass: u64,
    /// `state`, one byte: [`Span::IN_USE`] for one of the collected heap.
    pub state: u64,
    /// `elemsize`: bytes of each slot.
    pub elemsize: u64,
    /// `limit`: end of the objects.
    pub limit: u64,
    /// `specials`: pointer to the first `special`, in the order of their offsets.
    pub specials: u64,
    /// `largeType`: the type of the one object of a large span; Go ≥ 1.22.
    pub large_type: Option<u64>,
    /// `isUserArenaChunk`, one byte; Go ≥ 1.20.
    pub is_user_arena_chunk: Option<u64>,
}

impl Span {
    /// `_PageSize` of runtime/malloc.go.
    pub const PAGE_SIZE: u64 = 8192;
    /// `mSpanInUse`.
    pub const IN_USE: u8 = 1;
}

/// `runtime.mheap`, of which there is one: `runtime.mheap_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// `allspans`: slice of pointers to every span there ever was.
    pub allspans: u64,
    /// `sweepgen`, four bytes: grows by two at each collection.
    pub sweepgen: u64,
    /// `pagesInUse`: pages of spans of the collected heap.
    pub pages_in_use: u64,
}

/// A function to probe, with the registers of its arguments (Go's ABIInternal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Its name.
    pub name: &'static str,
    /// Its arguments by name.
    pub arguments: &'static [(&'static str, Register)],
}

impl Probed {
    /// The registers that must hold their entry values.
    pub fn registers(&self) -> Vec<Register> {
        self.arguments
            .iter()
            .map(|(_, register)| *register)
            .collect()
    }
}

/// `func setprofilebucket(p unsafe.Pointer, b *bucket)`: birth of a sampled object. Go 1.19 to
/// 1.27.
pub const SET_PROFILE_BUCKET: Probed = Probed {
    name: "runtime.setprofilebucket",
    arguments: &[("p", Register::RAX), ("b", Register::RBX)],
};

/// `func freeSpecial(s *special, p unsafe.Pointer, size uintptr)`: death of an object with a
/// special; `p` is its base address. Go 1.19 to 1.27.
pub const FREE_SPECIAL: Probed = Probed {
    name: "runtime.freeSpecial",
    arguments: &[
        ("s", Register::RAX),
        ("p", Register::RBX),
        ("size", Register::RCX),
    ],
};

/// `gcMarkTermination`: end of a collection's marking. No argument is read.
pub const GC_MARK_TERMINATION: Probed = Probed {
    name: "runtime.gcMarkTermination",
    arguments: &[],
};

/// `func newproc1(fn *funcval, callergp *g, callerpc uintptr, …)`: a goroutine is made; `callerpc` is
/// the return address of the go statement. Go 1.19 to 1.27.
pub const NEWPROC1: Probed = Probed {
    name: "runtime.newproc1",
    arguments: &[("callerpc", Register::RCX)],
};

/// `func gdestroy(gp *g)`: a goroutine ends. Go 1.22 to 1.27.
pub const GDESTROY: Probed = Probed {
    name: "runtime.gdestroy",
    arguments: &[("gp", Register::RAX)],
};

/// `func goexit0(gp *g)`: a goroutine ends. Go 1.19 to 1.21; later some end without it.
pub const GOEXIT0: Probed = Probed {
    name: "runtime.goexit0",
    arguments: &[("gp", Register::RAX)],
};

/// The runtime's layout in a release is not known, wholly or in the part that is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownLayout(pub String);

impl Layout {
    /// The layouts of a binary of this release with these types, if it has its own. In a release
    /// that was measured, what they lack (a type that nothing in the program uses) is taken from
    /// the table.
    pub(super) fn of(
        version: &GoVersion,
        own: Option<RuntimeTypes>,
    ) -> Result<Self, UnknownLayout> {
        match (own, table::types(version)) {
            (Some(own), Ok((measured, _))) => {
                let differences = own.differences(&measured);
                let mut layout = Self::new(own.or(measured), Source::Dwarf)?;
                layout.differences = differences;
                Ok(layout)
            }
            (Some(own), Err(_)) => Self::new(own, Source::Dwarf),
            (None, Ok((measured, release))) => Self::new(measured, Source::Table(release)),
            (None, Err(reason)) => Err(UnknownLayout(format!(
                "{reason}, and the executable has no debug information that says them"
            ))),
        }
    }

    fn new(types: RuntimeTypes, source: Source) -> Result<Self, UnknownLayout> {
        types.expect_believable()?;
        Ok(Self {
            bucket: types.bucket()?,
            special: types.special()?,
            g: types.g()?,
            channel: types.channel()?,
            span: types.span()?,
            heap: types.heap()?,
            source,
            differences: Vec::new(),
            types: Arc::new(types),
        })
    }

    /// Offset in bytes of a field of one of the structs of `runtime_types.rs`, as in
    /// `offset("runtime.mheap", "reclaimCredit")`.
    pub fn offset(&self, of: &str, field: &str) -> Result<u64, UnknownLayout> {
        Ok(self.types.field(of, field)?.offset.into())
    }

    /// Size in bytes of a field.
    pub fn field_size(&self, of: &str, field: &str) -> Result<u64, UnknownLayout> {
        Ok(self.types.field(of, field)?.size.into())
    }

    /// Size in bytes of one of these structs.
    pub fn size_of(&self, of: &str) -> Result<u64, UnknownLayout> {
        self.types.size_of(of)
    }

    /// One of the integer constants of `runtime_types.rs`, as in `constant("runtime._PageSize")`.
    pub fn constant(&self, name: &str) -> Result<i64, UnknownLayout> {
        self.types.constant(name)
    }

    /// Checks that the arguments of a function to be probed arrive in the registers where the
    /// kernel side looks for them.
    pub fn check_arguments(&self, probed: &Probed) -> Result<(), UnknownLayout> {
        let Some(arguments) = self.types.functions.get(probed.name) else {
            return Err(from_types::missing(probed.name));
        };
        for (name, register) in probed.arguments {
            let found = arguments.iter().find(|argument| argument.name == *name);
            let registers = found.map(|argument| &argument.registers[..]);
            if registers != Some(&[format!("{register:?}").as_str()][..]) {
                return Err(UnknownLayout(format!(
                    "argument `{name}` of `{}` is not in {register:?}",
                    probed.name
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
