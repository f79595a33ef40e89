//! Our own samples of a Go heap: taken in as the kernel side sends them, followed until they die.
//!
//! The collector's bits tell, once a collection, which of them live ([`Spans`]). They are looked at
//! soon after one has finished, and again until all spans have been swept.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use leaktrace_common::{GoSample, StackId};

use super::{Drain, GoHeap, OwnSampling};

use crate::{
    capture::schema,
    inventory::{Fate, Followed, Spans, goroutines::LiveSample},
    loss,
};

/// Follows the samples of one run.
pub struct RefillSampler {
    spans: Spans,
    objects: HashMap<u64, Object>,
    /// Most objects followed at a time.
    limit: usize,
    /// `mheap_.sweepgen` at the last look.
    sweepgen: u32,
    /// Objects of which that look could not tell.
    unswept: usize,
    classes: Classes,
    /// Site of the last sample, by thread and size class.
    last: HashMap<(u32, u16), u32>,
    sample_bytes: u64,
}

struct Object {
    followed: Followed,
    site: u32,
    cohort: u32,
    bytes: u64,
}

/// A sampled object that was born or has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turnover {
    /// Its site.
    pub(super) site: u32,
    /// The interval of its birth.
    pub(super) cohort: u32,
    /// Bytes that it stands for.
    pub(super) bytes: u64,
}

impl RefillSampler {
    /// A sampler that takes an object in `sample_bytes` and follows at most `limit` of them.
    pub fn new(spans: Spans, sample_bytes: u64, limit: usize) -> Self {
        Self {
            spans,
            objects: HashMap::new(),
            limit,
            sweepgen: 0,
            unswept: 0,
            classes: Classes::default(),
            last: HashMap::new(),
            sample_bytes,
        }
    }

    /// Bytes for each sample on average.
    pub(super) fn sample_bytes(&self) -> u64 {
        self.sample_bytes
    }

    /// Whether the last sample of the same thread and size class was of `site`, too.
    pub(super) fn repeats(&mut self, sample: &GoSample, site: u32) -> bool {
        // Threads come and go: what is forgotten is one comparison for each.
        if self.last.len() >= self.limit {
            self.last.clear();
        }
        let last = self.last.insert((sample.thread, sample.size_class), site);
        last == Some(site)
    }

    /// Objects followed now.
    pub(super) fn followed(&self) -> u64 {
        self.objects.len() as u64
    }

    /// Whether some objects wait for their spans to be swept.
    pub(super) fn is_waiting(&self) -> bool {
        self.unswept > 0
    }

    /// Takes a sample of `site` in. Gives its birth, and the death of an object that had its address:
    /// nothing else can have made room for it. There is no birth if there is no room to follow it.
    pub(super) fn take(
        &mut self,
        sample: &GoSample,
        site: u32,
        cohort: u32,
    ) -> (Option<Turnover>, Option<Turnover>) {
        let dead = self
            .objects
            .remove(&sample.address)
            .map(|old| old.turnover());
        if self.objects.len() >= self.limit {
            return (None, dead);
        }
        let bytes = stands_for(sample);
        self.classes.learn(sample, bytes);
        let object = Object {
            followed: Followed {
                address: sample.address,
                size: sample.size,
                span: sample.span,
                sweepgen: sample.sweepgen,
            },
            site,
            cohort,
            bytes,
        };
        let born = object.turnover();
        self.objects.insert(sample.address, object);
        (Some(born), dead)
    }

    /// The objects followed now, each with the bytes that it stands for by the runtime's own counts.
    pub(super) fn live(&self) -> Vec<LiveSample> {
        let live = self.objects.values().map(|object| LiveSample {
            address: object.followed.address,
            size: object.followed.size,
            weight_bytes: object.bytes as f64 * self.classes.factor(object.followed.size),
            own_site: Some(object.site),
        });
        live.collect()
    }

    /// Looks what became of the objects since the last collection. Gives those that have died.
    pub(super) fn look(&mut self, losses: &mut BTreeMap<&'static str, u64>) -> Vec<Turnover> {
        let Ok(now) = self.spans.sweepgen() else {
            // The target has ended, most likely; its objects are as they were last seen.
            return Vec::new();
        };
        self.sweepgen = now;
        let asked: Vec<Followed> = self
            .objects
            .values()
            .map(|object| object.followed)
            .filter(|followed| now.wrapping_sub(followed.sweepgen) as i32 > 0)
            .collect();
        let mut dead = Vec::new();
        self.unswept = 0;
        for (followed, fate) in asked.iter().zip(self.spans.fates(now, &asked)) {
            match fate {
                Fate::Unswept | Fate::Unreadable => self.unswept += 1,
                Fate::Dead => {
                    dead.extend(self.objects.remove(&followed.address).map(|o| o.turnover()));
                }
                Fate::Alive { sweepgen, unseen } => {
                    if unseen > 0 {
                        *losses.entry(loss::GO_SWEEPS_UNSEEN).or_default() += u64::from(unseen);
                    }
                    if let Some(object) = self.objects.get_mut(&followed.address) {
                        object.followed.sweepgen = sweepgen;
                        self.unswept += usize::from(sweepgen != now);
                    }
                }
            }
        }
        dead
    }

