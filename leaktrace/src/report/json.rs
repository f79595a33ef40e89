//! The report as JSON.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::text::is_obeyed;

/// Writes the report, indented, with a line feed at the end. Texts are as they are, but whatever a terminal
/// would obey is an escape, as `\u009b`: JSON has the same meaning with it.
///
/// # Errors
///
/// The writer's.
pub fn write<W: Write>(report: &impl Serialize, mut out: W) -> io::Result<()> {
    let formatter = Harmless(PrettyFormatter::new());
    report.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    out.write_all(b"\n")
}

/// [`PrettyFormatter`], but for what it writes of texts.
struct Harmless(PrettyFormatter<'static>);

impl Formatter for Harmless {
    /// `fragment` has no character that every JSON text escapes.
    fn write_string_fragment<W>(&mut self, out: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        for part in fragment.split_inclusive(is_obeyed) {
            match part.char_indices().next_back() {
                Some((at, c)) if is_obeyed(c) => {
                    out.write_all(&part.as_bytes()[..at])?;
                    write!(out, "\\u{:04x}", u32::from(c))?;
                }
                _ => out.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}
