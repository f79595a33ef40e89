//! Whether objects of the Go heap still live, told by the collector's own bits, without stopping the
//! process.
//!
//! Sweeping a span makes the mark bits of the last collection its allocation bits (runtime/mgcsweep.go,
//! `(*sweepLocked).sweep`, Go 1.19 to 1.27, Green Tea's inline marks included: they are moved first).
//! Until the next sweep they stay as they are: allocating from the span moves `freeindex`, not the
//! bits. So an object that was there before the sweep is alive if its bit is set and dead if it is not.
//! `mspan.sweepgen` says of which collection the bits are (runtime/mheap.go): `mheap_.sweepgen` grows by
//! two with each one.

use super::word;
use crate::{
    go::layout::Span as Layout,
    plan::GoRefill,
    target::{Memory, MemoryError},
};

/// An object to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its address.
    pub address: u64,
    /// Its size in bytes, as the allocator rounds it.
    pub size: u64,
    /// Address of its span's `runtime.mspan`.
    pub span: u64,
    /// `mheap_.sweepgen` at its birth, or that of the last sweep that it is known to have survived.
    pub sweepgen: u32,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its span has not been swept since it was last heard of.
    Unswept,
    /// It has survived the sweep of this `sweepgen`.
    Alive {
        /// That of the sweep.
        sweepgen: u32,
        /// Sweeps in between that nobody looked at: if it died in one of them, and another object took
        /// its place and lived, this is that other one.
        unseen: u32,
    },
    /// It is dead.
    Dead,
    /// Its span could not be read, or changed while it was read.
    Unreadable,
}

/// Reads the spans of one process.
#[derive(Clone, Debug)]
pub struct Spans {
    memory: Memory,
    refill: GoRefill,
}

impl Spans {
    /// A reader.
    pub fn new(memory: Memory, refill: GoRefill) -> Self {
        Self { memory, refill }
    }

    /// `runtime.mheap_.sweepgen` now: two more for each collection that has finished marking.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read.
    pub fn sweepgen(&self) -> Result<u32, MemoryError> {
        let mut word = [0; 4];
        self.memory.read(self.refill.sweepgen, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// Objects that the runtime has counted as allocated since the process began, by size class; small
    /// ones only. A span that is being allocated from counts when it is given back.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read.
    pub fn class_counts(&self) -> Result<Vec<u64>, MemoryError> {
        let stats = &self.refill.stats;
        let mut counts = vec![0_u64; stats.classes as usize];
        for shard in 0..stats.shards {
            let mut bytes = vec![0; counts.len() * 8];
            let address = stats.address + shard * stats.shard_size + stats.small_allocs;
            self.memory.read(address, &mut bytes)?;
            for (index, count) in counts.iter_mut().enumerate() {
                *count = count.wrapping_add(word(&bytes, 8 * index as u64));
            }
        }
        Ok(counts)
    }

    /// The fate of each object, when `mheap_.sweepgen` was `now`.
    pub fn fates(&self, now: u32, objects: &[Followed]) -> Vec<Fate> {
        let layout = &self.refill.layout.span;
        let spans: Vec<_> = objects
            .iter()
            .map(|object| (object.span, layout.size as usize))
            .collect();
        let read = |ranges: &[(u64, usize)]| self.memory.read_each(ranges);
        let states = || {
            let read = read(&spans);
            let span = |index| read.get(index).map(|bytes| Span::of(bytes, layout));
            Vec::from_iter((0..spans.len()).map(span))
        };
        let before = states();
        let bits: Vec<_> = objects
            .iter()
            .zip(&before)
            .map(|(object, span)| span.and_then(|span| span.bit(object)))
            .collect();
        let places: Vec<_> = bits
            .iter()
            .map(|bit| bit.map_or((0, 0), |(address, _)| (address, 1)))
            .collect();
        let bytes = read(&places);
        // A span that is swept meanwhile has other bits behind the same words.
        let after = states();
        let bytes = (0..places.len()).map(|index| bytes.get(index));
        let looks = objects
            .iter()
            .zip(before)
            .zip(after)
            .zip(bits.into_iter().zip(bytes));
        looks
            .map(|(((object, before), after), (bit, byte))| {
                let Some(before) = before.filter(|before| after == Some(*before)) else {
                    return Fate::Unreadable;
                };
                let is_set = bit.zip(byte).map(|((_, mask), byte)| byte[0] & mask != 0);
                before.fate(now, object, is_set)
            })
            .collect()
    }
}

/// What a `runtime.mspan` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    in_use: bool,
    start: u64,
    elemsize: u64,
    slots: u64,
    sweepgen: u32,
    alloc_bits: u64,
}

impl Span {
    fn of(bytes: &[u8], layout: &Layout) -> Self {
        Self {
            in_use: word(bytes, layout.state) as u8 == Layout::IN_USE,
            start: word(bytes, layout.start_addr),
            elemsize: word(bytes, layout.elemsize),
            slots: word(bytes, layout.nelems) & 0xffff,
            sweepgen: word(bytes, layout.sweepgen) as u32,
            alloc_bits: word(bytes, layout.alloc_bits),
        }
    }

