//! From samples to bytes, and how far off that may be.

use super::Count;

/// Two-sided 95 % of the normal distribution.
const Z_95: f64 = 1.96;

/// A figure and its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    },
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
    /// none too. Samples at refills: the same with a Poisson number of samples (p → 0), each standing
    /// for the mean. Objects that were sampled are there, so the lower end is not below them.
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
        let n = count.objects as f64;
        let centre = n + Z_95 * Z_95 * rest / 2.0;
        let reach = Z_95 * (rest * (n + Z_95 * Z_95 * rest / 4.0)).sqrt();
        Estimate {
            value,
            low: ((centre - reach) * each).max(n * size as f64).min(value),
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
                n.sqrt() * self.stands_for(changed)
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
