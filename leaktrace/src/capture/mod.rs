//! The capture file: schema, writer, reader.
//!
//! A capture is a sequence of checksummed, compressed blocks that is only ever appended to, so
//! that any prefix of it can be read. docs/capture-format.md describes the container byte by byte,
//! `capture.proto` the messages in it.
//!
//! Contract: [`CaptureWriter`] hands every block to the output in one piece; [`Capture::read`]
//! takes any bytes, costs bounded memory ([`Limits`]), never panics, and says how the capture
//! ended ([`Ended`]). Nothing here opens files or looks at the clock.

#![forbid(unsafe_code)]

/// The messages of `capture.proto`, which documents every field.
#[expect(
    missing_docs,
    reason = "generated code; capture.proto documents every field"
)]
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/leaktrace.capture.rs"));
}
mod block;
mod write;
mod coarsen;
mod windows;
mod pauses;
mod read;
mod live;
#[cfg(test)]
mod tests;

pub use block::{FORMAT_VERSION, MAGIC};
pub use live::LiveCapture;
pub use pauses::Pauses;
pub use read::{Capture, Damage, Ended, Limits, ReadError};
pub use write::{CaptureWriter, WriteError};
