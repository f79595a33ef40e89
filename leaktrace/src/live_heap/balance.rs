//! What is never freed, from windows: as many blocks as survive the windows of their birth, less the
//! deaths of blocks from before the windows.
//!
//! A death of a block whose birth was seen is its site's. One of a block whose birth was not seen is of a
//! site that allocates blocks of its size class, but not known which: the share q of it that is a
//! site's is estimated by the site's share of the known deaths, with Wilson's interval (1927); where the
//! class has no other site, q is 1. Where blocks live for long fewer of their deaths are known, and the
//! interval is the wider for it. Scatter is measured from slot to slot, so that bursts count as what
//! they are. docs/sampling.md derives all of it.

use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

use super::{Estimate, Part, ProcessGrowth, SiteHistory, Timeline, estimate::Z_95};
use crate::capture::schema;
use crate::turnover::{SiteTally, Tally};

/// What windows have shown of a process, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct WindowHistory {
    sites: HashMap<u32, BTreeMap<usize, SiteTally>>,
    unseen: HashMap<u64, BTreeMap<usize, Tally>>,
    /// By size class; 0: of all sites.
    classes: HashMap<u64, Class>,
    /// What estimates of the process's growth are multiplied with, see [`WindowHistory::fit`].
    factor: f64,
    /// What is of all sites together.
    totals: schema::Windows,
}

/// The sites of a size class, in blocks seen.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    survived: u64,
    /// Deaths in windows of blocks known from an earlier one.
    died: u64,
    sites: u64,
}

/// Of a site's deaths, the share that is known may be smaller than in others by this factor: blocks that
/// live for 5/6 of the recording are born within it in 1/6 of all deaths.
const LESS_KNOWN: f64 = 6.0;

/// How much of the deaths without a site may be one site's: the least, the likely and the most.
#[derive(Clone, Copy, Debug)]
struct Share {
    least: f64,
    likely: f64,
    most: f64,
}

/// What came and went at a site, by slot. Numbers of blocks are estimates for the whole process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balance {
    /// Blocks that survived the window of their birth, not corrected for the cost of the probes.
    pub survived: Vec<f64>,
    /// How many of them were seen.
    pub arrivals: Vec<u64>,
    /// Deaths of blocks from before a window: the most that can be this site's.
    pub died: Vec<f64>,
    /// Difference of the two.
    pub kept: Vec<f64>,
    /// The same with the least deaths that can be this site's.
    pub kept_at_most: Vec<f64>,
    /// Difference where the time that probes took is made up for as far as it can have been.
    pub kept_dense: Vec<f64>,
    /// Growth in bytes: the best estimate, the lowest, the highest, and the plain one with the least deaths.
    bytes: [Vec<f64>; 4],
    /// By how much the lowest growth may be too low, at the most.
    reach: f64,
    /// Bytes allocated, estimated.
    pub alloc_bytes: f64,
    /// What all of it rests on.
    pub seen: SiteTally,
    /// Deaths seen that may be of this site: their birth was not seen.
    pub seen_unseen: u64,
    /// Blocks of the same size come from other sites too.
    pub is_shared: bool,
    /// Windows in the recording.
    pub windows: u64,
    /// Share of the time that they cover.
    pub open_share: f64,
}

/// A sum over slots, and how far chance may have moved it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Net {
    /// The sum.
    pub value: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

impl Net {
    /// `slots` are taken as draws of the same kind: a trend among them counts as scatter, which is on the
    /// safe side.
    pub fn of(slots: &[f64]) -> Self {
        let n = slots.len() as f64;
        let value: f64 = slots.iter().sum();
        if slots.len() < 2 {
            return Self {
                value,
                deviation: f64::INFINITY,
            };
        }
        let squares: f64 = slots.iter().map(|slot| (slot - value / n).powi(2)).sum();
        Self {
            value,
            deviation: (n * squares / (n - 1.0)).sqrt(),
        }
    }

