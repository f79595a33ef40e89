//! Births and deaths of objects, by the interval in which each was born.
//!
//! The kernel side keeps the set of live objects and the totals of each site. What was born and
//! died between two looks at the set shows in the totals alone; what was born before the attach
//! shows in the frees alone. So of an interval's frees, those of objects known from an earlier
//! look belong to their cohorts, those of objects born since belong to this interval, and the rest
//! are deaths of objects older than the attach.
//!
//! The totals are read first and the live set after them, and the process runs on meanwhile: an
//! object that dies in between is missing from the set before its free is in the totals. Such frees
//! come with the next look and are put where they belong then; without that, each would leave one
//! object in its cohort that lives for ever.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::{Ktime, LiveObject, SiteCounters, SiteKey};

use crate::capture::schema::CohortFrees;

/// Cohort of what was there before the attach.
const PREEXISTING: u32 = 0;

/// An object known from an earlier look. There may be millions of them.
struct Known {
    born: Ktime,
    size: u64,
    /// Index in [`Objects::sites`].
    site: u32,
    cohort: u32,
    /// The look that saw it last.
    look: u32,
}

/// What one interval did at one site, in objects that were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turnover {
    /// Allocations and frees, objects and bytes.
    pub(super) counters: SiteCounters,
    /// The frees by cohort.
    pub(super) freed: Vec<CohortFrees>,
}

/// What the set of one look had and the totals of that look had not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gap {
    /// Objects found dead that have a cohort already.
    deaths: u64,
    /// Objects born and dead in the interval itself, by the totals of births.
    young_deaths: u64,
    /// Objects found alive whose births are not counted.
    births: u64,
    /// Bytes of objects found dead beyond those whose frees are counted.
    bytes: u64,
}

/// Follows the live set of one run.
#[derive(Default)]
pub(super) struct Objects {
    known: HashMap<u64, Known>,
    sites: Vec<SiteKey>,
    site_indices: HashMap<SiteKey, u32>,
    looks: u32,
    totals: HashMap<SiteKey, SiteCounters>,
    gaps: HashMap<SiteKey, Gap>,
}

/// Objects found dead, by site and cohort: how many, and their bytes.
type Dead = HashMap<SiteKey, BTreeMap<u32, (u64, u64)>>;

impl Objects {
    /// Takes the totals at the end of interval `cohort`, read until moment `now`, and the live set, which
    /// `each_live` reads after that. What was born after `now` is left to the next look.
    pub(super) fn look<E>(
        &mut self,
        cohort: u32,
        now: Ktime,
        totals: HashMap<SiteKey, SiteCounters>,
        each_live: impl FnOnce(&mut dyn FnMut(u64, LiveObject)) -> Result<(), E>,
    ) -> Result<BTreeMap<SiteKey, Turnover>, E> {
        self.looks += 1;
        let mut dead = Dead::new();
        let mut born_and_alive: HashMap<SiteKey, u64> = HashMap::new();
        each_live(&mut |address, object| {
            if object.born <= now && self.sees(address, &object, cohort, &mut dead) {
                *born_and_alive.entry(site_of(&object)).or_default() += 1;
            }
        })?;
        self.known.retain(|_, object| {
            let is_alive = object.look == self.looks;
            if !is_alive {
                died(&mut dead, self.sites[object.site as usize], object);
            }
            is_alive
        });
        if self.known.capacity() / 4 > self.known.len() {
            self.known.shrink_to_fit();
        }
        let previous = std::mem::replace(&mut self.totals, totals);
        let mut gaps = std::mem::take(&mut self.gaps);
        let turnovers: BTreeMap<_, _> = self
            .totals
            .iter()
            .map(|(site, now)| {
                let before = previous.get(site).copied().unwrap_or_default();
                let alive = born_and_alive.get(site).copied().unwrap_or(0);
                let dead = dead.remove(site).unwrap_or_default();
                let gap = gaps.remove(site).unwrap_or_default();
                let counters = difference(now, &before);
                let (turnover, gap) = turnover(cohort, counters, alive, dead, gap);
                if gap != Gap::default() {
                    self.gaps.insert(*site, gap);
                }
                (*site, turnover)
            })
            .filter(|(_, turnover)| *turnover != Turnover::default())
            .collect();
        Ok(turnovers)
    }

    /// Marks an object as alive; gives whether it is new. One at the same address that was born earlier is dead.
    fn sees(&mut self, address: u64, object: &LiveObject, cohort: u32, dead: &mut Dead) -> bool {
        let known = self.known.get_mut(&address);
        if let Some(known) = known.filter(|known| known.born == object.born) {
            known.look = self.looks;
            return false;
        }
        let new = Known {
            born: object.born,
            size: object.size,
            site: self.site_index(site_of(object)),
            cohort,
            look: self.looks,
        };
        if let Some(old) = self.known.insert(address, new) {
            died(dead, self.sites[old.site as usize], &old);
        }
        true
    }

