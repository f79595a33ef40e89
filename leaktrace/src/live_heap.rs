//! The live heap: pure functions over a decoded capture.
