//! Types as the runtime itself keeps them, stripped or not: their names, and which words of an object
//! are pointers.
//!
//! Before Go 1.22 each arena has a bitmap of its pointers (`bitmap.rs`). Since then the type of a larger object is in its header, that of a large one in its span, and the
//! pointers of a small one are a bitmap at the end of its span (runtime/mbitmap.go, Go 1.22 to 1.27).
//! What an interface refers to is named by the word before (runtime/runtime2.go, `eface`, `iface`).

use std::{cell::RefCell, collections::HashMap};

use super::{Heap, Object, bitmap::Bitmap, near::Near, word};
use crate::{
    go::layout::Span as Offsets,
    target::{GoTarget, MemoryError},
};

/// Offsets in `abi.Type` (`runtime._type` before Go 1.21), the same in Go 1.19 to 1.27.
const SIZE: u64 = 0;
const PTR_BYTES: u64 = 8;
const TFLAG: usize = 20;
const KIND: usize = 23;
const GC_DATA: u64 = 32;
const STR: u64 = 40;
/// The element of a pointer type.
const ELEM: u64 = 48;
const TYPE_BYTES: usize = 56;
const EXTRA_STAR: u8 = 1 << 1;
/// The data are where the mask is, once it is needed: Go 1.24 and later.
const MASK_ON_DEMAND: u8 = 1 << 4;
const KIND_MASK: u8 = (1 << 5) - 1;
/// A program in place of a mask: until Go 1.23.
const KIND_GC_PROG: u8 = 1 << 6;
const KIND_POINTER: u8 = 22;
/// A longer name is no name.
const MAX_NAME: usize = 1024;
/// Masks of larger types are not read.
const MAX_MASK: u64 = 1 << 16;
/// Types read, at most.
const MAX_TYPES: usize = 1 << 14;
/// Of an object that is larger no more is read at once.
const MAX_WORDS: u64 = 1 << 20;
/// The bitmap of a small span is within so many bytes at its end.
const AT_END: usize = 512;
/// Objects up to this size have their bitmap in the span (`gc.MinSizeForMallocHeader`).
const IN_SPAN: u64 = 512;

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicType {
    /// As in `main.Row` or `[]string`.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// For a pointer: address of the type that it points to.
    element: Option<u64>,
    ptr_bytes: u64,
    mask: Option<Vec<u8>>,
}

/// Reads types of a process.
pub struct Types<'a> {
    heap: &'a Heap,
    /// Where types are.
    range: (u64, u64),
    /// Where code is.
    text: (u64, u64),
    /// Bytes between a small span's bitmap and its end; `None`: there are no such bitmaps, or it is
    /// not known.
    behind_bitmap: Option<u64>,
    has_headers: bool,
    /// The bitmap of releases without headers.
    bitmap: Option<Bitmap>,
    /// Bitmaps of spans of small objects.
    bitmaps: RefCell<Near<AT_END>>,
    known: RefCell<HashMap<u64, Option<DynamicType>>>,
}

impl<'a> Types<'a> {
    /// Where the types of the executable are; those of plugins are not known.
    pub fn find(heap: &'a Heap, go: &GoTarget) -> Option<Self> {
        let module = go.binary.module_data()?.wrapping_add(go.bias);
        let layout = &heap.layout;
        let field = |name| {
            let offset = layout.offset("runtime.moduledata", name).ok()?;
            heap.memory.read_u64(module.wrapping_add(offset)).ok()
        };
        let has_headers = layout.span.large_type.is_some();
        Some(Self {
            heap,
            range: (field("types")?, field("etypes")?),
            text: (field("text")?, field("etext")?),
            behind_bitmap: behind_bitmap(heap).filter(|_| has_headers),
            has_headers,
            bitmap: Bitmap::find(heap),
            bitmaps: RefCell::default(),
            known: RefCell::default(),
        })
    }

    /// The type at an address.
    pub fn at(&self, address: u64) -> Option<DynamicType> {
        if address < self.range.0 || address >= self.range.1 {
            return None;
        }
        if let Some(known) = self.known.borrow().get(&address) {
            return known.clone();
        }
        let read = self.read(address);
        let mut known = self.known.borrow_mut();
        if known.len() < MAX_TYPES {
            known.insert(address, read.clone());
        }
        read
    }

