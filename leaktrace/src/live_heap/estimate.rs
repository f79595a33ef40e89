//! From samples to bytes, and how far off that may be.

use serde::{Deserialize, Serialize};

use super::Count;

/// Two-sided 95 % of the normal distribution.
pub(crate) const Z_95: f64 = 1.96;

/// A figure and its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    /// The sum of two independent estimates: distances from the value to either end add up as
    /// squares (Zou & Donner 2008, "MOVER").
    pub fn plus(self, other: Self) -> Self {
        let value = self.value + other.value;
        let low = (self.value - self.low).hypot(other.value - other.low);
        let high = (self.high - self.value).hypot(other.high - other.value);
        Self {
            value,
            low: value - low,
            high: value + high,
        }
    }

    /// The difference of two independent estimates.
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self {
            value: -other.value,
            low: -other.high,
            high: -other.low,
        })
    }
}

/// The bytes that counts of samples stand for together, each of objects of its own size.
///
/// Each of N objects is sampled with probability p, independently; a sample stands for its size / p bytes.
/// For one size the interval is the set of N for which the samples lie within 1.96 standard deviations,
/// sqrt(N p (1−p)), of N p (score interval): unlike value ± 1.96 σ it is right for few samples, for none
/// too. That is the interval of a Poisson number of samples, variance / value bytes each, and as such it
/// holds for several sizes whose values and variances are added up. (Intervals of their own for each size,
/// added up, are too narrow: sizes of which no sample was drawn are not there. They held 90 % where each
/// size had one sample in two runs.) Samples at refills: a Poisson number of independent samples (p → 0),
/// each standing for the mean. Objects that were sampled are there, so the lower end is not below them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    value: f64,
    /// The part of `value` that rests on samples, and its variance.
    sampled: f64,
    variance: f64,
    /// The largest variance / value of a count; also of those that are zero.
    widest: f64,
    /// Bytes that are known to be there.
    seen: f64,
}

impl Sum {
    /// Adds `count` of objects of `size` bytes.
    pub fn add(&mut self, sampler: Sampler, count: Count, size: u64) {
        let p = sampler.probability(size);
        let value = count.bytes as f64 * sampler.scale(size);
        self.value += value;
        let (each, rest) = match sampler {
            Sampler::Refill { .. } if !sampler.stand_for_themselves(count, size) => {
                (sampler.stands_for(count), 1.0)
            }
            Sampler::Runtime { .. } if p < 1.0 => (size as f64 / p, 1.0 - p),
            // The blocks of a class are not of one size.
            Sampler::Bytes { .. } if p < 1.0 => (mean(count, size) / p, 1.0 - p),
            _ => {
                self.seen += value;
                return;
            }
        };
        let width = each * sampler.spread() * rest;
        self.sampled += value;
        self.variance += value * width;
        self.widest = self.widest.max(width);
        self.seen += match sampler {
            Sampler::Bytes { .. } => count.bytes as f64,
            _ => count.objects as f64 * size as f64,
        };
    }

    /// What all of them stand for.
    pub fn estimate(&self) -> Estimate {
        let each = match self.sampled > 0.0 {
            true => self.variance / self.sampled,
            false => self.widest,
        };
        let exact = self.value - self.sampled;
        let centre = self.sampled + each * Z_95 * Z_95 / 2.0;
        let reach = Z_95 * (each * (self.sampled + each * Z_95 * Z_95 / 4.0)).sqrt();
        Estimate {
            value: self.value,
            low: (exact + centre - reach).max(self.seen).min(self.value),
            high: exact + centre + reach,
        }
    }
}

