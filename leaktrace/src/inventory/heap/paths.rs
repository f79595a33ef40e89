//! Paths from roots to objects, read off the table and then checked: every edge is looked for in memory
//! once more, and every object on the way must still be one. A path that does not hold is not shown.

use std::{
    collections::{HashMap, HashSet},
    iter,
};

use super::{Holder, Holders, Object, Reference, Root, Roots, Types, word};

/// Bytes that an edge takes, with all that is noted of it.
const EDGE_BYTES: u64 = 320;
/// Edges kept at most, and at least.
const MAX_EDGES: u64 = 1 << 20;
const MIN_EDGES: u64 = 1 << 15;
/// Hops kept at each end of a path.
const HOPS_AT_ENDS: usize = 32;
/// Objects are read in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// An object on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The object.
    pub object: Object,
    /// Where the word is that refers to it.
    pub at: u64,
    /// The word before that; zero where that is not the program's.
    pub before: u64,
    /// Its own first word, if it has been read.
    pub first_word: Option<u64>,
    /// Whether the collector takes the word that refers to it for a pointer; `None`: not known.
    pub is_pointer: Option<bool>,
}

/// A path that holds: each hop refers to the next, the last is the object asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it begins.
    pub root: Root,
    /// From the root on; never empty.
    pub hops: Vec<Hop>,
    /// Of a long one the middle is left out: in front of which hop, and how many.
    pub gap: Option<(usize, u64)>,
}

/// What is known of why an object is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This path keeps it.
    Held(Path),
    /// No root leads to it: it waits to be collected, or is held by what is not looked at.
    Unreached,
    /// The path that was found does not hold any more.
    Moved,
    /// The object itself is gone.
    Gone,
    /// Its path was not followed to its end, or not checked: there is too much on the way.
    TooMany,
}

/// Whether the path to an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It does: the root, how many hops there are, and the last of those that are near the root.
    Held(Root, u32, Object),
    Moved,
    Unreached,
    TooMany,
}

/// An edge: what refers to an object.
#[derive(Clone, Copy, Debug)]
struct Edge {
    holder: Holder,
    /// Where it was found when it was looked for again.
    found: Option<(u64, u64)>,
    is_pointer: Option<bool>,
    first_word: Option<u64>,
    /// Whether the path to here holds, once that is known.
    verdict: Option<Verdict>,
}

/// Checked paths to some objects.
pub struct Paths<'a> {
    holders: &'a dyn Holders,
    max_edges: usize,
    edges: HashMap<Object, Edge>,
    /// Objects of paths that are not where they were.
    gone: HashSet<Object>,
}

impl<'a> Paths<'a> {
    /// Reads the paths to `targets` off the table and checks them, within `memory` bytes or ten
    /// megabytes.
    pub fn check(
        holders: &'a dyn Holders,
        roots: &Roots<'_>,
        types: Option<&Types<'_>>,
        targets: impl IntoIterator<Item = Object>,
        memory: u64,
    ) -> Self {
        let mut paths = Self {
            holders,
            max_edges: (memory / EDGE_BYTES).clamp(MIN_EDGES, MAX_EDGES) as usize,
            edges: HashMap::new(),
            gone: HashSet::new(),
        };
        let mut all = HashSet::new();
        for target in targets {
            all.insert(target);
            paths.collect(target);
        }
        all.extend(paths.edges.keys());
        paths.look_again(roots, types);
        paths.gone = holders.heap().empty(&all);
        paths
    }

    /// Takes in the edges of one path.
    fn collect(&mut self, target: Object) {
        let mut object = target;
        while self.edges.len() < self.max_edges && !self.edges.contains_key(&object) {
            let Some(holder) = self.holders.holder(object) else {
                return;
            };
            let edge = Edge {
                holder,
                found: None,
                is_pointer: None,
                first_word: None,
                verdict: None,
            };
            self.edges.insert(object, edge);
            match holder {
                Holder::Root(_) => return,
                Holder::Object(holder) => object = holder,
            }
        }
    }

    /// Looks for every edge in memory.
    fn look_again(&mut self, roots: &Roots<'_>, types: Option<&Types<'_>>) {
        let mut held: HashMap<Object, HashSet<Object>> = HashMap::new();
        let mut by_root: HashMap<Root, HashSet<Object>> = HashMap::new();
        for (object, edge) in &self.edges {
            match edge.holder {
                Holder::Root(root) => by_root.entry(root).or_default().insert(*object),
                Holder::Object(holder) => held.entry(holder).or_default().insert(*object),
            };
        }
        let heap = self.holders.heap();
        for (root, mut wanted) in by_root {
            for (at, word, is_sure) in roots.again(root).unwrap_or_default() {
                let Some(object) = heap.object_at(word) else {
                    continue;
                };
                if wanted.contains(&object)
                    && let Some(edge) = self.edges.get_mut(&object)
                {
                    // What lies before it on a stack may be anything.
                    let before = match root {
                        Root::Stack(_) => None,
                        _ => heap.memory.read_u64(at.wrapping_sub(8)).ok(),
                    };
                    edge.found = Some((at, before.unwrap_or(0)));
                    edge.is_pointer = is_sure.then_some(true);
                    if is_sure {
                        wanted.remove(&object);
                    }
                }
            }
        }
        for (holder, wanted) in held {
            self.look_in(holder, wanted, types);
        }
    }

