//! Interval map of the target's address space.
