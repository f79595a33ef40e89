//! Interval map of the target's address space: which call mapped every page.
//!
//! A mapping can be unmapped in parts, together with others, be replaced, moved, shrunk and grown,
//! so its live bytes cannot be kept by start address. [`AddressSpace`] replays the kernel side's
//! [`VmEvent`]s over pieces, each of which knows the call that mapped it, and reports what every
//! event allocated and freed, to the byte.
//!
//! # Contract
//! - The state at the attach goes in first ([`AddressSpace::preexisting`],
//!   [`AddressSpace::program_break`]), then all events since the probes went live, in the order of
//!   the ring buffer. Events that the state already contains do no harm.
//! - All frees of an allocation add up to its bytes. It counts as one object until its last byte is
//!   unmapped; a mapping of which one page is left is one live object of one page.
//! - Memory gained by `mremap` belongs to the caller of `mremap`; bytes that move keep their site
//!   and birth. The second range of `MREMAP_DONTUNMAP`, and of `mremap` with an old length of zero,
//!   is a new mapping of the caller of `mremap`.
//! - `execve` and collections change nothing here; what to do then is the caller's affair. Stacks
//!   that the kernel grows by itself (`MAP_GROWSDOWN`) are not seen.
//!
//! # Threads
//! Events come in the order in which system calls returned, and for two threads that need not be
//! the order in which the kernel changed the address space. Two rules set it right:
//! 1. Nobody can mean a mapping whose address has not been returned yet. An unmapping that was
//!    `entered` before the piece's own call `returned` was about an earlier piece: it leaves this
//!    one alone.
//! 2. The kernel places a mapping where nothing is, unless told a fixed address. One that lands on
//!    known pieces therefore shows that their unmapping is under way (or its record was lost): they
//!    are freed at once, and by rule 1 the unmapping does no harm when it comes. If it turns out to
//!    have been an `mremap` that moved them, their bytes come back at the new place under their own
//!    site, as born now.
//!
//! Calls of `brk` are taken in order: the break has no owner but a lock in the target, under which
//! the next call begins after the last one returned.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};

use flags::{
    DEFAULT_HUGE_PAGE, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_HUGE_MASK, MAP_HUGE_SHIFT, MAP_HUGETLB,
    MREMAP_DONTUNMAP, MREMAP_FIXED,
};
use leaktrace_common::{
    EVENT_BRK, EVENT_MMAP, EVENT_MREMAP, EVENT_MUNMAP, KIND_BRK, KIND_MMAP, Ktime, StackId, VmEvent,
};

mod flags;
#[cfg(test)]
mod tests;

/// Pieces kept. The kernel's own limit on mappings (`vm.max_map_count`, 65,530) does not bound
/// them, as it merges neighbours; beyond this, neighbours of one site and birth are merged here.
const MAX_PIECES: usize = 1 << 20;
/// Pieces remembered by rule 2, for an `mremap` under way.
const MAX_DISPLACED: usize = 64;

/// What an event did to one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Memory was mapped.
    Alloc {
        /// Who mapped it.
        stack: StackId,
        /// `KIND_MMAP` or `KIND_BRK`.
        kind: u32,
        /// Mapping calls.
        objects: u64,
        /// Bytes, in whole pages.
        bytes: u64,
    },
    /// Memory was unmapped, or replaced.
    Free {
        /// Who had mapped it; zero for what was there before the attach.
        stack: StackId,
        /// `KIND_MMAP` or `KIND_BRK`.
        kind: u32,
        /// Mapping calls of which nothing is left.
        objects: u64,
        /// Bytes, in whole pages.
        bytes: u64,
        /// Interval of birth; 0: before the attach.
        cohort: u32,
    },
}

/// Where a mapping came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Birth {
    stack: StackId,
    kind: u32,
    cohort: u32,
}

/// One mapping call (or, beyond [`MAX_PIECES`], several neighbours of equal birth).
#[derive(Clone, Copy, Debug)]
struct Object {
    birth: Birth,
    calls: u64,
    bytes: u64,
}

