//! Which share of a site's objects reaches an age: Kaplan and Meier's estimate, 1958.
//!
//! Objects that are alive at the end of the window have been followed up to the age they have then and
//! count for younger ages only; objects from before the attach do not count, their age is not known.
//! Ages are counted from the end of the interval of birth to the end of that of death, so they are
//! right to an interval. A sampled object that dies is noticed after the collection that finds it dead
//! has swept it.

use std::collections::BTreeMap;

use super::{SiteHistory, Timeline};
use crate::report::human;

/// Points of a curve.
const MAX_POINTS: usize = 24;

/// An age of objects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Age {
    /// Seconds, or collections completed.
    pub age: f64,
    /// Share of the objects that live longer than this.
    pub alive: f64,
    /// Objects (samples) that were followed up to this age.
    pub followed: u64,
}

/// The curves of one site; empty where nothing was born in the window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survival {
    /// By age in seconds.
    pub seconds: Vec<Age>,
    /// By collections completed since the birth; for the Go heap only.
    pub collections: Vec<Age>,
}

impl Survival {
    pub(super) fn new(site: &SiteHistory, timeline: &Timeline) -> Self {
        let has_collections = timeline.collections.last().is_some_and(|&count| count > 0);
        let collections = |born: usize, now: usize| {
            let at = |slot: usize| timeline.collections.get(slot).copied().unwrap_or_default();
            f64::from(at(now).saturating_sub(at(born)))
        };
        Self {
            seconds: curve(site, timeline.last(), |born, now| timeline.age_s(born, now)),
            collections: match site.proven_bytes.is_some() && has_collections {
                true => curve(site, timeline.last(), collections),
                false => Vec::new(),
            },
        }
    }

    /// The share that lives longer than the greatest age to which enough objects were followed; `None`
    /// if they were not followed for a second.
    pub fn in_words(&self) -> Option<String> {
        const ENOUGH: u64 = 10;
        let mut ages = self.seconds.iter().rev();
        let age = ages.find(|age| age.followed >= ENOUGH && age.age >= 1.0)?;
        let share = age.alive * 100.0;
        let older = human::seconds(age.age);
        Some(format!(
            "{share:.0} % of what comes lives longer than {older}"
        ))
    }
}

fn curve(site: &SiteHistory, last: usize, age: impl Fn(usize, usize) -> f64) -> Vec<Age> {
    // By age in thousandths: deaths, and objects that were alive when the window ended.
    let mut exits: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let key = |born, now| (age(born, now) * 1000.0) as u64;
    for (&(born, died), count) in site.deaths.iter().filter(|((born, _), _)| *born > 0) {
        let exits = &mut exits.entry(key(born, died)).or_default().0;
        *exits = exits.saturating_add(count.objects);
    }
    for (born, count, died) in site.cohorts().filter(|(born, ..)| *born > 0) {
        let alive = count.less(died).objects;
        if alive > 0 {
            let exits = &mut exits.entry(key(born, last)).or_default().1;
            *exits = exits.saturating_add(alive);
        }
    }
    let mut followed = exits.values().fold(0_u64, |sum, (died, alive)| {
        sum.saturating_add(*died).saturating_add(*alive)
    });
    let mut alive = 1.0;
    let mut points = Vec::with_capacity(exits.len());
    for (age, (died, censored)) in exits {
        if died > 0 {
            alive *= 1.0 - (died as f64 / followed as f64).min(1.0);
        }
        points.push(Age {
            age: age as f64 / 1000.0,
            alive,
            followed,
        });
        followed = followed.saturating_sub(died.saturating_add(censored));
    }
    crate::series::thin(&points, MAX_POINTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live_heap::Count;

    fn objects(objects: u64) -> Count {
        Count {
            objects,
            bytes: objects * 64,
        }
    }

    #[test]
    fn the_curve_is_that_of_kaplan_and_meier() {
        let timeline = Timeline {
            times: vec![0.0, 10.0, 20.0, 30.0],
            collections: vec![0, 1, 2, 3],
        };
        // Ten born in the first slot: four dead 10 s later. Six more in the second, alive at the end.
        let site = SiteHistory {
            proven_bytes: Some(0.0),
            births: BTreeMap::from([(0, objects(99)), (1, objects(10)), (2, objects(6))]),
            deaths: BTreeMap::from([((1, 2), objects(4)), ((0, 1), objects(7))]),
            ..SiteHistory::default()
        };
        let survival = site.survival(&timeline);
        let at = |age, alive, followed| Age {
            age,
            alive,
            followed,
        };
        // At 10 s 16 were followed and 4 died; the 6 of the second slot are not followed further.
        assert_eq!(survival.seconds, [at(10.0, 0.75, 16), at(20.0, 0.75, 6)]);
        assert_eq!(survival.collections, [at(1.0, 0.75, 16), at(2.0, 0.75, 6)]);
        let words = "75 % of what comes lives longer than 10 s";
        assert_eq!(survival.in_words().as_deref(), Some(words));
    }
}
