//! Births and deaths of sampled objects, by the interval in which each was born.
//!
//! The kernel side keeps the set of live objects and the totals of each site. What was born and
//! died between two looks at the set shows in the totals alone; what was born before the attach
//! shows in the frees alone. So of an interval's frees, those of objects known from an earlier
//! look belong to their cohorts, those of objects born since belong to this interval, and the rest
//! are deaths of objects older than the attach.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::{Ktime, LiveObject, SiteCounters, StackId};

use crate::capture::schema::CohortFrees;

/// Cohort of what was there before the attach.
const PREEXISTING: u32 = 0;

/// An object known from an earlier look.
struct Known {
    stack: StackId,
    born: Ktime,
    size: u64,
    cohort: u32,
}

/// What one interval did at one site, in sampled objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turnover {
    /// Allocations and frees, objects and bytes.
    pub(super) counters: SiteCounters,
    /// The frees by cohort.
    pub(super) freed: Vec<CohortFrees>,
}

/// Follows the live set of one run.
#[derive(Default)]
pub(super) struct Objects {
    known: HashMap<u64, Known>,
    totals: HashMap<StackId, SiteCounters>,
}

impl Objects {
    /// Takes the live set and the totals as they are at the end of interval `cohort`.
    pub(super) fn look(
        &mut self,
        cohort: u32,
        live: impl IntoIterator<Item = (u64, LiveObject)>,
        totals: HashMap<StackId, SiteCounters>,
    ) -> BTreeMap<StackId, Turnover> {
        let mut next = HashMap::with_capacity(self.known.len());
        let mut born_and_alive: HashMap<StackId, u64> = HashMap::new();
        for (address, object) in live {
            let known = self
                .known
                .get(&address)
                .filter(|known| known.born == object.born)
                .map(|known| known.cohort);
            if known.is_none() {
                *born_and_alive.entry(object.stack).or_default() += 1;
            }
            next.insert(
                address,
                Known {
                    stack: object.stack,
                    born: object.born,
                    size: object.size,
                    cohort: known.unwrap_or(cohort),
                },
            );
        }
        let mut dead: HashMap<StackId, BTreeMap<u32, (u64, u64)>> = HashMap::new();
        for (address, object) in &self.known {
            if next.get(address).is_none_or(|n| n.born != object.born) {
                let cohorts = dead.entry(object.stack).or_default();
                let (objects, bytes) = cohorts.entry(object.cohort).or_default();
                *objects += 1;
                *bytes += object.size;
            }
        }
        self.known = next;
        let previous = std::mem::replace(&mut self.totals, totals);
        self.totals
            .iter()
            .map(|(stack, now)| {
                let before = previous.get(stack).copied().unwrap_or_default();
                let alive = born_and_alive.get(stack).copied().unwrap_or(0);
                let dead = dead.remove(stack).unwrap_or_default();
                (
                    *stack,
                    turnover(cohort, difference(now, &before), alive, dead),
                )
            })
            .filter(|(_, turnover)| *turnover != Turnover::default())
            .collect()
    }
}

fn turnover(
    cohort: u32,
    counters: SiteCounters,
    born_and_alive: u64,
    mut dead: BTreeMap<u32, (u64, u64)>,
) -> Turnover {
    let size = |objects: u64, bytes: u64| bytes.checked_div(objects).unwrap_or(0);
    let attributed: u64 = dead.values().map(|(objects, _)| objects).sum();
    let unattributed = counters.frees.saturating_sub(attributed);
    let young = counters
        .allocs
        .saturating_sub(born_and_alive)
        .min(unattributed);
    let old = unattributed - young;
    // All objects of a Go bucket have one size.
    let size = size(counters.frees, counters.free_bytes);
    for (cohort, objects) in [(cohort, young), (PREEXISTING, old)] {
        if objects > 0 {
            let entry = dead.entry(cohort).or_default();
            entry.0 += objects;
            entry.1 += objects * size;
        }
    }
    Turnover {
        counters,
        freed: dead
            .into_iter()
            .map(|(cohort, (objects, bytes))| CohortFrees {
                cohort,
                objects,
                bytes,
            })
            .collect(),
    }
}

fn difference(now: &SiteCounters, before: &SiteCounters) -> SiteCounters {
    SiteCounters {
        allocs: now.allocs.saturating_sub(before.allocs),
        alloc_bytes: now.alloc_bytes.saturating_sub(before.alloc_bytes),
        frees: now.frees.saturating_sub(before.frees),
        free_bytes: now.free_bytes.saturating_sub(before.free_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: StackId = StackId(7);

    fn object(born: u64) -> LiveObject {
        LiveObject {
            stack: SITE,
            born: Ktime(born),
            size: 64,
            ..LiveObject::default()
        }
    }

    fn totals(allocs: u64, frees: u64) -> HashMap<StackId, SiteCounters> {
        let counters = SiteCounters {
            allocs,
            alloc_bytes: allocs * 64,
            frees,
            free_bytes: frees * 64,
        };
        HashMap::from([(SITE, counters)])
    }

    fn freed(turnover: &BTreeMap<StackId, Turnover>) -> Vec<(u32, u64, u64)> {
        turnover
            .get(&SITE)
            .map(|turnover| {
                let freed = turnover.freed.iter();
                freed.map(|f| (f.cohort, f.objects, f.bytes)).collect()
            })
            .unwrap_or_default()
    }

    #[test]
    fn deaths_belong_to_the_cohort_of_birth() {
        let mut objects = Objects::default();
        // Interval 1: three born, one of them dead at once, and one older object dies.
        let first = objects.look(1, [(1, object(10)), (2, object(11))], totals(3, 2));
        assert_eq!(freed(&first), [(0, 1, 64), (1, 1, 64)]);
        // Interval 2: object 1 dies, its address is used again; object 2 lives on.
        let second = objects.look(2, [(1, object(20)), (2, object(11))], totals(4, 3));
        assert_eq!(freed(&second), [(1, 1, 64)]);
        // Interval 3: nothing happens; interval 4: all die.
        let third = objects.look(3, [(1, object(20)), (2, object(11))], totals(4, 3));
        assert!(third.is_empty());
        let fourth = objects.look(4, [], totals(4, 5));
        assert_eq!(freed(&fourth), [(1, 1, 64), (2, 1, 64)]);
    }
}
