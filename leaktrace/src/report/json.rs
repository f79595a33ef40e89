//! The report as JSON.

use std::io::{self, Write};

use super::Report;

/// Writes the report, indented, with a line feed at the end.
pub fn write<W: Write>(report: &Report, mut out: W) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, report)?;
    out.write_all(b"\n")
}
