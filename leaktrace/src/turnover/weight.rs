//! How much of the program's course an event in a window stands for.
//!
//! A window of length ℓ, placed at random in a stretch of length P, meets a given moment of a program
//! that is not slowed down with the chance ℓ/P, so an event stands for P/ℓ (Horvitz and Thompson 1952).
//! A thread that is hit n times at a cost c gets on by ℓ − n c only, and P/(ℓ − n c) is what its events
//! stand for.

use std::collections::HashMap;

use super::{Event, What, Window};

/// Of a window's length, the part in which births count, and that in which deaths do.
const COUNTED: f64 = 0.75;
/// What an allocation or a free takes without a probe, at the least: no program gets on by less than this
/// from one to the next.
pub(super) const LEAST_NS: f64 = 4.0;
/// The measured cost is not trusted further than this: of the window's length, the part that must be left.
const LEAST_LEFT: f64 = 0.1;
/// By how much the measured cost may be too low, when all that the probes can have taken is asked for.
pub(super) const COST_ERROR: f64 = 1.5;

/// What events of one thread stand for, by each estimate of [`super::Tally`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    pub(super) plain: f64,
    pub(super) corrected: f64,
    pub(super) dense: f64,
}

impl Weight {
    pub(super) fn times(self, factor: f64) -> Self {
        Self {
            plain: self.plain * factor,
            corrected: self.corrected * factor,
            dense: self.dense * factor,
        }
    }
}

/// The weights of one window.
pub(super) struct Weights {
    threads: HashMap<u32, Weight>,
    undisturbed: Weight,
    /// What the probes took from all threads, in nanoseconds.
    pub(super) cost_ns: f64,
}

impl Weights {
    /// `events` are the window's, in order of time. They teach `costs`, too.
    pub(super) fn new(window: Window, events: &[Event], costs: &mut HitCosts) -> Self {
        let mut threads: HashMap<u32, ([u64; 2], u64)> = HashMap::new();
        for event in events {
            let kind = kind(event);
            let (counts, last) = threads.entry(event.thread).or_default();
            if *last > 0 {
                costs.learn(kind, event.at_ns.saturating_sub(*last));
            }
            *last = event.at_ns;
            counts[kind] += 1;
        }
        let cost =
            |counts: [u64; 2]| costs.of(0) * counts[0] as f64 + costs.of(1) * counts[1] as f64;
        let length = window.to_ns.saturating_sub(window.from_ns).max(1) as f64;
        // The program gets on by less in all of the time, too.
        let stands_for = |cost: f64| (window.stands_for_ns as f64 - cost).max(length) / COUNTED;
        let undisturbed = stands_for(0.0) / length;
        let weight = |counts: [u64; 2]| {
            let cost = cost(counts);
            let least = ((counts[0] + counts[1]) as f64 * LEAST_NS).clamp(1.0, length);
            let corrected = (length - cost).max(length * LEAST_LEFT);
            let dense = (length - cost * COST_ERROR).max(least).min(corrected);
            Weight {
                plain: undisturbed,
                corrected: stands_for(length - corrected) / corrected,
                dense: stands_for(length - dense) / dense,
            }
        };
        Self {
            cost_ns: threads.values().map(|&(counts, _)| cost(counts)).sum(),
            threads: threads
                .into_iter()
                .map(|(thread, (counts, _))| (thread, weight(counts)))
                .collect(),
            undisturbed: weight([0, 0]),
        }
    }

    pub(super) fn of(&self, thread: u32) -> Weight {
        self.threads
            .get(&thread)
            .copied()
            .unwrap_or(self.undisturbed)
    }
}

fn kind(event: &Event) -> usize {
    match event.what {
        What::Birth { .. } => 0,
        What::Death { .. } => 1,
    }
}

/// What the probes cost for each birth and each death: nearly the shortest time from one event to the
/// next on the same thread. It is learned from the program itself, since it depends on machine, kernel
/// and depth of stacks.
#[derive(Debug)]
pub(super) struct HitCosts {
    gaps: [[u32; BUCKETS]; 2],
    learned: [u32; 2],
}

const BUCKET_NS: u64 = 32;
const BUCKETS: usize = 2048;
/// Gaps that must be known before they are believed.
const ENOUGH: u32 = 500;
/// Which of the gaps is taken: one in a hundred is shorter. Were events to come at random, the cost would
/// be too high by a hundredth of the mean gap.
const QUANTILE: f64 = 0.01;
/// Before that: a birth takes two hits (entry and return) and a stack, a death one hit.
const ASSUMED_NS: [f64; 2] = [2000.0, 700.0];
/// No more is believed: a program that allocates seldom shows its own pace.
const MOST_NS: [f64; 2] = [6000.0, 3000.0];

impl Default for HitCosts {
    fn default() -> Self {
        Self {
            gaps: [[0; BUCKETS]; 2],
            learned: [0; 2],
        }
    }
}

impl HitCosts {
    fn learn(&mut self, kind: usize, gap_ns: u64) {
        let bucket = (gap_ns / BUCKET_NS).min(BUCKETS as u64 - 1) as usize;
        if self.learned[kind] == u32::MAX {
            return;
        }
        self.gaps[kind][bucket] += 1;
        self.learned[kind] += 1;
    }

    /// The cost by which events are weighed.
    fn of(&self, kind: usize) -> f64 {
        match self.quantile(kind) {
            Some(gap) if gap <= MOST_NS[kind] => gap,
            _ => ASSUMED_NS[kind],
        }
    }

    /// The cost that a budget has to bear: where little is known no less than what is usual.
    pub(super) fn measured(&self) -> [f64; 2] {
        [0, 1].map(|kind| self.quantile(kind).unwrap_or(ASSUMED_NS[kind]))
    }

    fn quantile(&self, kind: usize) -> Option<f64> {
        if self.learned[kind] < ENOUGH {
            return None;
        }
        let wanted = f64::from(self.learned[kind]) * QUANTILE;
        let mut sum = 0.0;
        let bucket = self.gaps[kind].iter().position(|&count| {
            sum += f64::from(count);
            sum >= wanted
        });
        bucket.map(|bucket| (bucket as u64 * BUCKET_NS) as f64)
    }
}
