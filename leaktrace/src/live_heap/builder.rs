//! From intervals to the history of each site, one interval after the other.

use std::collections::HashMap;

use super::{
    Count, LiveHeap, MAX_RECORDS, MAX_SLOTS, MIN_SLOTS, Part, Timeline, Totals,
    balance::WindowHistory,
    estimate::{MAX_SMALL_SIZE, RefillClass},
    memory::MemoryHistory,
    part::Death,
};
use crate::capture::schema::{Header, Interval, Kind, Sampling, SiteDelta, Windows};

/// Gathers the histories of all sites while intervals go by, so that nobody has to hold all of them.
///
/// Contract: intervals are given in the order of their indexes. Records that make no sense (births after
/// deaths, sites not declared) are taken as far as they go; nothing panics.
#[derive(Debug)]
pub struct Builder {
    timeline: Timeline,
    /// Index of the last interval of each slot.
    ends: Vec<u32>,
    /// Intervals in a slot, and in the last one so far.
    stride: usize,
    in_last: usize,
    parts: Parts,
    /// At most how many entries the parts hold.
    records: usize,
    /// The runtime's counters were read between the attach and the last interval, where they alone make
    /// the totals: a probe's event may fall into the interval before or after.
    buckets_each_interval: bool,
    /// The last interval had some, and it is not the attach.
    last_has_buckets: bool,
    intervals: usize,
    runtime_rate: u64,
    refill_rate: u64,
    windows: WindowHistory,
    memory: MemoryHistory,
    /// Until when a kind was followed that is not any more, in seconds.
    ended: HashMap<Kind, f64>,
    /// Bytes that the Go runtime counted, by size of the objects.
    class_totals: HashMap<u64, u64>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            timeline: Timeline {
                times: vec![0.0],
                collections: vec![0],
            },
            ends: vec![0],
            stride: 1,
            in_last: 1,
            parts: Parts::default(),
            records: 0,
            buckets_each_interval: false,
            last_has_buckets: false,
            intervals: 0,
            runtime_rate: 0,
            refill_rate: 0,
            windows: WindowHistory::default(),
            memory: MemoryHistory::default(),
            ended: HashMap::new(),
            class_totals: HashMap::new(),
        }
    }
}

impl Builder {
    /// Takes the next interval. Its `deltas` and `go_buckets` are not needed any more afterwards.
    pub fn add(&mut self, interval: &Interval) {
        if self.last_has_buckets && !self.buckets_each_interval {
            self.buckets_each_interval = true;
            for part in &mut self.parts.list {
                part.drop_probes_totals();
            }
        }
        let slot = self.slot(interval);
        if interval.go_sample_rate != 0 {
            self.runtime_rate = interval.go_sample_rate;
        }
        for site in &interval.sites {
            let part = self.parts.of(site.id, site.kind(), site.object_size);
            part.refill = site.sampling() == Sampling::Refill;
            part.sample_bytes = site.sample_bytes;
        }
        for class in &interval.go_classes {
            self.class_totals
                .insert(class.object_size, class.alloc_bytes);
        }
        if let Some(sampling) = &interval.go_own_sampling {
            self.refill_rate = sampling.sample_bytes;
        }
        if let Some(windows) = &interval.windows {
            self.windows(slot, windows);
        }
        if let Some(memory) = &interval.memory {
            self.memory.add(slot, interval.t_ns, memory);
        }
        for delta in &interval.deltas {
            self.delta(slot, delta);
        }
        let t_s = self.timeline.times[slot];
        let ended = interval.ended().map(|kind| (kind, t_s));
        self.ended.extend(ended);
        for bucket in &interval.go_buckets {
            let proven = bucket.proven_allocs.saturating_sub(bucket.proven_frees);
            self.bucket(slot, bucket.site, bucket.allocs, bucket.frees, proven);
        }
        self.last_has_buckets = self.intervals > 0 && !interval.go_buckets.is_empty();
        self.intervals += 1;
        if self.records > MAX_RECORDS {
            self.records = self.parts.list.iter().map(Part::records).sum();
            if self.records > MAX_RECORDS && self.ends.len() > 2 * MIN_SLOTS {
                self.halve();
            }
        }
    }

    /// What has come together.
    pub fn finish(mut self, header: &Header) -> LiveHeap {
        let go = header.target.as_ref().and_then(|target| target.go.as_ref());
        if self.runtime_rate == 0 {
            self.runtime_rate = go.map_or(0, |go| go.sample_rate);
        }
        for part in &mut self.parts.list {
            part.close();
            part.join_deaths();
        }
        let process_growth = self.memory.growth();
        self.windows
            .finish(&self.parts.list, &self.timeline, process_growth);
        let slots = self.ended.iter().map(|(&kind, &t_s)| {
            let slots = self.timeline.times.partition_point(|&time| time <= t_s);
            (kind, slots.max(1) - 1)
        });
        LiveHeap {
            ended: slots.collect(),
            process_growth,
            runtime_rate: self.runtime_rate,
            refill_rate: self.refill_rate,
            malloc_rate: header
                .malloc
                .as_ref()
                .map_or(1, |malloc| malloc.sample_bytes),
            refill_classes: self.refill_classes(),
            windows: self.windows,
            timeline: self.timeline,
            parts: self.parts.list,
        }
    }

