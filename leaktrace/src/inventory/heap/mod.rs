//! The Go heap as it stands: its spans, which object an address lies in, what keeps objects alive.
//!
//! Everything is read from a process that runs on. A span can be given back and used for something
//! else, an object can die and its place be taken, while the heap is gone through; so what comes of
//! it is checked against memory once more ([`Paths`]) before anybody is told.
//!
//! Source of what is known of spans: runtime/mheap.go, `mspan`, Go 1.19 to 1.27.

mod again;
mod back;
mod bitmap;
mod finalizers;
mod holders;
mod mark;
mod near;
mod paths;
mod roots;
mod samples;
mod slots;
mod stacks;
mod types;

pub use back::{Back, TooLarge};
pub use holders::{Figures, Holder, Holders, Reference};
pub use mark::{Mark, Marked};
pub use paths::{Fate, Hop, Path, Paths};
pub use roots::{Root, Roots};
pub use samples::{Sample, samples};
pub use types::{DynamicType, Types};

use super::word;
use crate::{
    go::{
        GoVariable,
        layout::{Layout, Span as Offsets},
    },
    target::{GoTarget, Memory, MemoryError},
};

/// More spans than this are not read: the list is being misread. They would be 128 GiB at least.
const MAX_SPANS: u64 = 1 << 24;
/// Spans read at a time.
const CHUNK: usize = 4096;
/// Size of an arena (runtime/malloc.go, `heapArenaBytes`, linux/amd64).
const ARENA_BYTES: u64 = 64 << 20;
/// Pages of an arena.
const ARENA_PAGES: usize = (ARENA_BYTES / Offsets::PAGE_SIZE) as usize;
/// Arenas further apart than this are not looked at: 64 TiB.
const MAX_ARENAS: u64 = 1 << 20;
/// Arenas whose pages are kept, at most: 32 KiB each, so 512 MiB for 1 TiB of heap.
const MAX_ARENA_TABLES: usize = 1 << 14;
/// No span.
const NONE: u32 = u32::MAX;

/// A run of pages with objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapSpan {
    /// Address of its first object.
    pub start: u64,
    /// Bytes of its pages.
    pub bytes: u64,
    /// Bytes of each object.
    pub object_size: u64,
    /// Objects that it has room for.
    pub slots: u32,
    /// Index of its first object among those of all spans with pointers.
    pub first: u32,
    /// Its objects hold no pointers.
    pub has_no_pointers: bool,
    /// Address of its `runtime.mspan`.
    pub mspan: u64,
    /// Address of its first `special`.
    pub specials: u64,
    /// Address of the type of its one object, where the runtime keeps it.
    pub large_type: u64,
}

/// An object: which span, which slot of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// Index of the span.
    pub span: u32,
    /// Its slot there.
    pub slot: u32,
}

/// The spans of a Go heap.
pub struct Heap {
    memory: Memory,
    layout: Layout,
    /// Address of `runtime.mheap_`.
    mheap: u64,
    spans: Vec<HeapSpan>,
    /// Indexes of the spans with pointers: their `first` ascends.
    scannable: Vec<u32>,
    /// The number of the first arena, and the pages of each: index of the span.
    first_arena: u64,
    arenas: Vec<Option<Box<[u32; ARENA_PAGES]>>>,
    objects: u64,
}

/// Why the heap could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// What has to be known of the runtime is not.
    #[error("{0}")]
    Unknown(String),
    /// The target's memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What was read cannot be the list of spans.
    #[error("the list of spans makes no sense: {0}")]
    Nonsense(String),
}

