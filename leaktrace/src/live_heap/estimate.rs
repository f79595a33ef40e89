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

/// The Go runtime's heap sampler: it draws bytes in a Poisson process, one in `rate` on average,
/// and takes the object in which a drawn byte lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// `runtime.MemProfileRate` in bytes; 0 and 1 mean that everything is counted.
    pub rate: u64,
}

impl Sampler {
    /// Everything is counted.
    pub const EXACT: Self = Self { rate: 1 };

    /// The chance that an object of `size` bytes is sampled.
    pub fn probability(self, size: u64) -> f64 {
        if self.rate <= 1 || size == 0 {
            return 1.0;
        }
        -(-(size as f64) / self.rate as f64).exp_m1()
    }

    /// How many objects of `size` bytes one sample stands for: `scaleHeapSample` in Go's
    /// runtime/pprof/protomem.go, without its rounding.
    pub fn scale(self, size: u64) -> f64 {
        1.0 / self.probability(size)
    }

    /// Bytes that `count` samples of `size` bytes stand for.
    ///
    /// Each of N objects is sampled with probability p, independently. The interval is the set of N
    /// for which the samples lie within 1.96 standard deviations, sqrt(N p (1−p)), of N p (score
    /// interval): unlike value ± 1.96 σ it is right for few samples, for none too. Objects that were
    /// sampled are there, so the lower end is not below them.
    pub fn estimate(self, count: Count, size: u64) -> Estimate {
        let p = self.probability(size);
        let bytes = count.bytes as f64;
        if p >= 1.0 {
            return Estimate {
                value: bytes,
                low: bytes,
                high: bytes,
            };
        }
        let (n, q) = (count.objects as f64, 1.0 - p);
        let centre = n + Z_95 * Z_95 * q / 2.0;
        let reach = Z_95 * (q * (n + Z_95 * Z_95 * q / 4.0)).sqrt();
        let size = size as f64;
        Estimate {
            value: bytes / p,
            low: ((centre - reach) / p * size).max(bytes),
            high: (centre + reach) / p * size,
        }
    }

    /// The difference between two moments, of which `bytes` is the difference in samples and
    /// `changed` the number of sampled objects that are in one and not in the other. Those in both
    /// add nothing to its error. Horvitz–Thompson: variance = changed (1−p) / p².
    pub fn difference(self, bytes: f64, changed: u64, size: u64) -> Estimate {
        let p = self.probability(size);
        let value = bytes / p;
        let deviation = Z_95 * ((changed as f64) * (1.0 - p)).sqrt() / p * size as f64;
        Estimate {
            value,
            low: value - deviation,
            high: value + deviation,
        }
    }
}
