//! Goroutines over time, decoded from a capture: each group's numbers at every census.
//!
//! Contract: pure; whatever the capture contains is taken as far as it goes, in memory bounded by
//! `MAX_CENSUSES` moments for each group asked for.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use crate::{
    capture::{
        Capture,
        schema::{GoroutineChannel, GoroutineCount, GoroutineGroup, GoroutineState},
    },
    series,
};

/// Moments kept; of a longer capture the last at each of as many is taken.
const MAX_CENSUSES: usize = 256;

/// The goroutines of a capture.
#[derive(Debug)]
pub struct GoroutineHistory<'a> {
    /// Seconds after the attach of each census.
    pub times: Vec<f64>,
    /// All goroutines at each of them.
    pub total: Vec<f64>,
    /// How many censuses there were.
    pub censuses: usize,
    groups: BTreeMap<u32, &'a GoroutineGroup>,
    /// By group: its states, each with the index of the first moment at which it holds.
    states: BTreeMap<u32, Vec<(usize, &'a GoroutineCount)>>,
}

/// Groups that are looked at as one. Series have a value for each moment of the history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupHistory {
    /// The groups, the largest at the end first.
    pub groups: Vec<u32>,
    /// Goroutines.
    pub counts: Vec<f64>,
    /// Of these, the settled ones.
    pub settled: Vec<f64>,
    /// Settled ones that have left since the attach.
    pub settled_left: Vec<f64>,
    /// Goroutines that came to wait since the attach, as far as censuses show it.
    pub arrived: u64,
    /// Goroutines that left since the attach.
    pub left: u64,
    /// Of those at the end, how many the runtime itself has found to be blocked for ever.
    pub found_by_runtime: u64,
    /// Bytes of stacks at the end.
    pub stack_bytes: u64,
    /// Seconds that the longest wait has lasted at the end, at least.
    pub oldest_wait_s: Option<f64>,
    /// Seconds that half of them have been waiting at the end, at least.
    pub median_wait_s: Option<f64>,
    /// The channel of the largest group.
    pub channel: Option<GoroutineChannel>,
    /// Estimate of the heap bytes that their stacks point to; `None`: nobody looked.
    pub pinned_bytes: Option<u64>,
}

impl GroupHistory {
    /// Goroutines at the end.
    pub fn count(&self) -> f64 {
        self.counts.last().copied().unwrap_or(0.0)
    }

    /// Goroutines at the end less those at the first census.
    pub fn growth(&self) -> f64 {
        self.count() - self.counts.first().copied().unwrap_or(0.0)
    }
}

/// What a go statement has made, as probes counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creations {
    /// Its return address.
    pub created_by: u64,
    /// Goroutines made since the attach.
    pub created: u64,
    /// Goroutines of it that ended since the attach.
    pub exited: u64,
}

impl<'a> GoroutineHistory<'a> {
    /// `None`: the capture has no census and no counts of creations.
    pub fn from_capture(capture: &'a Capture) -> Option<Self> {
        let intervals = &capture.intervals;
        let has_census = |counts: &[GoroutineCount]| counts.iter().any(|count| count.group == 0);
        let with_census: Vec<usize> = (0..intervals.len())
            .filter(|&index| has_census(&intervals[index].goroutines))
            .collect();
        let censuses = with_census.len();
        let kept = series::thin(&with_census, MAX_CENSUSES);
        let mut history = Self {
            times: Vec::with_capacity(kept.len()),
            total: Vec::with_capacity(kept.len()),
            censuses,
            groups: BTreeMap::new(),
            states: BTreeMap::new(),
        };
        let first = intervals.first().map_or(0, |interval| interval.t_ns);
        for (index, interval) in intervals.iter().enumerate() {
            // A state holds from the next census on that is kept.
            let moment = kept.partition_point(|&at| at < index);
            for group in &interval.goroutine_groups {
                history.groups.entry(group.id).or_insert(group);
            }
            for count in &interval.goroutines {
                let states = history.states.entry(count.group).or_default();
                match states.last_mut() {
                    Some(last) if last.0 == moment => last.1 = count,
                    _ => states.push((moment, count)),
                }
            }
            if kept.get(moment) == Some(&index) {
                let t_ns = interval.t_ns.saturating_sub(first);
                history.times.push(t_ns as f64 / 1e9);
            }
        }
        history.total = history.series(0, |count| count.count);
        (!history.states.is_empty()).then_some(history)
    }