impl Heap {
    /// Reads the spans.
    ///
    /// # Errors
    ///
    /// The runtime's layout is not known, or its list of spans cannot be read.
    pub fn read(memory: Memory, go: &GoTarget) -> Result<Self, HeapError> {
        let layout = go.binary.layout();
        let layout = layout.map_err(|error| HeapError::Unknown(error.to_string()))?;
        let mheap = go.address(GoVariable::MHeap).map_err(HeapError::Unknown)?;
        let slice = mheap.wrapping_add(layout.heap.allspans);
        let (array, len) = (memory.read_u64(slice)?, memory.read_u64(slice + 8)?);
        if len > MAX_SPANS {
            return Err(HeapError::Nonsense(format!("{len} spans")));
        }
        let mut pointers = vec![0; 8 * len as usize];
        memory.read(array, &mut pointers)?;
        let mut heap = Self {
            memory,
            layout: layout.clone(),
            mheap,
            spans: Vec::new(),
            scannable: Vec::new(),
            first_arena: 0,
            arenas: Vec::new(),
            objects: 0,
        };
        for chunk in pointers.chunks(8 * CHUNK) {
            let at: Vec<u64> = chunk.chunks(8).map(|pointer| word(pointer, 0)).collect();
            let spans = heap.spans_at(&at);
            heap.spans.extend(spans.into_iter().flatten());
        }
        drop(pointers);
        heap.index()?;
        Ok(heap)
    }

    /// The spans that these `mspan`s are now; `None` for one that is not of the collected heap.
    fn spans_at(&self, addresses: &[u64]) -> Vec<Option<HeapSpan>> {
        let offsets = &self.layout.span;
        let ranges: Vec<_> = addresses
            .iter()
            .map(|address| (*address, offsets.size as usize))
            .collect();
        let read = self.memory.read_each(&ranges);
        let of = |(index, mspan): (usize, &u64)| span_of(*mspan, read.get(index)?, offsets);
        addresses.iter().enumerate().map(of).collect()
    }

    /// Numbers the objects and notes which span each page belongs to.
    fn index(&mut self) -> Result<(), HeapError> {
        self.spans.sort_unstable_by_key(|span| span.start);
        // While it runs on, a span can be given back and its pages be in another: the first counts, and no
        // page is gone through twice, however many spans claim it.
        let mut end = 0;
        self.spans.retain(|span| {
            let is_free = span.start >= end;
            if is_free {
                end = span.start + span.bytes;
            }
            is_free
        });
        let arena = |address: u64| address / ARENA_BYTES;
        let first = self.spans.first().map_or(0, |span| arena(span.start));
        let last = self
            .spans
            .last()
            .map_or(0, |span| arena(span.start + span.bytes));
        if last - first >= MAX_ARENAS {
            let far = format!("the heap reaches over {} GiB", (last - first) >> 4);
            return Err(HeapError::Nonsense(far));
        }
        let mut tables = 0;
        let mut next = 0;
        for span in &self.spans {
            let after = arena(span.start + span.bytes - 1) + 1;
            tables += after - arena(span.start).max(next).min(after);
            next = after;
        }
        if tables as usize > MAX_ARENA_TABLES {
            let large = format!("it has {} GiB", tables >> 4);
            return Err(HeapError::Nonsense(large));
        }
        self.first_arena = first;
        self.arenas
            .resize_with((last - first + 1) as usize, || None);
        for (index, span) in self.spans.iter_mut().enumerate() {
            if !span.has_no_pointers {
                span.first = u32::try_from(self.objects).unwrap_or(NONE);
                self.objects += u64::from(span.slots);
                self.scannable.push(index as u32);
            }
            let pages =
                span.start / Offsets::PAGE_SIZE..(span.start + span.bytes) / Offsets::PAGE_SIZE;
            for page in pages {
                let arena = (page as usize / ARENA_PAGES) - first as usize;
                if let Some(arena) = self.arenas.get_mut(arena) {
                    let pages = arena.get_or_insert_with(|| Box::new([NONE; ARENA_PAGES]));
                    pages[page as usize % ARENA_PAGES] = index as u32;
                }
            }
        }
        Ok(())
    }

    /// The spans, in the order of their addresses.
    pub fn spans(&self) -> &[HeapSpan] {
        &self.spans
    }

    /// Places for objects with pointers.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// Bytes of its spans, and of those of them whose objects hold pointers.
    pub fn bytes(&self) -> (u64, u64) {
        let all = self.spans.iter().map(|span| span.bytes).sum();
        let with_pointers = self.spans.iter().filter(|span| !span.has_no_pointers);
        (all, with_pointers.map(|span| span.bytes).sum())
    }

