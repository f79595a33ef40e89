//! The live heap: pure functions over a decoded capture.
//!
//! [`LiveHeap::from_capture`] or [`Builder`] gathers the history of every allocation site; [`LiveHeap::merge`]
//! puts together the sites that a reader would call one (the same logical stack) and turns counts
//! into bytes: live over time, by birth, with the interval of the estimate.
//!
//! # Contract
//! - `mmap` and `brk` are exact, and `malloc` where every block is taken. `go_heap` counts samples: of the Go runtime's own heap sampler,
//!   scaled as pprof does, or of leaktrace's, scaled by the runtime's counters; so does `malloc` where blocks are
//!   sampled, by size ([`Sampler`]).
//! - Growth is the end minus the attach, in the same terms on both sides.
//! - Births come from the attached probes, by interval; deaths by the interval of birth. What the
//!   runtime counted and no probe saw is in [`SiteHistory::unseen_deaths`].
//! - Time is kept in at most [`MAX_SLOTS`] slots of equal numbers of intervals, and in fewer where the
//!   sites' histories take too much memory, so that it is bounded by the number of sites.
//! - [`Builder`] takes interval by interval, so that a capture need not be held as a whole.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use crate::capture::Capture;
use crate::capture::schema::Kind;

mod balance;
mod builder;
mod estimate;
mod memory;
mod part;
mod survival;
#[cfg(test)]
mod tests;

pub use balance::{Balance, Net};
pub use builder::Builder;
pub use estimate::{Estimate, Sampler, Sum};
pub use memory::ProcessGrowth;
pub use part::Part;
pub use survival::{Age, Survival};

use balance::WindowHistory;
use estimate::RefillClass;
pub(crate) use estimate::Z_95;
use part::{Death, Totals};

/// Slots of time kept, not counting the attach.
pub const MAX_SLOTS: usize = 512;

/// Entries of all sites' histories, about 32 bytes each: beyond, slots are joined. It takes some
/// eight hundred sites that allocate in every interval.
const MAX_RECORDS: usize = 1_200_000;
/// Slots that are left whatever they take: with fewer there is nothing to judge.
const MIN_SLOTS: usize = 64;

/// Collections that an object may live through without being reachable: it is born marked while one
/// is running, and after the next one it is dead but not yet swept. (Go: mgc.go, allocation is
/// black during marking; sweeping is spread over the time until the next cycle.)
const UNPROVEN_COLLECTIONS: u32 = 2;

/// The moments at which the state is known. Slot 0 is the attach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// End of each slot, in seconds since the window opened; never falls.
    pub times: Vec<f64>,
    /// Collections completed by then since the attach; zeros for other runtimes.
    pub collections: Vec<u32>,
}

impl Timeline {
    /// The last slot.
    pub fn last(&self) -> usize {
        self.times.len().saturating_sub(1)
    }

    /// The same up to the end of a slot.
    fn until(&self, slot: usize) -> Self {
        let mut timeline = self.clone();
        timeline.times.truncate(slot + 1);
        timeline.collections.truncate(slot + 1);
        timeline
    }

    /// Seconds from the attach to the end.
    pub fn duration_s(&self) -> f64 {
        self.age_s(0, self.last())
    }

    /// How old an object born in one slot is at the end of another, at least, in seconds.
    pub fn age_s(&self, born: usize, now: usize) -> f64 {
        let at = |slot| self.times.get(slot).copied().unwrap_or_default();
        (at(now) - at(born)).max(0.0)
    }

    /// Collections that an object born in one slot and alive at the end of another has survived
    /// while reachable, at least.
    pub fn collections_survived(&self, born: usize, now: usize) -> u32 {
        let at = |slot| self.collections.get(slot).copied().unwrap_or_default();
        at(now)
            .saturating_sub(at(born))
            .saturating_sub(UNPROVEN_COLLECTIONS)
    }
}

