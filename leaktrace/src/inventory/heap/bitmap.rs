//! The bitmap of pointers that each arena had before Go 1.22 (runtime/mbitmap.go, Go 1.19 and 1.21).

use std::cell::{Cell, RefCell};

use super::{ARENA_BYTES, Heap, Object, near::Near};

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
    /// What is known of the object that was asked about last.
    last: Cell<Option<Prefix>>,
    /// The number of the arena that was asked about last, and its address.
    last_arena: Cell<(u64, u64)>,
    /// Parts of it.
    parts: RefCell<Near<4096>>,
}

/// The beginning of an object.
#[derive(Clone, Copy)]
struct Prefix {
    object: Object,
    /// The unit before which there is no end of its pointers.
    until: u64,
    /// Whether that one is their end.
    is_end: bool,
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
            last: Cell::default(),
            last_arena: Cell::default(),
            parts: RefCell::default(),
        })
    }

    /// From here on it is read anew.
    pub(super) fn anew(&self) {
        self.last.set(None);
        self.parts.borrow_mut().forget();
    }

    /// Whether the collector takes the word at `offset` of an object for a pointer.
    pub(super) fn is_pointer(&self, heap: &Heap, object: Object, offset: u64) -> Option<bool> {
        let address = heap.address(object) + offset;
        let index = address % ARENA_BYTES / 8;
        let arena = self.arena(heap, address)?;
        let (words_a_byte, pointer) = match self.no_more_pointers {
            Some(_) => (8, 1),
            // Also whether to look further: the first word beyond the pointers has neither.
            None => (4, 0x11),
        };
        let at = arena + self.bitmap + index / words_a_byte;
        let bits = self.parts.borrow_mut().read(&heap.memory, at, 1)?[0];
        let is_pointer = bits >> (index % words_a_byte) & pointer == pointer;
        Some(is_pointer && self.gets_to(heap, object, address)?)
    }

    /// Whether the collector gets as far as an address of an object: not beyond the end of its pointers.
    fn gets_to(&self, heap: &Heap, object: Object, address: u64) -> Option<bool> {
        let bytes = self.unit_bytes();
        let (first, unit) = (heap.address(object) / bytes, address / bytes);
        let mut known = match self.last.get() {
            Some(last) if last.object == object => last,
            _ => Prefix {
                object,
                until: first,
                is_end: false,
            },
        };
        // The part in each arena at once.
        while known.until < unit && !known.is_end {
            let in_arena = ARENA_BYTES / bytes;
            let end = unit.min((known.until / in_arena + 1) * in_arena);
            let ends = self.end_within(heap, known.until, end)?;
            known.is_end = ends.is_some();
            known.until = ends.unwrap_or(end);
        }
        self.last.set(Some(known));
        Some(!(known.is_end && known.until < unit))
    }

    /// Bytes of the heap for which there is one mark of the end.
    fn unit_bytes(&self) -> u64 {
        match self.no_more_pointers {
            Some(_) => 64 * 8,
            None => 8,
        }
    }

    /// The first unit of these of one arena that has the mark of the end.
    fn end_within(&self, heap: &Heap, from: u64, to: u64) -> Option<Option<u64>> {
        let bytes = self.unit_bytes();
        let (at, a_byte) = match self.no_more_pointers {
            Some(at) => (at, 8),
            None => (self.bitmap, 4),
        };
        let arena = self.arena(heap, from * bytes)?;
        let index = from % (ARENA_BYTES / bytes);
        let len = ((index + to - from).div_ceil(a_byte) - index / a_byte) as usize;
        let at = arena + at + index / a_byte;
        let mut parts = self.parts.borrow_mut();
        let marks = parts.read(&heap.memory, at, len)?;
        let is_end = |unit: &u64| {
            let bit = index % a_byte + unit - from;
            let byte = marks[(bit / a_byte) as usize];
            match self.no_more_pointers {
                Some(_) => byte >> (bit % 8) & 1 == 1,
                None => byte >> (4 + bit % 4) & 1 == 0,
            }
        };
        Some((from..to).find(is_end))
    }

    /// Address of the `heapArena` in which an address is: once made it stays.
    fn arena(&self, heap: &Heap, address: u64) -> Option<u64> {
        let number = address.wrapping_sub(ARENA_BASE) / ARENA_BYTES;
        let (last, at) = self.last_arena.get();
        if at != 0 && last == number {
            return Some(at);
        }
        let at = heap.memory.read_u64(self.arenas + 8 * number).ok()?;
        self.last_arena.set((number, at));
        Some(at)
    }
}
