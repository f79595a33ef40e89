//! The backward search, for heaps whose table of objects would not fit into memory: from the objects asked for to
//! what refers to them, and on to what refers to that, until a root does.
//!
//! Which words refer to an object only a scan of the whole heap can tell. What a scan finds is looked for from there
//! on in the same scan, and the next one goes the other way, so that a path takes as many scans as it changes its
//! direction in memory, not as many as it has hops. All that refers to an object is kept until a root is found: of
//! those that were found first all may be garbage.
//!
//! Processors, goroutines that wait at a channel and goroutines' own structures are held back as in the forward pass: they
//! count once nothing else of the program leads to an object.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use super::{
    Figures, Heap, Holder, Holders, Object, Reference, Root, Roots, Types, types::pointers_in, word,
};
use crate::{inventory::Watch, target::Ranges};

/// Nothing.
const NONE: u32 = u32::MAX;
/// Set in what holds a node where that is the index of a root.
const IS_ROOT: u32 = 1 << 31;
/// Bytes read at a time.
const BATCH: u64 = 1 << 20;
/// What a node takes, with its place in the index and two references, while their tables grow.
const NODE_BYTES: u64 = 144;
const REFERENCES_A_NODE: usize = 2;
/// Nodes at least, or it is not worth an attempt.
const MIN_NODES: u64 = 1 << 16;
/// Nodes at most.
const MAX_NODES: u64 = 1 << 26;
/// Scans at most. Of a path that takes more it is said that it was not followed to its end.
const MAX_SCANS: u32 = 128;
/// What is needed beside the tables: buffers.
const OVERHEAD: u64 = 32 << 20;

/// Why there is no search.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the heap has {spans} spans: {needed} bytes of memory are needed to search it, {allowed} are allowed \
     (--max-memory)"
)]
pub struct TooLarge {
    /// Spans of the heap.
    spans: u64,
    /// Bytes needed.
    needed: u64,
    /// Bytes allowed.
    allowed: u64,
}

/// An object that is asked for, or that leads to one.
struct Node {
    object: Object,
    /// The node that holds it on a path from a root, or [`IS_ROOT`] and the index of that; [`NONE`] until one is
    /// found.
    holder: u32,
    /// The first of its references.
    first: u32,
    /// The scan that found it, and in which span; all of that scan behind it looks for it already.
    scan: u32,
    span: i32,
}

/// A reference of a node: to which, and the next one of the same node.
struct Edge {
    to: u32,
    next: u32,
}

/// The search.
pub struct Back<'a> {
    heap: &'a Heap,
    types: Option<&'a Types<'a>>,
    watch: &'a Watch,
    /// References that are not to be followed.
    not: &'a HashSet<Reference>,
    max_nodes: usize,
    nodes: Vec<Node>,
    index: HashMap<Object, u32>,
    edges: Vec<Edge>,
    roots: Vec<Root>,
    /// By span: whether any node is in it.
    has_nodes: Vec<bool>,
    /// Objects through which no path goes before all else was tried.
    held_back: HashSet<Object>,
    /// Objects asked for, the first of the nodes, and those of them that no root was found to lead to.
    asked: usize,
    open: usize,
    is_full: bool,
    figures: Figures,
}