    fn site_index(&mut self, site: SiteKey) -> u32 {
        *self.site_indices.entry(site).or_insert_with(|| {
            self.sites.push(site);
            self.sites.len() as u32 - 1
        })
    }
}

fn died(dead: &mut Dead, site: SiteKey, object: &Known) {
    let cohorts = dead.entry(site).or_default();
    let (objects, bytes) = cohorts.entry(object.cohort).or_default();
    *objects += 1;
    *bytes += object.size;
}

/// Where an interval's frees belong. `gap` is what was open after the last look; gives what is open
/// after this one. Nothing stays open for longer: a birth that is still not in the set, and whose free
/// has not come, belongs to an object for which the set had no room.
fn turnover(
    cohort: u32,
    counters: SiteCounters,
    born_and_alive: u64,
    mut dead: BTreeMap<u32, (u64, u64)>,
    gap: Gap,
) -> (Turnover, Gap) {
    let sum = |(objects, bytes): (u64, u64), dead: &(u64, u64)| (objects + dead.0, bytes + dead.1);
    let (found, found_bytes) = dead.values().fold((0, 0), sum);
    let mut left = counters.frees.saturating_sub(gap.deaths);
    let deaths = found.saturating_sub(left);
    left = left.saturating_sub(found);

    let late = gap.young_deaths.min(left);
    left -= late;

    let births = counters.allocs.saturating_sub(gap.births);
    let expected = births.saturating_sub(born_and_alive);
    let young = expected.min(left);
    let old = left - young;

    // What the counted frees have beyond the objects found dead, of which some are not counted yet.
    let ahead = share(found_bytes, deaths, found);
    let attributed = gap.bytes + found_bytes;
    let mut bytes = (counters.free_bytes + ahead).saturating_sub(attributed);
    let mut rest = late + young + old;
    let mut given = 0;
    for (cohort, objects) in [
        (cohort.saturating_sub(1), late),
        (cohort, young),
        (PREEXISTING, old),
    ] {
        if objects > 0 {
            let entry = dead.entry(cohort).or_default();
            let part = share(bytes, objects, rest);
            entry.0 += objects;
            entry.1 += part;
            (bytes, rest, given) = (bytes - part, rest - objects, given + part);
        }
    }
    let freed = dead
        .into_iter()
        .map(|(cohort, (objects, bytes))| CohortFrees {
            cohort,
            objects,
            bytes,
        })
        .collect();
    let gap = Gap {
        deaths,
        young_deaths: expected - young,
        births: born_and_alive.saturating_sub(births),
        bytes: (attributed + given).saturating_sub(counters.free_bytes),
    };
    (Turnover { counters, freed }, gap)
}

/// `part` of `whole` parts of `bytes`.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    (u128::from(bytes) * u128::from(part))
        .checked_div(whole.into())
        .unwrap_or(0) as u64
}

