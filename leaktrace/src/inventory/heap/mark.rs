//! The forward pass: from the roots over every object with pointers, breadth first, with the object
//! through which each was reached first. So a path read off the table is a shortest one.
//!
//! Four bytes an object for that table, and four while it waits to be looked at. Objects without pointers need
//! neither: nothing is reached through them; only those that are asked for are noted.
//!
//! The program's own variables and stacks come before what the runtime has of its own (the list of
//! goroutines, that of processors with their timers, finalizers): a path through the program says more.
//!
//! Goroutines that wait at a channel are let in once somebody else has reached it, as the runtime's own search for
//! leaked ones does (runtime/mgc.go, `findMaybeRunnableGoroutines`, Go 1.26), with their processors' timers
//! before. Those that remain wait for what nobody will do: they come after, so what only they hold is told as theirs.

use std::{
    collections::{HashMap, HashSet},
    iter,
    time::Instant,
};

use super::{
    Figures, Heap, Holder, Holders, Object, Reference, Root, Roots, Types, near::Near,
    types::pointers_in, word,
};
use crate::{go::layout::Span as Offsets, inventory::Watch, target::Ranges};

/// Set in an entry of the table that is the index of a root.
const IS_ROOT: u32 = 1 << 31;
/// Bytes of objects read at a time: few enough to be still in the cache when they are looked at. Four times as many
/// take a quarter longer.
const BATCH: u64 = 1 << 20;
/// Objects larger than this are read in pieces.
const PIECE: u64 = 256 << 10;
/// So few are read one by one.
const FEW: usize = 8;
/// Bytes between two looks at how fast it may go.
const STEP: u64 = 64 << 10;
/// Entries of a chunk of the table.
const CHUNK: usize = 1 << 16;
/// Roots kept; each is 16 bytes.
const MAX_ROOTS: usize = 1 << 22;
/// What is needed beside the tables: buffers and what is noted of the objects asked for.
const OVERHEAD: u64 = 48 << 20;

/// The table under construction.
pub struct Mark<'a> {
    heap: &'a Heap,
    roots_of: &'a Roots<'a>,
    types: Option<&'a Types<'a>>,
    watch: &'a Watch,
    max_memory: u64,
    /// By number of the object: 0, or the number of the object it was reached from plus one, or
    /// [`IS_ROOT`] and the index of a root.
    parents: Table,
    /// Numbers of the objects that are looked at now: all that are equally far from a root.
    level: Vec<u32>,
    /// Those that were reached meanwhile.
    found: Vec<u32>,
    roots: Vec<Root>,
    /// Objects without pointers that are asked for, and their entries.
    wanted: HashMap<Object, u32>,
    /// References that are not to be followed.
    not: &'a HashSet<Reference>,
    /// By span: whether any of `wanted` is in it.
    has_wanted: Vec<bool>,
    batch: Batch,
    near: Near<{ Offsets::PAGE_SIZE as usize }>,
    /// Bytes looked at that `watch` does not know of yet.
    untold: u64,
    figures: Figures,
    is_full: bool,
}

/// What was reached, and through what.
pub struct Marked<'a> {
    heap: &'a Heap,
    parents: Table,
    roots: Vec<Root>,
    wanted: HashMap<Object, u32>,
    forgotten: HashSet<u64>,
    figures: Figures,
}

/// A word for each object, zero at first; only where one was set there is memory.
struct Table {
    chunks: Vec<Option<Box<[u32]>>>,
    bytes: u64,
}

impl Table {
    fn new(len: u64) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with(len.div_ceil(CHUNK as u64) as usize, || None);
        Self { chunks, bytes: 0 }
    }

    #[inline]
    fn get(&self, index: u32) -> u32 {
        let chunk = self.chunks.get(index as usize / CHUNK);
        let chunk = chunk.and_then(Option::as_ref);
        chunk.map_or(0, |chunk| chunk[index as usize % CHUNK])
    }

    #[inline]
    fn set(&mut self, index: u32, value: u32) {
        if let Some(chunk) = self.chunks.get_mut(index as usize / CHUNK) {
            let chunk = chunk.get_or_insert_with(|| {
                self.bytes += 4 * CHUNK as u64;
                iter::repeat_n(0, CHUNK).collect()
            });
            chunk[index as usize % CHUNK] = value;
        }
    }
}

/// Objects or pieces of large ones that are read at a time.
#[derive(Default)]
struct Batch {
    numbers: Vec<u32>,
    ranges: Vec<(u64, usize)>,
    read: Ranges,
}

impl Batch {
    fn clear(&mut self) {
        self.numbers.clear();
        self.ranges.clear();
    }

    fn push(&mut self, number: u32, range: (u64, usize)) {
        self.numbers.push(number);
        self.ranges.push(range);
    }
}