/// Part of an object, at one place. The map's key is its start.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    object: u64,
    /// When the call that put it here returned: its address was unknown before.
    known: Ktime,
}

/// A piece that rule 2 freed.
#[derive(Clone, Copy, Debug)]
struct Displaced {
    start: u64,
    end: u64,
    birth: Birth,
    known: Ktime,
    /// When the mapping that took its place returned.
    at: Ktime,
}

/// Receives the changes of an event.
type Sink<'a> = &'a mut dyn FnMut(Change);

/// The target's address space, as far as it is private to `mmap`, `mremap` and `brk`.
#[derive(Debug)]
pub struct AddressSpace {
    page_size: u64,
    cohort: u32,
    program_break: Option<u64>,
    pieces: BTreeMap<u64, Piece>,
    objects: HashMap<u64, Object>,
    next_object: u64,
    displaced: VecDeque<Displaced>,
    max_pieces: usize,
    untracked: u64,
}

impl AddressSpace {
    /// An empty address space. `page_size` is a power of two, in bytes. Until the first
    /// [`set_cohort`](Self::set_cohort) mappings are born in interval 1.
    pub fn new(page_size: u64) -> Self {
        debug_assert!(page_size.is_power_of_two());
        Self {
            page_size,
            cohort: 1,
            program_break: None,
            pieces: BTreeMap::new(),
            objects: HashMap::new(),
            next_object: 0,
            displaced: VecDeque::new(),
            max_pieces: MAX_PIECES,
            untracked: 0,
        }
    }

    /// Puts in a mapping of unknown origin that was there at the attach: `start..end` as in
    /// /proc/PID/maps, `heap` for the one of `brk`. Gives its bytes, less those already known.
    pub fn preexisting(&mut self, start: u64, end: u64, heap: bool) -> u64 {
        let kind = if heap { KIND_BRK } else { KIND_MMAP };
        let birth = Birth {
            stack: StackId(0),
            kind,
            cohort: 0,
        };
        let (start, end) = (self.page_down(start), self.page_up(end));
        let object = self.create(birth);
        let mut bytes = 0;
        let mut from = start;
        while from < end {
            if let Some(piece) = self.piece_at(from) {
                from = piece.end;
                continue;
            }
            let next = self
                .pieces
                .range(from..end)
                .next()
                .map_or(end, |(&start, _)| start);
            self.pieces.insert(
                from,
                Piece {
                    end: next,
                    object,
                    known: Ktime(0),
                },
            );
            bytes += next - from;
            from = next;
        }
        match self.objects.get_mut(&object) {
            Some(created) if bytes > 0 => created.bytes = bytes,
            _ => drop(self.objects.remove(&object)),
        }
        bytes
    }

    /// Tells where the program break stands before the first event: the end of `[heap]`, or where
    /// the heap will begin (field 47 of /proc/PID/stat). Without it the first call of `brk` only
    /// shows where the break is, and what it gained or gave back is not counted.
    pub fn program_break(&mut self, addr: u64) {
        self.program_break = Some(addr);
    }

    /// Begins an interval: mappings are born in it from now on.
    pub fn set_cohort(&mut self, cohort: u32) {
        self.cohort = cohort;
    }

    /// Replays one event and hands every change to `changed`. Other events than mmap, munmap,
    /// mremap and brk change nothing.
    pub fn apply(&mut self, event: &VmEvent, changed: &mut impl FnMut(Change)) {
        match event.event {
            EVENT_MMAP => self.mmap(event, changed),
            EVENT_MUNMAP => {
                let end = self.page_up(event.addr.saturating_add(event.len));
                self.unmap(event.addr, end, event.entered, changed);
            }
            EVENT_MREMAP => self.mremap(event, changed),
            EVENT_BRK => self.brk(event, changed),
            _ => {}
        }
    }

    /// Bytes mapped, preexisting ones included.
    pub fn live_bytes(&self) -> u64 {
        self.objects.values().map(|object| object.bytes).sum()
    }