    /// A group by its number.
    pub fn group(&self, id: u32) -> Option<&'a GoroutineGroup> {
        self.groups.get(&id).copied()
    }

    /// Puts groups together that have the same key; those without one are left out.
    pub fn merge<K: Hash + Eq>(
        &self,
        key: impl Fn(&GoroutineGroup) -> Option<K>,
    ) -> Vec<(K, GroupHistory)> {
        let mut merged: HashMap<K, GroupHistory> = HashMap::new();
        for group in self.groups.values() {
            if group.state() != GoroutineState::Created
                && let Some(key) = key(group)
            {
                self.add(merged.entry(key).or_default(), group);
            }
        }
        let mut merged = Vec::from_iter(merged);
        // In the order of their first groups.
        merged.sort_by_key(|(_, history)| history.groups.first().copied());
        for (_, history) in &mut merged {
            history.groups.sort_by_key(|id| {
                let last = self.last(*id).map_or(0, |count| count.count);
                (std::cmp::Reverse(last), *id)
            });
            let largest = history.groups.first().and_then(|id| self.last(*id));
            history.channel = largest.and_then(|count| count.channel.as_deref().cloned());
        }
        merged
    }

    /// What probes counted, the most first.
    pub fn creations(&self) -> Vec<Creations> {
        let groups = self.groups.values();
        let mut creations: Vec<_> = groups
            .filter(|group| group.state() == GoroutineState::Created)
            .filter_map(|group| {
                let count = self.last(group.id)?;
                Some(Creations {
                    created_by: group.created_by,
                    created: count.arrived,
                    exited: count.left,
                })
            })
            .collect();
        creations.sort_by_key(|site| (std::cmp::Reverse(site.created), site.created_by));
        creations
    }

    fn last(&self, id: u32) -> Option<&'a GoroutineCount> {
        Some(self.states.get(&id)?.last()?.1)
    }

    fn add(&self, history: &mut GroupHistory, group: &GoroutineGroup) {
        history.groups.push(group.id);
        sum(&mut history.counts, self.series(group.id, |c| c.count));
        sum(&mut history.settled, self.series(group.id, |c| c.settled));
        let settled_left = self.series(group.id, |c| c.settled_left);
        sum(&mut history.settled_left, settled_left);
        let Some(last) = self.last(group.id) else {
            return;
        };
        history.arrived = history.arrived.saturating_add(last.arrived);
        history.left = history.left.saturating_add(last.left);
        history.stack_bytes = history.stack_bytes.saturating_add(last.stack_bytes);
        if group.state() == GoroutineState::Leaked {
            history.found_by_runtime = history.found_by_runtime.saturating_add(last.count);
        }
        if let Some(pinned) = last.pinned_bytes {
            let sum = history.pinned_bytes.unwrap_or(0);
            history.pinned_bytes = Some(sum.saturating_add(pinned));
        }
        if let Some(oldest) = last.oldest_ns.filter(|_| last.count > 0) {
            let end_s = self.times.last().copied().unwrap_or(0.0);
            let wait_s = |since: f64| (end_s - since / 1e9).max(0.0);
            let longest = wait_s(oldest as f64);
            let median = wait_s(oldest as f64 + last.median_after_ns as f64);
            let before = history.oldest_wait_s.unwrap_or(0.0);
            history.oldest_wait_s = Some(longest.max(before));
            // Half of each have waited for as long as half of the least patient.
            let before = history.median_wait_s.unwrap_or(f64::INFINITY);
            history.median_wait_s = Some(median.min(before));
        }
    }

    /// One number of a group at each moment.
    fn series(&self, id: u32, number: impl Fn(&GoroutineCount) -> u64) -> Vec<f64> {
        let states = self.states.get(&id).map_or(&[][..], Vec::as_slice);
        let mut states = states.iter().peekable();
        let mut value = 0.0;
        (0..self.times.len())
            .map(|moment| {
                while let Some((_, count)) = states.next_if(|state| state.0 <= moment) {
                    value = number(count) as f64;
                }
                value
            })
            .collect()
    }
}

