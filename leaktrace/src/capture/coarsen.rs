//! Fewer, longer intervals: what lets a capture of days be read in bounded memory.

use std::cmp::Ordering;
use std::iter;
use std::mem::size_of;

use super::schema::{
    CohortFrees, GoBucket, GoClass, GoroutineChannel, GoroutineCount, GoroutineGroup, Interval,
    Mapping, Module, Site, SiteDelta, SiteTurnover, UnseenDeaths, Windows,
};
use crate::turnover::{SiteTally, Tally};

/// What an allocation takes beside what was asked for, in bytes.
const ALLOCATION: usize = 16;

/// Gathers the intervals of a file and joins neighbours when they become too many: always as many of
/// the file's in each, so that time is resolved evenly. A joined interval has the last one's index and
/// end; what was born in any of them counts as born in it. The attach (index 0) stays by itself.
#[derive(Debug)]
pub(super) struct Joiner {
    limit: usize,
    /// How many of the file's intervals make one.
    stride: usize,
    joined: Vec<Interval>,
    /// The beginning of the next one, and how many of the file's it has.
    pending: Vec<Interval>,
    pending_count: usize,
    held: u64,
}

impl Joiner {
    /// Joins where there are more than `limit`, which is at least 4.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(4),
            stride: 1,
            joined: Vec::new(),
            pending: Vec::new(),
            pending_count: 0,
            held: 0,
        }
    }

    /// Takes the next one; their indexes rise. Gives about how many bytes of memory all of them take.
    pub(super) fn push(&mut self, mut interval: Interval) -> u64 {
        shrink(&mut interval);
        self.held += held(&interval);
        if interval.index == 0 {
            self.joined.push(interval);
            return self.held;
        }
        self.pending.push(interval);
        self.pending_count += 1;
        if self.pending_count == self.stride {
            self.flush();
        }
        if self.joined.len() > self.limit {
            self.halve();
        }
        self.held
    }

    /// All of them, indexes rising.
    pub(super) fn finish(mut self) -> Vec<Interval> {
        self.flush();
        self.joined
    }

    /// Makes one of what is pending.
    fn flush(&mut self) {
        self.pending_count = 0;
        let alone = self.pending.len() == 1;
        let Some(interval) = join(std::mem::take(&mut self.pending)) else {
            return;
        };
        self.joined.push(interval);
        if !alone {
            let last = self.joined.len() - 1;
            join_cohorts(&mut self.joined, last);
            self.held = self.joined.iter().map(held).sum();
        }
    }

    fn halve(&mut self) {
        let joinable = self.joined.iter().filter(|interval| interval.index > 0);
        if joinable.count() % 2 == 1 {
            self.pending.extend(self.joined.pop());
            self.pending_count = self.stride;
        }
        join_in_pairs(&mut self.joined);
        self.stride *= 2;
        self.held = self.joined.iter().chain(&self.pending).map(held).sum();
    }
}

/// Joins neighbours two by two, but for the attach; the last one stays by itself if their number is odd.
pub(super) fn join_in_pairs(intervals: &mut Vec<Interval>) {
    let mut rest = std::mem::take(intervals).into_iter().peekable();
    intervals.extend(rest.next_if(|interval| interval.index == 0));
    while let Some(first) = rest.next() {
        intervals.extend(join(iter::once(first).chain(rest.next()).collect()));
    }
    join_cohorts(intervals, 0);
}

/// Joins the last `count` intervals, one or more.
pub(super) fn join_last(intervals: &mut Vec<Interval>, count: usize) {
    let last = intervals.split_off(intervals.len().saturating_sub(count));
    let at = intervals.len();
    intervals.extend(join(last));
    join_cohorts(intervals, at);
}

/// Puts together the deaths whose births are in one interval now, from the given interval on.
fn join_cohorts(intervals: &mut [Interval], from: usize) {
    let indexes: Vec<u32> = intervals.iter().map(|interval| interval.index).collect();
    let joined = intervals[from..].iter_mut();
    for delta in joined.flat_map(|interval| &mut interval.deltas) {
        for freed in delta.freed.iter_mut().filter(|freed| freed.cohort > 0) {
            let later = indexes.get(indexes.partition_point(|&index| index < freed.cohort));
            freed.cohort = later.copied().unwrap_or(freed.cohort);
        }
        delta.freed = fold(
            std::mem::take(&mut delta.freed),
            |a, b| a.cohort.cmp(&b.cohort),
            |sum, freed| {
                sum.objects = sum.objects.saturating_add(freed.objects);
                sum.bytes = sum.bytes.saturating_add(freed.bytes);
            },
        );
    }
}