impl<'a> Mark<'a> {
    /// Whether a pass within so many bytes is worth an attempt: of the places for objects half may have one.
    pub fn may_fit(heap: &Heap, max_memory: u64) -> bool {
        let objects = heap.objects();
        let least = heap.table_bytes() + OVERHEAD + 4 * objects / 2;
        least <= max_memory && objects < u64::from(IS_ROOT)
    }

    /// Nothing reached yet from `roots`. `wanted` are objects whose paths will be asked for; what is in `not` is not
    /// followed; `watch` is told how it goes.
    pub fn new(
        heap: &'a Heap,
        (roots, types): (&'a Roots<'a>, Option<&'a Types<'a>>),
        wanted: impl IntoIterator<Item = Object>,
        not: &'a HashSet<Reference>,
        max_memory: u64,
        watch: &'a Watch,
    ) -> Self {
        let mut has_wanted = vec![false; heap.spans().len()];
        let without_pointers = |object: &Object| heap.number(*object).is_none();
        let channels = roots.waiting().values();
        let channels = channels.filter_map(|at| heap.object_at(*at));
        let wanted: HashMap<_, _> = wanted
            .into_iter()
            .chain(channels)
            .filter(without_pointers)
            .map(|object| (object, 0))
            .collect();
        for object in wanted.keys() {
            has_wanted[object.span as usize] = true;
        }
        watch.begin(heap.bytes().1);
        Self {
            heap,
            roots_of: roots,
            types,
            watch,
            max_memory,
            parents: Table::new(heap.objects()),
            level: Vec::new(),
            found: Vec::new(),
            roots: Vec::new(),
            wanted,
            not,
            has_wanted,
            batch: Batch::default(),
            near: Near::default(),
            untold: 0,
            figures: Figures::default(),
            is_full: false,
        }
    }

    /// Bytes of memory that it takes.
    fn memory(&self) -> u64 {
        let queues = 4 * (self.level.capacity() + self.found.capacity());
        self.heap.table_bytes() + self.parents.bytes + queues as u64 + OVERHEAD
    }