    /// Mapping calls that could not be followed because there were too many pieces; neither their
    /// allocation nor their free was reported.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    fn mmap(&mut self, event: &VmEvent, changed: Sink) {
        let len = if event.flags & MAP_HUGETLB == 0 {
            self.page_up(event.len)
        } else {
            let huge_page = match event.flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK {
                0 => DEFAULT_HUGE_PAGE,
                log => 1_u64 << log,
            };
            event.len.saturating_add(huge_page - 1) & !(huge_page - 1)
        };
        let fixed = event.flags & MAP_FIXED != 0 && event.flags & MAP_FIXED_NOREPLACE == 0;
        let end = event.addr.saturating_add(len);
        self.make_room(event.addr, end, fixed, event.returned, changed);
        self.add(event.addr, end, KIND_MMAP, event, changed);
    }

    fn mremap(&mut self, event: &VmEvent, changed: Sink) {
        let (old, new) = (event.old_addr, event.addr);
        let (old_len, new_len) = (self.page_up(event.old_len), self.page_up(event.len));
        let kept = old_len.min(new_len);
        let (old_kept, new_kept) = (old.saturating_add(kept), new.saturating_add(kept));
        let (old_end, new_end) = (old.saturating_add(old_len), new.saturating_add(new_len));
        let fixed = event.flags & MREMAP_FIXED != 0;

        self.unmap(old_kept, old_end, event.entered, changed);
        if new == old {
            self.make_room(new_kept, new_end, fixed, event.returned, changed);
        } else {
            let mut moved = self.take(old, old_kept, Some(event.entered));
            moved.extend(self.bring_back(old, old_kept, event.entered, changed));
            self.make_room(new, new_end, fixed, event.returned, changed);
            for (start, piece) in moved {
                let place = |addr: u64| addr.wrapping_sub(old).saturating_add(new);
                let piece = Piece {
                    end: place(piece.end),
                    known: event.returned,
                    ..piece
                };
                self.pieces.insert(place(start), piece);
            }
            if event.flags & MREMAP_DONTUNMAP != 0 {
                self.make_room(old, old_kept, false, event.returned, changed);
                self.add(old, old_kept, KIND_MMAP, event, changed);
            }
        }
        self.add(new_kept, new_end, KIND_MMAP, event, changed);
    }

    fn brk(&mut self, event: &VmEvent, changed: Sink) {
        let Some(old) = self.program_break.replace(event.addr) else {
            return;
        };
        let (old, new) = (self.page_up(old), self.page_up(event.addr));
        self.unmap(new, old, event.entered, changed);
        self.make_room(old, new, false, event.returned, changed);
        self.add(old, new, KIND_BRK, event, changed);
    }

    /// Frees what lies in `start..end`, by rule 1.
    fn unmap(&mut self, start: u64, end: u64, entered: Ktime, changed: Sink) {
        for (start, piece) in self.take(start, end, Some(entered)) {
            self.free(piece.object, piece.end - start, changed);
        }
    }

    /// Frees all that lies in `start..end`, by rule 2 where no address was forced.
    fn make_room(&mut self, start: u64, end: u64, fixed: bool, at: Ktime, changed: Sink) {
        for (start, piece) in self.take(start, end, None) {
            if !fixed && let Some(object) = self.objects.get(&piece.object) {
                if self.displaced.len() == MAX_DISPLACED {
                    self.displaced.pop_front();
                }
                let (end, known, birth) = (piece.end, piece.known, object.birth);
                self.displaced.push_back(Displaced {
                    start,
                    end,
                    birth,
                    known,
                    at,
                });
            }
            self.free(piece.object, piece.end - start, changed);
        }
    }

    /// Undoes rule 2 for an `mremap` that was under way: pieces of `start..end` that it moved.
    fn bring_back(
        &mut self,
        start: u64,
        end: u64,
        entered: Ktime,
        changed: Sink,
    ) -> Vec<(u64, Piece)> {
        let mut back = Vec::new();
        for displaced in std::mem::take(&mut self.displaced) {
            let (from, to) = (displaced.start.max(start), displaced.end.min(end));
            let moved = displaced.known <= entered && entered <= displaced.at && from < to;
            if !moved {
                self.displaced.push_back(displaced);
                continue;
            }
            let Displaced { birth, known, .. } = displaced;
            let object = self.create(Birth {
                cohort: self.cohort,
                ..birth
            });
            self.grow(object, to - from, 1, changed);
            back.push((
                from,
                Piece {
                    end: to,
                    object,
                    known,
                },
            ));
        }
        back
    }

    /// Removes the pieces in `start..end`, cut to it; with `entered` only those that were known by
    /// then.
    fn take(&mut self, start: u64, end: u64, entered: Option<Ktime>) -> Vec<(u64, Piece)> {
        if start >= end {
            return Vec::new();
        }
        self.cut(start);
        self.cut(end);
        let taken: Vec<_> = self
            .pieces
            .range(start..end)
            .filter(|(_, piece)| entered.is_none_or(|entered| piece.known <= entered))
            .map(|(&start, &piece)| (start, piece))
            .collect();
        for (start, _) in &taken {
            self.pieces.remove(start);
        }
        taken
    }

    /// Makes `addr` a border between pieces.
    fn cut(&mut self, addr: u64) {
        if let Some((_, piece)) = self.pieces.range_mut(..addr).next_back()
            && piece.end > addr
        {
            let tail = *piece;
            piece.end = addr;
            self.pieces.insert(addr, tail);
        }
    }

    fn piece_at(&self, addr: u64) -> Option<Piece> {
        let (_, &piece) = self.pieces.range(..=addr).next_back()?;
        (piece.end > addr).then_some(piece)
    }

    /// A new mapping in `start..end`, where nothing is.
    fn add(&mut self, start: u64, end: u64, kind: u32, event: &VmEvent, changed: Sink) {
        if start >= end {
            return;
        }
        let birth = Birth {
            stack: event.stack,
            kind,
            cohort: self.cohort,
        };
        if self.pieces.len() >= self.max_pieces {
            let neighbour = self.pieces.range_mut(..start).next_back();
            match neighbour.filter(|(_, piece)| piece.end == start) {
                Some((_, piece))
                    if self
                        .objects
                        .get(&piece.object)
                        .is_some_and(|o| o.birth == birth) =>
                {
                    piece.end = end;
                    piece.known = event.returned;
                    let object = piece.object;
                    self.grow(object, end - start, 1, changed);
                }
                _ => self.untracked += 1,
            }
            return;
        }
        let object = self.create(birth);
        self.pieces.insert(
            start,
            Piece {
                end,
                object,
                known: event.returned,
            },
        );
        self.grow(object, end - start, 1, changed);
    }

    fn create(&mut self, birth: Birth) -> u64 {
        let id = self.next_object;
        self.next_object += 1;
        self.objects.insert(
            id,
            Object {
                birth,
                calls: 1,
                bytes: 0,
            },
        );
        id
    }

    fn grow(&mut self, object: u64, bytes: u64, calls: u64, changed: Sink) {
        let Some(object) = self.objects.get_mut(&object) else {
            return;
        };
        if object.bytes > 0 {
            object.calls += calls;
        }
        object.bytes += bytes;
        let Birth { stack, kind, .. } = object.birth;
        changed(Change::Alloc {
            stack,
            kind,
            objects: calls,
            bytes,
        });
    }

    fn free(&mut self, id: u64, bytes: u64, changed: Sink) {
        let Some(object) = self.objects.get_mut(&id) else {
            return;
        };
        object.bytes = object.bytes.saturating_sub(bytes);
        let Birth {
            stack,
            kind,
            cohort,
        } = object.birth;
        let objects = if object.bytes == 0 { object.calls } else { 0 };
        if object.bytes == 0 {
            self.objects.remove(&id);
        }
        changed(Change::Free {
            stack,
            kind,
            objects,
            bytes,
            cohort,
        });
    }

    fn page_up(&self, addr: u64) -> u64 {
        self.page_down(addr.saturating_add(self.page_size - 1))
    }

    fn page_down(&self, addr: u64) -> u64 {
        addr & !(self.page_size - 1)
    }
}