impl<'a> Back<'a> {
    /// A search for what leads to `wanted`, within `max_memory` bytes; what is in `not` is not followed; `watch` is
    /// told how it goes.
    ///
    /// # Errors
    ///
    /// The heap's spans alone take more.
    pub fn new(
        (heap, types): (&'a Heap, Option<&'a Types<'a>>),
        wanted: impl IntoIterator<Item = Object>,
        not: &'a HashSet<Reference>,
        max_memory: u64,
        watch: &'a Watch,
    ) -> Result<Self, TooLarge> {
        let fixed = heap.table_bytes() + heap.spans().len() as u64 + OVERHEAD;
        let max_nodes = max_memory.saturating_sub(fixed) / NODE_BYTES;
        if max_nodes < MIN_NODES {
            return Err(TooLarge {
                spans: heap.spans().len() as u64,
                needed: fixed + MIN_NODES * NODE_BYTES,
                allowed: max_memory,
            });
        }
        let mut back = Self {
            heap,
            types,
            watch,
            not,
            max_nodes: max_nodes.min(MAX_NODES) as usize,
            nodes: Vec::new(),
            index: HashMap::new(),
            edges: Vec::new(),
            roots: Vec::new(),
            has_nodes: vec![false; heap.spans().len()],
            held_back: HashSet::new(),
            asked: 0,
            open: 0,
            is_full: false,
            figures: Figures {
                memory_bytes: fixed,
                ..Figures::default()
            },
        };
        for object in wanted {
            // The whole first scan looks for it.
            back.node(object, 1, -1);
        }
        back.asked = back.nodes.len();
        back.open = back.asked;
        Ok(back)
    }

    /// Goes from the objects back to what leads to them.
    pub fn run(mut self, roots: &Roots<'_>) -> Self {
        let start = Instant::now();
        let processors = roots.ps();
        let at = |address: u64| self.heap.object_at(address);
        let own: Vec<_> = roots.gs().filter_map(|(_, address)| at(address)).collect();
        self.held_back = own.into_iter().collect();
        self.held_back
            .extend(processors.iter().filter_map(|(_, address)| at(*address)));
        // Where those lie that the last scan has found: what is before them has not been looked at yet.
        let (mut scan, mut pending) = (0, Some(0));
        roots.programs_that_run(|root, word| self.root(root, word));
        while let Some(from) = pending
            && self.goes_on()
        {
            if scan == MAX_SCANS {
                self.is_full = true;
                break;
            }
            scan += 1;
            pending = self.scan(scan, from);
            roots.programs_that_run(|root, word| self.root(root, word));
        }
        // All that may lead to them is known now; the rest comes in the order of the forward pass.
        if self.goes_on() {
            for (holder, address) in processors.into_iter().rev() {
                self.own(holder, address);
            }
            let waiting = roots.waiting().keys().copied().collect();
            roots.stacks(&waiting, |root, word| self.root(root, word));
            for (root, address) in roots.gs() {
                self.own(Holder::Root(root), address);
            }
            roots.runtimes(|root, word| self.root(root, word));
            roots.runtimes_stacks(|root, word| self.root(root, word));
        }
        self.figures.backward_scans = Some(scan.into());
        self.figures.is_cut = self.open > 0 && self.watch.is_stopped();
        self.figures.reached = self.nodes.len() as u64;
        self.figures.memory_bytes += self.nodes.len() as u64 * NODE_BYTES;
        self.figures.took = start.elapsed();
        self
    }

    fn goes_on(&self) -> bool {
        self.open > 0 && !self.watch.is_stopped()
    }

    /// The number of an object's node, a new one if it has none; `None`: there is no room.
    fn node(&mut self, object: Object, scan: u32, span: i32) -> Option<u32> {
        if let Some(node) = self.index.get(&object) {
            return Some(*node);
        }
        if self.nodes.len() >= self.max_nodes {
            self.is_full = true;
            return None;
        }
        let number = self.nodes.len() as u32;
        self.nodes.push(Node {
            object,
            holder: NONE,
            first: NONE,
            scan,
            span,
        });
        self.index.insert(object, number);
        self.has_nodes[object.span as usize] = true;
        Some(number)
    }

    /// The node in which an address lies, if nothing that holds it is known yet.
    #[inline]
    fn wanted(&self, address: u64) -> Option<u32> {
        let object = self.heap.object_at(address)?;
        if !self.has_nodes[object.span as usize] {
            return None;
        }
        let node = *self.index.get(&object)?;
        (self.nodes[node as usize].holder == NONE).then_some(node)
    }

    /// A word of a root.
    fn root(&mut self, root: Root, word: u64) {
        if let Some(node) = self.wanted(word)
            && !self.leaves_out(Holder::Root(root), node)
        {
            self.hold_by_root(node, root);
        }
    }

    fn leaves_out(&self, holder: Holder, node: u32) -> bool {
        let object = self.nodes[node as usize].object;
        !self.not.is_empty() && self.not.contains(&(holder, object))
    }

    fn hold_by_root(&mut self, node: u32, root: Root) {
        self.roots.push(root);
        self.hold(node, IS_ROOT | (self.roots.len() - 1) as u32);
    }

    /// What holds a node is known now, so also what holds those that it leads to.
    fn hold(&mut self, node: u32, holder: u32) {
        let mut found = vec![(node, holder)];
        while let Some((number, holder)) = found.pop() {
            let node = &mut self.nodes[number as usize];
            if node.holder != NONE {
                continue;
            }
            node.holder = holder;
            self.open -= usize::from((number as usize) < self.asked);
            let mut next = node.first;
            while let Some(edge) = self.edges.get(next as usize) {
                found.push((edge.to, number));
                next = edge.next;
            }
        }
    }

    /// Notes that one node refers to another.
    fn edge(&mut self, holder: u32, to: u32) {
        if self.nodes[holder as usize].holder != NONE {
            return self.hold(to, holder);
        }
        let first = self.nodes[holder as usize].first;
        let is_there = self.edges.get(first as usize);
        if is_there.is_some_and(|edge| edge.to == to) {
            return;
        }
        if self.edges.len() >= REFERENCES_A_NODE * self.max_nodes {
            self.is_full = true;
            return;
        }
        self.nodes[holder as usize].first = self.edges.len() as u32;
        self.edges.push(Edge { to, next: first });
    }

    /// Goes through the heap from a span on, upwards in scans of an odd number, else down. Gives the span from which
    /// the next one is to go; `None`: it would find nothing new.
    fn scan(&mut self, scan: u32, from: u32) -> Option<u32> {
        let is_up = is_up(scan);
        let known = self.nodes.len();
        let heap = self.heap;
        let first = heap.scannable.partition_point(|span| *span < from);
        let spans: Vec<u32> = match is_up {
            true => heap.scannable[first..].to_vec(),
            false => {
                let end = heap.scannable.partition_point(|span| *span <= from);
                heap.scannable[..end].iter().rev().copied().collect()
            }
        };
        let bytes = spans.iter().map(|span| heap.spans[*span as usize].bytes);
        self.watch.begin(bytes.sum());
        let mut pieces = spans
            .iter()
            .flat_map(|span| pieces_of(heap, *span, is_up))
            .peekable();
        let (mut batch, mut ranges, mut read) = (Vec::new(), Vec::new(), Ranges::default());
        while pieces.peek().is_some() && self.goes_on() {
            batch.clear();
            ranges.clear();
            let mut bytes = 0;
            while bytes < BATCH
                && let Some((span, address, len)) = pieces.next()
            {
                batch.push(span);
                ranges.push((address, len));
                bytes += len as u64;
            }
            heap.memory.read_each_into(&ranges, &mut read);
            self.types.iter().for_each(|types| types.anew());
            for (index, (span, (address, len))) in batch.iter().zip(&ranges).enumerate() {
                match read.get(index) {
                    Some(bytes) => {
                        self.figures.scanned_bytes += bytes.len() as u64;
                        self.look(scan, *span, *address, bytes);
                    }
                    None => self.figures.unread_bytes += *len as u64,
                }
            }
            self.watch.add(bytes);
        }
        let found = self.nodes[known..].iter();
        let spans = found
            .filter(|node| node.scan == scan)
            .map(|node| node.span as u32);
        if is_up { spans.max() } else { spans.min() }
    }

    /// Looks for nodes in the words of a piece of a span.
    fn look(&mut self, scan: u32, span: u32, address: u64, bytes: &[u8]) {
        let words = bytes.chunks_exact(8).enumerate();
        let look = |(index, bytes): (usize, &[u8])| {
            if let Some(node) = self.wanted(word(bytes, 0))
                && self.nodes[node as usize].is_new_to(scan, span)
            {
                self.refers(scan, address + 8 * index as u64, node);
            }
        };
        if is_up(scan) {
            words.for_each(look);
        } else {
            words.rev().for_each(look);
        }
    }

    /// The word at an address refers to a node.
    fn refers(&mut self, scan: u32, at: u64, node: u32) {
        if let Some(holder) = self.heap.object_at(at)
            && holder != self.nodes[node as usize].object
            && !self.held_back.contains(&holder)
            && (self.index.contains_key(&holder) || !self.heap.is_empty(holder))
            && self.may_be_pointer(holder, at)
            && !self.leaves_out(Holder::Object(holder), node)
            && let Some(holder) = self.node(holder, scan, holder.span as i32)
        {
            self.edge(holder, node);
        }
    }

    /// Whether the collector may take a word of an object for a pointer. Each false one would lead to more.
    fn may_be_pointer(&self, object: Object, at: u64) -> bool {
        let is_pointer = self.types.and_then(|types| {
            let first_word = match types.has_header(object) {
                true => self.heap.first_word(object).ok()?,
                false => 0,
            };
            types.is_pointer(object, at - self.heap.address(object), first_word)
        });
        is_pointer != Some(false)
    }

    /// Looks at an object that was held back.
    fn own(&mut self, holder: Holder, address: u64) {
        let Some(object) = self.heap.object_at(address) else {
            return;
        };
        for word in pointers_in(self.heap, self.types, object).unwrap_or_default() {
            if let Some(node) = self.wanted(word)
                && self.nodes[node as usize].object != object
                && !self.leaves_out(Holder::Object(object), node)
                && let Some(number) = self.node(object, 0, 0)
            {
                self.edge(number, node);
            }
        }
        let is_node = |back: &Self, object: &Object| back.index.get(object).copied();
        match (is_node(self, &object), holder) {
            (Some(node), Holder::Root(root)) => self.hold_by_root(node, root),
            // The list of processors, whose root comes first.
            (Some(node), Holder::Object(list)) => {
                if let Some(list) = self.node(list, 0, 0) {
                    self.edge(list, node);
                }
            }
            (None, _) => {}
        }
    }
}

impl Node {
    /// Whether what is in a span was not yet looked at for it.
    fn is_new_to(&self, scan: u32, span: u32) -> bool {
        match scan.checked_sub(self.scan) {
            Some(0) => true,
            Some(1) if is_up(self.scan) => i64::from(span) <= i64::from(self.span),
            Some(1) => i64::from(span) >= i64::from(self.span),
            _ => false,
        }
    }
}

fn is_up(scan: u32) -> bool {
    scan % 2 == 1
}

/// The parts of a span that are read at a time, in order or from its end: span, address, bytes.
fn pieces_of(
    heap: &Heap,
    span: u32,
    is_up: bool,
) -> impl Iterator<Item = (u32, u64, usize)> + use<> {
    let of = heap.spans[span as usize];
    let len = (of.object_size * u64::from(of.slots)) & !7;
    let count = len.div_ceil(BATCH);
    (0..count).map(move |place| {
        let place = if is_up { place } else { count - 1 - place };
        let offset = place * BATCH;
        (span, of.start + offset, (len - offset).min(BATCH) as usize)
    })
}

impl Holders for Back<'_> {
    fn heap(&self) -> &Heap {
        self.heap
    }