/// How objects came to be counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    /// Every one is.
    Exact,
    /// By the Go runtime's heap sampler: it draws bytes in a Poisson process, one in `rate` on average,
    /// and takes the object in which a drawn byte lies.
    Runtime {
        /// `runtime.MemProfileRate` in bytes; 0 and 1 mean that everything is counted.
        rate: u64,
    },
    /// By leaktrace, at refills of the allocator's spans. The bytes of a count are what its samples
    /// stand for: about `rate` each.
    Refill {
        /// Bytes for each sample on average.
        rate: u64,
        /// What those bytes are to be multiplied with, so that all sites of a size class together have
        /// as much as the runtime's own counter of that class.
        factor: f64,
        /// How many samples carry as much information as one independent one; at least 1.
        spread: f64,
    },
    /// By leaktrace, of a native allocator's blocks: bytes are drawn in a Poisson process, one in `rate`
    /// on average, and the block is taken in which a drawn byte lies. Sizes are rounded up for that, and
    /// blocks whose rounded size reaches the rate are always taken.
    Bytes {
        /// Bytes for each sample on average.
        rate: u64,
    },
}

/// What is known of our own samples of one size class.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefillClass {
    /// The runtime's count of bytes over what the samples stand for.
    pub(super) factor: f64,
    /// Samples of all its sites.
    pub(super) samples: u64,
}

impl Default for RefillClass {
    fn default() -> Self {
        Self {
            factor: 1.0,
            samples: 0,
        }
    }
}

impl RefillClass {
    /// How far a site's samples are from independent: `of_site` of the class are its own, and `repeats`
    /// of these came after another of its own on the same thread.
    ///
    /// The first slot of each span may be the same line's again and again, where lines that take turns
    /// fill spans of an even number of slots. Were samples independent, each would be followed by one
    /// of the same site with the site's share p. The excess is their autocorrelation ρ, and a share
    /// estimated from n samples of a first-order autoregressive series has the variance
    /// p (1−p) / n · (1+ρ)/(1−ρ). Never below that of a Poisson number.
    pub(super) fn spread(&self, of_site: u64, repeats: u64) -> f64 {
        if of_site == 0 || self.samples <= of_site {
            return 1.0;
        }
        let share = of_site as f64 / self.samples as f64;
        let excess = (repeats as f64 / of_site as f64 - share) / (1.0 - share);
        let excess = excess.clamp(0.0, 0.98);
        ((1.0 - share) * (1.0 + excess) / (1.0 - excess)).max(1.0)
    }
}

impl Sampler {
    /// Whether counts are of samples only.
    pub fn is_sampling(self) -> bool {
        self.rate() > 1
    }

    /// Bytes for each sample; 1 where everything is counted.
    pub fn rate(self) -> u64 {
        match self {
            Self::Exact => 1,
            Self::Runtime { rate } | Self::Refill { rate, .. } | Self::Bytes { rate } => rate,
        }
    }

    /// The chance that an object of `size` bytes is sampled, by the runtime or by its bytes.
    pub fn probability(self, size: u64) -> f64 {
        match self {
            Self::Bytes { rate } if size >= rate => 1.0,
            Self::Runtime { rate } | Self::Bytes { rate } if rate > 1 && size > 0 => {
                -(-(size as f64) / rate as f64).exp_m1()
            }
            _ => 1.0,
        }
    }

    /// What a count's bytes are to be multiplied with. The runtime's sampler: how many objects of
    /// `size` bytes one sample stands for, `scaleHeapSample` in Go's runtime/pprof/protomem.go without
    /// its rounding.
    pub fn scale(self, size: u64) -> f64 {
        match self {
            Self::Exact => 1.0,
            Self::Runtime { .. } | Self::Bytes { .. } => 1.0 / self.probability(size),
            Self::Refill { factor, .. } => factor,
        }
    }

    /// How many objects of `size` bytes a count stands for.
    pub fn objects(self, count: Count, size: u64) -> f64 {
        match self {
            Self::Refill { factor, .. } if size > 0 => count.bytes as f64 * factor / size as f64,
            _ => count.objects as f64 * self.scale(size),
        }
    }

    /// Bytes that `count` stands for, of objects of `size` bytes, as a [`Sum`] of one.
    pub fn estimate(self, count: Count, size: u64) -> Estimate {
        let mut sum = Sum::default();
        sum.add(self, count, size);
        sum.estimate()
    }

