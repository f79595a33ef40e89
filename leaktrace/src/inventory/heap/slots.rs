//! Whether there is an object in a slot.

use std::collections::HashSet;

use super::{Heap, Object, span_of, word};

/// Slots of a span that are further from each other are not looked at together.
const TOGETHER: u32 = 1 << 8;

impl Heap {
    /// Whether there is no object in that slot, or its span is another now.
    pub fn is_empty(&self, object: Object) -> bool {
        !self.empty(&[object]).is_empty()
    }

    /// Those of them whose span is another now, or in whose slot there is no object (runtime/mbitmap.go,
    /// `(*mspan).isFree`, Go 1.19 to 1.27). What follows one another in a span is looked at together.
    pub fn empty(&self, objects: &[Object]) -> HashSet<Object> {
        let offsets = &self.layout.span;
        let lie_together = |one: &Object, next: &Object| {
            one.span == next.span && one.slot <= next.slot && next.slot - one.slot < TOGETHER
        };
        let runs: Vec<&[Object]> = objects.chunk_by(lie_together).collect();
        let mspan = |run: &&[Object]| (self.span(run[0]).mspan, offsets.size as usize);
        let mspans: Vec<_> = runs.iter().map(mspan).collect();
        let read = self.memory.read_each(&mspans);
        let index_mask = match offsets.freeindex_size {
            2 => 0xffff,
            _ => u64::MAX,
        };
        // Of each run: which slots are in use whatever their bits say, and where these are.
        let state = |(index, run): (usize, &&[Object])| {
            let (span, bytes) = (self.span(run[0]), read.get(index)?);
            let now = span_of(span.mspan, bytes, offsets)?;
            let is_same = now.start == span.start
                && now.object_size == span.object_size
                && now.slots == span.slots
                && now.has_no_pointers == span.has_no_pointers;
            let scanned = word(bytes, offsets.free_index_for_scan) & index_mask;
            is_same.then(|| (scanned, word(bytes, offsets.alloc_bits)))
        };
        let states: Vec<_> = runs.iter().enumerate().map(state).collect();
        let range = |(run, state): (&&[Object], &Option<(u64, u64)>)| {
            let (first, last) = (run[0].slot / 8, run[run.len() - 1].slot / 8);
            state.map_or((0, 0), |(_, bits)| {
                (bits.wrapping_add(first.into()), (last - first + 1) as usize)
            })
        };
        let ranges: Vec<_> = runs.iter().zip(&states).map(range).collect();
        let bits = self.memory.read_each(&ranges);
        let mut empty = HashSet::new();
        for (index, (run, state)) in runs.iter().zip(states).enumerate() {
            let (bits, first) = (bits.get(index), run[0].slot / 8);
            let is_there = |object: &&Object| {
                let slot = object.slot;
                let byte = bits.and_then(|bits| bits.get((slot / 8 - first) as usize));
                let is_set = byte.is_some_and(|byte| byte >> (slot % 8) & 1 == 1);
                state.is_some_and(|(scanned, _)| u64::from(slot) < scanned || is_set)
            };
            empty.extend(run.iter().filter(|object| !is_there(object)));
        }
        empty
    }
}