    fn figures(&self) -> Figures {
        self.figures
    }

    fn is_unsure(&self) -> bool {
        self.is_full
    }

    fn holder(&self, object: Object) -> Option<Holder> {
        let node = &self.nodes[*self.index.get(&object)? as usize];
        match node.holder {
            NONE => None,
            holder if holder & IS_ROOT != 0 => {
                let root = self.roots.get((holder & !IS_ROOT) as usize)?;
                Some(Holder::Root(*root))
            }
            holder => Some(Holder::Object(self.nodes.get(holder as usize)?.object)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scan_looks_at_what_the_one_before_has_not() {
        let node = |scan, span| Node {
            object: Object { span: 0, slot: 0 },
            holder: NONE,
            first: NONE,
            scan,
            span,
        };
        // Found in span 5 on the way up: what is below, and the rest of that span, by the way down.
        let up = node(1, 5);
        let new = |node: &Node, scan: u32| {
            Vec::from_iter((3..8_u32).filter(|span| node.is_new_to(scan, *span)))
        };
        assert_eq!(new(&up, 1), [3, 4, 5, 6, 7]);
        assert_eq!(new(&up, 2), [3, 4, 5]);
        assert!(new(&up, 3).is_empty());
        let down = node(2, 5);
        assert_eq!(new(&down, 3), [5, 6, 7]);
        assert!(new(&down, 4).is_empty());
        // Of what was asked for the first scan misses nothing.
        assert!(new(&node(1, -1), 2).is_empty());
    }
}
