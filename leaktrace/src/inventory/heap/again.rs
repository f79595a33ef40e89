//! References between objects, looked for in memory once more.

use super::{Heap, Object, Types, word};
use crate::target::Ranges;

/// Objects are read in pieces of so many bytes, and so many are read at a time.
const PIECE: u64 = 1 << 20;

/// That one object refers to another: the one that does, the other.
pub(super) type Between = (Object, Object);

/// Where a reference was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Address of the word.
    pub(super) at: u64,
    /// The word before that; zero where that is not the program's.
    pub(super) before: u64,
    /// Whether the collector takes the word for a pointer; `None`: not known.
    pub(super) is_pointer: Option<bool>,
    /// The first word of the object that refers.
    pub(super) first_word: u64,
}

/// Looks for references, each there once and in order: what was found of each, `None` where it is not there any more
/// or the collector does not take the word for a pointer. Objects that lie close to each other are read together.
pub(super) fn look_again(
    heap: &Heap,
    types: Option<&Types<'_>>,
    references: &[Between],
) -> Vec<Option<Found>> {
    let mut all = vec![None; references.len()];
    let mut rest = &mut all[..];
    let (mut few, mut bytes, mut read) = (Vec::new(), 0, Ranges::default());
    for wanted in references.chunk_by(|one, other| one.0 == other.0) {
        let (found, others) = rest.split_at_mut(wanted.len());
        rest = others;
        let look = Look {
            heap,
            types,
            wanted,
            found,
            before: 0,
            first_word: 0,
        };
        let size = heap.size(look.holder());
        if size > PIECE {
            look.in_pieces(size);
            continue;
        }
        few.push(look);
        bytes += size;
        if bytes >= PIECE {
            look_in(heap, types, &mut few, &mut read);
            bytes = 0;
        }
    }
    look_in(heap, types, &mut few, &mut read);
    all
}

/// Looks in all of these, and takes them away. What is read comes in place of what `read` had.
fn look_in(heap: &Heap, types: Option<&Types<'_>>, few: &mut Vec<Look<'_>>, read: &mut Ranges) {
    let range = |look: &Look<'_>| {
        let holder = look.holder();
        (heap.address(holder), heap.size(holder) as usize)
    };
    let ranges: Vec<_> = few.iter().map(range).collect();
    heap.memory.read_each_into(&ranges, read);
    types.iter().for_each(|types| types.anew());
    for (index, mut look) in few.drain(..).enumerate() {
        if let Some(bytes) = read.get(index) {
            look.take(0, bytes);
        }
    }
}

/// Looks in one object for those that it is to refer to.
struct Look<'a> {
    heap: &'a Heap,
    types: Option<&'a Types<'a>>,
    /// All of one object.
    wanted: &'a [Between],
    found: &'a mut [Option<Found>],
    /// The word before those that come next.
    before: u64,
    first_word: u64,
}

impl Look<'_> {
    fn holder(&self) -> Object {
        self.wanted[0].0
    }

    fn is_done(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }

    fn in_pieces(mut self, size: u64) {
        self.types.iter().for_each(|types| types.anew());
        let address = self.heap.address(self.holder());
        let mut bytes = Vec::new();
        for offset in (0..size).step_by(PIECE as usize) {
            bytes.resize(PIECE.min(size - offset) as usize, 0);
            if self.is_done() || self.heap.memory.read(address + offset, &mut bytes).is_err() {
                break;
            }
            self.take(offset, &bytes);
        }
    }

    /// Looks at some words of it.
    fn take(&mut self, offset: u64, bytes: &[u8]) {
        let holder = self.holder();
        for (index, bytes) in bytes.chunks_exact(8).enumerate() {
            let (offset, value) = (offset + 8 * index as u64, word(bytes, 0));
            if offset == 0 {
                self.first_word = value;
            }
            if let Some(object) = self.heap.object_at(value)
                && let Ok(place) = self.wanted.binary_search(&(holder, object))
                && self.found[place].is_none()
            {
                let of = self.types;
                let is_pointer = of.and_then(|of| of.is_pointer(holder, offset, self.first_word));
                // A word that is none may stand before the one that is.
                if is_pointer != Some(false) {
                    self.found[place] = Some(Found {
                        at: self.heap.address(holder) + offset,
                        before: self.before,
                        is_pointer,
                        first_word: self.first_word,
                    });
                    if self.is_done() {
                        return;
                    }
                }
            }
            // A header is no part of what the program has there.
            let is_header = offset == 0 && self.types.is_some_and(|types| types.has_header(holder));
            self.before = if is_header { 0 } else { value };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::heap, *};

    #[test]
    fn references_are_found_where_they_are_and_only_there() {
        const PAGE: u64 = 8192;
        // Objects of 64 bytes, each with the address of the next in its third word, but for the fifth.
        let mut words = vec![0_u64; 2 * PAGE as usize / 8];
        let start = (words.as_ptr() as u64).next_multiple_of(PAGE);
        let first = (start - words.as_ptr() as u64) as usize / 8;
        for slot in 0..100 {
            words[first + 8 * slot + 1] = 7;
            words[first + 8 * slot + 2] = start + 64 * (slot as u64 + 1);
        }
        words[first + 8 * 5 + 2] = 0;
        let words = std::hint::black_box(words);
        let heap = heap(&[(start, 1, 64, false)]);
        let object = |slot| Object { span: 0, slot };
        let references: Vec<Between> = (0..100).map(|at| (object(at), object(at + 1))).collect();
        let found = look_again(&heap, None, &references);
        for (slot, found) in (0..).zip(found) {
            let at = start + 64 * slot + 16;
            let is_there = found.map(|found| (found.at, found.before, found.first_word));
            assert_eq!(is_there, (slot != 5).then_some((at, 7, 0)), "{slot}");
        }
        // What another object refers to.
        assert_eq!(look_again(&heap, None, &[(object(1), object(3))]), [None]);
        drop(words);
    }
}
