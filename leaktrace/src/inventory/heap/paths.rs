//! Paths from roots to objects, read off the table and then checked: every edge is looked for in memory
//! once more, and every object on the way must still be one. A path that does not hold is not shown.
//!
//! Edges near the ends of a path are kept, since they are shown. Of those between, of which a long list has millions, a
//! bit says that they have been looked for, and those that do not hold are noted.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    iter,
};

use super::{
    Holder, Holders, Object, Reference, Root, Roots, Types,
    again::{Between, Found, look_again},
};
use crate::inventory::Watch;

/// Bytes that an edge takes, with all that is noted of it.
const EDGE_BYTES: u64 = 320;
/// Edges kept at most, and at least.
const MAX_EDGES: u64 = 1 << 20;
const MIN_EDGES: u64 = 1 << 15;
/// Hops kept at each end of a path.
const HOPS_AT_ENDS: usize = 32;
/// Edges looked for at a time.
const BATCH: usize = 1 << 16;
/// So many more between the ends are looked for after somebody has said that it is enough.
const ENOUGH: u64 = 1 << 20;
/// Of one in so many objects between the ends it is noted whether the path to it holds.
const MILESTONE: u32 = 1 << 10;

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
    Held(Root, u64, Object),
    Moved,
    Unreached,
    TooMany,
}

/// Where on a path an edge is.
enum Place {
    /// Near an end.
    Kept,
    /// Near none.
    Between,
    /// It was not taken in.
    Unknown,
}

/// An edge: what refers to an object.
#[derive(Clone, Copy, Debug)]
struct Edge {
    holder: Holder,
    /// Where it was found when it was looked for again.
    found: Option<(u64, u64)>,
    is_pointer: Option<bool>,
    first_word: Option<u64>,
}

/// Checked paths to some objects.
pub struct Paths<'a> {
    holders: &'a dyn Holders,
    types: Option<&'a Types<'a>>,
    watch: &'a Watch,
    max_edges: usize,
    /// Edges near an end, by the object to which they lead; and the objects that have numbers.
    edges: HashMap<Object, Edge>,
    kept: Bits,
    /// Objects to which edges lead that are near no end, how many, and those edges that were not looked for yet.
    between: Bits,
    count: u64,
    pending: Vec<Between>,
    /// Those that do not hold.
    broken: HashSet<Object>,
    /// What is known of paths to some objects on the way.
    known: HashMap<Object, Verdict>,
    /// Objects asked for that are none any more.
    gone: HashSet<Object>,
    is_cut: bool,
}

/// A bit for each object that has a number.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u64) -> Self {
        Self(vec![0; len.div_ceil(64) as usize])
    }

    #[inline]
    fn get(&self, number: u32) -> bool {
        self.0[number as usize / 64] >> (number % 64) & 1 == 1
    }

    fn set(&mut self, number: u32, is_set: bool) {
        let bit = 1 << (number % 64);
        match is_set {
            true => self.0[number as usize / 64] |= bit,
            false => self.0[number as usize / 64] &= !bit,
        }
    }
}

