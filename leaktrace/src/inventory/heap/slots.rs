//! Whether there is an object in a slot.

use std::collections::HashSet;

use super::{Heap, Object, span_of, word};

impl Heap {
    /// Whether there is no object in that slot, or its span is another now.
    pub fn is_empty(&self, object: Object) -> bool {
        !self.empty(&[object]).is_empty()
    }

    /// Those of them whose span is another now, or in whose slot there is no object (runtime/mbitmap.go,
    /// `(*mspan).isFree`, Go 1.19 to 1.27).
    pub fn empty(&self, objects: &[Object]) -> HashSet<Object> {
        let offsets = &self.layout.span;
        let ranges = |len: usize| {
            objects
                .iter()
                .map(move |object| (self.span(*object).mspan, len))
        };
        let mspans: Vec<_> = ranges(offsets.size as usize).collect();
        let read = self.memory.read_each(&mspans);
        let index_mask = match offsets.freeindex_size {
            2 => 0xffff,
            _ => u64::MAX,
        };
        let mut bits = Vec::new();
        let mut states = Vec::new();
        for (index, object) in objects.iter().enumerate() {
            let span = self.span(*object);
            let now = read
                .get(index)
                .and_then(|bytes| Some((span_of(span.mspan, bytes, offsets)?, bytes)));
            let state = now.and_then(|(now, bytes)| {
                let is_same = now.start == span.start
                    && now.object_size == span.object_size
                    && now.slots == span.slots
                    && now.has_no_pointers == span.has_no_pointers;
                let scanned = word(bytes, offsets.free_index_for_scan) & index_mask;
                is_same.then_some((scanned, word(bytes, offsets.alloc_bits)))
            });
            let bit = state.map_or((0, 0), |(_, bits)| (bits + u64::from(object.slot) / 8, 1));
            bits.push(bit);
            states.push(state);
        }
        let bits = self.memory.read_each(&bits);
        let is_empty = |(index, object): (usize, &Object)| {
            let slot = object.slot;
            let is_there = states[index].is_some_and(|(scanned, _)| {
                let is_set = bits.get(index).map(|byte| byte[0] >> (slot % 8) & 1 == 1);
                u64::from(slot) < scanned || is_set == Some(true)
            });
            (!is_there).then_some(*object)
        };
        objects.iter().enumerate().filter_map(is_empty).collect()
    }
}
