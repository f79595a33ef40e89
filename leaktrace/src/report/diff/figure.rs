//! Figures with their widths, and when two of them differ.

use std::cmp::Ordering;

use crate::live_heap::{Estimate, Z_95};

/// Stretches of a series by which its growth is measured again and again.
const BATCHES: usize = 8;
/// Points below which nothing is said about growth.
const FEWEST_POINTS: usize = 5;
/// A smaller share than this of the larger figure is not told as a change.
const LEAST_CHANGE: f64 = 0.02;

impl Estimate {
    /// How this compares with an earlier figure, where their intervals do not overlap.
    pub(super) fn against(self, earlier: Self) -> Option<Ordering> {
        let larger = self.value.abs().max(earlier.value.abs());
        if (self.value - earlier.value).abs() < LEAST_CHANGE * larger {
            return None;
        }
        if self.low > earlier.high {
            Some(Ordering::Greater)
        } else if self.high < earlier.low {
            Some(Ordering::Less)
        } else {
            None
        }
    }

    /// What may be there where no sample was taken, of one in `rate` bytes: the score interval of none.
    pub(super) fn of_nothing(rate: u64) -> Self {
        Self {
            high: if rate > 1 {
                Z_95 * Z_95 * rate as f64
            } else {
                0.0
            },
            ..Self::default()
        }
    }

    /// About how far off `bytes` may be that were sampled, one in `rate`.
    pub(super) fn sampled(bytes: f64, rate: u64) -> Self {
        let reach = match rate {
            0 | 1 => 0.0,
            rate => Z_95 * (bytes * rate as f64).sqrt(),
        };
        Self {
            value: bytes,
            low: (bytes - reach).max(0.0),
            high: bytes + reach,
        }
    }

    /// What a series stands at: its end, with all it came by in the last quarter, and no less wide than
    /// `end`, the width of the estimate itself.
    pub(super) fn level(end: Self, series: &[(f64, u64)]) -> Self {
        let last = series.iter().skip(series.len() - series.len().div_ceil(4));
        last.fold(end, |level, &(_, value)| Self {
            value: level.value,
            low: level.low.min(value as f64),
            high: level.high.max(value as f64),
        })
    }

    /// What a series grows by in a second, `total` in all and no less wide than that: the width is that of
    /// the mean of eight stretches (batch means), which holds the noise of the program's own doing, too.
    /// `None` for a series of fewer than five points.
    pub(super) fn growth(total: Self, series: &[(f64, u64)]) -> Option<Self> {
        /// Student's t, two-sided 95 %, for 1 to 7 degrees of freedom.
        const T_95: [f64; BATCHES - 1] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365];
        let last = series.len().checked_sub(1)?;
        let seconds = series[last].0 - series[0].0;
        if series.len() < FEWEST_POINTS || seconds <= 0.0 {
            return None;
        }
        let batches = BATCHES.min(last);
        let at = |batch: usize| series[batch * last / batches];
        let rates = (0..batches).filter_map(|batch| {
            let ((from, before), (to, after)) = (at(batch), at(batch + 1));
            (to > from).then(|| (after as f64 - before as f64) / (to - from))
        });
        let rates: Vec<f64> = rates.collect();
        let degrees = rates.len().checked_sub(1).filter(|&degrees| degrees > 0)?;
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let squares: f64 = rates.iter().map(|rate| (rate - mean).powi(2)).sum();
        let deviation = (squares / degrees as f64 / rates.len() as f64).sqrt();
        let reach = T_95[degrees - 1] * deviation;
        let value = total.value / seconds;
        Some(Self {
            value,
            low: (total.low / seconds).min(value - reach),
            high: (total.high / seconds).max(value + reach),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, reach: f64) -> Estimate {
        Estimate {
            value,
            low: value - reach,
            high: value + reach,
        }
    }

    #[test]
    fn what_overlaps_is_no_difference() {
        let earlier = figure(100.0, 10.0);
        assert_eq!(figure(115.0, 10.0).against(earlier), None);
        assert_eq!(
            figure(121.0, 10.0).against(earlier),
            Some(Ordering::Greater)
        );
        assert_eq!(figure(79.0, 10.0).against(earlier), Some(Ordering::Less));
        // Exact, and too small to speak of.
        assert_eq!(figure(101.0, 0.0).against(figure(100.0, 0.0)), None);
        assert_eq!(figure(0.0, 0.0).against(figure(0.0, 0.0)), None);
        let difference = figure(5.0, 3.0).minus(figure(1.0, 4.0));
        assert_eq!(difference, figure(4.0, 5.0));
    }

    #[test]
    fn growth_is_as_wide_as_its_stretches_differ() {
        let series =
            |rate: fn(u64) -> u64| -> Vec<_> { (0..=80).map(|t| (t as f64, rate(t))).collect() };
        let total = |series: &[(f64, u64)]| figure(series[80].1 as f64 - series[0].1 as f64, 0.0);
        let even = series(|t| 100 + 10 * t);
        assert_eq!(
            Estimate::growth(total(&even), &even),
            Some(figure(10.0, 0.0))
        );
        // A saw-tooth happens to end high: the width covers zero.
        let saw = series(|t| 1000 * (t * 7 % 11));
        let growth = Estimate::growth(total(&saw), &saw).unwrap();
        assert!(growth.low < 0.0 && growth.high > 0.0, "{growth:?}");
        assert_eq!(Estimate::growth(total(&even), &even[..4]), None);
        let level = Estimate::level(figure(3000.0, 1.0), &saw);
        assert_eq!((level.low, level.high), (0.0, 10_000.0));
    }
}
