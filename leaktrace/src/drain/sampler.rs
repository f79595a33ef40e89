//! Go's own profile beside the probes: what changed since the last interval, and whether the
//! probes saw every sample that the runtime took.

use std::{thread::sleep, time::Duration};

use crate::inventory::{Bucket, BucketCounts, Buckets, BucketsError};

/// Reads the profile once an interval.
pub struct Sampler {
    buckets: Buckets,
    counts: Vec<BucketCounts>,
    rate: u64,
    now: u64,
    unseen: Unseen,
}

/// Samples in the profile, and the births that the probes had counted just before it was read.
struct Bracket {
    profile: u64,
    probes: u64,
}

impl Sampler {
    /// Nothing read yet.
    pub fn new(buckets: Buckets) -> Self {
        Self {
            buckets,
            counts: Vec::new(),
            rate: 0,
            now: 0,
            unseen: Unseen::default(),
        }
    }

    /// `runtime.MemProfileRate` at the last reading.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// Reads the profile: the buckets whose counts changed, all of them the first time.
    pub(super) fn read(&mut self) -> Result<Vec<(&Bucket, BucketCounts)>, BucketsError> {
        self.rate = self.buckets.sample_rate()?;
        let counts = self.buckets.read()?;
        self.now = counts.iter().map(|counts| counts.allocs).sum();
        let before = std::mem::replace(&mut self.counts, counts);
        let changed = self
            .buckets
            .buckets()
            .iter()
            .zip(&self.counts)
            .enumerate()
            .filter(|(index, (_, counts))| before.get(*index) != Some(*counts))
            .map(|(_, (bucket, counts))| (bucket, *counts))
            .collect();
        Ok(changed)
    }

    /// Samples that the runtime took since the attach and the probes did not see: see [`Unseen::look`].
    pub(super) fn unseen<E>(
        &mut self,
        before: u64,
        after: impl FnMut() -> Result<u64, E>,
    ) -> Result<u64, E> {
        self.unseen.look(self.now, before, after)
    }
}

/// Samples that are in the profile and did not come to the probe.
#[derive(Default)]
struct Unseen {
    at_attach: Option<Bracket>,
    most: u64,
}

impl Unseen {
    /// How many there were at most. `profile` are the samples at the last reading, `before` the births that the
    /// probes had counted just before it. `after` gives those of now: they are more than at the reading, so the
    /// answer is never too high by them. It is asked again for 21 ms while more seem to be missing than ever: a
    /// sample is in the profile a moment before it comes to the probe (Go 1.27, runtime/mprof.go, `mProf_Malloc`:
    /// `setprofilebucket` comes last), and a thread may have to wait for a processor in between.
    fn look<E>(
        &mut self,
        profile: u64,
        before: u64,
        mut after: impl FnMut() -> Result<u64, E>,
    ) -> Result<u64, E> {
        let first = self.at_attach.get_or_insert(Bracket {
            profile,
            probes: before,
        });
        let taken = profile.saturating_sub(first.profile);
        let mut unseen = taken;
        for wait_ms in [0, 1, 4, 16] {
            sleep(Duration::from_millis(wait_ms));
            let seen = after()?.saturating_sub(first.probes);
            unseen = taken.saturating_sub(seen);
            if unseen <= self.most {
                break;
            }
        }
        self.most = self.most.max(unseen);
        Ok(self.most)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// What is told when the probes have counted so many before a reading, and then so many each time they are asked.
    fn look(unseen: &mut Unseen, profile: u64, before: u64, after: &[u64]) -> u64 {
        let mut after = after.iter();
        let answer = |of: Option<&u64>| Ok::<_, Infallible>(*of.expect("it is not asked again"));
        unseen
            .look(profile, before, || answer(after.next()))
            .unwrap()
    }

    #[test]
    fn what_comes_to_the_probe_late_is_not_missing() {
        let mut unseen = Unseen::default();
        assert_eq!(look(&mut unseen, 1000, 40, &[40]), 0);
        assert_eq!(look(&mut unseen, 1010, 49, &[49, 49, 50]), 0);
        // More of them than the profile had when it was read.
        assert_eq!(look(&mut unseen, 1020, 60, &[63]), 0);
    }

    #[test]
    fn what_never_comes_is_missing_for_good() {
        let mut unseen = Unseen::default();
        assert_eq!(look(&mut unseen, 1000, 40, &[40]), 0);
        assert_eq!(look(&mut unseen, 1010, 47, &[47; 4]), 3);
        // No more than before: there is nothing to wait for.
        assert_eq!(look(&mut unseen, 1020, 57, &[57]), 3);
        assert_eq!(look(&mut unseen, 1030, 70, &[70]), 3);
    }
}
