//! Short windows of probes that would slow the target down many times were they to stay.
//!
//! There is one window in each period, at a random place. Its length and that of the period follow from what
//! the last ones have cost: many short windows rather than few long ones, as long as opening one is worth it.

use std::time::Duration;

/// Shorter windows are mostly opening and closing.
const LEAST: Duration = Duration::from_millis(5);
/// Longer ones say no more than several.
const MOST: Duration = Duration::from_millis(100);
/// Windows need not come more often.
const USUAL: Duration = Duration::from_millis(200);
/// Nor is one put off for longer, whatever it costs.
const LONGEST: Duration = Duration::from_secs(20);
/// What is taken for the cost of a window before the first one: all of it, and what closing takes.
const ASSUMED: Duration = Duration::from_millis(20);
/// A process that uses less of a processor is not charged less than this.
const LEAST_BUSY: f64 = 0.2;
/// Weight of the last window in the mean of their costs.
const LAST: f64 = 0.25;

/// What one period has cost.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// What the probes took from the target's threads, all together.
    pub probes: Duration,
    /// Processor time that the target used.
    pub cpu: Duration,
    /// Length of the period.
    pub period: Duration,
    /// Nothing was lost of its window.
    pub whole: bool,
}

/// Decides on windows and periods.
#[derive(Clone, Debug)]
pub struct Windows {
    budget: f64,
    length: Duration,
    /// Mean cost of a window of that length, in seconds.
    cost: f64,
    /// Processors that the target keeps busy.
    busy: f64,
    most: Duration,
}

impl Windows {
    /// `budget` is the share that the probes may cost of the processor time that the target uses.
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            length: LEAST,
            cost: ASSUMED.as_secs_f64(),
            busy: 1.0,
            most: MOST,
        }
    }

    /// From now on they may cost that share.
    pub fn may_cost(&mut self, budget: f64) {
        self.budget = budget;
    }

    /// Length of the next window.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Length of the period in which it lies; more than that of the window.
    pub fn period(&self) -> Duration {
        let affordable = self.cost / (self.budget * self.busy).max(1e-6);
        let affordable = Duration::from_secs_f64(affordable.min(LONGEST.as_secs_f64()));
        affordable.max(USUAL).max(self.length * 2)
    }

    /// Where the next window begins in its period. `chance` is a random number from 0 to 1.
    pub fn place(&self, chance: f64) -> Duration {
        (self.period() - self.length).mul_f64(chance.clamp(0.0, 1.0))
    }

    /// Takes a period into account.
    pub fn observe(&mut self, seen: Spent) {
        if !seen.whole {
            self.most = (self.length / 2).max(LEAST / 10);
        }
        let busy = seen.cpu.as_secs_f64() / seen.period.as_secs_f64().max(1e-3);
        self.busy = busy.max(LEAST_BUSY);
        self.cost += (seen.probes.as_secs_f64() - self.cost) * LAST;
        let affordable = self.budget * self.busy * USUAL.as_secs_f64() / self.cost.max(1e-9);
        let least = LEAST.min(self.most);
        let length = self.length.mul_f64(affordable.clamp(0.5, 1.5));
        let length = length.clamp(least, self.most);
        self.cost *= length.as_secs_f64() / self.length.as_secs_f64();
        self.length = length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that keeps so many processors busy, in which probes take that share of the time while they
    /// are attached, and as much again as a fixed time for each window; gives window, period and the share
    /// that they cost in the end.
    fn settled(budget: f64, busy: f64, share: f64, fixed_s: f64) -> (f64, f64, f64) {
        let mut windows = Windows::new(budget);
        let mut cost = 0.0;
        for _ in 0..100 {
            let (length, period) = (windows.length(), windows.period());
            let probes = (length.as_secs_f64() + fixed_s) * share;
            cost = probes / period.as_secs_f64() / busy;
            windows.observe(Spent {
                probes: Duration::from_secs_f64(probes),
                cpu: period.mul_f64(busy),
                period,
                whole: true,
            });
        }
        let (length, period) = (windows.length(), windows.period());
        (length.as_secs_f64(), period.as_secs_f64(), cost)
    }

    #[test]
    fn windows_cost_what_they_may() {
        // A loop that does nothing but allocate: short windows, far apart.
        let (length, period, cost) = settled(0.03, 1.0, 0.98, 0.005);
        assert_eq!(length, 0.005);
        assert!((0.3..0.4).contains(&period), "{period}");
        assert!((cost / 0.03 - 1.0).abs() < 0.05, "{cost}");
        // Eight such threads: the same.
        let (_, _, cost) = settled(0.03, 8.0, 8.0 * 0.98, 0.005);
        assert!((cost / 0.03 - 1.0).abs() < 0.05, "{cost}");
        // A tenth of the time goes to the probes: longer windows in the usual period.
        let (length, period, cost) = settled(0.03, 1.0, 0.1, 0.002);
        assert!(
            (0.04..0.07).contains(&length) && period == 0.2,
            "{length} {period}"
        );
        assert!(cost < 0.031, "{cost}");
        // Hardly anything: never more than half of the time.
        assert_eq!(settled(0.03, 0.2, 0.001, 0.0).0, 0.1);
    }

    #[test]
    fn windows_lie_within_their_period() {
        let windows = Windows::new(0.03);
        for chance in [0.0, 0.3, 1.0, 7.0] {
            assert!(windows.place(chance) + windows.length() <= windows.period());
        }
    }

    #[test]
    fn a_window_that_lost_something_makes_the_next_ones_shorter() {
        let mut windows = Windows::new(0.03);
        let period = windows.period();
        for _ in 0..3 {
            windows.observe(Spent {
                probes: Duration::from_micros(100),
                cpu: period,
                period,
                whole: false,
            });
        }
        assert_eq!(windows.length(), LEAST / 8);
    }
}
