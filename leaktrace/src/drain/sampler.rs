//! Go's own profile beside the probes: what changed since the last interval, and whether the
//! probes saw every sample that the runtime took.

use crate::inventory::{Bucket, BucketCounts, Buckets, BucketsError};

/// Reads the profile once an interval.
pub struct Sampler {
    buckets: Buckets,
    counts: Vec<BucketCounts>,
    rate: u64,
    at_attach: Option<Bracket>,
    now: u64,
    unseen: u64,
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
            at_attach: None,
            now: 0,
            unseen: 0,
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

    /// Samples that the runtime took since the attach and the probes did not see. `before` and
    /// `after` are the births that the probes had counted just before and just after the last
    /// reading: the count at the reading lies between them, so the answer is never too high.
    pub(super) fn unseen(&mut self, before: u64, after: u64) -> u64 {
        let first = self.at_attach.get_or_insert(Bracket {
            profile: self.now,
            probes: before,
        });
        let taken = self.now.saturating_sub(first.profile);
        let seen = after.saturating_sub(first.probes);
        self.unseen = self.unseen.max(taken.saturating_sub(seen));
        self.unseen
    }
}