    /// The difference between two moments, of which `bytes` is the difference in counted bytes and
    /// `changed` what is in one and not in the other. What is in both adds nothing to its error.
    /// Horvitz–Thompson: variance = changed (1−p) / p².
    pub fn difference(self, bytes: f64, changed: Count, size: u64) -> Estimate {
        let value = bytes * self.scale(size);
        let n = changed.objects as f64;
        let deviation = match self {
            Self::Refill { .. } if !self.stand_for_themselves(changed, size) => {
                (n * self.spread()).sqrt() * self.stands_for(changed)
            }
            Self::Runtime { .. } | Self::Bytes { .. } => {
                let p = self.probability(size);
                let each = match self {
                    Self::Bytes { .. } => mean(changed, size),
                    _ => size as f64,
                };
                (n * (1.0 - p)).sqrt() / p * each
            }
            _ => 0.0,
        };
        Estimate {
            value,
            low: value - Z_95 * deviation,
            high: value + Z_95 * deviation,
        }
    }

    fn spread(self) -> f64 {
        match self {
            Self::Refill { spread, .. } => spread,
            _ => 1.0,
        }
    }

    /// Bytes that one of these samples stands for on average.
    fn stands_for(self, count: Count) -> f64 {
        let mean = count.bytes.checked_div(count.objects);
        mean.unwrap_or(self.rate()) as f64 * self.scale(0)
    }

    /// Whether each of these samples is an object with a span of its own that was taken for certain.
    fn stand_for_themselves(self, count: Count, size: u64) -> bool {
        size > MAX_SMALL_SIZE && count.objects > 0 && count.bytes == count.objects * size
    }
}

/// Bytes of an object of a count, which are of `size` bytes or, rounded up, were.
fn mean(count: Count, size: u64) -> f64 {
    match count.objects {
        0 => size as f64,
        objects => count.bytes as f64 / objects as f64,
    }
}

/// Largest object that shares a span (`maxSmallSize` in runtime/sizeclasses.go, Go 1.19 to 1.27).
pub(super) const MAX_SMALL_SIZE: u64 = 32 << 10;

