//! The forward pass: from the roots over every object with pointers, breadth first, with the object
//! through which each was reached first. So a path read off the table is a shortest one.
//!
//! Four bytes an object for that table, and four for the queue. Objects without pointers need neither:
//! nothing is reached through them; only those that are asked for are noted.
//!
//! The program's own variables and stacks come before what the runtime has of its own (the list of
//! goroutines, that of processors with their timers, finalizers): a path through the program says more.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{Heap, Object, Root, Roots, word};
use crate::inventory::Watch;

/// Set in an entry of the table that is the index of a root.
const IS_ROOT: u32 = 1 << 31;
/// Bytes of objects read at a time.
const BATCH: u64 = 4 << 20;
/// Objects larger than this are read in pieces.
const PIECE: u64 = 256 << 10;
/// Roots kept; each is 16 bytes.
const MAX_ROOTS: usize = 1 << 22;
/// What is needed beside the tables: buffers and what is noted of the objects asked for.
const OVERHEAD: u64 = 48 << 20;

/// Why there is no pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The heap is too large for the memory that may be used.
    #[error(
        "the heap has places for {objects} objects with pointers: {needed} bytes of memory are \
         needed to follow them, {allowed} are allowed (--max-memory)"
    )]
    TooLarge {
        /// Places for objects with pointers.
        objects: u64,
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        allowed: u64,
    },
}

/// The table under construction.
pub struct Mark<'a> {
    heap: &'a Heap,
    watch: &'a Watch,
    /// By number of the object: 0, or the number of the object it was reached from plus one, or
    /// [`IS_ROOT`] and the index of a root.
    parents: Vec<u32>,
    /// Numbers of the objects reached, in the order in which they were.
    queue: Vec<u32>,
    roots: Vec<Root>,
    /// Objects without pointers that are asked for, and their entries.
    wanted: HashMap<Object, u32>,
    /// References that are not to be followed.
    not: &'a HashSet<Reference>,
    /// By span: whether any of `wanted` is in it.
    has_wanted: Vec<bool>,
    figures: Figures,
}

/// What was reached, and through what.
pub struct Marked<'a> {
    /// The heap.
    pub heap: &'a Heap,
    parents: Vec<u32>,
    roots: Vec<Root>,
    wanted: HashMap<Object, u32>,
    /// What it took.
    pub figures: Figures,
}

/// What a pass took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Objects with pointers that were reached.
    pub reached: u64,
    /// Bytes of objects that were looked at.
    pub scanned_bytes: u64,
    /// Bytes of objects that could not be read.
    pub unread_bytes: u64,
    /// Words of roots that were left out because there were too many.
    pub roots_dropped: u64,
    /// It was told to end before everything was looked at.
    pub is_cut: bool,
    /// How long it took.
    pub took: Duration,
}

impl<'a> Mark<'a> {
    /// Bytes that a pass over this heap needs at most.
    pub fn needed(heap: &Heap) -> u64 {
        8 * heap.objects() + heap.table_bytes() + heap.spans().len() as u64 + OVERHEAD
    }

    /// Nothing reached yet. `wanted` are objects whose paths will be asked for; what is in `not` is not
    /// followed; `watch` is told how it goes.
    ///
    /// # Errors
    ///
    /// The tables would take more than `max_memory` bytes.
    pub fn new(
        heap: &'a Heap,
        wanted: impl IntoIterator<Item = Object>,
        not: &'a HashSet<Reference>,
        max_memory: u64,
        watch: &'a Watch,
    ) -> Result<Self, MarkError> {
        let needed = Self::needed(heap);
        let objects = heap.objects();
        if needed > max_memory || objects >= u64::from(IS_ROOT) {
            return Err(MarkError::TooLarge {
                objects,
                needed,
                allowed: max_memory,
            });
        }
        let mut has_wanted = vec![false; heap.spans().len()];
        let without_pointers = |object: &Object| heap.number(*object).is_none();
        let wanted: HashMap<_, _> = wanted
            .into_iter()
            .filter(without_pointers)
            .map(|object| (object, 0))
            .collect();
        for object in wanted.keys() {
            has_wanted[object.span as usize] = true;
        }
        watch.begin(heap.bytes().1);
        Ok(Self {
            heap,
            watch,
            parents: vec![0; objects as usize],
            // Pages of it that are never reached are never there.
            queue: Vec::with_capacity(objects as usize),
            roots: Vec::new(),
            wanted,
            not,
            has_wanted,
            figures: Figures::default(),
        })
    }

