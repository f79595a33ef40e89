//! The capture file: schema, writer, reader.

/// The messages of `capture.proto`, which documents every field.
#[expect(missing_docs, reason = "generated code; capture.proto documents every field")]
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/leaktrace.capture.rs"));
}
