//! From intervals to the history of each site.

use std::collections::{BTreeMap, HashMap};

use super::{
    Count, Part, Totals,
    estimate::{MAX_SMALL_SIZE, RefillClass},
};
use crate::capture::schema::{Kind, SiteDelta};

/// Gathers parts while the intervals go by.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) parts: Vec<Part>,
    pub(super) by_site: HashMap<u32, usize>,
    pub(super) buckets_each_interval: bool,
    /// Bytes that the Go runtime counted, by size of the objects.
    pub(super) class_totals: HashMap<u64, u64>,
    pub(super) refill_rate: u64,
}

impl Builder {
    /// The part of a site; one that was not declared has no stack, and only the kernel's own kinds
    /// can be without (site 0).
    pub(super) fn part(&mut self, site: u32, kind: Kind, object_size: u64) -> &mut Part {
        let index = *self.by_site.entry(site).or_insert_with(|| {
            let kind = if kind == Kind::Unspecified {
                Kind::Mmap
            } else {
                kind
            };
            self.parts.push(Part {
                site,
                kind,
                object_size,
                refill: false,
                repeats: 0,
                history: Vec::new(),
                has_bucket: false,
                births: BTreeMap::new(),
                deaths: BTreeMap::new(),
                seen: Default::default(),
            });
            self.parts.len() - 1
        });
        &mut self.parts[index]
    }

    pub(super) fn delta(
        &mut self,
        slot: usize,
        delta: &SiteDelta,
        slot_of_cohort: impl Fn(u32) -> usize,
    ) {
        let buckets_each_interval = self.buckets_each_interval;
        let part = self.part(delta.site, Kind::Unspecified, 0);
        part.repeats = part.repeats.saturating_add(delta.repeats);
        part.births
            .entry(slot)
            .or_default()
            .add(delta.allocs, delta.alloc_bytes);
        for freed in &delta.freed {
            let born = slot_of_cohort(freed.cohort).min(slot);
            part.deaths
                .entry((born, slot))
                .or_default()
                .add(freed.objects, freed.bytes);
        }
        if slot > 0 {
            part.seen.0.add(delta.allocs, delta.alloc_bytes);
            part.seen.1.add(delta.frees, delta.free_bytes);
        }
        if !(buckets_each_interval && part.has_bucket) {
            let totals = part.totals(slot);
            totals.allocs.add(delta.allocs, delta.alloc_bytes);
            totals.frees.add(delta.frees, delta.free_bytes);
        }
    }

    /// For each size class: how many samples there are, and what the runtime counted over what they
    /// stand for: a refill stands for all free slots of a span, but a collection may take the span back
    /// before they are used, and the probe is not attached all the time. Large objects stand for
    /// themselves.
    pub(super) fn refill_classes(&self) -> HashMap<u64, RefillClass> {
        let mut sampled: HashMap<u64, Count> = HashMap::new();
        let is_small = |part: &&Part| part.refill && part.object_size <= MAX_SMALL_SIZE;
        for part in self.parts.iter().filter(is_small) {
            let Count { objects, bytes } = part.seen.0;
            sampled
                .entry(part.object_size)
                .or_default()
                .add(objects, bytes);
        }
        let class = |(size, count): (u64, Count)| {
            let total = *self.class_totals.get(&size)?;
            let class = RefillClass {
                factor: total as f64 / count.bytes as f64,
                samples: count.objects,
            };
            (count.bytes > 0).then_some((size, class))
        };
        sampled.into_iter().filter_map(class).collect()
    }

    pub(super) fn bucket(&mut self, slot: usize, site: u32, allocs: u64, frees: u64, proven: u64) {
        let part = self.part(site, Kind::GoHeap, 0);
        let bytes = |objects: u64| objects.saturating_mul(part.object_size);
        let allocs = Count {
            objects: allocs,
            bytes: bytes(allocs),
        };
        let frees = Count {
            objects: frees,
            bytes: bytes(frees),
        };
        part.has_bucket = true;
        *part.totals(slot) = Totals {
            slot,
            allocs,
            frees,
            proven,
        };
    }
}

impl Part {
    /// The totals of a slot, carried over from the one before.
    fn totals(&mut self, slot: usize) -> &mut Totals {
        let last = self.history.last().copied().unwrap_or_default();
        if self.history.is_empty() || last.slot != slot {
            self.history.push(Totals { slot, ..last });
        }
        let index = self.history.len() - 1;
        &mut self.history[index]
    }
}
