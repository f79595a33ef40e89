//! What comes and goes while probes are attached for short windows only.
//!
//! In a window every allocation and every free is seen, between windows none. Allocations and frees
//! that lie in the same window are paired at once. What is left are *survivors*, blocks born in a window
//! and alive when it ended, and *deaths* of blocks from before the window. Where as much goes as comes
//! there are as many of one as of the other, whatever the age at which blocks die: the difference is what
//! the live heap has grown by. docs/sampling.md has the model, its assumptions and when it fails.
//!
//! # Contract
//! - Pure; time is that of the events.
//! - A window is taken in whole, with all its events, or not at all: a free that was lost would make a
//!   survivor of its block.
//! - Births count in the first three quarters of a window, deaths in the last three: both are then of
//!   blocks that lived for a quarter of it at least, and what lives shorter counts on neither side.
//! - A block whose death was not seen is known; a birth at its address tells that it has died. Where there are
//!   more than there is room for, those of every other address are forgotten, again and again: what is known
//!   is then a sample that favours no site.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

use weight::{HitCosts, Weight, Weights};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod weight;

/// What was seen at one moment of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, on any clock that the window's times are on, in nanoseconds.
    pub at_ns: u64,
    /// On which thread.
    pub thread: u32,
    /// Address of the block.
    pub address: u64,
    /// What happened to it.
    pub what: What,
}

/// What happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was handed out.
    Birth {
        /// To whom: the allocation site's number. All its blocks are of one size class.
        site: u32,
        /// Its size in bytes.
        bytes: u64,
    },
    /// It was given back.
    Death {
        /// Its size class, as the birth's site has it; 0 when that cannot be told.
        class: u64,
    },
}

/// A stretch of time in which everything was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its beginning.
    pub from_ns: u64,
    /// Its end.
    pub to_ns: u64,
    /// Length of the stretch from which its place was drawn: it stands for so much time.
    pub stands_for_ns: u64,
    /// Processor time that the program used in it and in that stretch, in nanoseconds.
    pub cpu_ns: [u64; 2],
}

/// A number of blocks, and how many there were in all if the windows are typical of the time between.
///
/// A probe makes the program slower while it is attached, so that a window covers less of the program's
/// course than its length says, and the less the busier the program is just then. The three estimates
/// differ in how much is made up for that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Blocks that were seen.
    pub seen: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Estimate, in blocks: nothing is made up. There were hardly fewer.
    pub plain: f64,
    /// Estimate: the measured cost of the probes is taken off the window's length.
    pub corrected: f64,
    /// Estimate: where they took most of the window, all that they can have taken. There were hardly more.
    pub dense: f64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.seen = self.seen.saturating_add(other.seen);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.plain += other.plain;
        self.corrected += other.corrected;
        self.dense += other.dense;
    }
}

impl Tally {
    fn count(&mut self, bytes: u64, weight: Weight) {
        *self += Self {
            seen: 1,
            bytes,
            plain: weight.plain,
            corrected: weight.corrected,
            dense: weight.dense,
        };
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.seen == 0
    }
}

/// What windows have shown of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiteTally {
    /// Births.
    pub born: Tally,
    /// Births in the first three quarters of a window of blocks that were alive at its end.
    pub survived: Tally,
    /// Deaths in the last three quarters of a window of blocks known from an earlier one.
    pub died: Tally,
    /// Known blocks whose address was handed out again: they died between windows.
    pub reused: u64,
}

impl AddAssign for SiteTally {
    fn add_assign(&mut self, other: Self) {
        self.born += other.born;
        self.survived += other.survived;
        self.died += other.died;
        self.reused = self.reused.saturating_add(other.reused);
    }
}

/// What windows have shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// By site.
    pub sites: BTreeMap<u32, SiteTally>,
    /// Deaths in the last three quarters of a window of blocks whose birth was not seen, by size class.
    pub unseen: BTreeMap<u64, Tally>,
    /// Windows.
    pub windows: u64,
    /// Their length.
    pub open_ns: u64,
    /// The time that they stand for.
    pub stand_for_ns: u64,
    /// Events in them.
    pub events: u64,
    /// Processor time that the program used in them, and in the time that they stand for.
    pub cpu_ns: [u64; 2],
    /// What probes took of the former at the most, as far as is known; some of it was the program's in any
    /// case.
    pub probes_ns: u64,
}