    /// Bytes that this table of spans takes.
    pub fn table_bytes(&self) -> u64 {
        let pages = self.arenas.iter().flatten().count() * ARENA_PAGES * 4;
        let spans = self.spans.capacity() * size_of::<HeapSpan>() + self.scannable.capacity() * 4;
        (pages + spans + self.arenas.len() * 8) as u64
    }

    /// The object in which an address lies; its end is not in it.
    #[inline]
    pub fn object_at(&self, address: u64) -> Option<Object> {
        let page = address / Offsets::PAGE_SIZE;
        let arena = (page / ARENA_PAGES as u64).checked_sub(self.first_arena)?;
        let pages = self.arenas.get(arena as usize)?.as_ref()?;
        let index = pages[page as usize % ARENA_PAGES];
        let span = self.spans.get(index as usize)?;
        let offset = address - span.start;
        let slot = match span.slots {
            1 => 0,
            _ => offset / span.object_size,
        };
        (slot < u64::from(span.slots)).then_some(Object {
            span: index,
            slot: slot as u32,
        })
    }

    /// Its span.
    pub fn span(&self, object: Object) -> &HeapSpan {
        &self.spans[object.span as usize]
    }

    /// Its address.
    pub fn address(&self, object: Object) -> u64 {
        let span = self.span(object);
        span.start + u64::from(object.slot) * span.object_size
    }

    /// Its size in bytes, as the allocator rounds it.
    pub fn size(&self, object: Object) -> u64 {
        self.span(object).object_size
    }

    /// Its first word now.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read.
    pub fn first_word(&self, object: Object) -> Result<u64, MemoryError> {
        self.memory.read_u64(self.address(object))
    }

    /// The word at an address now, if it can be read.
    pub fn word_at(&self, address: u64) -> Option<u64> {
        self.memory.read_u64(address).ok()
    }

    /// Its number among the objects with pointers.
    fn number(&self, object: Object) -> Option<u32> {
        let span = self.span(object);
        (!span.has_no_pointers).then(|| span.first + object.slot)
    }

    /// The object with pointers of that number.
    fn numbered(&self, number: u32) -> Object {
        let after = self
            .scannable
            .partition_point(|&span| self.spans[span as usize].first <= number);
        let span = self.scannable[after.saturating_sub(1)];
        Object {
            span,
            slot: number - self.spans[span as usize].first,
        }
    }

    /// The same where another object is known that lies nearby as a rule.
    fn numbered_near(&self, number: u32, near: Object) -> Object {
        let span = self.span(near);
        match number.checked_sub(span.first) {
            Some(slot) if slot < span.slots && !span.has_no_pointers => Object { slot, ..near },
            _ => self.numbered(number),
        }
    }
}

