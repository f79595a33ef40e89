//! Finalizers and cleanups: those that wait for their objects to die, and the queue of those that are to be run.

use std::collections::HashSet;

use super::{Root, Roots, roots::PIECE, samples::each_special, word};

/// Words of all finalizers, cleanups and their objects that are looked at; each is 16 bytes.
const MAX_SPECIAL_WORDS: usize = 1 << 22;
/// Blocks of the queue of finalizers that are followed.
const MAX_FINALIZER_BLOCKS: usize = 1 << 16;
/// `runtime.finblock` (runtime/mfinal.go, Go 1.19 to 1.27): 4 KiB, of which the first 24 bytes are a
/// header with `alllink` at 0 and `cnt` at 16, then 40 bytes each.
const FINALIZER_BLOCK: usize = 4096;
const FINALIZER_HEADER: usize = 24;
const FINALIZER: usize = 40;

impl Roots<'_> {
    /// A finalizer's closure, and whatever its object refers to, but not the object.
    pub(super) fn specials(&self, visit: &mut impl FnMut(Root, u64)) {
        let mut found = Vec::new();
        each_special(self.heap, |at, bytes, span, layout| {
            if bytes.get(layout.kind as usize) != Some(&layout.kind_profile)
                && found.len() < MAX_SPECIAL_WORDS
            {
                let words = self.special_words(bytes, span.start, at);
                found.extend(words.map(|(_, word)| (at, word)));
            }
        });
        for (at, word) in found {
            visit(Root::Special(at), word);
        }
    }

    /// The words of a finalizer's or cleanup's special, and those of the object it waits for.
    pub(super) fn special_words(
        &self,
        bytes: &[u8],
        span: u64,
        at: u64,
    ) -> impl Iterator<Item = (u64, u64)> + use<> {
        let layout = &self.heap.layout;
        let special = &layout.special;
        let kind = bytes.get(special.kind as usize).copied();
        let is_kind = |name| {
            let constant = layout.constant(name).ok();
            constant.is_some() && constant.and_then(|c| u8::try_from(c).ok()) == kind
        };
        let mut words = Vec::new();
        if is_kind("runtime._KindSpecialFinalizer") {
            let header = layout.size_of("runtime.special").unwrap_or(special.bucket);
            words.push((at + header, word(bytes, header)));
            let object = span + (word(bytes, special.offset) & 0xffff);
            words.extend(self.fields(object));
        } else if is_kind("runtime._KindSpecialCleanup") {
            // Its function is its first field; later releases have three words there, an adapter, the
            // function and its argument (runtime/mheap.go, `specialCleanup`, Go 1.24 to 1.27).
            let header = layout.size_of("runtime.special").unwrap_or(special.bucket);
            words.extend(
                (header..header + 24)
                    .step_by(8)
                    .map(|offset| (at + offset, word(bytes, offset))),
            );
        }
        words.into_iter()
    }

    fn fields(&self, object: u64) -> Vec<(u64, u64)> {
        let heap = self.heap;
        let Some(object) = heap.object_at(object) else {
            return Vec::new();
        };
        if heap.span(object).has_no_pointers {
            return Vec::new();
        }
        let at = heap.address(object);
        let mut bytes = vec![0; heap.size(object).min(PIECE) as usize];
        if heap.memory.read(at, &mut bytes).is_err() {
            return Vec::new();
        }
        let words = bytes.chunks_exact(8).enumerate();
        words
            .map(|(index, bytes)| (at + 8 * index as u64, word(bytes, 0)))
            .filter(|(_, word)| heap.object_at(*word).is_some_and(|other| other != object))
            .collect()
    }

    pub(super) fn finalizer_queue(&self, visit: &mut impl FnMut(Root, u64)) {
        let Some(all) = self.all_finalizers else {
            return;
        };
        let mut block = self.heap.memory.read_u64(all).unwrap_or(0);
        let mut seen = HashSet::new();
        while block != 0 && seen.len() < MAX_FINALIZER_BLOCKS && seen.insert(block) {
            let mut bytes = vec![0; FINALIZER_BLOCK];
            if self.heap.memory.read(block, &mut bytes).is_err() {
                return;
            }
            let count = word(&bytes, 16) as u32 as usize;
            let queued = bytes[FINALIZER_HEADER..]
                .chunks_exact(FINALIZER)
                .take(count);
            for (index, queued) in queued.enumerate() {
                let at = block + (FINALIZER_HEADER + FINALIZER * index) as u64;
                visit(Root::FinalizerQueue(at), word(queued, 0));
                visit(Root::FinalizerQueue(at + 8), word(queued, 8));
            }
            block = word(&bytes, 0);
        }
    }
}
