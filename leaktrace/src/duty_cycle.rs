//! How long a dear probe may stay attached, so that it costs the target no more than a budget.
//!
//! Time is cut into periods of a second. In each the probe is attached for one window, whose length is
//! the share that the budget allows and whose place within the period is random, so that it does not
//! fall into step with what the target does. The share follows from what the last periods have shown:
//! hits a second while attached, each at a known cost, against the processor time that the target uses.
//!
//! Contract: pure; time and chance are the caller's.

#![forbid(unsafe_code)]

use std::time::Duration;

mod windows;

pub use windows::{Spent, Windows};

/// Length of a period.
pub const PERIOD: Duration = Duration::from_secs(1);
/// What one hit costs the target: a breakpoint on an emulated instruction (half of it), the program, its
/// share of the stacks walked, and caches gone cold. Measured in a guest of Linux 6.18
/// (docs/overhead.md); on bare metal it is less.
const HIT_COST_S: f64 = 1e-6;
/// Shorter windows are not worth the attaching.
const MIN_SHARE: f64 = 0.03;
/// From here on the probe stays attached.
const ALWAYS: f64 = 0.8;

/// What one period has shown.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// How long the probe was attached.
    pub attached: Duration,
    /// How often it was hit.
    pub hits: u64,
    /// Processor time that the target used in the period.
    pub cpu: Duration,
    /// Length of the period.
    pub period: Duration,
}

/// Decides on the share of the time.
#[derive(Clone, Debug)]
pub struct DutyCycle {
    budget: f64,
    share: f64,
}

impl DutyCycle {
    /// `budget` is the share of the target's processor time that the probe may cost. The first window is
    /// short: nothing is known yet.
    pub fn new(budget: f64) -> Self {
        Self { budget, share: 0.1 }
    }

    /// The share of each period for which the probe is to be attached; 1: it stays.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Takes a period into account.
    pub fn observe(&mut self, seen: Observation) {
        let attached = seen.attached.as_secs_f64();
        if attached <= 0.0 || seen.period.is_zero() {
            return;
        }
        // A process that sleeps most of the time is not charged less than a twentieth of a processor.
        let busy = (seen.cpu.as_secs_f64() / seen.period.as_secs_f64()).max(0.05);
        let cost = seen.hits as f64 / attached * HIT_COST_S / busy;
        let affordable = if cost > 0.0 { self.budget / cost } else { 1.0 };
        // Half-way at a time up, so that a quiet second does not buy a dear one; down at once.
        let next = match affordable > self.share {
            true => (self.share + affordable.min(1.0)) / 2.0,
            false => affordable,
        };
        self.share = match next {
            next if next >= ALWAYS => 1.0,
            next => next.max(MIN_SHARE),
        };
    }

    /// The window of the next period: how long to wait before it, and how long it is. `chance` is a
    /// random number from 0 to 1.
    pub fn window(&self, chance: f64) -> (Duration, Duration) {
        let length = PERIOD.mul_f64(self.share);
        ((PERIOD - length).mul_f64(chance.clamp(0.0, 1.0)), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that keeps one processor busy and hits the probe so often while it is attached.
    fn settled(hits_per_s: f64) -> f64 {
        let mut cycle = DutyCycle::new(0.02);
        for _ in 0..20 {
            let attached = PERIOD.mul_f64(cycle.share());
            cycle.observe(Observation {
                attached,
                hits: (hits_per_s * attached.as_secs_f64()) as u64,
                cpu: PERIOD,
                period: PERIOD,
            });
        }
        cycle.share()
    }

    #[test]
    fn the_share_keeps_the_cost_within_the_budget() {
        assert_eq!(settled(0.0), 1.0);
        assert_eq!(settled(10_000.0), 1.0);
        // 200,000 hits a second would cost 20 %: a tenth of the time is left.
        assert!((settled(200_000.0) - 0.1).abs() < 0.01);
        assert_eq!(settled(50e6), MIN_SHARE);
    }

    #[test]
    fn windows_lie_within_their_period() {
        let mut cycle = DutyCycle::new(0.02);
        for share in [0.1, 1.0] {
            cycle.share = share;
            for chance in [0.0, 0.5, 1.0, 7.0] {
                let (wait, length) = cycle.window(chance);
                assert_eq!(length, PERIOD.mul_f64(share));
                assert!(wait + length <= PERIOD + Duration::from_nanos(2));
            }
        }
    }
}
