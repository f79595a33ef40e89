//! What an object on a path is called.

use std::collections::{HashMap, HashSet};

use crate::{
    go::GoBinary,
    inventory::{
        Bucket,
        goroutines::Census,
        heap::{DynamicType, Heap, Hop, Object, Roots, Sample, Types},
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
}

impl<'a> Hops<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is another source of names")]
    pub(super) fn new(
        heap: &'a Heap,
        go: &'a GoTarget,
        types: Option<&'a Types<'a>>,
        census: &Census,
        roots: &Roots<'_>,
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
        }
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
            // The allocator rounds sizes up by an eighth, or to 16 bytes.
            let fits = |of: &DynamicType| of.size <= size && size <= of.size + of.size / 4 + 16;
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
        None
    }
}