    /// How many standard deviations it lies above zero.
    pub fn z(self) -> f64 {
        self.value / self.deviation.max(f64::MIN_POSITIVE)
    }
}

impl WindowHistory {
    /// Takes in an interval.
    pub(super) fn add(&mut self, slot: usize, windows: &schema::Windows) {
        self.totals.add_totals(windows);
        for site in &windows.sites {
            let slots = self.sites.entry(site.site).or_default();
            *slots.entry(slot).or_default() += SiteTally::from(site);
        }
        for unseen in &windows.unseen {
            let slots = self.unseen.entry(unseen.size_class).or_default();
            *slots.entry(slot).or_default() += Tally::from(unseen.deaths);
        }
    }

    /// Joins the slots two by two; the attach stays by itself.
    pub(super) fn halve(&mut self) {
        for slots in self.sites.values_mut() {
            join(slots);
        }
        for slots in self.unseen.values_mut() {
            join(slots);
        }
    }

    /// The share of the time that they cover, and how many they are.
    pub(super) fn cover(&self) -> Option<(f64, u64)> {
        let share = self.open_share();
        (self.totals.count > 0).then_some((share, self.totals.count))
    }

    fn open_share(&self) -> f64 {
        self.totals.open_ns as f64 / self.totals.stand_for_ns.max(1) as f64
    }

    /// All intervals are in.
    pub(super) fn finish(&mut self, parts: &[Part], timeline: &Timeline, process: ProcessGrowth) {
        self.sort_by_class(parts);
        let grown = process.held_bytes_per_s.unwrap_or(0.0) * timeline.duration_s();
        self.fit(parts, timeline.times.len(), grown);
    }

    /// Knows its size classes.
    fn sort_by_class(&mut self, parts: &[Part]) {
        for part in parts {
            let Some(seen) = self.sites.get(&part.site).map(sum) else {
                continue;
            };
            if seen.survived.is_empty() && known_deaths(&seen) == 0 {
                continue;
            }
            for class in [part.object_size, ALL_CLASSES] {
                let class = self.classes.entry(class).or_default();
                class.survived += seen.survived.seen;
                class.died += seen.died.seen;
                class.sites += 1;
            }
        }
        self.factor = 1.0;
    }

    /// By how much the plain estimates may be too low. A program that waits for a processor gets on by less
    /// than windows are long, in them and outside: what counts is the processor time that it had for itself.
    fn reach(&self) -> f64 {
        let own = self
            .totals
            .cpu_ns
            .saturating_sub(self.totals.probes_ns)
            .max(1) as f64;
        let by_cpu = self.totals.stand_for_cpu_ns as f64 / own;
        let by_time = self.totals.stand_for_ns as f64 / self.totals.open_ns.max(1) as f64;
        (by_cpu / by_time.max(1.0)).max(1.0)
    }

    /// Where probes took most of the windows, how much of the program's course these cover is known to
    /// a factor only. The process's growth (bytes without a file over the recording) then decides,
    /// within what is possible.
    fn fit(&mut self, parts: &[Part], slots: usize, process_growth: f64) {
        /// From here on the windows leave it open.
        const OPEN: f64 = 3.0;
        let mut growth = [0.0; 4];
        for part in parts {
            let Some(balance) = self.balance(&[part], slots) else {
                continue;
            };
            for (sum, bytes) in growth.iter_mut().zip(&balance.bytes) {
                *sum += bytes.iter().sum::<f64>();
            }
        }
        let [likely, low, high, plain] = growth;
        let high = high.max(plain * self.reach());
        if likely > 0.0 && low > 0.0 && high > OPEN * likely && process_growth > 0.0 {
            self.factor = (process_growth / likely).clamp(low / likely, high / likely);
        }
    }

