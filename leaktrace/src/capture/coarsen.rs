//! Fewer, longer intervals: what lets a capture of days be read in bounded memory.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::mem::size_of;

use super::schema::{
    CohortFrees, GoBucket, GoClass, GoroutineChannel, GoroutineCount, GoroutineGroup, Interval,
    Mapping, Module, Site, SiteDelta,
};

/// Joins the intervals two by two; the attach (index 0) stays by itself. A joined interval has the
/// later one's index and end; births of either count as born in it.
pub(super) fn halve(intervals: Vec<Interval>) -> Vec<Interval> {
    let mut joined = Vec::with_capacity(intervals.len() / 2 + 2);
    let mut rest = intervals.into_iter().peekable();
    joined.extend(rest.next_if(|interval| interval.index == 0));
    while let Some(first) = rest.next() {
        joined.push(match rest.next() {
            Some(second) => join(first, second),
            None => first,
        });
    }
    let indexes: Vec<u32> = joined.iter().map(|interval| interval.index).collect();
    for delta in joined.iter_mut().flat_map(|interval| &mut interval.deltas) {
        let mut by_cohort = BTreeMap::<u32, CohortFrees>::new();
        for freed in std::mem::take(&mut delta.freed) {
            let later = indexes.get(indexes.partition_point(|&index| index < freed.cohort));
            let cohort = match freed.cohort {
                0 => 0,
                cohort => later.copied().unwrap_or(cohort),
            };
            let sum = by_cohort.entry(cohort).or_insert(CohortFrees {
                cohort,
                ..Default::default()
            });
            sum.objects = sum.objects.saturating_add(freed.objects);
            sum.bytes = sum.bytes.saturating_add(freed.bytes);
        }
        delta.freed = by_cohort.into_values().collect();
    }
    joined
}

fn join(mut first: Interval, mut second: Interval) -> Interval {
    first.index = second.index;
    first.t_ns = second.t_ns;
    first.gc_cycles = second.gc_cycles;
    if second.go_sample_rate != 0 {
        first.go_sample_rate = second.go_sample_rate;
    }
    first.memory = second.memory.or(first.memory);
    first.modules.append(&mut second.modules);
    first.mappings.append(&mut second.mappings);
    first.sites.append(&mut second.sites);
    first
        .losses
        .retain(|old| second.losses.iter().all(|new| new.cause != old.cause));
    first.losses.append(&mut second.losses);

    let mut place: HashMap<u32, usize> = first
        .deltas
        .iter()
        .enumerate()
        .map(|(at, delta)| (delta.site, at))
        .collect();
    for mut delta in second.deltas {
        let at = *place.entry(delta.site).or_insert(first.deltas.len());
        match first.deltas.get_mut(at) {
            Some(sum) => {
                sum.allocs = sum.allocs.saturating_add(delta.allocs);
                sum.alloc_bytes = sum.alloc_bytes.saturating_add(delta.alloc_bytes);
                sum.frees = sum.frees.saturating_add(delta.frees);
                sum.free_bytes = sum.free_bytes.saturating_add(delta.free_bytes);
                sum.freed.append(&mut delta.freed);
                sum.repeats = sum.repeats.saturating_add(delta.repeats);
            }
            None => first.deltas.push(delta),
        }
    }
    if let Some(mut later) = second.go_own_sampling {
        let hits = first.go_own_sampling.map_or(0, |sampling| sampling.hits);
        later.hits = later.hits.saturating_add(hits);
        first.go_own_sampling = Some(later);
    }
    // Buckets, size classes and groups of goroutines are absolute: the later one counts.
    replace(&mut first.go_classes, second.go_classes, |c| c.object_size);
    replace(&mut first.go_buckets, second.go_buckets, |b| b.site);
    first.goroutine_groups.append(&mut second.goroutine_groups);
    replace(&mut first.goroutines, second.goroutines, |g| g.group);
    first
}

/// Puts later states in the place of earlier ones with the same key.
fn replace<T, K: Hash + Eq>(first: &mut Vec<T>, second: Vec<T>, key: impl Fn(&T) -> K) {
    let mut place: HashMap<K, usize> = first
        .iter()
        .enumerate()
        .map(|(at, state)| (key(state), at))
        .collect();
    for state in second {
        let at = *place.entry(key(&state)).or_insert(first.len());
        match first.get_mut(at) {
            Some(old) => *old = state,
            None => first.push(state),
        }
    }
}

/// At most how many bytes an interval takes in memory, as `read` charges them.
pub(super) fn held(interval: &Interval) -> u64 {
    let pcs: usize = interval
        .sites
        .iter()
        .map(|site| site.pcs.len() * size_of::<u64>())
        .sum();
    let freed: usize = interval.deltas.iter().map(|delta| delta.freed.len()).sum();
    let text = interval
        .modules
        .iter()
        .map(|m| m.path.len() + m.build_id.len());
    let text: usize = text
        .chain(interval.sites.iter().map(|site| site.incomplete.len()))
        .sum();
    let losses: usize = interval
        .losses
        .iter()
        .map(|loss| loss.cause.len() + 32)
        .sum();
    let groups = interval.goroutine_groups.iter();
    let pcs = pcs + groups.clone().map(|g| g.pcs.len() * 8).sum::<usize>();
    let text = text + groups.map(|g| g.wait_reason.len()).sum::<usize>();
    let bytes = size_of::<Interval>()
        + interval.modules.len() * size_of::<Module>()
        + interval.mappings.len() * size_of::<Mapping>()
        + interval.sites.len() * size_of::<Site>()
        + interval.deltas.len() * size_of::<SiteDelta>()
        + interval.go_buckets.len() * size_of::<GoBucket>()
        + interval.go_classes.len() * size_of::<GoClass>()
        + interval.goroutine_groups.len() * size_of::<GoroutineGroup>()
        + interval.goroutines.len() * (size_of::<GoroutineCount>() + size_of::<GoroutineChannel>())
        + freed * size_of::<CohortFrees>()
        + pcs
        + text
        + losses;
    // Vectors may have grown to twice their length.
    2 * bytes as u64
}