/// The site that allocated an object.
pub(super) fn site_of(object: &LiveObject) -> SiteKey {
    SiteKey {
        stack: object.stack,
        kind: object.kind,
        class: object.class,
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
    use std::convert::Infallible;

    use leaktrace_common::StackId;

    use super::*;

    const STACK: StackId = StackId(7);
    const SITE: SiteKey = SiteKey {
        stack: STACK,
        kind: 0,
        class: 0,
    };
    const NOW: Ktime = Ktime(1000);

    fn object(born: u64) -> LiveObject {
        LiveObject {
            stack: STACK,
            born: Ktime(born),
            size: 64,
            ..LiveObject::default()
        }
    }

    fn totals(allocs: u64, frees: u64) -> HashMap<SiteKey, SiteCounters> {
        let counters = SiteCounters {
            allocs,
            alloc_bytes: allocs * 64,
            frees,
            free_bytes: frees * 64,
        };
        HashMap::from([(SITE, counters)])
    }

    fn freed(turnover: &BTreeMap<SiteKey, Turnover>) -> Vec<(u32, u64, u64)> {
        turnover
            .get(&SITE)
            .map(|turnover| {
                let freed = turnover.freed.iter();
                freed.map(|f| (f.cohort, f.objects, f.bytes)).collect()
            })
            .unwrap_or_default()
    }

    /// A look at a set that can be read.
    fn look(
        objects: &mut Objects,
        cohort: u32,
        now: Ktime,
        totals: HashMap<SiteKey, SiteCounters>,
        live: impl IntoIterator<Item = (u64, LiveObject)>,
    ) -> BTreeMap<SiteKey, Turnover> {
        let each_live = |visit: &mut dyn FnMut(u64, LiveObject)| {
            live.into_iter()
                .for_each(|(address, object)| visit(address, object));
            Ok::<_, Infallible>(())
        };
        let Ok(turnovers) = objects.look(cohort, now, totals, each_live);
        turnovers
    }

    #[test]
    fn deaths_belong_to_the_cohort_of_birth() {
        let mut objects = Objects::default();
        // Interval 1: three born, one of them dead at once, and one older object dies.
        let first = look(
            &mut objects,
            1,
            NOW,
            totals(3, 2),
            [(1, object(10)), (2, object(11))],
        );
        assert_eq!(freed(&first), [(0, 1, 64), (1, 1, 64)]);
        // Interval 2: object 1 dies, its address is used again; object 2 lives on.
        let second = look(
            &mut objects,
            2,
            NOW,
            totals(4, 3),
            [(1, object(20)), (2, object(11))],
        );
        assert_eq!(freed(&second), [(1, 1, 64)]);
        // Interval 3: nothing happens; interval 4: all die.
        let third = look(
            &mut objects,
            3,
            NOW,
            totals(4, 3),
            [(1, object(20)), (2, object(11))],
        );
        assert!(third.is_empty());
        let fourth = look(&mut objects, 4, NOW, totals(4, 5), []);
        assert_eq!(freed(&fourth), [(1, 1, 64), (2, 1, 64)]);
    }

    /// Deaths between the reading of the totals and that of the set.
    #[test]
    fn a_death_between_two_readings_is_counted_once_and_where_it_belongs() {
        let mut objects = Objects::default();
        look(
            &mut objects,
            1,
            NOW,
            totals(2, 0),
            [(1, object(10)), (2, object(11))],
        );
        // One known object and one of two just born die before the set is read.
        let second = look(
            &mut objects,
            2,
            NOW,
            totals(4, 0),
            [(2, object(11)), (4, object(21))],
        );
        assert_eq!(freed(&second), [(1, 1, 64)]);
        // Their frees come with the next look, beside those of another and of an older object.
        let third = look(&mut objects, 3, NOW, totals(4, 4), [(2, object(11))]);
        assert_eq!(freed(&third), [(0, 1, 64), (2, 2, 128)]);
        let fourth = look(&mut objects, 4, NOW, totals(4, 5), []);
        assert_eq!(freed(&fourth), [(1, 1, 64)]);
    }

    #[test]
    fn a_birth_between_two_readings_waits_for_the_next_look() {
        let mut objects = Objects::default();
        let first = look(
            &mut objects,
            1,
            NOW,
            totals(1, 0),
            [(1, object(10)), (2, object(1001))],
        );
        assert!(freed(&first).is_empty());
        let second = look(
            &mut objects,
            2,
            Ktime(2000),
            totals(2, 0),
            [(1, object(10)), (2, object(1001))],
        );
        assert!(freed(&second).is_empty());
        let third = look(&mut objects, 3, Ktime(3000), totals(2, 2), []);
        assert_eq!(freed(&third), [(1, 1, 64), (2, 1, 64)]);
    }

    /// A birth without room in the set is alive until as many frees come.
    #[test]
    fn births_without_room_are_not_deaths() {
        let mut objects = Objects::default();
        let first = look(&mut objects, 1, NOW, totals(5, 0), [(1, object(10))]);
        assert!(freed(&first).is_empty());
        let second = look(&mut objects, 2, NOW, totals(5, 0), [(1, object(10))]);
        assert!(second.is_empty());
        let third = look(&mut objects, 3, NOW, totals(5, 4), [(1, object(10))]);
        assert_eq!(freed(&third), [(0, 4, 256)]);
    }

    /// A program that goes on while it is read: objects at random addresses, all freed now and then.
    #[derive(Default)]
    struct Garbage {
        random: u64,
        time: u64,
        alive: Vec<(u64, u64)>,
        allocs: u64,
        frees: u64,
    }

    impl Garbage {
        fn chance(&mut self, n: u64) -> u64 {
            let next = self.random.wrapping_mul(6_364_136_223_846_793_005);
            self.random = next.wrapping_add(1);
            (self.random >> 33) % n
        }

        fn run(&mut self, steps: u64) {
            for _ in 0..steps {
                self.time += 1;
                self.allocs += 1;
                let address = self.chance(1 << 30);
                self.alive.push((address, self.time));
                if self.chance(40) == 0 {
                    self.collect();
                }
            }
        }

        fn collect(&mut self) {
            self.frees += self.alive.len() as u64;
            self.alive.clear();
        }
    }

    #[test]
    fn garbage_leaves_nothing_behind_in_any_cohort() {
        let mut objects = Objects::default();
        let mut garbage = Garbage::default();
        let mut left = BTreeMap::<u32, i64>::new();
        for cohort in 1..=500 {
            garbage.run(30);
            if cohort >= 499 {
                garbage.collect();
            }
            let counted = totals(garbage.allocs, garbage.frees);
            let now = Ktime(garbage.time);
            garbage.run(if cohort < 499 { 20 } else { 0 });
            let set = garbage.alive.iter();
            let set = set.map(|(address, born)| (*address, object(*born)));
            for turnover in look(&mut objects, cohort, now, counted, set).into_values() {
                *left.entry(cohort).or_default() += turnover.counters.allocs as i64;
                for freed in turnover.freed {
                    *left.entry(freed.cohort).or_default() -= freed.objects as i64;
                }
            }
        }
        assert!(left.len() > 400);
        let off: Vec<_> = left.iter().filter(|(_, left)| **left != 0).collect();
        assert!(off.is_empty(), "{off:?}");
    }
}