    fn share(&self, seen: &SiteTally, class: u64) -> Share {
        let class = self.classes.get(&class).copied().unwrap_or_default();
        if class.sites <= 1 {
            return Share {
                least: 1.0,
                likely: 1.0,
                most: 1.0,
            };
        }
        let (died, of) = (seen.died.seen as f64, class.died as f64);
        let (least, most) = wilson(died, of);
        let of_survivors = seen.survived.seen as f64 / class.survived.max(1) as f64;
        Share {
            least: least / LESS_KNOWN,
            likely: (died + of_survivors) / (of + 1.0),
            most: (most * LESS_KNOWN).min(1.0),
        }
    }

    /// The balance of some sites together; none if no window has seen them.
    pub(super) fn balance(&self, parts: &[&Part], slots: usize) -> Option<Balance> {
        let zeros = || vec![0.0; slots.saturating_sub(1)];
        let mut balance = Balance {
            survived: zeros(),
            arrivals: vec![0; slots.saturating_sub(1)],
            died: zeros(),
            kept: zeros(),
            kept_at_most: zeros(),
            kept_dense: zeros(),
            bytes: [zeros(), zeros(), zeros(), zeros()],
            windows: self.totals.count,
            open_share: self.open_share(),
            reach: self.reach(),
            ..Balance::default()
        };
        let mut any = false;
        for part in parts {
            if let Some(history) = self.sites.get(&part.site) {
                any = true;
                self.add_part(part, history, &mut balance);
            }
        }
        any.then_some(balance)
    }

    fn add_part(&self, part: &Part, history: &BTreeMap<usize, SiteTally>, balance: &mut Balance) {
        let seen = sum(history);
        balance.seen += seen;
        let mean = |tally: Tally| tally.bytes as f64 / tally.seen.max(1) as f64;
        balance.alloc_bytes += seen.born.corrected * mean(seen.born) * self.factor;
        let size = match seen.survived.is_empty() {
            true => mean(seen.born),
            false => mean(seen.survived),
        };
        if seen.survived.is_empty() && known_deaths(&seen) == 0 {
            // All that came went at once: no death from before a window can be its own.
            return;
        }
        let empty = BTreeMap::new();
        let classes = [part.object_size, ALL_CLASSES];
        let classes = &classes[..if part.object_size == ALL_CLASSES {
            1
        } else {
            2
        }];
        let unseen: Vec<_> = classes
            .iter()
            .map(|&class| {
                let deaths = self.unseen.get(&class).unwrap_or(&empty);
                (self.share(&seen, class), deaths)
            })
            .collect();
        for (share, deaths) in &unseen {
            let seen: u64 = deaths.values().map(|tally| tally.seen).sum();
            balance.seen_unseen += (seen as f64 * share.most).round() as u64;
        }
        balance.is_shared |= self
            .classes
            .get(&part.object_size)
            .is_some_and(|c| c.sites > 1);
        for slot in 1..=balance.survived.len() {
            let of_site = history.get(&slot).copied().unwrap_or_default();
            let unseen = |which: fn(&Share) -> f64, how: fn(&Tally) -> f64| -> f64 {
                let deaths = unseen.iter().map(|(share, deaths)| {
                    deaths
                        .get(&slot)
                        .map_or(0.0, |tally| which(share) * how(tally))
                });
                deaths.sum()
            };
            let net = |which: fn(&Share) -> f64, how: fn(&Tally) -> f64| {
                how(&of_site.survived) - how(&of_site.died) - unseen(which, how)
            };
            let at = slot - 1;
            balance.survived[at] += of_site.survived.plain;
            balance.arrivals[at] += of_site.survived.seen;
            balance.died[at] += of_site.died.plain + unseen(|s| s.most, |t| t.plain);
            balance.kept[at] += net(|s| s.most, |t| t.plain);
            balance.kept_at_most[at] += net(|s| s.least, |t| t.plain);
            balance.kept_dense[at] += net(|s| s.most, |t| t.dense);
            balance.bytes[0][at] += size * net(|s| s.likely, |t| t.corrected) * self.factor;
            balance.bytes[1][at] += size * net(|s| s.most, |t| t.plain);
            balance.bytes[2][at] += size * net(|s| s.least, |t| t.dense);
            balance.bytes[3][at] += size * net(|s| s.least, |t| t.plain);
        }
    }
}