    /// What the runtime has counted since the first call, for the size classes that have samples and
    /// whose count has changed; nothing if it could not be read.
    pub(super) fn classes(&mut self) -> Vec<schema::GoClass> {
        self.spans
            .class_counts()
            .map(|counts| self.classes.changed(counts))
            .unwrap_or_default()
    }
}

impl Object {
    fn turnover(&self) -> Turnover {
        Turnover {
            site: self.site,
            cohort: self.cohort,
            bytes: self.bytes,
        }
    }
}

/// Bytes that a sample stands for: those of its hit, over the chance at which the hit was taken and
/// the share of the time for which there could be one.
fn stands_for(sample: &GoSample) -> u64 {
    let taken = u128::from(sample.stands_for.max(sample.rate));
    let share = u128::from(sample.share.max(1));
    u64::try_from(taken * 1_000_000 / share).unwrap_or(u64::MAX)
}

/// A name for where a sample was taken: the same stack and size give the same.
pub(super) fn site_of(sample: &GoSample) -> StackId {
    let mut hasher = DefaultHasher::new();
    let frames = sample.frames.get(..usize::from(sample.len));
    (frames, sample.flags, sample.size).hash(&mut hasher);
    StackId(hasher.finish())
}

/// The runtime's own counts of allocations.
#[derive(Default)]
struct Classes {
    /// Size of the objects of each class that has samples.
    sizes: BTreeMap<u16, u64>,
    at_attach: Vec<u64>,
    /// Objects counted since the attach, at the last reading.
    written: HashMap<u16, u64>,
    /// Bytes that all samples of a class stand for.
    sampled: HashMap<u16, u64>,
}

impl Classes {
    fn learn(&mut self, sample: &GoSample, bytes: u64) {
        let class = sample.size_class;
        if class > 0 {
            self.sizes.entry(class).or_insert(sample.size);
            let sampled = self.sampled.entry(class).or_default();
            *sampled = sampled.saturating_add(bytes);
        }
    }

    /// What the runtime has counted of objects of this size, over what their samples stand for.
    fn factor(&self, size: u64) -> f64 {
        let known = self.sizes.iter().find(|(_, of_class)| **of_class == size);
        let factor = known.and_then(|(class, _)| {
            let counted = self.written.get(class)?.saturating_mul(size);
            Some(counted as f64 / *self.sampled.get(class)? as f64)
        });
        factor.filter(|factor| factor.is_finite()).unwrap_or(1.0)
    }

    fn changed(&mut self, counts: Vec<u64>) -> Vec<schema::GoClass> {
        if self.at_attach.is_empty() {
            self.at_attach = counts.clone();
        }
        let mut changed = Vec::new();
        for (&class, &object_size) in &self.sizes {
            let at = |counts: &[u64]| counts.get(usize::from(class)).copied().unwrap_or(0);
            let objects = at(&counts).wrapping_sub(at(&self.at_attach));
            if self.written.insert(class, objects) != Some(objects) {
                changed.push(schema::GoClass {
                    object_size,
                    alloc_bytes: objects.saturating_mul(object_size),
                });
            }
        }
        changed
    }
}

impl Drain {
    /// What there is to say of our own sampling at the end of an interval.
    pub(super) fn own_counts(&mut self) -> (Vec<schema::GoClass>, Option<schema::GoOwnSampling>) {
        let GoHeap::Refill(sampler) = &mut self.go else {
            return Default::default();
        };
        let OwnSampling { hits, share } = self.own_sampling;
        self.own_sampling.hits = 0;
        let sampling = schema::GoOwnSampling {
            sample_bytes: sampler.sample_bytes(),
            hits,
            share,
            followed: sampler.followed(),
        };
        (sampler.classes(), Some(sampling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaktrace_common::{Ktime, MAX_FRAMES};

    #[test]
    fn a_sample_stands_for_its_hit_its_chance_and_its_time() {
        let sample = |stands_for, rate, share| {
            super::stands_for(&GoSample {
                born: Ktime(0),
                address: 0,
                span: 0,
                size: 64,
                stands_for,
                rate,
                share,
                sweepgen: 0,
                len: 0,
                size_class: 5,
                flags: 0,
                thread: 1,
                reserved: 0,
                frames: [0; MAX_FRAMES],
            })
        };
        // One refill of 8 KiB in 64, always attached: 512 KiB.
        assert_eq!(sample(8 << 10, 512 << 10, 1_000_000), 512 << 10);
        // A quarter of the time at a quarter of the rate: the same.
        assert_eq!(sample(8 << 10, 128 << 10, 250_000), 512 << 10);
        // A large object is taken for certain.
        assert_eq!(sample(1 << 20, 512 << 10, 1_000_000), 1 << 20);
    }
}
