//! What an object on a path is called.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use crate::{
    go::{DebugTypes, GoBinary, TypeId},
    inventory::{
        Bucket,
        goroutines::Census,
        heap::{DynamicType, Heap, Hop, Object, Path, Root, Roots, Sample, Types},
    },
    report::why::{HopReport, NamedBy},
    symbolize::{PcKind, Symbolizer},
    target::GoTarget,
};

/// Names objects.
pub(super) struct Hops<'a> {
    heap: &'a Heap,
    binary: &'a GoBinary,
    bias: u64,
    types: Option<&'a Types<'a>>,
    channels: HashSet<Object>,
    goroutines: HashSet<Object>,
    /// By sampled object: address of its bucket.
    sampled: HashMap<Object, u64>,
    /// By bucket: the function that allocated.
    functions: HashMap<u64, String>,
    roots: &'a Roots<'a>,
    debug: Option<DebugTypes>,
    /// What objects on paths are by what refers to them, by the program's debug information.
    typed: RefCell<HashMap<Object, String>>,
}

/// What an object is by what refers to it: a value of this type, or several.
#[derive(Clone, Copy)]
struct Typed {
    of: TypeId,
    size: u64,
    is_array: bool,
}

impl<'a> Hops<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is another source of names")]
    pub(super) fn new(
        heap: &'a Heap,
        go: &'a GoTarget,
        types: Option<&'a Types<'a>>,
        census: &Census,
        roots: &'a Roots<'a>,
        buckets: &HashMap<u64, Bucket>,
        samples: &[Sample],
        symbolizer: &Symbolizer<'_>,
    ) -> Self {
        let channels = census
            .groups
            .iter()
            .flat_map(|(_, group)| group.channels.keys());
        let object_at = |address: u64| heap.object_at(address);
        let sampled: HashMap<_, _> = samples
            .iter()
            .filter_map(|sample| Some((object_at(sample.address)?, sample.bucket)))
            .collect();
        let used: HashSet<u64> = sampled.values().copied().collect();
        let used: Vec<&Bucket> = used
            .iter()
            .filter_map(|bucket| buckets.get(bucket))
            .collect();
        let addresses: Vec<_> = used
            .iter()
            .flat_map(|bucket| bucket.pcs.iter().map(|pc| (*pc, PcKind::Logical)))
            .collect();
        let mut named = symbolizer.symbolize(&addresses).into_iter();
        let mut functions = HashMap::new();
        for bucket in used {
            let frames = named.by_ref().take(bucket.pcs.len()).flatten();
            let names: Vec<String> = frames.filter_map(|frame| frame.function).collect();
            let own = names.iter().find(|name| !name.starts_with("runtime."));
            if let Some(name) = own.or(names.first()) {
                functions.insert(bucket.address, name.clone());
            }
        }
        Self {
            heap,
            binary: &go.binary,
            bias: go.bias,
            types,
            channels: channels.filter_map(|at| object_at(*at)).collect(),
            goroutines: roots.gs().filter_map(|(_, at)| object_at(at)).collect(),
            sampled,
            functions,
            roots,
            debug: go.binary.debug_types(),
            typed: RefCell::default(),
        }
    }

    /// What the objects of a path are called, and by what each is referred to.
    pub(super) fn names(&self, path: &Path) -> Vec<HopReport> {
        let mut names = Vec::with_capacity(path.hops.len());
        // The type of what refers to the next one, and how far into it.
        let mut from = self.of_root(path);
        for (index, hop) in path.hops.iter().enumerate() {
            let debug = self.debug.as_ref();
            if path.gap.is_some_and(|(gap, _)| gap == index) {
                from = None;
            }
            let pointee = from
                .take()
                .and_then(|(variable, of, offset): (String, _, _)| {
                    let pointee = debug?.pointee(of, offset)?;
                    Some((variable + &pointee.field, pointee.of))
                });
            let typed = pointee.as_ref().and_then(|(_, of)| self.fits(hop, *of));
            if let Some(name) = typed.and_then(|typed| self.type_name(typed)) {
                self.typed.borrow_mut().insert(hop.object, name);
            }
            let mut report = self.name(hop);
            report.via = pointee
                .map(|(field, _)| field)
                .filter(|field| !field.is_empty());
            // What the runtime says of an object is more certain.
            let is_dynamic = report.named_by == NamedBy::Type;
            let own = debug.filter(|_| is_dynamic).and_then(|debug| {
                let name = report.name.trim_start_matches("[]");
                self.whole(hop, debug.named(name)?)
            });
            from = own
                .or(typed)
                .zip(path.hops.get(index + 1))
                .and_then(|(typed, next)| {
                    let offset = next.at.checked_sub(self.begin(hop))?;
                    let is_within = typed.is_array || offset < typed.size;
                    let offset = offset.checked_rem(typed.size)?;
                    is_within.then_some((String::new(), typed.of, offset))
                });
            names.push(report);
        }
        names
    }

    /// The type of the variable in which a path begins, its name if the root does not have it, and how far into it the
    /// first reference is.
    fn of_root(&self, path: &Path) -> Option<(String, TypeId, u64)> {
        let debug = self.debug.as_ref()?;
        let at = path.hops.first()?.at;
        match path.root {
            Root::Data(_) => {
                let (of, offset) = debug.variable(at.wrapping_sub(self.bias))?;
                Some((String::new(), of, offset))
            }
            Root::Stack(place) => {
                let (pc, cfa) = self.roots.frame_of(place, at)?;
                // Behind a call.
                let pc = pc.wrapping_sub(self.bias).wrapping_sub(1);
                debug.local(pc, at.wrapping_sub(cfa) as i64)
            }
            _ => None,
        }
    }

    /// Where the program's part of an object begins.
    fn begin(&self, hop: &Hop) -> u64 {
        let has_header = self.types.is_some_and(|types| types.has_header(hop.object));
        self.heap.address(hop.object) + if has_header { 8 } else { 0 }
    }

    /// An object as values of a type, if the word that refers to it leads to the beginning of one, and its size is
    /// that of such.
    fn fits(&self, hop: &Hop, of: TypeId) -> Option<Typed> {
        let typed = self.whole(hop, of)?;
        let to = self.heap.word_at(hop.at)?;
        let offset = to.checked_sub(self.begin(hop))?;
        let is_at_begin = match typed.is_array {
            true => offset.is_multiple_of(typed.size),
            false => offset == 0,
        };
        is_at_begin.then_some(typed)
    }

    fn whole(&self, hop: &Hop, of: TypeId) -> Option<Typed> {
        let size = self.debug.as_ref()?.size(of).filter(|size| *size > 0)?;
        let room = self.heap.size(hop.object);
        // What holds pointers is in one piece with the words that do.
        let may_hold = size.is_multiple_of(8) || self.heap.span(hop.object).has_no_pointers;
        let is_array = room >= size.saturating_mul(2).saturating_add(8) && may_hold;
        (is_array || is_room_for(size, room)).then_some(Typed { of, size, is_array })
    }

    fn type_name(&self, typed: Typed) -> Option<String> {
        let name = self.debug.as_ref()?.name(typed.of)?;
        Some(match typed.is_array {
            true => format!("[]{name}"),
            false => name.to_owned(),
        })
    }

    /// What it is called.
    pub(super) fn name(&self, hop: &Hop) -> HopReport {
        let size = self.heap.size(hop.object);
        let (name, named_by) = self
            .known(hop)
            .unwrap_or_else(|| (format!("{size} B object"), NamedBy::Size));
        let bucket = self.sampled.get(&hop.object);
        let allocated_by = bucket.and_then(|bucket| self.functions.get(bucket));
        HopReport {
            name,
            named_by,
            allocated_by: allocated_by.cloned(),
            size,
            address: self.heap.address(hop.object),
            times: (1, 1),
            via: None,
        }
    }

    fn known(&self, hop: &Hop) -> Option<(String, NamedBy)> {
        if self.channels.contains(&hop.object) {
            return Some(("channel".to_owned(), NamedBy::Channel));
        }
        if self.goroutines.contains(&hop.object) {
            return Some(("goroutine".to_owned(), NamedBy::Goroutine));
        }
        let size = self.heap.size(hop.object);
        let first_word = match hop.first_word {
            Some(word) => word,
            None => self.heap.first_word(hop.object).unwrap_or(0),
        };
        if let Some(types) = self.types {
            if let Some(of) = types.noted(hop.object, first_word) {
                let is_array = of.size > 0 && size >= 2 * of.size + 8;
                let name = if is_array {
                    format!("[]{}", of.name)
                } else {
                    of.name
                };
                return Some((name, NamedBy::Type));
            }
            let fits = |of: &DynamicType| is_room_for(of.size, size);
            if let Some(of) = types.of_interface(hop.before).filter(fits) {
                return Some((of.name, NamedBy::Type));
            }
            if types.is_code(first_word) {
                let address = first_word.wrapping_sub(self.bias);
                let is_entry = self.binary.is_entry(address);
                if let Some(name) = self.binary.function_name_at(address).filter(|_| is_entry) {
                    return Some((name, NamedBy::Closure));
                }
            }
        }
        let typed = self.typed.borrow().get(&hop.object).cloned();
        typed.map(|name| (name, NamedBy::Declaration))
    }
}

/// Whether the allocator gives that much room for a value: it rounds sizes up by an eighth, or to 16 bytes.
fn is_room_for(size: u64, room: u64) -> bool {
    (size..=size.saturating_add(size / 4 + 16)).contains(&room)
}
