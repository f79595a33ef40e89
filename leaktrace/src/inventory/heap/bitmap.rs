//! The bitmap of pointers that each arena had before Go 1.22 (runtime/mbitmap.go, Go 1.19 and 1.21).

use super::{ARENA_BYTES, Heap, Object};

/// Address of the first arena (runtime/malloc.go, `arenaBaseOffset`, linux/amd64).
const ARENA_BASE: u64 = 0xffff_8000_0000_0000;

/// Where the bitmap is in an arena's `heapArena`.
pub(super) struct Bitmap {
    /// Address of the table of arenas, by number.
    arenas: u64,
    bitmap: u64,
    /// Where it has a bit a word: for each 64 words whether the object that reaches beyond them has no
    /// pointers there. `None`: it has two bits a word, in nibbles, the second for "look further".
    no_more_pointers: Option<u64>,
}

impl Bitmap {
    /// `None`: this release has none, or it is not known.
    pub(super) fn find(heap: &Heap) -> Option<Self> {
        let layout = &heap.layout;
        let table = heap.mheap + layout.offset("runtime.mheap", "arenas").ok()?;
        let field = |name| layout.offset("runtime.heapArena", name).ok();
        Some(Self {
            bitmap: field("bitmap")?,
            no_more_pointers: field("noMorePtrs"),
            // One table on the first level (`arenaL1Bits` is 0).
            arenas: heap.memory.read_u64(table).ok()?,
        })
    }

    /// Whether the collector takes the word at `offset` of an object for a pointer.
    pub(super) fn is_pointer(&self, heap: &Heap, object: Object, offset: u64) -> Option<bool> {
        let address = heap.address(object);
        let last = self.entry(heap, address + offset)?;
        if !last.is_pointer {
            return Some(false);
        }
        // Whether it ever gets that far.
        let step = if self.no_more_pointers.is_some() {
            64 * 8
        } else {
            8
        };
        let mut at = address;
        while at < address + offset {
            let next = (at / step + 1) * step;
            if next > address + offset {
                break;
            }
            if self.entry(heap, at)?.is_end {
                return Some(false);
            }
            at = next;
        }
        Some(!(last.is_end && self.no_more_pointers.is_none()))
    }

    fn entry(&self, heap: &Heap, address: u64) -> Option<Entry> {
        let number = address.wrapping_sub(ARENA_BASE) / ARENA_BYTES;
        let arena = heap.memory.read_u64(self.arenas + 8 * number).ok()?;
        let index = address % ARENA_BYTES / 8;
        let byte = |at: u64| {
            let mut byte = [0];
            heap.memory.read(at, &mut byte).ok().map(|()| byte[0])
        };
        Some(match self.no_more_pointers {
            Some(no_more) => {
                let chunk = index / 64;
                let bits = heap.memory.read_u64(arena + self.bitmap + 8 * chunk).ok()?;
                Entry {
                    is_pointer: bits >> (index % 64) & 1 == 1,
                    is_end: byte(arena + no_more + chunk / 8)? >> (chunk % 8) & 1 == 1,
                }
            }
            None => {
                let bits = byte(arena + self.bitmap + index / 4)? >> (index % 4);
                Entry {
                    is_pointer: bits & 1 == 1,
                    is_end: bits >> 4 & 1 == 0,
                }
            }
        })
    }
}

/// What the bitmap says of a word.
struct Entry {
    is_pointer: bool,
    /// No more pointers from here on, or beyond its 64 words.
    is_end: bool,
}
