//! How far a search through memory has come, whether it is to end, and how fast it may go: for another thread.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// What a search that never waits takes from a program on another processor, as a share of that one's throughput:
/// caches and memory are shared. A twentieth at most, as a rule (docs/why.md).
const AT_FULL_SPEED: f64 = 0.05;
/// Pauses are not shorter, or waking up would be most of them.
const LEAST_PAUSE: Duration = Duration::from_millis(2);
/// Who had to wait need not pause for as long afterwards, up to this.
const MOST_CREDIT: Duration = Duration::from_secs(2);

/// A search under way.
#[derive(Debug)]
pub struct Watch {
    done: AtomicU64,
    all: AtomicU64,
    is_stopped: AtomicBool,
    pace: Option<Mutex<Pace>>,
}

/// How much processor time a search may use of the time that passes.
#[derive(Debug)]
struct Pace {
    share: f64,
    /// From when on it counts, and the processor time that the searching thread had used by then.
    since: Instant,
    used: Duration,
}

impl Default for Watch {
    /// As fast as it goes.
    fn default() -> Self {
        Self::within(None)
    }
}

impl Watch {
    /// A search that makes pauses, so that it costs the program that share of its throughput at the most, by what is
    /// usual; without a bound it makes none.
    pub fn within(max_overhead: Option<f64>) -> Self {
        let share = max_overhead.map_or(1.0, |bound| (bound / AT_FULL_SPEED).max(0.01));
        let pace = (share < 1.0).then(|| Pace {
            share,
            since: Instant::now(),
            used: Duration::ZERO,
        });
        Self {
            done: AtomicU64::new(0),
            all: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            pace: pace.map(Mutex::new),
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

    /// A pass begins, for which there are so many bytes at most, in the thread that makes it.
    pub(super) fn begin(&self, all: u64) {
        self.all.store(all, Relaxed);
        self.done.store(0, Relaxed);
        if let Some(pace) = &self.pace {
            let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
            (pace.since, pace.used) = (Instant::now(), used());
        }
    }

    /// So many more have been looked at. Comes back when the search may go on.
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.pause();
    }

    /// Comes back when the search may go on.
    pub(super) fn pause(&self) {
        let pause = self.pace.as_ref().and_then(|pace| {
            let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.pause(Instant::now(), used())
        });
        if let Some(pause) = pause
            && !self.is_stopped()
        {
            thread::sleep(pause);
        }
    }

    /// Bytes looked at by the pass that is under way, and those that there are at most; zero before the first.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.all.load(Relaxed))
    }
}

impl Pace {
    /// For how long to pause, when so much processor time has been used; `None`: not yet. What the search had to
    /// wait for a processor, or slept too long, counts as a pause: it costs nobody anything.
    fn pause(&mut self, now: Instant, used: Duration) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.since);
        let needed = used.saturating_sub(self.used).div_f64(self.share);
        if passed > needed + MOST_CREDIT {
            self.since = now.checked_sub(MOST_CREDIT).unwrap_or(now);
            self.used = used;
        }
        let pause = needed.saturating_sub(passed);
        (pause >= LEAST_PAUSE).then_some(pause)
    }
}

/// Processor time of this thread.
fn used() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_for_a_part_of_the_time_only() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut pace = Pace {
            share: 0.25,
            since: start,
            used: ms(1000),
        };
        let mut pause = |passed: u64, used: u64| pace.pause(start + ms(passed), ms(1000 + used));
        assert_eq!(pause(10, 10), Some(ms(30)));
        // Short ones add up first; who waited for a processor need not pause.
        assert_eq!(pause(41, 10), None);
        assert_eq!(pause(42, 11), Some(ms(2)));
        assert_eq!(pause(100, 20), None);
        // No more than two seconds are saved up.
        assert_eq!(pause(9000, 20), None);
        assert_eq!(pause(9000, 520), None);
        assert_eq!(pause(9000, 530), Some(ms(40)));
    }

    #[test]
    fn without_a_bound_it_never_waits() {
        assert!(Watch::within(None).pace.is_none());
        assert!(Watch::within(Some(AT_FULL_SPEED)).pace.is_none());
        assert!(Watch::within(Some(AT_FULL_SPEED / 2.0)).pace.is_some());
    }
}
