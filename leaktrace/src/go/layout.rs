//! What differs between Go releases in the memory of a running program (linux/amd64).
//!
//! Sources: runtime/mprof.go (`bucket`, `memRecord`, `memRecordCycle`), runtime/mheap.go
//! (`special`, `specialprofile`, `_KindSpecialProfile`, `freeSpecial`, `setprofilebucket`), each
//! release's own; offsets measured from DWARF of Go 1.19.8, 1.21.13, 1.22.10, 1.23.9, 1.24.11,
//! 1.25.5, 1.26.6 and 1.27.3. A release that was not measured is refused: a wrong offset would
//! give wrong numbers, not an error.

use iced_x86::Register;

use super::GoVersion;

/// Layout of one minor release. Offsets and sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `runtime.bucket`.
    pub bucket: Bucket,
    /// `runtime.special` and `runtime.specialprofile`.
    pub special: Special,
    /// `runtime.g`.
    pub g: G,
    /// `runtime.sudog` and `runtime.hchan`.
    pub channel: Channel,
    /// Leading frames of a profile bucket's stack may be the allocator's own (Go ≥ 1.26).
    pub allocator_frames: bool,
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
    /// `gopc`: return address of the go statement.
    pub gopc: u64,
    /// `waiting`: the first `sudog` it waits with.
    pub waiting: u64,
}

/// What a goroutine that is blocked on a channel leads to. In `hchan` (runtime/chan.go) `qcount`
/// is at 0, `dataqsiz` at 8, `elemsize` (two bytes) at 24, `closed` (four bytes) at 28, in Go 1.19
/// to 1.27.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// `sudog.c` (its low word since Go 1.26, where it is a pair).
    pub sudog_c: u64,
    /// `hchan.recvq.first`; `sendq.first` is 16 bytes on.
    pub recvq: u64,
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

/// A release whose layout is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime's layout in {0} is not known, only in Go 1.19 and 1.21 to 1.27")]
pub struct UnknownLayout(pub String);

/// The layout of a release.
pub fn layout(version: &GoVersion) -> Result<Layout, UnknownLayout> {
    let unknown = || UnknownLayout(version.text.clone());
    if version.major != 1 {
        return Err(unknown());
    }
    // Columns: cycle_size, max_stack, special.kind, _KindSpecialProfile, specialprofile.b,
    // allocator frames.
    let (cycle_size, max_stack, kind, kind_profile, bucket, allocator_frames) = match version.minor
    {
        19 | 21 | 22 => (32, 32, 10, 2, 16, false),
        23 => (32, 1024, 10, 3, 16, false),
        24 => (32, 1024, 16, 3, 24, false),
        25 => (32, 1024, 16, 4, 24, false),
        26 => (32, 1024, 16, 4, 24, true),
        27 => (16, 1024, 16, 4, 24, true),
        _ => return Err(unknown()),
    };
    let (g, channel) = goroutine(version.minor);
    Ok(Layout {
        bucket: Bucket {
            header_size: 48,
            allnext: 8,
            typ: 16,
            size: 32,
            nstk: 40,
            cycle_size,
            max_stack,
        },
        special: Special {
            kind,
            kind_profile,
            bucket,
        },
        g,
        channel,
        allocator_frames,
    })
}

/// `runtime.g` and `sudog.c` of a minor release of Go 1.
fn goroutine(minor: u32) -> (G, Channel) {
    // Columns: sched.bp - sched, atomicstatus, gopc, waiting, sudog.c, hchan.recvq. `goid` follows the status
    // by 8, `waitsince` by 24, `waitreason` by 32.
    let (bp, status, gopc, waiting, sudog_c, recvq) = match minor {
        19 => (48, 144, 296, 328, 80, 56),
        21 | 22 => (48, 144, 280, 312, 80, 56),
        23 | 24 => (48, 152, 288, 320, 80, 64),
        25 => (40, 144, 280, 312, 80, 64),
        _ => (40, 144, 288, 320, 88, 64),
    };
    let g = G {
        size: waiting + 8,
        stack: 0,
        sched: 56,
        sched_bp: 56 + bp,
        status,
        goid: status + 8,
        waitsince: status + 24,
        waitreason: status + 32,
        gopc,
        waiting,
    };
    (g, Channel { sudog_c, recvq })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_were_not_measured_are_refused() {
        let of = |text: &str| layout(&GoVersion::parse(text).unwrap());
        for text in ["go1.18.1", "go1.20.14", "go1.28", "go2.21", "go1.0"] {
            assert_eq!(of(text), Err(UnknownLayout(text.to_owned())));
        }
        assert_eq!(of("go1.27.3").unwrap().bucket.total_size(5), 48 + 40 + 64);
        assert_eq!(of("go1.26.6").unwrap().bucket.total_size(5), 48 + 40 + 128);
    }
}