    fn read(&self, address: u64) -> Option<DynamicType> {
        let memory = &self.heap.memory;
        let mut bytes = vec![0; TYPE_BYTES];
        memory.read(address, &mut bytes).ok()?;
        let (size, ptr_bytes) = (word(&bytes, SIZE), word(&bytes, PTR_BYTES));
        let (flags, kind) = (bytes[TFLAG], bytes[KIND]);
        let at = self.range.0.checked_add(word(&bytes, STR) & 0xffff_ffff)?;
        let mut name = self.name(at)?;
        if flags & EXTRA_STAR != 0 {
            name.remove(0);
        }
        if size > 1 << 40 || ptr_bytes > size || name.is_empty() {
            return None;
        }
        // Where the mask is, if it is there: one on demand is made when the collector first needs it.
        let data = word(&bytes, GC_DATA);
        let mask_at = match (flags & MASK_ON_DEMAND, kind & KIND_GC_PROG) {
            (0, 0) => Some(data),
            (_, 0) => memory.read_u64(data).ok().filter(|at| *at != 0),
            _ => None,
        };
        let mask = mask_at.filter(|_| ptr_bytes <= MAX_MASK).and_then(|at| {
            let mut mask = vec![0; ptr_bytes.div_ceil(64) as usize];
            memory.read(at, &mut mask).ok().map(|()| mask)
        });
        Some(DynamicType {
            name,
            size,
            element: (kind & KIND_MASK == KIND_POINTER).then(|| word(&bytes, ELEM)),
            ptr_bytes,
            mask,
        })
    }

    /// `abi.Name`: flags, the length, seven bits a byte, and the name.
    fn name(&self, at: u64) -> Option<String> {
        let memory = &self.heap.memory;
        let mut head = [0; 4];
        memory.read(at, &mut head).ok()?;
        let (len, from) = match head[1] {
            short if short < 0x80 => (usize::from(short), 2),
            low => (usize::from(low & 0x7f) | usize::from(head[2]) << 7, 3),
        };
        if len == 0 || len > MAX_NAME {
            return None;
        }
        let mut name = vec![0; len];
        memory.read(at.checked_add(from)?, &mut name).ok()?;
        String::from_utf8(name).ok()
    }

    /// The type that the runtime notes for an object: of a larger one only, and for an array that of
    /// its elements.
    pub fn noted(&self, object: Object, first_word: u64) -> Option<DynamicType> {
        let span = self.heap.span(object);
        if span.has_no_pointers || !self.has_headers {
            return None;
        }
        match (span.slots, span.object_size) {
            (_, size) if size <= IN_SPAN => None,
            (1, _) if span.large_type != 0 => self.at(span.large_type),
            _ => self.at(first_word),
        }
    }

    /// The type of what a word refers to, by the word before it, if those two are an interface.
    pub fn of_interface(&self, before: u64) -> Option<DynamicType> {
        let of = match self.at(before) {
            Some(of) => of,
            None => self.of_itab(before)?,
        };
        match of.element {
            // The interface holds the pointer itself.
            Some(element) => self.at(element),
            None => Some(of),
        }
    }

    /// `abi.ITab`: the interface's type, then the value's.
    fn of_itab(&self, at: u64) -> Option<DynamicType> {
        let is_likely = at.is_multiple_of(8) && at >= 4096 && self.heap.object_at(at).is_none();
        is_likely.then_some(())?;
        let mut bytes = [0; 16];
        self.heap.memory.read(at, &mut bytes).ok()?;
        self.at(word(&bytes, 0))?;
        self.at(word(&bytes, 8))
    }

    /// Whether its first word is not the program's, but the address of its type.
    pub fn has_header(&self, object: Object) -> bool {
        let span = self.heap.span(object);
        let is_large = span.slots == 1 && span.large_type != 0;
        self.has_headers && !span.has_no_pointers && span.object_size > IN_SPAN && !is_large
    }