/// Follows the blocks of one process from window to window.
#[derive(Debug)]
pub struct Turnover {
    /// Blocks that were alive at the end of the window of their birth: address to site.
    known: HashMap<u64, u32>,
    limit: usize,
    /// Known are blocks of one address in 2 to the power of this.
    halvings: u32,
    costs: HitCosts,
    shown: Shown,
    not_followed: u64,
}

impl Turnover {
    /// At most so many blocks, at least one, are followed from one window to the next.
    pub fn new(limit: usize) -> Self {
        Self {
            known: HashMap::new(),
            limit: limit.max(1),
            halvings: 0,
            costs: HitCosts::default(),
            shown: Shown::default(),
            not_followed: 0,
        }
    }

    /// What was shown since the last call.
    pub fn take(&mut self) -> Shown {
        std::mem::take(&mut self.shown)
    }

    /// Blocks that could not be followed beyond their window, since the beginning. Their deaths count as
    /// those of unknown blocks.
    pub fn not_followed(&self) -> u64 {
        self.not_followed
    }

    /// What an allocation and a free take with their probes, in nanoseconds: nearly the shortest time from one
    /// to the next on the same thread.
    pub fn costs_ns(&self) -> [f64; 2] {
        self.costs.measured()
    }

    /// Takes in a window. Events may be in any order, and lie outside of it.
    pub fn window(&mut self, window: Window, events: &mut Vec<Event>) {
        events.retain(|event| (window.from_ns..window.to_ns).contains(&event.at_ns));
        events.sort_by_key(|event| event.at_ns);
        let weights = Weights::new(window, events, &mut self.costs);
        let quarter = (window.to_ns - window.from_ns) / 4;
        let (deaths_from, births_to) = (window.from_ns + quarter, window.to_ns - quarter);

        let mut alive: HashMap<u64, (u32, Event)> = HashMap::new();
        for event in events.iter() {
            let weight = weights.of(event.thread);
            match event.what {
                What::Birth { site, bytes } => {
                    if let Some(earlier) = self.known.remove(&event.address) {
                        self.site(earlier).reused += 1;
                    }
                    alive.insert(event.address, (site, *event));
                    // A birth anywhere in the window counts: of four thirds of the time.
                    self.site(site).born.count(bytes, weight.times(0.75));
                }
                What::Death { class } => {
                    if alive.remove(&event.address).is_some() {
                        continue;
                    }
                    let site = self.known.remove(&event.address);
                    if event.at_ns < deaths_from {
                        continue;
                    }
                    let tally = match site {
                        Some(site) => &mut self.site(site).died,
                        None => self.shown.unseen.entry(class).or_default(),
                    };
                    tally.count(0, weight);
                }
            }
        }
        for (address, (site, birth)) in alive {
            let What::Birth { bytes, .. } = birth.what else {
                continue;
            };
            if birth.at_ns < births_to {
                let weight = weights.of(birth.thread);
                self.site(site).survived.count(bytes, weight);
            }
            self.know(address, site);
        }
        self.shown.windows += 1;
        self.shown.open_ns += window.to_ns - window.from_ns;
        self.shown.stand_for_ns += window.stands_for_ns;
        self.shown.events += events.len() as u64;
        let [in_window, in_all] = window.cpu_ns;
        self.shown.cpu_ns[0] += in_window;
        self.shown.cpu_ns[1] += in_all;
        let least = weight::LEAST_NS * events.len() as f64;
        let most = (weights.cost_ns * weight::COST_ERROR).min(in_window as f64 - least);
        self.shown.probes_ns += most.max(0.0) as u64;
    }

    /// A block has outlived its window.
    fn know(&mut self, address: u64, site: u32) {
        while self.known.len() >= self.limit && self.halvings < u64::BITS {
            let before = self.known.len();
            self.halvings += 1;
            let halvings = self.halvings;
            self.known.retain(|&address, _| is_known(address, halvings));
            self.not_followed += (before - self.known.len()) as u64;
        }
        match is_known(address, self.halvings) {
            true => _ = self.known.insert(address, site),
            false => self.not_followed += 1,
        }
    }

    fn site(&mut self, site: u32) -> &mut SiteTally {
        self.shown.sites.entry(site).or_default()
    }
}

/// Whether a block's address is one of those that are known after so many halvings, by a hash (Knuth's
/// multiplicative one): neighbours are not kept or forgotten together.
fn is_known(address: u64, halvings: u32) -> bool {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    (address >> 4).wrapping_mul(GOLDEN).leading_zeros() >= halvings
}
