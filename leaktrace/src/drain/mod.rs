//! Reads the kernel's maps and ring buffer once an interval.