    /// Whether an address is one of the program's code.
    pub fn is_code(&self, address: u64) -> bool {
        (self.text.0..self.text.1).contains(&address)
    }

    /// From here on bitmaps are read anew. Until then one is read once for many objects that lie together.
    pub(super) fn anew(&self) {
        self.bitmaps.borrow_mut().forget();
        if let Some(bitmap) = &self.bitmap {
            bitmap.anew();
        }
    }

    /// Whether the collector takes the word at `offset` of an object for a pointer; `None`: it is not
    /// known here.
    pub fn is_pointer(&self, object: Object, offset: u64, first_word: u64) -> Option<bool> {
        let span = self.heap.span(object);
        if span.has_no_pointers {
            return Some(false);
        }
        if let Some(bitmap) = &self.bitmap {
            return bitmap.is_pointer(self.heap, object, offset);
        }
        if !self.has_headers {
            return None;
        }
        if span.object_size <= IN_SPAN {
            let bits = span.bytes / 64;
            // Spans of 8-byte objects have no mark bits inside (`gcUsesSpanInlineMarkBits`).
            let behind = if span.object_size < 16 {
                0
            } else {
                self.behind_bitmap?
            };
            let bitmap = (span.start + span.bytes).checked_sub(bits + behind)?;
            let bit = (self.heap.address(object) + offset - span.start) / 8;
            let mut bitmaps = self.bitmaps.borrow_mut();
            let byte = bitmaps.read(&self.heap.memory, bitmap + bit / 8, 1)?;
            return Some(byte[0] >> (bit % 8) & 1 == 1);
        }
        let header = if self.has_header(object) { 8 } else { 0 };
        let of = self.noted(object, first_word)?;
        let within = offset.checked_sub(header)?.checked_rem(of.size)?;
        if within >= of.ptr_bytes {
            return Some(false);
        }
        let bit = within / 8;
        let byte = of.mask.as_ref()?.get(bit as usize / 8)?;
        Some(byte >> (bit % 8) & 1 == 1)
    }
}

/// The words of an object that lead to others and that the collector may take for pointers, as they are now; of a very
/// large one those at its beginning.
///
/// # Errors
///
/// It cannot be read.
pub(super) fn pointers_in(
    heap: &Heap,
    types: Option<&Types<'_>>,
    object: Object,
) -> Result<Vec<u64>, MemoryError> {
    let mut bytes = vec![0; heap.size(object).min(MAX_WORDS) as usize];
    heap.memory.read(heap.address(object), &mut bytes)?;
    types.iter().for_each(|types| types.anew());
    let first_word = word(&bytes, 0);
    let may_be_pointer = |offset| {
        let is_pointer = types.and_then(|types| types.is_pointer(object, offset, first_word));
        is_pointer != Some(false)
    };
    let words = (0..).step_by(8).zip(bytes.chunks_exact(8));
    let words = words.map(|(offset, bytes)| (offset, word(bytes, 0)));
    let words =
        words.filter(|(offset, word)| heap.object_at(*word).is_some() && may_be_pointer(*offset));
    Ok(words.map(|(_, word)| word).collect())
}

/// Bytes behind the bitmap of a small span: the mark bits that the collector of Go 1.26 keeps there, or
/// none. The number of slots tells it, of spans in which that makes a difference.
fn behind_bitmap(heap: &Heap) -> Option<u64> {
    let inline = heap
        .layout
        .size_of("runtime.spanInlineMarkBits")
        .unwrap_or(0);
    let fits = |span: &super::HeapSpan, behind: u64| {
        let room = Offsets::PAGE_SIZE.checked_sub(span.bytes / 64 + behind);
        room.map(|room| room / span.object_size) == Some(u64::from(span.slots))
    };
    let mut small = heap.spans.iter().filter(|span| {
        !span.has_no_pointers
            && (16..=128).contains(&span.object_size)
            && span.bytes == Offsets::PAGE_SIZE
    });
    small.find_map(|span| match (fits(span, 0), fits(span, inline)) {
        (true, false) => Some(0),
        (false, true) => Some(inline),
        (true, true) if inline == 0 => Some(0),
        _ => None,
    })
}
