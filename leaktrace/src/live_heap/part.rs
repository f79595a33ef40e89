//! The history of one site of a capture.

use std::collections::BTreeMap;

use super::Count;
use crate::capture::schema::Kind;

/// Running totals of a part at the end of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) slot: u32,
    pub(super) allocs: Count,
    pub(super) frees: Count,
    pub(super) proven: u64,
    /// The runtime counts this site, too, but these are the probes' counts.
    pub(super) by_probes_only: bool,
}

/// Objects that died, by slots of birth and of death.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) born: u32,
    pub(super) died: u32,
    pub(super) count: Count,
}

/// The history of one site of the capture.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its number in the capture.
    pub site: u32,
    /// Its kind of memory.
    pub kind: Kind,
    /// Bytes of each object; zero where objects differ.
    pub object_size: u64,
    /// Whether leaktrace sampled its objects itself, at refills of the allocator's spans.
    pub refill: bool,
    /// Bytes for each sample of its blocks; zero where the capture says it for all of them.
    pub(super) sample_bytes: u64,
    /// Of its samples, those that followed another of its own.
    pub(super) repeats: u64,
    /// Totals where they changed, slots rising.
    pub(super) history: Vec<Totals>,
    pub(super) has_bucket: bool,
    /// Births that probes saw, slots rising; slot 0 is what the attach found.
    pub(super) births: Vec<(usize, Count)>,
    /// Deaths that probes saw; once all are there, by slots of birth and of death.
    pub(super) deaths: Vec<Death>,
    /// All births and deaths that probes saw since the attach.
    pub(super) seen: (Count, Count),
    pub(super) open: Open,
}

/// The last of the totals and of the births while a part is gathered. They stand apart from those before,
/// which are too many for the processor's caches: most of the gathering would be waiting for their ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    totals: Option<Totals>,
    births: Option<(usize, Count)>,
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
        let mut births: BTreeMap<usize, Count> = self.births.iter().copied().collect();
        if self.unseen().0 > self.seen.0.objects {
            births.clear();
            let mut before = attach;
            for totals in self.history.iter().filter(|totals| totals.slot > 0) {
                let born = totals.allocs.less(before.allocs);
                births
                    .entry(totals.slot as usize)
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
        let first = self
            .deaths
            .partition_point(|death| (death.born as usize) < born);
        let deaths = self.deaths[first..].iter();
        let mut died = Count::default();
        for death in deaths.take_while(|death| death.born as usize == born) {
            died.add(death.count.objects, death.count.bytes);
        }
        died
    }

    /// The totals of a slot, the last one so far, carried over from the one before.
    pub(super) fn totals(&mut self, slot: usize) -> &mut Totals {
        let slot = slot as u32;
        let last = self.open.totals;
        if last.is_none_or(|last| last.slot != slot) {
            self.history.extend(last);
            self.open.totals = Some(Totals {
                slot,
                ..last.unwrap_or_default()
            });
        }
        self.open.totals.get_or_insert_default()
    }

    /// The births of a slot, the last one so far.
    pub(super) fn born(&mut self, slot: usize) -> &mut Count {
        let last = self.open.births;
        if last.is_none_or(|last| last.0 != slot) {
            self.births.extend(last);
            self.open.births = Some((slot, Count::default()));
        }
        &mut self.open.births.get_or_insert_default().1
    }

    /// Puts the last totals and births to the others: nothing more is gathered.
    pub(super) fn close(&mut self) {
        self.history.extend(self.open.totals.take());
        self.births.extend(self.open.births.take());
    }

    /// Goes on gathering after [`close`](Self::close).
    fn reopen(&mut self) {
        self.open = Open {
            totals: self.history.pop(),
            births: self.births.pop(),
        };
    }

    /// Leaves out the totals that only the probes have counted.
    pub(super) fn drop_probes_totals(&mut self) {
        self.close();
        self.history.retain(|totals| !totals.by_probes_only);
        self.reopen();
    }

    /// Entries held.
    pub(super) fn records(&self) -> usize {
        self.history.len() + self.births.len() + self.deaths.len()
    }

    /// Sorts the deaths, and puts together those of the same slots.
    pub(super) fn join_deaths(&mut self) {
        self.deaths
            .sort_unstable_by_key(|death| (death.born, death.died));
        self.deaths.dedup_by(|next, first| {
            let is_same = (next.born, next.died) == (first.born, first.died);
            if is_same {
                first.count.add(next.count.objects, next.count.bytes);
            }
            is_same
        });
    }

    /// Joins the slots two by two, the attach left out: 1 and 2 become 1.
    pub(super) fn halve(&mut self) {
        self.close();
        self.history.dedup_by(|next, first| {
            let is_same = next.slot.div_ceil(2) == first.slot.div_ceil(2);
            if is_same {
                *first = *next;
            }
            is_same
        });
        for totals in &mut self.history {
            totals.slot = totals.slot.div_ceil(2);
        }
        self.births.dedup_by(|next, first| {
            let is_same = next.0.div_ceil(2) == first.0.div_ceil(2);
            if is_same {
                first.1.add(next.1.objects, next.1.bytes);
            }
            is_same
        });
        for (slot, _) in &mut self.births {
            *slot = slot.div_ceil(2);
        }
        for death in &mut self.deaths {
            death.born = death.born.div_ceil(2);
            death.died = death.died.div_ceil(2);
        }
        self.join_deaths();
        self.reopen();
    }
}