/// `None`: not a span of the collected heap, or one that is being changed.
fn span_of(mspan: u64, bytes: &[u8], offsets: &Offsets) -> Option<HeapSpan> {
    let byte = |offset: u64| bytes.get(offset as usize).copied().unwrap_or(0);
    let slots = match offsets.nelems_size {
        2 => word(bytes, offsets.nelems) & 0xffff,
        _ => word(bytes, offsets.nelems),
    };
    let pages = word(bytes, offsets.npages);
    let span = HeapSpan {
        start: word(bytes, offsets.start_addr),
        bytes: pages.checked_mul(Offsets::PAGE_SIZE)?,
        object_size: word(bytes, offsets.elemsize),
        slots: u32::try_from(slots).ok()?,
        first: NONE,
        has_no_pointers: byte(offsets.spanclass) & 1 == 1,
        mspan,
        specials: word(bytes, offsets.specials),
        large_type: offsets.large_type.map_or(0, |at| word(bytes, at)),
    };
    let holds = span.object_size.checked_mul(slots)?;
    let is_sound = byte(offsets.state) == Offsets::IN_USE
        && span.start.is_multiple_of(Offsets::PAGE_SIZE)
        && span.start < 1 << 47
        && span.bytes < 1 << 46
        && span.bytes > 0
        && span.object_size >= 8
        && slots > 0
        && holds <= span.bytes;
    is_sound.then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::{
        GoBinary,
        testing::{self, Mode},
    };

    const PROGRAM: &str = "package main\n\nfunc main() { println() }\n";

    /// A heap of these spans: start, pages, size of an object, whether they have no pointers.
    pub(super) fn heap(spans: &[(u64, u64, u64, bool)]) -> Heap {
        let toolchain = testing::toolchains().pop().unwrap();
        let path = testing::build(&toolchain, Mode::all()[0], PROGRAM);
        let bytes = std::fs::read(path).unwrap();
        let binary = GoBinary::parse(bytes.into()).unwrap().unwrap();
        let span = |&(start, pages, object_size, has_no_pointers): &(u64, u64, u64, bool)| {
            let bytes = pages * Offsets::PAGE_SIZE;
            HeapSpan {
                start,
                bytes,
                object_size,
                slots: (bytes / object_size) as u32,
                first: NONE,
                has_no_pointers,
                mspan: 0,
                specials: 0,
                large_type: 0,
            }
        };
        let mut heap = Heap {
            memory: Memory::new(std::process::id() as i32),
            layout: binary.layout().unwrap().clone(),
            mheap: 0,
            spans: spans.iter().map(span).collect(),
            scannable: Vec::new(),
            first_arena: 0,
            arenas: Vec::new(),
            objects: 0,
        };
        heap.index().unwrap();
        heap
    }

    #[test]
    fn addresses_lead_to_objects_and_back() {
        let base = 0xc0_0000_0000;
        // The second arena begins with a span without pointers; 48 does not divide a page.
        let heap = heap(&[
            (base + ARENA_BYTES, 1, 64, true),
            (base + 0x2000, 1, 48, false),
            (base + ARENA_BYTES + 0x2000, 3, 3 * 8192, false),
        ]);
        assert_eq!(heap.objects(), 8192 / 48 + 1);
        let object = heap.object_at(base + 0x2000 + 5 * 48 + 47).unwrap();
        assert_eq!((object.span, object.slot), (0, 5));
        assert_eq!(heap.address(object), base + 0x2000 + 5 * 48);
        assert_eq!(heap.numbered(heap.number(object).unwrap()), object);
        // What is left of the page behind the last object is none.
        assert_eq!(heap.object_at(base + 0x2000 + 8191), None);
        let without = heap.object_at(base + ARENA_BYTES + 65).unwrap();
        assert_eq!((without.slot, heap.number(without)), (1, None));
        let large = heap
            .object_at(base + ARENA_BYTES + 0x2000 + 20_000)
            .unwrap();
        assert_eq!(heap.number(large), Some(8192 / 48));
        assert_eq!(heap.numbered(8192 / 48), large);
        for outside in [0, base, base + 0x4000, base + 2 * ARENA_BYTES, u64::MAX] {
            assert_eq!(heap.object_at(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_heap_that_reaches_too_far_is_none() {
        let mut far = heap(&[(0x2000, 1, 64, false)]);
        let last = HeapSpan {
            start: 1 << 47,
            ..far.spans[0]
        };
        far.spans.push(last);
        assert!(matches!(far.index(), Err(HeapError::Nonsense(_))));
    }

    /// Spans of which each claims the same 64 TiB: the table of their pages would take 32 GiB, and as
    /// long as the process likes.
    #[test]
    fn a_heap_that_claims_all_memory_is_none() {
        let mut vast = heap(&[(0x2000, 1, 64, false)]);
        let first = vast.spans[0];
        let claim = |index: u64| HeapSpan {
            start: 0x4000 + (index << 13),
            bytes: 1 << 45,
            ..first
        };
        vast.spans.extend((0..1000).map(claim));
        assert!(matches!(vast.index(), Err(HeapError::Nonsense(_))));
        // As much as one page more than others have: they count.
        let mut twice = heap(&[(0x2000, 1, 64, false)]);
        twice.spans = vec![
            HeapSpan {
                bytes: 0x4000,
                ..first
            },
            HeapSpan {
                start: 0x4000,
                ..first
            },
        ];
        (twice.scannable, twice.objects) = (Vec::new(), 0);
        twice.index().unwrap();
        assert_eq!(twice.spans().len(), 1);
    }
}