/// One interval of several that follow each other.
fn join(mut intervals: Vec<Interval>) -> Option<Interval> {
    if intervals.len() < 2 {
        return intervals.pop();
    }
    let (index, t_ns, gc_cycles) = intervals
        .last()
        .map(|last| (last.index, last.t_ns, last.gc_cycles))?;
    let mut all = Interval::default();
    for interval in intervals {
        append(&mut all, interval);
    }
    let deltas = fold(
        all.deltas,
        |a, b| a.site.cmp(&b.site),
        |sum, mut delta| {
            sum.allocs = sum.allocs.saturating_add(delta.allocs);
            sum.alloc_bytes = sum.alloc_bytes.saturating_add(delta.alloc_bytes);
            sum.frees = sum.frees.saturating_add(delta.frees);
            sum.free_bytes = sum.free_bytes.saturating_add(delta.free_bytes);
            sum.freed.append(&mut delta.freed);
            sum.repeats = sum.repeats.saturating_add(delta.repeats);
        },
    );
    // Losses, buckets, size classes and groups of goroutines are absolute: the last one counts.
    Some(Interval {
        index,
        t_ns,
        gc_cycles,
        deltas,
        losses: fold(all.losses, |a, b| a.cause.cmp(&b.cause), replace),
        go_classes: fold(
            all.go_classes,
            |a, b| a.object_size.cmp(&b.object_size),
            replace,
        ),
        go_buckets: fold(all.go_buckets, |a, b| a.site.cmp(&b.site), replace),
        goroutines: fold(all.goroutines, |a, b| a.group.cmp(&b.group), replace),
        ..all
    })
}

/// Puts one interval's records behind another's.
fn append(first: &mut Interval, mut second: Interval) {
    if second.go_sample_rate != 0 {
        first.go_sample_rate = second.go_sample_rate;
    }
    if second.memory.is_some() {
        first.memory = second.memory;
    }
    if let Some(mut later) = second.go_own_sampling {
        let hits = first.go_own_sampling.map_or(0, |sampling| sampling.hits);
        later.hits = later.hits.saturating_add(hits);
        first.go_own_sampling = Some(later);
    }
    if second.malloc_calls.is_some() {
        first.malloc_calls = second.malloc_calls;
    }
    if !second.probe_costs.is_empty() {
        first.probe_costs = second.probe_costs;
    }
    first.ended.append(&mut second.ended);
    first.windows = match (first.windows.take(), second.windows) {
        (Some(first), Some(second)) => Some(join_windows(first, second)),
        (first, second) => first.or(second),
    };
    first.modules.append(&mut second.modules);
    first.mappings.append(&mut second.mappings);
    first.sites.append(&mut second.sites);
    first.deltas.append(&mut second.deltas);
    first.losses.append(&mut second.losses);
    first.go_classes.append(&mut second.go_classes);
    first.go_buckets.append(&mut second.go_buckets);
    first.goroutine_groups.append(&mut second.goroutine_groups);
    first.goroutines.append(&mut second.goroutines);
}

fn join_windows(mut first: Windows, second: Windows) -> Windows {
    first.add_totals(&second);
    first.sites.extend(second.sites);
    first.sites = fold(
        first.sites,
        |a, b| a.site.cmp(&b.site),
        |sum, site| {
            let mut tally = SiteTally::from(&*sum);
            tally += SiteTally::from(&site);
            *sum = SiteTurnover::new(sum.site, tally);
        },
    );
    first.unseen.extend(second.unseen);
    first.unseen = fold(
        first.unseen,
        |a, b| a.size_class.cmp(&b.size_class),
        |sum, class| {
            let mut tally = Tally::from(sum.deaths);
            tally += Tally::from(class.deaths);
            *sum = UnseenDeaths::new(sum.size_class, tally);
        },
    );
    first
}

fn replace<T>(earlier: &mut T, later: T) {
    *earlier = later;
}

/// Merges items that compare equal into the first of them, in their order; the result is sorted.
fn fold<T>(
    mut items: Vec<T>,
    order: impl Fn(&T, &T) -> Ordering,
    merge: impl Fn(&mut T, T),
) -> Vec<T> {
    items.sort_by(&order);
    let mut folded: Vec<T> = Vec::new();
    for item in items {
        match folded.last_mut() {
            Some(last) if order(last, &item).is_eq() => merge(last, item),
            _ => folded.push(item),
        }
    }
    folded.shrink_to_fit();
    folded
}

/// Gives back what vectors have grown beyond their length while they were decoded.
pub(super) fn shrink(interval: &mut Interval) {
    for delta in &mut interval.deltas {
        delta.freed.shrink_to_fit();
    }
    interval.deltas.shrink_to_fit();
    interval.go_buckets.shrink_to_fit();
    interval.sites.shrink_to_fit();
}

/// About how many bytes an interval takes in memory.
pub(super) fn held(interval: &Interval) -> u64 {
    let pcs: usize = interval
        .sites
        .iter()
        .map(|site| site.pcs.len() * size_of::<u64>())
        .sum();
    let freed = interval.deltas.iter().map(|delta| delta.freed.len());
    let freed: usize = freed
        .filter(|&cohorts| cohorts > 0)
        .map(|cohorts| cohorts * size_of::<CohortFrees>() + ALLOCATION)
        .sum();
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
        + interval.windows.as_ref().map_or(0, |windows| {
            windows.sites.len() * size_of::<SiteTurnover>()
                + windows.unseen.len() * size_of::<UnseenDeaths>()
        })
        + interval.goroutine_groups.len() * size_of::<GoroutineGroup>()
        + interval.goroutines.len() * (size_of::<GoroutineCount>() + size_of::<GoroutineChannel>())
        + freed
        + pcs
        + text
        + losses;
    bytes as u64
}