    /// Index of the object, if the span is still the one it was allocated in.
    fn index(&self, object: &Followed) -> Option<u64> {
        let offset = object.address.checked_sub(self.start)?;
        let is_same = self.in_use && self.elemsize == object.size && object.size > 0;
        let index = offset.checked_div(object.size)?;
        (is_same && offset % object.size == 0 && index < self.slots).then_some(index)
    }

    /// Where the object's allocation bit is: address of the byte, and a mask.
    fn bit(&self, object: &Followed) -> Option<(u64, u8)> {
        let index = self.index(object)?;
        Some((self.alloc_bits.wrapping_add(index / 8), 1 << (index % 8)))
    }

    fn fate(&self, now: u32, object: &Followed, is_set: Option<bool>) -> Fate {
        if self.index(object).is_none() {
            return Fate::Dead;
        }
        let Some(swept) = self.swept(now) else {
            return Fate::Unswept;
        };
        let since = swept.wrapping_sub(object.sweepgen) as i32;
        match is_set {
            _ if since <= 0 => Fate::Unswept,
            None => Fate::Unreadable,
            Some(false) => Fate::Dead,
            Some(true) => Fate::Alive {
                sweepgen: swept,
                unseen: (since as u32 / 2).saturating_sub(1),
            },
        }
    }

    /// `mheap_.sweepgen` at its last sweep, when that is `now`; `None` while it is being swept.
    fn swept(&self, now: u32) -> Option<u32> {
        match self.sweepgen.wrapping_sub(now) as i32 {
            // Swept; swept and then cached.
            0 | 3 => Some(now),
            // Not swept yet; cached before sweeping began, and not swept yet.
            -2 | 1 => Some(now.wrapping_sub(2)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Followed = Followed {
        address: 0x1_0000 + 3 * 64,
        size: 64,
        span: 1,
        sweepgen: 100,
    };

    const SPAN: Span = Span {
        in_use: true,
        start: 0x1_0000,
        elemsize: 64,
        slots: 128,
        sweepgen: 102,
        alloc_bits: 0x9000,
    };

    #[test]
    fn the_bit_counts_once_the_span_is_swept() {
        let at = |sweepgen, now, set| Span { sweepgen, ..SPAN }.fate(now, &OBJECT, Some(set));
        let alive = |sweepgen, unseen| Fate::Alive { sweepgen, unseen };
        assert_eq!(SPAN.bit(&OBJECT), Some((0x9000, 8)));
        // Born at 100, in a cached span, before any collection.
        assert_eq!(at(103, 100, false), Fate::Unswept);
        // A collection has marked (102); the span waits to be swept, cached or not, or is swept now.
        for sweepgen in [103, 100, 101] {
            assert_eq!(at(sweepgen, 102, false), Fate::Unswept);
        }
        // It is swept, and perhaps cached again.
        for sweepgen in [102, 105] {
            assert_eq!(at(sweepgen, 102, true), alive(102, 0));
            assert_eq!(at(sweepgen, 102, false), Fate::Dead);
        }
        // One collection later it still has the bits of the first, then those of the second: nobody
        // looked at the first.
        assert_eq!(at(102, 104, true), alive(102, 0));
        assert_eq!(at(104, 104, true), alive(104, 1));
    }

    #[test]
    fn a_span_that_is_another_now_holds_the_object_no_more() {
        let fate = |span: Span| span.fate(102, &OBJECT, Some(true));
        assert_eq!(
            fate(Span {
                in_use: false,
                ..SPAN
            }),
            Fate::Dead
        );
        assert_eq!(
            fate(Span {
                start: 0x2_0000,
                ..SPAN
            }),
            Fate::Dead
        );
        assert_eq!(
            fate(Span {
                elemsize: 48,
                ..SPAN
            }),
            Fate::Dead
        );
        assert_eq!(fate(Span { slots: 2, ..SPAN }), Fate::Dead);
    }
}
