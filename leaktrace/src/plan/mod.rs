//! From facts about the target to a list of probes and of things that cannot be seen.

pub mod placement;