/// A number of objects and their bytes. For `go_heap`: samples, not scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, objects: u64, bytes: u64) {
        self.objects = self.objects.saturating_add(objects);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// What is left after taking `other` away; never below zero.
    pub fn less(self, other: Self) -> Self {
        Self {
            objects: self.objects.saturating_sub(other.objects),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// Every site's history, still apart.
#[derive(Clone, Debug)]
pub struct LiveHeap {
    /// The moments known.
    pub timeline: Timeline,
    /// The last slot of kinds that were not followed to the end.
    ended: HashMap<Kind, usize>,
    /// The sites, by their number in the capture.
    pub parts: Vec<Part>,
    /// `runtime.MemProfileRate`, in bytes.
    runtime_rate: u64,
    /// Bytes for each sample of leaktrace's own.
    refill_rate: u64,
    /// Bytes for each sample of native allocators' blocks.
    malloc_rate: u64,
    /// What is known of its samples, by size of the objects.
    refill_classes: HashMap<u64, RefillClass>,
    /// What windows have shown of an allocator's blocks.
    windows: WindowHistory,
    /// What the process as a whole has grown by.
    pub process_growth: ProcessGrowth,
}

/// One allocation site as a reader would call it, over the window.
#[derive(Clone, Debug, Default)]
pub struct SiteHistory {
    /// Kind of memory.
    pub kind: Kind,
    /// The capture's sites that it consists of.
    pub sites: Vec<u32>,
    /// True where the counts are samples.
    pub sampled: bool,
    /// Bytes for each sample on average; 1 where everything is counted.
    pub rate: u64,
    /// Live bytes at the end of every slot of [`LiveHeap::timeline_of`] its kind, estimated.
    pub live_series: Vec<f64>,
    /// Bytes not known to be dead at the end.
    pub live: Estimate,
    /// Objects not known to be dead at the end, estimated.
    pub live_objects: f64,
    /// The same as samples: what the estimate rests on.
    pub live_count: Count,
    /// Size of its objects in bytes, where they all have the same.
    pub object_size: Option<u64>,
    /// Bytes known to have survived a completed collection: pprof's figure. Go heap only.
    pub proven_bytes: Option<f64>,
    /// The same in objects.
    pub proven_objects: Option<f64>,
    /// Live bytes at the end minus those at the attach.
    pub growth: Estimate,
    /// Bytes allocated since the attach, estimated.
    pub alloc_bytes: f64,
    /// Objects allocated since the attach, estimated.
    pub alloc_objects: f64,
    /// Bytes freed since the attach, estimated.
    pub freed_bytes: f64,
    /// Bytes live at the attach, estimated.
    pub preexisting_bytes: f64,
    /// What is left of them, estimated.
    pub preexisting_left_bytes: f64,
    /// Births by slot; slot 0 is what the attach found. Samples.
    pub births: BTreeMap<usize, Count>,
    /// Deaths by slots of birth and death. Samples.
    pub deaths: BTreeMap<(usize, usize), Count>,
    /// Deaths since the attach whose age is not known. Samples.
    pub unseen_deaths: u64,
    /// Slot of birth of the oldest object that lives; none when nothing does.
    pub oldest: Option<usize>,
    /// What windows have shown, where probes were attached for windows only; the other figures rest on it.
    pub balance: Option<Balance>,
}

impl LiveHeap {
    /// Gathers the histories from a capture that holds all of its intervals.
    pub fn from_capture(capture: &Capture) -> Self {
        let mut builder = Builder::default();
        for interval in &capture.intervals {
            builder.add(interval);
        }
        builder.finish(&capture.header)
    }

    /// The moments at which the state of sites of that kind is known: all of them, unless it was not followed to
    /// the end.
    pub fn timeline_of(&self, kind: Kind) -> Cow<'_, Timeline> {
        match self.ended.get(&kind) {
            Some(&slot) => Cow::Owned(self.timeline.until(slot)),
            None => Cow::Borrowed(&self.timeline),
        }
    }

    /// Whether sites of that kind were followed to the end.
    pub fn has_all_of(&self, kind: Kind) -> bool {
        !self.ended.contains_key(&kind)
    }

    /// The share of the time that windows cover, and how many there were; none if there were none.
    pub fn windows(&self) -> Option<(f64, u64)> {
        self.windows.cover()
    }

    /// Puts together the parts for which `key` gives the same, in order of first appearance.
    /// Parts of different kinds stay apart whatever the key.
    pub fn merge<K: Hash + Eq>(&self, key: impl FnMut(&Part) -> K) -> Vec<SiteHistory> {
        let groups = self.groups(key).into_iter();
        groups.map(|parts| self.history(&parts)).collect()
    }

    /// The parts that belong together by that rule, for [`history`](Self::history) of one after the other:
    /// each takes far more memory than what it is made from.
    pub fn groups<K: Hash + Eq>(&self, mut key: impl FnMut(&Part) -> K) -> Vec<Vec<&Part>> {
        let mut groups: Vec<Vec<&Part>> = Vec::new();
        let mut group_of: HashMap<(i32, K), usize> = HashMap::new();
        for part in &self.parts {
            let group = *group_of
                .entry((part.kind.into(), key(part)))
                .or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(part);
        }
        groups
    }

    /// The history of one part alone.
    pub fn history_of(&self, part: &Part) -> SiteHistory {
        self.history(&[part])
    }

    fn sampler_of(&self, part: &Part) -> Sampler {
        match part.kind {
            Kind::GoHeap if part.refill => {
                let class = self.refill_classes.get(&part.object_size).copied();
                let class = class.unwrap_or_default();
                Sampler::Refill {
                    rate: self.refill_rate,
                    factor: class.factor,
                    spread: class.spread(part.seen.0.objects, part.repeats),
                }
            }
            Kind::GoHeap => Sampler::Runtime {
                rate: self.runtime_rate,
            },
            Kind::Malloc if part.object_size > 0 => Sampler::Bytes {
                rate: match part.sample_bytes {
                    0 => self.malloc_rate,
                    rate => rate,
                },
            },
            _ => Sampler::Exact,
        }
    }

    /// The history of parts of one kind, put together.
    pub fn history(&self, parts: &[&Part]) -> SiteHistory {
        let kind = parts.first().map_or(Kind::Unspecified, |part| part.kind);
        let mut site = SiteHistory {
            kind,
            sites: parts.iter().map(|part| part.site).collect(),
            sampled: false,
            rate: 1,
            live_series: vec![0.0; self.timeline.times.len()],
            live: Estimate::default(),
            live_objects: 0.0,
            live_count: Count::default(),
            object_size: one_size(parts),
            proven_bytes: (kind == Kind::GoHeap).then_some(0.0),
            proven_objects: (kind == Kind::GoHeap).then_some(0.0),
            growth: Estimate::default(),
            alloc_bytes: 0.0,
            alloc_objects: 0.0,
            freed_bytes: 0.0,
            preexisting_bytes: 0.0,
            preexisting_left_bytes: 0.0,
            births: BTreeMap::new(),
            deaths: BTreeMap::new(),
            unseen_deaths: 0,
            oldest: None,
            balance: self.windows.balance(parts, self.timeline.times.len()),
        };
        if let Some(balance) = site.balance.take() {
            site.rest_on(balance);
            return site;
        }
        if let Some(last) = self.ended.get(&kind) {
            site.live_series.truncate(last + 1);
        }
        let mut live = Sum::default();
        for part in parts {
            self.add_part(part, &mut site, &mut live);
        }
        site.live = live.estimate();
        site.sampled = site.rate > 1;
        let mut cohorts = site.cohorts();
        let oldest = cohorts.find(|(_, born, died)| born.less(*died).bytes > 0);
        let oldest = oldest.map(|(slot, ..)| slot);
        drop(cohorts);
        site.oldest = oldest;
        site
    }

    fn add_part(&self, part: &Part, site: &mut SiteHistory, live: &mut Sum) {
        let sampler = self.sampler_of(part);
        let scale = sampler.scale(part.object_size);
        site.rate = site.rate.max(sampler.rate());
        let (attach, end) = (
            part.at_attach(),
            part.history.last().copied().unwrap_or_default(),
        );
        let (live_then, live_now) = (attach.live(), end.live());
        let mut history = part.history.iter().peekable();
        let mut at_slot = 0.0;
        for (slot, sum) in site.live_series.iter_mut().enumerate() {
            while let Some(totals) = history.next_if(|totals| totals.slot as usize <= slot) {
                at_slot = totals.live().bytes as f64 * scale;
            }
            *sum += at_slot;
        }

        let births = part.births_with_attach();
        let preexisting = births.get(&0).copied().unwrap_or_default();
        let mut preexisting_dead = Count::default();
        for &Death { born, died, count } in &part.deaths {
            let (born, died) = (born as usize, died as usize);
            // Deaths beyond what the attach found are of objects whose birth was lost.
            let count = if born == 0 {
                part.clip(count, preexisting.less(preexisting_dead))
            } else {
                count
            };
            if born == 0 {
                preexisting_dead.add(count.objects, count.bytes);
            }
            if count != Count::default() {
                site.deaths
                    .entry((born, died))
                    .or_default()
                    .add(count.objects, count.bytes);
            }
        }
        let unseen_deaths = part.unseen().1;
        let left = preexisting.less(preexisting_dead);
        let left = if left.bytes > live_now.bytes {
            live_now
        } else {
            left
        };

        live.add(sampler, live_now, part.object_size);
        site.live_objects += sampler.objects(live_now, part.object_size);
        site.live_count.add(live_now.objects, live_now.bytes);
        if let Some(proven) = &mut site.proven_bytes {
            let samples = match part.refill {
                true => self.proven(part),
                false => (end.proven as f64) * part.object_size as f64,
            };
            *proven += samples * scale;
            if let Some(objects) = &mut site.proven_objects {
                *objects += samples * scale / part.object_size.max(1) as f64;
            }
        }
        let mut changed = live_now.less(left);
        let gone = live_then.less(left);
        changed.add(gone.objects, gone.bytes);
        site.growth = site.growth.plus(sampler.difference(
            live_now.bytes as f64 - live_then.bytes as f64,
            changed,
            part.object_size,
        ));
        let allocs = end.allocs.less(attach.allocs);
        site.alloc_bytes += allocs.bytes as f64 * scale;
        site.alloc_objects += sampler.objects(allocs, part.object_size);
        site.freed_bytes += end.frees.less(attach.frees).bytes as f64 * scale;
        site.preexisting_bytes += live_then.bytes as f64 * scale;
        site.preexisting_left_bytes += left.bytes as f64 * scale;
        for (slot, count) in births {
            site.births
                .entry(slot)
                .or_default()
                .add(count.objects, count.bytes);
        }
        site.unseen_deaths = site.unseen_deaths.saturating_add(unseen_deaths);
    }
}

/// The size that the objects of all these have.
fn one_size(parts: &[&Part]) -> Option<u64> {
    let size = parts.first()?.object_size;
    let is_one = size > 0 && parts.iter().all(|part| part.object_size == size);
    is_one.then_some(size)
}

impl LiveHeap {
    /// Bytes of the samples that have survived a whole collection, where no runtime counts them.
    fn proven(&self, part: &Part) -> f64 {
        let last = self.timeline.last();
        let born = part
            .births
            .iter()
            .filter(|&&(slot, _)| self.timeline.collections_survived(slot, last) >= 1);
        born.map(|&(slot, born)| born.less(part.died(slot)).bytes as f64)
            .sum()
    }
}

impl SiteHistory {
    /// Each slot's births, and the deaths of those objects until the end; slots rising.
    pub fn cohorts(&self) -> impl Iterator<Item = (usize, Count, Count)> {
        let mut deaths = self.deaths.iter().peekable();
        self.births.iter().map(move |(&slot, &born)| {
            let mut died = Count::default();
            while let Some((&(of, _), count)) = deaths.next_if(|&(&(of, _), _)| of <= slot) {
                if of == slot {
                    died.add(count.objects, count.bytes);
                }
            }
            (slot, born, died)
        })
    }

    /// Which share of the site's objects reaches an age; nothing where most deaths were not seen.
    pub fn survival(&self, timeline: &Timeline) -> Survival {
        let deaths = self.deaths.values().map(|count| count.objects);
        let deaths = deaths.fold(0, u64::saturating_add);
        match self.unseen_deaths > deaths {
            true => Survival::default(),
            false => Survival::new(self, timeline),
        }
    }

    /// Age of the oldest living object in seconds, at least; what was there at the attach is as old
    /// as the window.
    pub fn oldest_s(&self, timeline: &Timeline) -> f64 {
        self.oldest
            .map_or(0.0, |slot| timeline.age_s(slot, timeline.last()))
    }

    /// Collections that object has survived, at least; Go heap only.
    pub fn collections_survived(&self, timeline: &Timeline) -> Option<u32> {
        (self.kind == Kind::GoHeap).then(|| {
            self.oldest.map_or(0, |slot| {
                timeline.collections_survived(slot, timeline.last())
            })
        })
    }
}