    /// Goes from the roots to everything that they reach.
    pub fn run(mut self, roots: &Roots<'_>) -> Marked<'a> {
        let start = Instant::now();
        // What the structure of a goroutine or a processor refers to is told as that one's, not as
        // that of whoever leads to the structure.
        let gs: Vec<_> = roots
            .gs()
            .filter_map(|(root, at)| self.hold_back(Holder::Root(root), at))
            .collect();
        let ps: Vec<_> = roots
            .ps()
            .into_iter()
            .filter_map(|(holder, at)| self.hold_back(holder, at))
            .collect();
        let mut next = 0;
        roots.programs(|root, word| self.root(root, word));
        self.drain(&mut next);
        self.queue.extend(gs);
        self.drain(&mut next);
        self.queue.extend(ps);
        self.drain(&mut next);
        roots.runtimes(|root, word| self.root(root, word));
        self.drain(&mut next);
        roots.runtimes_stacks(|root, word| self.root(root, word));
        self.drain(&mut next);
        Marked {
            heap: self.heap,
            figures: Figures {
                reached: self.queue.len() as u64,
                took: start.elapsed(),
                is_cut: next < self.queue.len(),
                ..self.figures
            },
            parents: self.parents,
            roots: self.roots,
            wanted: self.wanted,
        }
    }

    /// Marks an object as reached without looking at it yet; gives its number.
    fn hold_back(&mut self, holder: Holder, address: u64) -> Option<u32> {
        let object = self.heap.object_at(address)?;
        let number = self.heap.number(object)?;
        if !self.is_new(object) || self.not.contains(&(holder, object)) {
            return None;
        }
        self.parents[number as usize] = match holder {
            Holder::Root(root) => self.root_entry(root)?,
            Holder::Object(holder) => self.heap.number(holder)? + 1,
        };
        Some(number)
    }

    fn root_entry(&mut self, root: Root) -> Option<u32> {
        if self.roots.last() != Some(&root) {
            if self.roots.len() >= MAX_ROOTS {
                self.figures.roots_dropped += 1;
                return None;
            }
            self.roots.push(root);
        }
        Some(IS_ROOT | (self.roots.len() - 1) as u32)
    }

    fn root(&mut self, root: Root, word: u64) {
        let Some(object) = self.heap.object_at(word) else {
            return;
        };
        if self.is_new(object)
            && (self.not.is_empty() || !self.not.contains(&(Holder::Root(root), object)))
            && let Some(entry) = self.root_entry(root)
        {
            self.reach(object, entry);
        }
    }

    fn may_follow(&self, holder: u32, object: Object) -> bool {
        let holder = Holder::Object(self.heap.numbered(holder));
        !self.not.contains(&(holder, object))
    }

    /// Whether it is of interest and was not reached yet.
    fn is_new(&self, object: Object) -> bool {
        match self.heap.number(object) {
            Some(number) => self.parents.get(number as usize) == Some(&0),
            None => self.has_wanted[object.span as usize] && self.wanted.get(&object) == Some(&0),
        }
    }

    fn reach(&mut self, object: Object, entry: u32) {
        match self.heap.number(object) {
            Some(number) => {
                self.parents[number as usize] = entry;
                self.queue.push(number);
            }
            None => {
                self.wanted.insert(object, entry);
            }
        }
    }

    /// Looks at everything in the queue from `next` on.
    fn drain(&mut self, next: &mut usize) {
        // How much of the first object has been looked at.
        let mut offset = 0;
        let mut pieces: Vec<(u32, (u64, usize))> = Vec::new();
        while *next < self.queue.len() && !self.watch.is_stopped() {
            pieces.clear();
            let mut bytes = 0;
            while bytes < BATCH
                && let Some(&number) = self.queue.get(*next)
            {
                let object = self.heap.numbered(number);
                let (address, size) = (self.heap.address(object), self.heap.size(object));
                let piece = (size - offset).min(PIECE);
                pieces.push((number, (address + offset, piece as usize)));
                bytes += piece;
                offset += piece;
                if offset >= size {
                    *next += 1;
                    offset = 0;
                }
            }
            self.look(&pieces);
            self.watch.add(bytes);
        }
    }

    fn look(&mut self, pieces: &[(u32, (u64, usize))]) {
        let ranges: Vec<_> = pieces.iter().map(|(_, range)| *range).collect();
        let read = self.heap.memory.read_each(&ranges);
        for (index, (number, (_, len))) in pieces.iter().enumerate() {
            let Some(bytes) = read.get(index) else {
                self.figures.unread_bytes += *len as u64;
                continue;
            };
            self.figures.scanned_bytes += *len as u64;
            for bytes in bytes.chunks_exact(8) {
                if let Some(object) = self.heap.object_at(word(bytes, 0))
                    && self.is_new(object)
                    && (self.not.is_empty() || self.may_follow(*number, object))
                {
                    self.reach(object, number + 1);
                }
            }
        }
    }
}

/// What an object was reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A root.
    Root(Root),
    /// Another object.
    Object(Object),
}

/// What refers to an object, and the object.
pub type Reference = (Holder, Object);

impl Marked<'_> {
    /// `None`: it was not reached.
    pub(super) fn holder(&self, object: Object) -> Option<Holder> {
        let entry = match self.heap.number(object) {
            Some(number) => *self.parents.get(number as usize)?,
            None => *self.wanted.get(&object)?,
        };
        match entry {
            0 => None,
            entry if entry & IS_ROOT != 0 => {
                let root = self.roots.get((entry & !IS_ROOT) as usize)?;
                Some(Holder::Root(*root))
            }
            entry => Some(Holder::Object(self.heap.numbered(entry - 1))),
        }
    }
}
