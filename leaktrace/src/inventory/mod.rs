//! What was there before the attach, and what no probe tells: read from the target's memory
//! without stopping it.

mod buckets;
pub mod goroutines;

pub use buckets::{Bucket, BucketCounts, Buckets, BucketsError};