fn sum(sums: &mut Vec<f64>, values: Vec<f64>) {
    if sums.is_empty() {
        *sums = values;
        return;
    }
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{
        Ended,
        schema::{Header, Interval},
    };

    fn count(group: u32, count: u64) -> GoroutineCount {
        GoroutineCount {
            group,
            count,
            ..GoroutineCount::default()
        }
    }

    fn group(id: u32, created_by: u64) -> GoroutineGroup {
        GoroutineGroup {
            id,
            created_by,
            state: GoroutineState::Waiting.into(),
            ..GoroutineGroup::default()
        }
    }

    fn capture(intervals: Vec<Interval>) -> Capture {
        Capture {
            how_it_ended: Ended::Truncated { at: 0 },
            ..Capture::of(Header::default(), intervals)
        }
    }

    fn interval(index: u32, goroutines: Vec<GoroutineCount>) -> Interval {
        Interval {
            index,
            t_ns: u64::from(index) * 1_000_000_000,
            goroutines,
            ..Interval::default()
        }
    }

    #[test]
    fn states_hold_until_they_change_and_groups_add_up() {
        let mut first = interval(0, vec![count(0, 5), count(1, 2), count(2, 3)]);
        first.goroutine_groups = vec![group(1, 7), group(2, 7), group(3, 8)];
        let intervals = vec![
            first,
            interval(1, vec![count(0, 9), count(2, 7)]),
            interval(2, Vec::new()),
            interval(3, vec![count(0, 10), count(3, 1), count(1, 0)]),
        ];
        let capture = capture(intervals);
        let history = GoroutineHistory::from_capture(&capture).unwrap();
        assert_eq!(history.times, [0.0, 1.0, 3.0], "interval 2 had no census");
        assert_eq!(history.total, [5.0, 9.0, 10.0]);
        let merged = history.merge(|group| Some(group.created_by));
        assert_eq!(merged[0].1.counts, [5.0, 9.0, 7.0]);
        assert_eq!(merged[0].1.groups, [2, 1], "the largest at the end first");
        assert_eq!((merged[1].0, merged[1].1.growth()), (8, 1.0));
    }

    #[test]
    fn waits_are_lower_bounds_of_the_whole() {
        let waiting = |id, oldest, after| GoroutineCount {
            oldest_ns: Some(oldest),
            median_after_ns: after,
            ..count(id, 10)
        };
        let second = 1_000_000_000;
        let end = vec![
            count(0, 20),
            waiting(1, -second, 3 * second as u64),
            waiting(2, 4 * second, 0),
        ];
        let mut first = interval(0, Vec::new());
        first.goroutine_groups = vec![group(1, 7), group(2, 7)];
        let capture = capture(vec![first, interval(10, end)]);
        let history = GoroutineHistory::from_capture(&capture).unwrap();
        let merged = history.merge(|_| Some(()));
        assert_eq!(merged[0].1.oldest_wait_s, Some(11.0));
        assert_eq!(merged[0].1.median_wait_s, Some(6.0));
    }

    #[test]
    fn long_captures_take_bounded_moments() {
        let mut intervals: Vec<_> = (0..4000)
            .map(|index| interval(index, vec![count(0, index.into()), count(1, index.into())]))
            .collect();
        intervals[0].goroutine_groups = vec![group(1, 7)];
        let capture = capture(intervals);
        let history = GoroutineHistory::from_capture(&capture).unwrap();
        assert_eq!(
            (history.times.len(), history.censuses),
            (MAX_CENSUSES, 4000)
        );
        let counts = &history.merge(|_| Some(()))[0].1.counts;
        let times: Vec<f64> = history.times.clone();
        assert_eq!(*counts, times, "each moment has its own count");
        let nothing = self::capture(vec![interval(0, Vec::new())]);
        assert!(GoroutineHistory::from_capture(&nothing).is_none());
    }
}