/// Stands for all size classes, and for deaths of which it is not known.
const ALL_CLASSES: u64 = 0;

impl Balance {
    /// Growth in bytes over the recording: 95 %, the least by one bound, the most by the other.
    pub fn growth(&self) -> Estimate {
        let [likely, low, high, plain] = self.bytes.each_ref().map(|slots| Net::of(slots));
        let slots = self.kept.len() as f64;
        // Student's t for the number of slots, to a hundredth.
        let t = Z_95 + 2.72 / (slots - 1.0).max(1.0);
        let scatter = |net: Net| match net.deviation.is_finite() {
            true => t * net.deviation,
            false => net.value.abs(),
        };
        let (below, above) = (
            likely.value - scatter(likely),
            likely.value + scatter(likely),
        );
        Estimate {
            value: likely.value,
            low: below.min(low.value - scatter(low)),
            high: above
                .max(high.value + scatter(high))
                .max((plain.value + scatter(plain)) * self.reach),
        }
    }

    /// Growth in bytes up to the end of each slot, from the attach on.
    pub fn growth_series(&self) -> impl Iterator<Item = f64> {
        let grown = self.bytes[0].iter().scan(0.0, |sum, bytes| {
            *sum += bytes;
            Some(*sum)
        });
        std::iter::once(0.0).chain(grown)
    }

    /// The growth's lower bound, without scatter, in bytes.
    pub fn least_bytes(&self) -> f64 {
        self.bytes[1].iter().sum()
    }
}

impl SiteHistory {
    /// Whether anything of it was there, or came.
    pub fn has_allocated(&self) -> bool {
        self.live_count.bytes > 0 || !self.births.is_empty() || self.balance.is_some()
    }

    /// Takes its figures from what windows have shown.
    pub(super) fn rest_on(&mut self, balance: Balance) {
        let growth = balance.growth();
        self.sampled = true;
        self.object_size = None;
        self.live_series = balance.growth_series().map(|live| live.max(0.0)).collect();
        self.live = Estimate {
            value: growth.value.max(0.0),
            low: growth.low.max(0.0),
            high: growth.high.max(0.0),
        };
        let seen = balance.seen;
        let size = seen.survived.bytes as f64 / seen.survived.seen.max(1) as f64;
        self.live_objects = self.live.value / size.max(1.0);
        self.live_count.add(seen.survived.seen, seen.survived.bytes);
        self.growth = growth;
        self.alloc_bytes = balance.alloc_bytes.max(self.live.value);
        self.freed_bytes = self.alloc_bytes - self.live.value;
        self.balance = Some(balance);
    }
}

fn join<T: Copy + Default + AddAssign>(slots: &mut BTreeMap<usize, T>) {
    for (slot, tally) in std::mem::take(slots) {
        *slots.entry(slot.div_ceil(2)).or_default() += tally;
    }
}

fn known_deaths(seen: &SiteTally) -> u64 {
    seen.died.seen.saturating_add(seen.reused)
}

fn sum(slots: &BTreeMap<usize, SiteTally>) -> SiteTally {
    let mut sum = SiteTally::default();
    for &tally in slots.values() {
        sum += tally;
    }
    sum
}

/// Wilson's 95 % interval of a proportion; all of 0 to 1 where nothing was drawn.
fn wilson(hits: f64, of: f64) -> (f64, f64) {
    if of <= 0.0 {
        return (0.0, 1.0);
    }
    let (p, zz) = (hits / of, Z_95 * Z_95);
    let centre = p + zz / (2.0 * of);
    let reach = Z_95 * (p * (1.0 - p) / of + zz / (4.0 * of * of)).sqrt();
    let whole = 1.0 + zz / of;
    let low = (centre - reach) / whole;
    (low.max(0.0), ((centre + reach) / whole).min(1.0))
}
