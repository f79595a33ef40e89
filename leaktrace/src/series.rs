//! A site's live bytes over time: its slope, and how evenly it grew.

#![forbid(unsafe_code)]

/// Points that [`slope`] compares pair by pair; longer series are thinned to as many.
const SLOPE_POINTS: usize = 96;

/// Thins a series to at most `max` points (at least two), first and last included.
pub fn thin<T: Copy>(points: &[T], max: usize) -> Vec<T> {
    let max = max.max(2);
    if points.len() <= max {
        return points.to_vec();
    }
    (0..max)
        .map(|index| points[index * (points.len() - 1) / (max - 1)])
        .collect()
}

/// Robust slope in units a second: the median over all pairs of points (Theil 1950, Sen 1968). Up
/// to 29 % of the points may be anywhere without moving it; a saw-tooth around a level has none.
/// Zero with fewer than two moments.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let points = thin(points, SLOPE_POINTS);
    if points.windows(2).all(|pair| pair[0].1 == pair[1].1) {
        return 0.0;
    }
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (index, &(t0, y0)) in points.iter().enumerate() {
        for &(t1, y1) in &points[index + 1..] {
            if t1 > t0 {
                slopes.push((y1 - y0) / (t1 - t0));
            }
        }
    }
    if slopes.is_empty() {
        return 0.0;
    }
    let middle = slopes.len() / 2;
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// How something that was gathered over a stretch of time is spread over it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Sum of the weights.
    pub total: f64,
    /// Sums in equal parts of the stretch.
    pub parts: Vec<f64>,
    /// Where the middle of it lies: 0 the beginning, 1 the end; 0.5 when it came evenly.
    pub centre: f64,
    /// How many equal arrivals carry as much information as these.
    pub arrivals: f64,
}

impl Spread {
    /// Spreads arrivals `(from_s, to_s, weight, objects)`, each even within its own time, over
    /// `parts` equal parts of `0..length_s`.
    pub fn new(
        arrivals: impl Iterator<Item = (f64, f64, f64, u64)>,
        length_s: f64,
        parts: usize,
    ) -> Self {
        let mut spread = Self {
            total: 0.0,
            parts: vec![0.0; parts],
            centre: 0.5,
            arrivals: 0.0,
        };
        let part_s = length_s / parts as f64;
        let (mut moment, mut squares) = (0.0, 0.0);
        for (from, to, weight, objects) in arrivals {
            if weight <= 0.0 || objects == 0 || part_s <= 0.0 {
                continue;
            }
            spread.total += weight;
            moment += weight * (from + to) / 2.0;
            squares += weight * weight / objects as f64;
            for (index, sum) in spread.parts.iter_mut().enumerate() {
                let begin = index as f64 * part_s;
                let overlap = (to.min(begin + part_s) - from.max(begin)).max(0.0);
                let share = if to > from {
                    overlap / (to - from)
                } else {
                    0.0
                };
                *sum += weight * share;
            }
        }
        if spread.total > 0.0 {
            spread.centre = moment / spread.total / length_s;
            spread.arrivals = spread.total * spread.total / squares;
        }
        spread
    }

    /// Parts that got at least a quarter of an even share.
    pub fn filled(&self) -> usize {
        let share = self.total / self.parts.len().max(1) as f64;
        self.parts
            .iter()
            .filter(|&&sum| sum > 0.0 && sum >= share / 4.0)
            .count()
    }

    /// Sums of the first and the last third.
    pub fn outer_thirds(&self) -> (f64, f64) {
        let third = self.parts.len() as f64 / 3.0;
        let from_start = |parts: &mut dyn Iterator<Item = &f64>| {
            let (mut left, mut sum) = (third, 0.0);
            for part in parts {
                sum += part * left.clamp(0.0, 1.0);
                left -= 1.0;
            }
            sum
        };
        (
            from_start(&mut self.parts.iter()),
            from_start(&mut self.parts.iter().rev()),
        )
    }

    /// How many standard deviations the centre lies before the middle: the Laplace test for a
    /// falling rate of arrivals, whose centre has a deviation of 1/√(12 n) when they come evenly.
    pub fn slowing(&self) -> f64 {
        (0.5 - self.centre) * (12.0 * self.arrivals).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slope_ignores_outliers_and_saw_teeth() {
        let line = |t: f64| (t, 3.0 * t + 5.0);
        let mut points: Vec<_> = (0..40).map(|i| line(f64::from(i))).collect();
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        points[20].1 = 1e9;
        points[39].1 = -1e9;
        assert!((slope(&points) - 3.0).abs() < 0.2, "{}", slope(&points));
        let saw: Vec<_> = (0..400)
            .map(|i| (f64::from(i), f64::from(i % 10)))
            .collect();
        assert!(slope(&saw).abs() < 0.02, "{}", slope(&saw));
        let once: Vec<_> = (0..60)
            .map(|i| (f64::from(i), if i < 5 { 0.0 } else { 64.0 }))
            .collect();
        assert_eq!(slope(&once), 0.0);
        assert_eq!(
            (slope(&[]), slope(&[(1.0, 2.0)]), slope(&[(1.0, 2.0); 5])),
            (0.0, 0.0, 0.0)
        );
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let points: Vec<u32> = (0..1000).collect();
        let thinned = thin(&points, 10);
        assert_eq!((thinned.len(), thinned[0], thinned[9]), (10, 0, 999));
        assert_eq!(thin(&points[..3], 10), [0, 1, 2]);
    }

    #[test]
    fn an_even_spread_is_not_slowing() {
        let even = Spread::new(
            (0..60).map(|i| (f64::from(i), f64::from(i + 1), 1.0, 1)),
            60.0,
            6,
        );
        assert_eq!((even.filled(), even.centre, even.slowing()), (6, 0.5, 0.0));
        let (first, last) = even.outer_thirds();
        assert!((first - 20.0).abs() < 1e-9 && (last - 20.0).abs() < 1e-9);
        let early = Spread::new(
            (0..10).map(|i| (f64::from(i), f64::from(i + 1), 1.0, 1)),
            60.0,
            6,
        );
        assert_eq!((early.filled(), early.outer_thirds()), (1, (10.0, 0.0)));
        assert!(early.slowing() > 4.0);
    }
}
