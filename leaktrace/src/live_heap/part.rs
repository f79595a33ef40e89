//! The history of one site of a capture.

use std::collections::BTreeMap;

use super::Count;
use crate::capture::schema::Kind;

/// Running totals of a part at the end of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) slot: usize,
    pub(super) allocs: Count,
    pub(super) frees: Count,
    pub(super) proven: u64,
}

/// The history of one site of the capture.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its number in the capture.
    pub site: u32,
    /// Its kind of memory.
    pub kind: Kind,
    /// Bytes of each object; zero where objects differ.
    pub object_size: u64,
    /// Whether leaktrace sampled its objects itself, at refills of the allocator's spans.
    pub refill: bool,
    /// Of its samples, those that followed another of its own.
    pub(super) repeats: u64,
    /// Totals where they changed, slots rising.
    pub(super) history: Vec<Totals>,
    pub(super) has_bucket: bool,
    /// Births that probes saw, by slot; slot 0 is what the attach found.
    pub(super) births: BTreeMap<usize, Count>,
    /// Deaths that probes saw, by slots of birth and of death.
    pub(super) deaths: BTreeMap<(usize, usize), Count>,
    /// All births and deaths that probes saw since the attach.
    pub(super) seen: (Count, Count),
}

impl Totals {
    pub(super) fn live(&self) -> Count {
        self.allocs.less(self.frees)
    }
}

impl Part {
    /// Totals at the attach; zeros for a site that came later.
    pub(super) fn at_attach(&self) -> Totals {
        self.history
            .first()
            .filter(|totals| totals.slot == 0)
            .copied()
            .unwrap_or_default()
    }

    /// Births and deaths that the runtime's counters have and the probes did not see.
    pub(super) fn unseen(&self) -> (u64, u64) {
        if !self.has_bucket {
            return (0, 0);
        }
        let (attach, end) = (
            self.at_attach(),
            self.history.last().copied().unwrap_or_default(),
        );
        let births = end.allocs.less(attach.allocs).objects;
        let deaths = end.frees.less(attach.frees).objects;
        let (seen_births, seen_deaths) = self.seen;
        (
            births.saturating_sub(seen_births.objects),
            deaths.saturating_sub(seen_deaths.objects),
        )
    }

    /// Births by slot. Where the probes missed most of them, those the runtime counted.
    pub(super) fn births_with_attach(&self) -> BTreeMap<usize, Count> {
        let attach = self.at_attach();
        let mut births = self.births.clone();
        if self.unseen().0 > self.seen.0.objects {
            births.clear();
            let mut before = attach;
            for totals in self.history.iter().filter(|totals| totals.slot > 0) {
                let born = totals.allocs.less(before.allocs);
                births
                    .entry(totals.slot)
                    .or_default()
                    .add(born.objects, born.bytes);
                before = *totals;
            }
        }
        if self.has_bucket {
            births.insert(0, attach.live());
        }
        births.retain(|_, count| *count != Count::default());
        births
    }

    /// At most `limit`, in whole objects where they have one size.
    pub(super) fn clip(&self, count: Count, limit: Count) -> Count {
        Count {
            objects: count.objects.min(limit.objects),
            bytes: count.bytes.min(limit.bytes),
        }
    }

    /// Deaths of objects born in a slot.
    pub(super) fn died(&self, born: usize) -> Count {
        died(&self.deaths, born)
    }
}

/// Sum of the deaths of objects born in a slot.
pub(super) fn died(deaths: &BTreeMap<(usize, usize), Count>, born: usize) -> Count {
    let mut died = Count::default();
    for (_, count) in deaths.range((born, 0)..=(born, usize::MAX)) {
        died.add(count.objects, count.bytes);
    }
    died
}
