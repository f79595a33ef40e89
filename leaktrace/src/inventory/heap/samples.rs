//! The sampled objects that are alive: those that still have a `specialprofile`.

use super::{Heap, HeapSpan, word};
use crate::go::layout::Special;

/// Specials of one span that are followed.
const MAX_SPECIALS: usize = 1 << 16;
/// Those of all spans.
const MAX_IN_ALL: usize = 1 << 23;

/// A live object that the runtime's heap sampler has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its address.
    pub address: u64,
    /// Address of the bucket of its allocation site.
    pub bucket: u64,
}

/// All of them. The collector takes an object's special away when it sweeps its span, so what has
/// died since the last sweep is among them. The lists are read level by level, all spans' at once; one
/// that changes meanwhile may lose its rest.
pub fn samples(heap: &Heap) -> Vec<Sample> {
    let mut samples = Vec::new();
    each_special(heap, |_, bytes, span, layout| {
        let offset = word(bytes, layout.offset) & 0xffff;
        if bytes.get(layout.kind as usize) == Some(&layout.kind_profile) && offset < span.bytes {
            samples.push(Sample {
                address: span.start + offset,
                bucket: word(bytes, layout.bucket),
            });
        }
    });
    samples
}

/// Calls `visit` with every special: its address, its bytes, its span.
pub(super) fn each_special(heap: &Heap, mut visit: impl FnMut(u64, &[u8], &HeapSpan, &Special)) {
    let layout = heap.layout.special;
    // Those of finalizers and cleanups, which are longer, have what is wanted within these.
    let len = (layout.bucket + 8).max(layout.kind + 8).max(48) as usize;
    let mut next: Vec<(u64, &HeapSpan)> = heap
        .spans
        .iter()
        .filter(|span| span.specials != 0)
        .map(|span| (span.specials, span))
        .collect();
    let mut in_all = 0;
    for _ in 0..MAX_SPECIALS {
        in_all += next.len();
        // A list that leads back into itself does not end.
        if next.is_empty() || in_all > MAX_IN_ALL {
            return;
        }
        let ranges: Vec<_> = next.iter().map(|(at, _)| (*at, len)).collect();
        let read = heap.memory.read_each(&ranges);
        let specials = std::mem::take(&mut next);
        for (index, (at, span)) in specials.into_iter().enumerate() {
            let Some(bytes) = read.get(index) else {
                continue;
            };
            visit(at, bytes, span, &layout);
            let following = word(bytes, layout.next);
            if following != 0 {
                next.push((following, span));
            }
        }
    }
}