    /// The slot of the next interval; the attach has its own.
    fn slot(&mut self, interval: &Interval) -> usize {
        let is_attach = self.intervals == 0 && interval.index == 0;
        if !is_attach && (self.ends.len() == 1 || self.in_last == self.stride) {
            if self.ends.len() > MAX_SLOTS {
                self.halve();
            }
            self.ends.push(0);
            self.in_last = 0;
        }
        let slot = self.ends.len() - 1;
        let last = self.timeline.last();
        let t_s = (interval.t_ns as f64 / 1e9).max(self.timeline.times[last]);
        let collections = interval.gc_cycles.max(self.timeline.collections[last]);
        self.timeline.times.resize(slot + 1, t_s);
        self.timeline.collections.resize(slot + 1, collections);
        self.timeline.times[slot] = t_s;
        self.timeline.collections[slot] = collections;
        self.ends[slot] = interval.index;
        if !is_attach {
            self.in_last += 1;
        }
        slot
    }

    /// Joins the slots two by two; the attach stays by itself.
    fn halve(&mut self) {
        let slots = self.ends.len();
        if slots.is_multiple_of(2) {
            // The last one stands alone and is half full.
            self.in_last = self.in_last.min(self.stride);
        } else {
            self.in_last += self.stride;
        }
        self.stride *= 2;
        let is_kept = |slot: usize| slot.is_multiple_of(2) || slot + 1 == slots;
        keep(&mut self.ends, is_kept);
        keep(&mut self.timeline.times, is_kept);
        keep(&mut self.timeline.collections, is_kept);
        for part in &mut self.parts.list {
            part.halve();
        }
        self.windows.halve();
        self.memory.halve();
        self.records = self.parts.list.iter().map(Part::records).sum();
    }

    fn delta(&mut self, slot: usize, delta: &SiteDelta) {
        let buckets_each_interval = self.buckets_each_interval;
        let deaths = delta.freed.iter().map(|freed| Death {
            born: slot_of_cohort(&self.ends, freed.cohort).min(slot) as u32,
            died: slot as u32,
            count: Count {
                objects: freed.objects,
                bytes: freed.bytes,
            },
        });
        let part = self.parts.of(delta.site, Kind::Unspecified, 0);
        part.deaths.extend(deaths);
        part.repeats = part.repeats.saturating_add(delta.repeats);
        part.born(slot).add(delta.allocs, delta.alloc_bytes);
        if slot > 0 {
            part.seen.0.add(delta.allocs, delta.alloc_bytes);
            part.seen.1.add(delta.frees, delta.free_bytes);
        }
        let has_bucket = part.has_bucket;
        if !(buckets_each_interval && has_bucket) {
            let totals = part.totals(slot);
            totals.allocs.add(delta.allocs, delta.alloc_bytes);
            totals.frees.add(delta.frees, delta.free_bytes);
            totals.by_probes_only = has_bucket;
        }
        self.records += 2 + delta.freed.len();
    }

    fn windows(&mut self, slot: usize, windows: &Windows) {
        for site in &windows.sites {
            self.parts.of(site.site, Kind::Malloc, 0);
        }
        self.windows.add(slot, windows);
    }

    /// For each size class: how many samples there are, and what the runtime counted over what they
    /// stand for: a refill stands for all free slots of a span, but a collection may take the span back
    /// before they are used, and the probe is not attached all the time. Large objects stand for
    /// themselves.
    fn refill_classes(&self) -> HashMap<u64, RefillClass> {
        let mut sampled: HashMap<u64, Count> = HashMap::new();
        let is_small = |part: &&Part| part.refill && part.object_size <= MAX_SMALL_SIZE;
        for part in self.parts.list.iter().filter(is_small) {
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

    fn bucket(&mut self, slot: usize, site: u32, allocs: u64, frees: u64, proven: u64) {
        let part = self.parts.of(site, Kind::GoHeap, 0);
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
            slot: slot as u32,
            allocs,
            frees,
            proven,
            by_probes_only: false,
        };
        self.records += 1;
    }
}

/// The parts, and where each site's is.
#[derive(Debug, Default)]
struct Parts {
    list: Vec<Part>,
    /// By number, plus one; zero for none. Recorders count from one on.
    near: Vec<u32>,
    /// Of a file that numbers in another way.
    far: HashMap<u32, usize>,
}

impl Parts {
    /// Numbers that are looked up without hashing.
    const NEAR: u32 = 1 << 20;

    /// The part of a site; one that was not declared has no stack, and only the kernel's own kinds
    /// can be without (site 0).
    fn of(&mut self, site: u32, kind: Kind, object_size: u64) -> &mut Part {
        let index = match self.index(site) {
            Some(index) => index,
            None => self.make(site, kind, object_size),
        };
        &mut self.list[index]
    }

    fn index(&self, site: u32) -> Option<usize> {
        match site < Self::NEAR {
            true => (*self.near.get(site as usize)? as usize).checked_sub(1),
            false => self.far.get(&site).copied(),
        }
    }

    fn make(&mut self, site: u32, kind: Kind, object_size: u64) -> usize {
        let index = self.list.len();
        let place = site as usize;
        if site >= Self::NEAR {
            self.far.insert(site, index);
        } else {
            self.near.resize(self.near.len().max(place + 1), 0);
            self.near[place] = index as u32 + 1;
        }
        let kind = match kind {
            Kind::Unspecified => Kind::Mmap,
            kind => kind,
        };
        self.list.push(Part {
            site,
            kind,
            object_size,
            ..Part::default()
        });
        index
    }
}

/// The slot in which the births of a cohort are: the first whose last interval is not before it.
fn slot_of_cohort(ends: &[u32], cohort: u32) -> usize {
    match cohort {
        0 => 0,
        _ => ends.partition_point(|&end| end < cohort),
    }
}

/// Keeps the items at the places for which `is_kept` holds.
fn keep<T>(items: &mut Vec<T>, is_kept: impl Fn(usize) -> bool) {
    let mut place = 0;
    items.retain(|_| {
        place += 1;
        is_kept(place - 1)
    });
}