    /// Looks in one object for those it holds.
    fn look_in(&mut self, holder: Object, mut wanted: HashSet<Object>, types: Option<&Types<'_>>) {
        let heap = self.holders.heap();
        let (address, size) = (heap.address(holder), heap.size(holder));
        let (mut before, mut first_word) = (0, 0);
        for offset in (0..size).step_by(PIECE as usize) {
            let mut bytes = vec![0; PIECE.min(size - offset) as usize];
            if wanted.is_empty() || heap.memory.read(address + offset, &mut bytes).is_err() {
                break;
            }
            for (index, bytes) in bytes.chunks_exact(8).enumerate() {
                let offset = offset + 8 * index as u64;
                let value = word(bytes, 0);
                if offset == 0 {
                    first_word = value;
                    if let Some(edge) = self.edges.get_mut(&holder) {
                        edge.first_word = Some(value);
                    }
                }
                if let Some(object) = heap.object_at(value)
                    && wanted.contains(&object)
                {
                    let is_pointer =
                        types.and_then(|types| types.is_pointer(holder, offset, first_word));
                    // A word that is none may stand before the one that is.
                    if is_pointer != Some(false) {
                        wanted.remove(&object);
                        if let Some(edge) = self.edges.get_mut(&object) {
                            edge.found = Some((address + offset, before));
                            edge.is_pointer = is_pointer;
                        }
                    }
                }
                // A header is no part of what the program has there.
                let is_header = offset == 0 && types.is_some_and(|types| types.has_header(holder));
                before = if is_header { 0 } else { value };
            }
        }
    }

    /// The references on the paths that are not there any more, that are none to the collector, or that are in what
    /// is no object any more.
    pub fn not_there(&self) -> impl Iterator<Item = Reference> + '_ {
        let is_dead = |holder| matches!(holder, Holder::Object(of) if self.gone.contains(&of));
        let edges = self.edges.iter();
        let edges = edges.filter(move |(_, edge)| edge.found.is_none() || is_dead(edge.holder));
        edges.map(|(object, edge)| (edge.holder, *object))
    }

    /// Why an object is alive.
    pub fn fate(&mut self, target: Object) -> Fate {
        if self.gone.contains(&target) {
            return Fate::Gone;
        }
        let (root, depth, anchor) = match self.verdict(target) {
            Verdict::Held(root, depth, anchor) => (root, depth as usize, anchor),
            Verdict::Moved => return Fate::Moved,
            Verdict::Unreached => return Fate::Unreached,
            Verdict::TooMany => return Fate::TooMany,
        };
        let (near, far) = match depth > 2 * HOPS_AT_ENDS {
            true => (HOPS_AT_ENDS, HOPS_AT_ENDS),
            false => (depth, 0),
        };
        let mut hops: Vec<Hop> = self.up(target).take(near).collect();
        hops.extend(self.up(anchor).take(far));
        hops.reverse();
        let gap = (far > 0).then(|| (far, (depth - near - far) as u64));
        Fate::Held(Path { root, hops, gap })
    }

    /// The hops from an object up to the root.
    fn up(&self, target: Object) -> impl Iterator<Item = Hop> + '_ {
        let mut next = Some(target);
        iter::from_fn(move || {
            let object = next?;
            let edge = self.edges.get(&object)?;
            let (at, before) = edge.found?;
            next = match edge.holder {
                Holder::Object(holder) => Some(holder),
                Holder::Root(_) => None,
            };
            Some(Hop {
                object,
                at,
                before,
                first_word: edge.first_word,
                is_pointer: edge.is_pointer,
            })
        })
    }

    /// Whether the path to an object holds. It is worked out for every object on the way.
    fn verdict(&mut self, target: Object) -> Verdict {
        let mut way = Vec::new();
        let mut object = target;
        let mut verdict = loop {
            let Some(edge) = self.edges.get(&object) else {
                break match self.holders.holder(object) {
                    None if !self.holders.is_unsure() => Verdict::Unreached,
                    _ => Verdict::TooMany,
                };
            };
            if let Some(known) = edge.verdict {
                break known;
            }
            if edge.found.is_none() || self.gone.contains(&object) {
                way.push(object);
                break Verdict::Moved;
            }
            way.push(object);
            match edge.holder {
                Holder::Object(holder) => object = holder,
                Holder::Root(root) => break Verdict::Held(root, 0, object),
            }
        };
        for object in way.into_iter().rev() {
            if let Verdict::Held(root, depth, anchor) = verdict {
                let is_near_root = (depth as usize) < HOPS_AT_ENDS;
                let anchor = if is_near_root { object } else { anchor };
                verdict = Verdict::Held(root, depth + 1, anchor);
            }
            if let Some(edge) = self.edges.get_mut(&object) {
                edge.verdict = Some(verdict);
            }
        }
        verdict
    }
}
