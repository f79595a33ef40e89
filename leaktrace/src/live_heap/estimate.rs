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
            Self::Runtime { rate } | Self::Refill { rate, .. } => rate,
        }
    }

    /// The chance that an object of `size` bytes is sampled by the runtime.
    pub fn probability(self, size: u64) -> f64 {
        match self {
            Self::Runtime { rate } if rate > 1 && size > 0 => {
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
            Self::Runtime { .. } => 1.0 / self.probability(size),
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

    /// Bytes that `count` stands for, of objects of `size` bytes.
    ///
    /// The runtime's sampler: each of N objects is sampled with probability p, independently. The
    /// interval is the set of N for which the samples lie within 1.96 standard deviations,
    /// sqrt(N p (1−p)), of N p (score interval): unlike value ± 1.96 σ it is right for few samples, for
    /// none too. Samples at refills: the same with a Poisson number of independent samples (p → 0),
    /// each standing for the mean. Objects that were sampled are there, so the lower end is not below them.
    pub fn estimate(self, count: Count, size: u64) -> Estimate {
        let p = self.probability(size);
        let value = count.bytes as f64 * self.scale(size);
        let (each, rest) = match self {
            Self::Refill { .. } if !self.stand_for_themselves(count, size) => {
                (self.stands_for(count), 1.0)
            }
            Self::Runtime { .. } if p < 1.0 => (size as f64 / p, 1.0 - p),
            _ => {
                return Estimate {
                    value,
                    low: value,
                    high: value,
                };
            }
        };
        let n = count.objects as f64 / self.spread();
        let each = each * self.spread();
        let centre = n + Z_95 * Z_95 * rest / 2.0;
        let reach = Z_95 * (rest * (n + Z_95 * Z_95 * rest / 4.0)).sqrt();
        Estimate {
            value,
            low: ((centre - reach) * each)
                .max(count.objects as f64 * size as f64)
                .min(value),
            high: (centre + reach) * each,
        }
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
            Self::Runtime { .. } => {
                let p = self.probability(size);
                (n * (1.0 - p)).sqrt() / p * size as f64
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

/// Largest object that shares a span (`maxSmallSize` in runtime/sizeclasses.go, Go 1.19 to 1.27).
pub(super) const MAX_SMALL_SIZE: u64 = 32 << 10;

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
}
