//! The report as JSON.

use std::io::{self, Write};

use serde::Serialize;

/// Writes the report, indented, with a line feed at the end.
pub fn write<W: Write>(report: &impl Serialize, mut out: W) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, report)?;
    out.write_all(b"\n")
}
