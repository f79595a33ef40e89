//! What was there before the attach, and what no probe tells: read from the target's memory
//! without stopping it.

mod buckets;
mod memory;
pub mod goroutines;
pub mod heap;
pub mod references;
mod spans;
mod watch;

pub use buckets::{Bucket, BucketCounts, Buckets, BucketsError};
pub use memory::MemoryReader;
pub use spans::{Fate, Followed, Spans};
pub use watch::Watch;

/// The word at `offset` of a structure; zero beyond its end.
fn word(bytes: &[u8], offset: u64) -> u64 {
    bytes
        .get(offset as usize..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u64::from_le_bytes(*word))
}