impl<'a> Paths<'a> {
    /// Reads the paths to `targets` off the table and checks them, within `memory` bytes or ten
    /// megabytes. If `watch` has been told that it is enough, not all of long ones are followed.
    pub fn check(
        holders: &'a dyn Holders,
        (roots, types): (&Roots<'_>, Option<&'a Types<'a>>),
        targets: impl IntoIterator<Item = Object>,
        memory: u64,
        watch: &'a Watch,
    ) -> Self {
        let mut paths = Self::new(holders, types, memory, watch);
        let targets: Vec<Object> = targets.into_iter().collect();
        for target in &targets {
            paths.collect(*target);
        }
        paths.look_between();
        paths.look_from_objects();
        paths.look_from_roots(roots);
        paths.gone = holders.heap().empty(&targets);
        paths
    }

    fn new(
        holders: &'a dyn Holders,
        types: Option<&'a Types<'a>>,
        memory: u64,
        watch: &'a Watch,
    ) -> Self {
        let objects = holders.heap().objects();
        Self {
            holders,
            types,
            watch,
            max_edges: (memory / EDGE_BYTES).clamp(MIN_EDGES, MAX_EDGES) as usize,
            edges: HashMap::new(),
            kept: Bits::new(objects),
            between: Bits::new(objects),
            count: 0,
            pending: Vec::new(),
            broken: HashSet::new(),
            known: HashMap::new(),
            gone: HashSet::new(),
            is_cut: false,
        }
    }

    /// Whether it ended before all was looked for.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Takes in the edges of one path.
    fn collect(&mut self, target: Object) {
        // The last ones: whether they are near the root is not known yet.
        let mut way: VecDeque<(Object, Holder)> = VecDeque::new();
        let (mut object, mut hops) = (target, 0);
        while self.has_room() {
            let is_near = hops < HOPS_AT_ENDS;
            match self.place(object) {
                Place::Kept if !is_near => break,
                Place::Between if !is_near => {
                    way.drain(..).for_each(|edge| self.pass(edge));
                    break;
                }
                _ => {}
            }
            let Some(holder) = self.holders.holder(object) else {
                break;
            };
            if is_near {
                self.keep(object, holder);
            } else {
                way.push_back((object, holder));
                if way.len() > HOPS_AT_ENDS
                    && let Some(edge) = way.pop_front()
                {
                    self.pass(edge);
                }
            }
            match holder {
                Holder::Root(_) => break,
                Holder::Object(holder) => object = holder,
            }
            hops += 1;
        }
        for (object, holder) in way {
            self.keep(object, holder);
        }
    }

    fn has_room(&mut self) -> bool {
        self.is_cut |= self.count > ENOUGH && self.watch.is_stopped();
        !self.is_cut && self.edges.len() + self.broken.len() < self.max_edges
    }

    fn number(&self, object: Object) -> Option<u32> {
        self.holders.heap().number(object)
    }

    /// Where the edge to an object is on its path, if it was taken in.
    fn place(&self, object: Object) -> Place {
        match self.number(object) {
            Some(number) if self.between.get(number) => Place::Between,
            Some(number) if self.kept.get(number) => Place::Kept,
            None if self.edges.contains_key(&object) => Place::Kept,
            _ => Place::Unknown,
        }
    }

    /// Takes in an edge near an end.
    fn keep(&mut self, object: Object, holder: Holder) {
        if let Some(number) = self.number(object) {
            self.kept.set(number, true);
            self.between.set(number, false);
        }
        self.edges.entry(object).or_insert(Edge {
            holder,
            found: None,
            is_pointer: None,
            first_word: None,
        });
    }

    /// Takes in an edge that is near no end.
    fn pass(&mut self, (object, holder): (Object, Holder)) {
        let (Some(number), Holder::Object(holder)) = (self.number(object), holder) else {
            return self.keep(object, holder);
        };
        self.between.set(number, true);
        self.count += 1;
        self.pending.push((holder, object));
        if self.pending.len() >= BATCH {
            self.look_between();
        }
    }

    /// Looks for the edges between the ends that were taken in.
    fn look_between(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable();
        let found = self.look_for(&pending);
        let lost = pending.iter().zip(found);
        let lost = lost.filter(|(_, found)| found.is_none());
        self.broken.extend(lost.map(|((_, object), _)| *object));
        pending.clear();
        self.pending = pending;
    }

    /// Looks for edges, which are in order, in memory, and whether what they begin at is an object still.
    fn look_for(&self, edges: &[Between]) -> Vec<Option<Found>> {
        let heap = self.holders.heap();
        let mut found = look_again(heap, self.types, edges);
        let mut holders: Vec<Object> = edges.iter().map(|(holder, _)| *holder).collect();
        holders.dedup();
        let gone = heap.empty(&holders);
        for ((holder, _), found) in edges.iter().zip(&mut found) {
            if !gone.is_empty() && gone.contains(holder) {
                *found = None;
            }
        }
        self.watch.pause();
        found
    }

    /// Looks for the edges near the ends that begin at an object.
    fn look_from_objects(&mut self) {
        let edges = self.edges.iter();
        let edges = edges.filter_map(|(object, edge)| match edge.holder {
            Holder::Object(holder) => Some((holder, *object)),
            Holder::Root(_) => None,
        });
        let mut edges: Vec<Between> = edges.collect();
        edges.sort_unstable();
        for edges in edges.chunks(BATCH) {
            let found = self.look_for(edges);
            for ((holder, object), found) in edges.iter().zip(found) {
                let Some(found) = found else { continue };
                if let Some(edge) = self.edges.get_mut(object) {
                    edge.found = Some((found.at, found.before));
                    edge.is_pointer = found.is_pointer;
                }
                if let Some(edge) = self.edges.get_mut(holder) {
                    edge.first_word = Some(found.first_word);
                }
            }
        }
    }

    /// Looks for those that begin at a root.
    fn look_from_roots(&mut self, roots: &Roots<'_>) {
        let mut by_root: HashMap<Root, HashSet<Object>> = HashMap::new();
        for (object, edge) in &self.edges {
            if let Holder::Root(root) = edge.holder {
                by_root.entry(root).or_default().insert(*object);
            }
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
    }

    /// The references on the paths that are not there any more, that are none to the collector, or that are in what
    /// is no object any more.
    pub fn not_there(&self) -> impl Iterator<Item = Reference> + '_ {
        let edges = self.edges.iter();
        let kept = edges.filter(|(_, edge)| edge.found.is_none());
        let kept = kept.map(|(object, edge)| (edge.holder, *object));
        let broken = self.broken.iter();
        let broken = broken.filter_map(|object| Some((self.holders.holder(*object)?, *object)));
        kept.chain(broken)
    }

    /// Why an object is alive.
    pub fn fate(&mut self, target: Object) -> Fate {
        if self.gone.contains(&target) {
            return Fate::Gone;
        }
        let (root, depth, anchor) = match self.verdict(target) {
            Verdict::Held(root, depth, anchor) => (root, depth, anchor),
            Verdict::Moved => return Fate::Moved,
            Verdict::Unreached => return Fate::Unreached,
            Verdict::TooMany => return Fate::TooMany,
        };
        let left_out = depth.saturating_sub(2 * HOPS_AT_ENDS as u64);
        let (near, far) = match left_out {
            0 => (depth as usize, 0),
            _ => (HOPS_AT_ENDS, HOPS_AT_ENDS),
        };
        let mut hops: Vec<Hop> = self.up(target).take(near).collect();
        hops.extend(self.up(anchor).take(far));
        hops.reverse();
        let gap = (far > 0).then_some((far, left_out));
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

    /// What leads to an object, if that was looked for and holds.
    fn step(&self, object: Object, place: &Place) -> Result<Holder, Verdict> {
        let holder = || self.holders.holder(object);
        let is_broken = || !self.broken.is_empty() && self.broken.contains(&object);
        match place {
            Place::Kept => {
                let edge = self.edges.get(&object).filter(|edge| edge.found.is_some());
                edge.map(|edge| edge.holder).ok_or(Verdict::Moved)
            }
            Place::Between if is_broken() => Err(Verdict::Moved),
            Place::Between => holder().ok_or(Verdict::Moved),
            Place::Unknown if holder().is_none() && !self.holders.is_unsure() => {
                Err(Verdict::Unreached)
            }
            Place::Unknown => Err(Verdict::TooMany),
        }
    }

    /// Whether what is known of an object is noted.
    fn is_noted(&self, object: Object, place: &Place) -> bool {
        let is_milestone = |number| number % MILESTONE == 0;
        match place {
            Place::Between => self.number(object).is_some_and(is_milestone),
            Place::Kept | Place::Unknown => true,
        }
    }

    /// Whether the path to an object holds. It is noted for some objects on the way, so that none is gone twice.
    fn verdict(&mut self, target: Object) -> Verdict {
        let mut noted: Vec<(Object, u64)> = Vec::new();
        let mut last: VecDeque<Object> = VecDeque::new();
        let (mut object, mut steps) = (target, 0);
        let end = loop {
            let place = self.place(object);
            if self.is_noted(object, &place) {
                if let Some(known) = self.known.get(&object) {
                    break *known;
                }
                noted.push((object, steps));
            }
            let holder = match self.step(object, &place) {
                Ok(holder) => holder,
                Err(verdict) => break verdict,
            };
            steps += 1;
            last.push_back(object);
            if last.len() > HOPS_AT_ENDS {
                last.pop_front();
            }
            match holder {
                Holder::Object(holder) => object = holder,
                Holder::Root(root) => break Verdict::Held(root, 0, object),
            }
        };
        let near_root = HOPS_AT_ENDS as u64;
        let of = |(object, at): (Object, u64)| {
            let Verdict::Held(root, known, anchor) = end else {
                return end;
            };
            let depth = known + (steps - at);
            // The last of those that are near the root: of what was gone through here, or of what was known.
            let of_last = (known + last.len() as u64).checked_sub(near_root);
            let of_last = of_last.and_then(|place| last.get(place as usize));
            let anchor = match (depth <= near_root, known < near_root) {
                (true, _) => object,
                (false, true) => of_last.copied().unwrap_or(anchor),
                (false, false) => anchor,
            };
            Verdict::Held(root, depth, anchor)
        };
        for noted in noted {
            self.known.insert(noted.0, of(noted));
        }
        of((target, 0))
    }
}

#[cfg(test)]
mod tests;
