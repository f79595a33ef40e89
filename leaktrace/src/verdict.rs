//! Whether a site leaks, and the evidence.
