//! What leaktrace knows of Go binaries and the Go runtime: pure, bytes in and tables out.

#[cfg(test)]
pub(crate) mod testing;
