//! What was there before the attach: Go's profile buckets, the target's memory.
