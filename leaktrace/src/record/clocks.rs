//! The clocks of a recording.
//!
//! All times in a capture are `CLOCK_MONOTONIC`, which nobody can set back and which stands still while the
//! machine is suspended, as the target does. The wall clock is read once, to say when the window opened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::limit;
use crate::capture::schema;

/// The wall clock.
pub(super) fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// `CLOCK_MONOTONIC`, the kernel side's clock.
pub(crate) fn monotonic_ns() -> u64 {
    now(ClockId::Monotonic)
}

fn now(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How long the machine had been suspended since it was booted when this was made.
pub(super) struct Suspended(u64);

impl Suspended {
    /// As of now.
    pub(super) fn now() -> Self {
        let monotonic = monotonic_ns();
        Self(now(ClockId::Boottime).saturating_sub(monotonic))
    }

    /// What to say if the machine has been suspended meanwhile.
    pub(super) fn limit(&self, now: &Self) -> Option<schema::Limit> {
        // Reading one clock after the other takes a moment.
        const MOMENT: Duration = Duration::from_secs(1);
        let slept = Duration::from_nanos(now.0.saturating_sub(self.0));
        (slept >= MOMENT).then(|| {
            let reason = format!(
                "the machine was suspended for {} s meanwhile; no time of the recording has that in it",
                slept.as_secs()
            );
            limit("the time by the wall clock", &reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_suspended_machine_has_a_limit() {
        assert_eq!(Suspended(5).limit(&Suspended(900_000_000)), None);
        assert_eq!(Suspended::now().limit(&Suspended::now()), None);
        let limit = Suspended(5).limit(&Suspended(61_000_000_000)).unwrap();
        assert!(limit.reason.contains("for 60 s"), "{limit:?}");
    }
}
