//! Addresses to frames, or to a named reason why not.