/// How the kernel side draws, to be tested.
#[cfg(test)]
#[path = "../../../leaktrace-ebpf/src/poisson.rs"]
#[expect(unreachable_pub, reason = "it is a module of another crate, too")]
mod poisson;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_in_step_with_the_program_widen_the_interval() {
        let class = RefillClass {
            factor: 1.0,
            samples: 400,
        };
        // Half of the class, every second sample followed by its like: chance.
        assert_eq!(class.spread(200, 100), 1.0);
        // Long runs of the same: 200 samples say as much as about twenty.
        let spread = class.spread(200, 190);
        assert!((9.0..10.0).contains(&spread), "{spread}");
        // Alone in its class, there is nothing to be in step with.
        assert_eq!(class.spread(400, 399), 1.0);
        let count = Count {
            objects: 200,
            bytes: 200 << 19,
        };
        let width = |spread| {
            let sampler = Sampler::Refill {
                rate: 1 << 19,
                factor: 1.0,
                spread,
            };
            let estimate = sampler.estimate(count, 64);
            (estimate.high - estimate.low) / estimate.value
        };
        assert!(width(1.0) < 0.3 && width(spread) > 0.8);
    }

    /// A generator of 32 random bits (Steele, Lea & Flood 2014, "SplitMix64").
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 32) as u32
    }

    #[test]
    fn classes_are_a_quarter_of_a_power_of_two_apart() {
        assert_eq!(poisson::class(0, 1 << 19), 16);
        assert_eq!(poisson::class(17, 1 << 19), 20);
        assert_eq!(poisson::class(1 << 19, 1 << 19), 1 << 19);
        assert_eq!(poisson::class(u64::MAX, 1 << 30), 1 << 30);
        for size in (1..100_000).chain([(1 << 30) - 1]) {
            let class = poisson::class(size, 1 << 30);
            assert!(
                size <= class && class <= 16.max(size + size / 4),
                "{size}: {class}"
            );
            assert!(class <= poisson::class(size + 1, 1 << 30), "{size}");
        }
    }

    #[test]
    fn gaps_are_exponential() {
        const RATE: u64 = 1 << 19;
        let mut state = 1;
        let gaps: Vec<u64> = (0..1_000_000)
            .map(|_| poisson::gap(RATE, random(&mut state)))
            .collect();
        let mean = gaps.iter().sum::<u64>() as f64 / gaps.len() as f64;
        assert!((mean / RATE as f64 - 1.0).abs() < 0.004, "{mean}");
        for share in [0.001, 0.01, 0.5, 1.0, 3.0] {
            let within = gaps
                .iter()
                .filter(|gap| **gap as f64 <= share * RATE as f64)
                .count();
            let (seen, expected) = (within as f64 / gaps.len() as f64, 1.0 - (-share).exp());
            assert!((seen - expected).abs() < 4.0 * (expected / gaps.len() as f64).sqrt() + 1e-5);
        }
        assert!(poisson::gap(RATE, 0) > 20 * RATE && poisson::gap(RATE, u32::MAX) <= 10);
    }

    /// Sizes of which there is one sample in two runs: those of which there is none are not known, and
    /// the interval holds the truth all the same.
    #[test]
    fn sizes_without_a_sample_do_not_narrow_the_interval() {
        const RATE: u64 = 512 << 10;
        const RUNS: u32 = 2000;
        const BLOCKS: u64 = 400;
        let sampler = Sampler::Bytes { rate: RATE };
        let classes: Vec<u64> = (0..16).map(|n| 256 + 64 * n).collect();
        let truth: u64 = classes.iter().sum::<u64>() * BLOCKS;
        let (mut held, mut state) = (0, 11);
        for _ in 0..RUNS {
            let mut total = Sum::default();
            for &class in &classes {
                let limit = sampler.probability(class) * f64::from(u32::MAX);
                let is_drawn = |_: &u64| f64::from(random(&mut state)) < limit;
                let drawn = (0..BLOCKS).filter(is_drawn).count() as u64;
                let count = Count {
                    objects: drawn,
                    bytes: drawn * class,
                };
                if drawn > 0 {
                    total.add(sampler, count, class);
                }
            }
            let total = total.estimate();
            held += u32::from((total.low..=total.high).contains(&(truth as f64)));
        }
        assert!((1840..=1960).contains(&held), "{held} of {RUNS}");
    }

    /// Blocks of all sizes, a fifth of them alive: the mean of the estimates is the truth, and the
    /// interval holds it.
    #[test]
    fn sampling_by_bytes_is_unbiased() {
        const RATE: u64 = 512 << 10;
        const RUNS: usize = 200;
        let sampler = Sampler::Bytes { rate: RATE };
        let (mut sum, mut held) = (0.0, 0);
        let mut truth = 0;
        for run in 0..RUNS {
            let (mut state, mut sizes) = (run as u64 + 7, 99);
            let mut countdown = poisson::gap(RATE, random(&mut state));
            let mut classes = std::collections::BTreeMap::<u64, Count>::new();
            truth = 0;
            for block in 0..200_000_u64 {
                let draw = u64::from(random(&mut sizes));
                let size = 16 + draw % 1000 + if draw % 5000 == 7 { 700_000 } else { 0 };
                let is_alive = block % 5 == 3;
                truth += if is_alive { size } else { 0 };
                let class = poisson::class(size, RATE);
                let taken = class >= RATE || class >= countdown;
                if class < RATE {
                    countdown = match taken {
                        true => poisson::gap(RATE, random(&mut state)),
                        false => countdown - class,
                    };
                }
                if taken && is_alive {
                    classes.entry(class).or_default().add(1, size);
                }
            }
            let mut total = Sum::default();
            for (class, count) in classes {
                total.add(sampler, count, class);
            }
            let total = total.estimate();
            sum += total.value;
            held += usize::from((total.low..=total.high).contains(&(truth as f64)));
        }
        let bias = sum / RUNS as f64 / truth as f64 - 1.0;
        assert!(bias.abs() < 0.02, "{bias}");
        assert!(held * 10 >= RUNS * 9, "{held} of {RUNS}");
    }
}