    /// Goes from the roots to everything that they reach. `None`: the memory allowed does not suffice.
    pub fn run(mut self) -> Option<Marked<'a>> {
        let start = Instant::now();
        let roots = self.roots_of;
        // What the structure of a goroutine or a processor refers to is told as that one's, not as
        // that of whoever leads to the structure.
        let mut gs: HashMap<Root, u32> = roots
            .gs()
            .filter_map(|(root, at)| Some((root, self.hold_back(Holder::Root(root), at)?)))
            .collect();
        let ps: Vec<_> = roots
            .ps()
            .into_iter()
            .filter_map(|(holder, at)| self.hold_back(holder, at))
            .collect();
        let mut left: HashSet<u32> = roots.waiting().keys().copied().collect();
        roots.programs_that_run(|root, word| self.root(root, word));
        self.drain();
        self.let_in(&mut left, &mut gs);
        let waits = |root: &Root| matches!(root, Root::Goroutine(place) if left.contains(place));
        let run = gs.extract_if(|root, _| !waits(root));
        self.found.extend(run.map(|(_, number)| number));
        self.drain();
        for number in ps {
            self.look_by_type(number);
        }
        self.drain();
        self.let_in(&mut left, &mut gs);
        // Their channels nobody can reach but they themselves, and others like them.
        let mut forgotten: HashSet<u64> = left.iter().map(|place| roots.waiting()[place]).collect();
        roots.stacks(&left, |root, word| self.root(root, word));
        self.drain();
        self.found.extend(gs.into_values());
        self.drain();
        roots.runtimes(|root, word| self.root(root, word));
        self.drain();
        roots.runtimes_stacks(|root, word| self.root(root, word));
        self.drain();
        let figures = Figures {
            memory_bytes: self.memory(),
            took: start.elapsed(),
            ..self.figures
        };
        // Whoever does not wait any more was woken.
        let waited: Vec<u32> = roots.waiting().keys().copied().collect();
        for (place, stands) in waited.iter().zip(roots.stands_still(&waited)) {
            if !stands {
                forgotten.remove(&roots.waiting()[place]);
            }
        }
        let is_whole = !figures.is_cut && figures.roots_dropped == 0 && roots.are_all_read();
        (!self.is_full).then_some(Marked {
            heap: self.heap,
            figures,
            parents: self.parents,
            roots: self.roots,
            wanted: self.wanted,
            forgotten: if is_whole { forgotten } else { HashSet::new() },
        })
    }

    /// Goes on from the stacks of goroutines whose channel has been reached, so that somebody may wake them, and
    /// takes them from those that are left, until the channels of these are reached by nobody.
    fn let_in(&mut self, left: &mut HashSet<u32>, gs: &mut HashMap<Root, u32>) {
        let waiting = self.roots_of.waiting();
        loop {
            let is_reached = |place: &u32| {
                let channel = waiting.get(place).and_then(|at| self.heap.object_at(*at));
                // One that is no object is the program's or the runtime's own.
                channel.is_none_or(|channel| !self.is_new(channel))
            };
            let known: HashSet<u32> = left.iter().copied().filter(is_reached).collect();
            if known.is_empty() {
                return;
            }
            left.retain(|place| !known.contains(place));
            self.roots_of
                .stacks(&known, |root, word| self.root(root, word));
            let of = known.into_iter().map(Root::Goroutine);
            self.found.extend(of.filter_map(|root| gs.remove(&root)));
            self.drain();
        }
    }

    /// Marks an object as reached without looking at it yet; gives its number.
    fn hold_back(&mut self, holder: Holder, address: u64) -> Option<u32> {
        let object = self.heap.object_at(address)?;
        let number = self.heap.number(object)?;
        if !self.is_new(object) || self.not.contains(&(holder, object)) {
            return None;
        }
        let entry = match holder {
            Holder::Root(root) => self.root_entry(root)?,
            Holder::Object(holder) => self.heap.number(holder)? + 1,
        };
        self.parents.set(number, entry);
        self.figures.reached += 1;
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
            Some(number) => self.parents.get(number) == 0,
            None => self.has_wanted[object.span as usize] && self.wanted.get(&object) == Some(&0),
        }
    }

    fn reach(&mut self, object: Object, entry: u32) {
        match self.heap.number(object) {
            Some(number) => {
                self.parents.set(number, entry);
                self.found.push(number);
                self.figures.reached += 1;
            }
            None => {
                self.wanted.insert(object, entry);
            }
        }
    }

    /// Looks at everything that was reached, level by level, each in the order of addresses: what lies together is
    /// read together, and what it refers to often does so too.
    fn drain(&mut self) {
        let mut object = Object { span: 0, slot: 0 };
        while !self.found.is_empty() {
            self.level.clear();
            std::mem::swap(&mut self.level, &mut self.found);
            self.level.sort_unstable();
            // How many of them have been looked at, and how much of the next.
            let (mut next, mut offset) = (0, 0);
            while next < self.level.len() {
                self.is_full |= self.memory() > self.max_memory;
                if self.is_full || self.watch.is_stopped() {
                    self.figures.is_cut = true;
                    return;
                }
                self.batch.clear();
                let mut bytes = 0;
                while bytes < BATCH
                    && let Some(&number) = self.level.get(next)
                {
                    object = self.heap.numbered_near(number, object);
                    let (address, size) = (self.heap.address(object), self.heap.size(object));
                    let piece = (size - offset).min(PIECE);
                    self.batch.push(number, (address + offset, piece as usize));
                    bytes += piece;
                    offset += piece;
                    if offset >= size {
                        next += 1;
                        offset = 0;
                    }
                }
                self.look();
                self.untold += bytes;
                if self.untold >= STEP {
                    self.watch.add(std::mem::take(&mut self.untold));
                    // It may have waited.
                    self.near.forget();
                }
            }
        }
    }

    /// Looks at the pointers of one object only, where its type is known: a processor has buffers of addresses that
    /// mean nothing any more.
    fn look_by_type(&mut self, number: u32) {
        let object = self.heap.numbered(number);
        let bytes = self.heap.size(object);
        let Ok(words) = pointers_in(self.heap, self.types, object) else {
            self.figures.unread_bytes += bytes;
            return;
        };
        self.figures.scanned_bytes += bytes;
        for word in words {
            if let Some(to) = self.heap.object_at(word)
                && self.is_new(to)
                && (self.not.is_empty() || self.may_follow(number, to))
            {
                self.reach(to, number + 1);
            }
        }
    }

    fn look(&mut self) {
        let (mut batch, mut near) = (
            std::mem::take(&mut self.batch),
            std::mem::take(&mut self.near),
        );
        let memory = &self.heap.memory;
        let are_few = batch.ranges.len() <= FEW;
        if !are_few {
            memory.read_each_into(&batch.ranges, &mut batch.read);
        }
        for (index, (number, (at, len))) in batch.numbers.iter().zip(&batch.ranges).enumerate() {
            let bytes = match are_few {
                true => near.read(memory, *at, *len),
                false => batch.read.get(index),
            };
            let Some(bytes) = bytes else {
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
        (self.batch, self.near) = (batch, near);
    }
}

impl Holders for Marked<'_> {
    fn heap(&self) -> &Heap {
        self.heap
    }

    fn figures(&self) -> Figures {
        self.figures
    }

    fn is_unsure(&self) -> bool {
        false
    }

    fn forgotten(&self) -> HashSet<u64> {
        self.forgotten.clone()
    }

    fn holder(&self, object: Object) -> Option<Holder> {
        let entry = match self.heap.number(object) {
            Some(number) => self.parents.get(number),
            None => *self.wanted.get(&object)?,
        };
        match entry {
            0 => None,
            entry if entry & IS_ROOT != 0 => {
                let root = self.roots.get((entry & !IS_ROOT) as usize)?;
                Some(Holder::Root(*root))
            }
            entry => Some(Holder::Object(self.heap.numbered_near(entry - 1, object))),
        }
    }
}
