//! How far a search through memory has come, whether it is to end, and how fast it may go: for another thread.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// What a search that reads as fast as it can takes from a program on another processor, as a share of that one's
/// throughput: caches and memory are shared. A twentieth as a rule, a tenth at times (docs/why.md).
const AT_FULL_SPEED: f64 = 0.07;
/// Pauses are not shorter, or waking up would be most of them.
const LEAST_PAUSE: Duration = Duration::from_millis(2);
/// Who is woken up late need not pause for as long the next time, up to this.
const MOST_CREDIT: Duration = Duration::from_millis(200);

/// A search under way.
#[derive(Debug)]
pub struct Watch {
    done: AtomicU64,
    all: AtomicU64,
    is_stopped: AtomicBool,
    /// Of its time, the part in which it may read.
    share: f64,
    start: Instant,
    /// When the last pause was over, in nanoseconds after the start.
    since_ns: AtomicU64,
    /// By how much it was longer than it had to be.
    credit_ns: AtomicU64,
}

impl Default for Watch {
    /// As fast as it goes.
    fn default() -> Self {
        Self {
            done: AtomicU64::new(0),
            all: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            share: 1.0,
            start: Instant::now(),
            since_ns: AtomicU64::new(0),
            credit_ns: AtomicU64::new(0),
        }
    }
}

impl Watch {
    /// A search that makes pauses, so that it costs the program that share of its throughput at the most, by what is
    /// usual; without a bound it makes none.
    pub fn within(max_overhead: Option<f64>) -> Self {
        let share = max_overhead.map_or(1.0, |bound| bound / AT_FULL_SPEED);
        Self {
            share: share.clamp(0.01, 1.0),
            ..Self::default()
        }
    }

    /// Ends the search soon; what it has found stays.
    pub fn stop(&self) {
        self.is_stopped.store(true, Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Relaxed)
    }

    /// A pass begins, for which there are so many bytes at most.
    pub(super) fn begin(&self, all: u64) {
        self.all.store(all, Relaxed);
        self.done.store(0, Relaxed);
        self.since_ns.store(self.now_ns(), Relaxed);
    }

    /// So many more have been looked at. Comes back when the search may go on.
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        let begin = self.now_ns();
        let busy = Duration::from_nanos(begin.saturating_sub(self.since_ns.load(Relaxed)));
        let credit = Duration::from_nanos(self.credit_ns.load(Relaxed));
        if let Some(pause) = self.pause(busy, credit)
            && !self.is_stopped()
        {
            thread::sleep(pause);
            let end = self.now_ns();
            let late = Duration::from_nanos(end - begin).saturating_sub(pause);
            self.since_ns.store(end, Relaxed);
            self.credit_ns
                .store(late.min(MOST_CREDIT).as_nanos() as u64, Relaxed);
        }
    }

    /// For how long to pause after so much reading, where the last pause was too long by `credit`; `None`: not yet.
    fn pause(&self, busy: Duration, credit: Duration) -> Option<Duration> {
        let pause = busy.mul_f64(1.0 / self.share - 1.0);
        let pause = pause.saturating_sub(credit);
        (pause >= LEAST_PAUSE).then_some(pause)
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Bytes looked at by the pass that is under way, and those that there are at most; zero before the first.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.all.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_for_a_part_of_the_time_only() {
        let pause = |share: f64, busy_us: u64, credit_us: u64| {
            let watch = Watch::within(Some(AT_FULL_SPEED * share));
            let pause = watch.pause(
                Duration::from_micros(busy_us),
                Duration::from_micros(credit_us),
            );
            pause.map(|pause| (pause.as_secs_f64() * 1e6).round() as u64)
        };
        assert_eq!(pause(0.25, 10_000, 0), Some(30_000));
        assert_eq!(pause(0.25, 10_000, 12_000), Some(18_000));
        // Short ones add up first.
        assert_eq!(pause(0.25, 500, 0), None);
        assert_eq!(pause(0.25, 10_000, 40_000), None);
        assert_eq!(pause(1.0, 1_000_000, 0), None);
        let unbounded = Watch::within(None);
        assert_eq!(
            unbounded.pause(Duration::from_secs(1), Duration::ZERO),
            None
        );
    }
}
