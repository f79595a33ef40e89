//! A flame graph: one SVG that a browser opens, drawn by inferno.
//!
//! A box is as wide as its stacks' bytes or objects. With [`Value::Growth`] the width is what is live at
//! the end and the colour says what has become of it since the attach: red grew, blue shrank.

use std::io::{self, Write};

use inferno::flamegraph::{Options, from_lines};

use super::{Value, escape, folded};
use crate::report::{Report, human};

/// Draws the graph.
///
/// # Errors
///
/// The writer's; and [`io::ErrorKind::InvalidData`] when there is nothing to draw.
pub fn write<W: Write>(report: &Report, value: Value, out: W) -> io::Result<()> {
    // Two characters that XML does not have; the others are escaped already.
    let drawable = |line: String| line.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
    let lines = folded::lines(report, value).into_iter().map(drawable);
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        let nothing = format!("there is nothing to draw: no site has any {value}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, nothing));
    }
    let mut options = Options::default();
    let target = &report.target;
    options.title = format!("{value} of {} (pid {})", escape(&target.comm), target.pid);
    options.subtitle = Some(subtitle(report, value));
    options.count_name = value.unit().to_owned();
    options.deterministic = true;
    from_lines(&mut options, lines.iter().map(String::as_str), out).map_err(io::Error::other)
}

fn subtitle(report: &Report, value: Value) -> String {
    let window = &report.window;
    let what = match value {
        Value::AllocObjects | Value::AllocSpace => "allocated since the attach, freed or not",
        Value::InuseObjects | Value::InuseSpace => "not known to be dead at the end",
        Value::Growth => "live at the end; red: grew since the attach, blue: shrank",
    };
    let losses = match report
        .losses
        .values()
        .fold(0, |sum: u64, lost| sum.saturating_add(*lost))
    {
        0 => "nothing lost".to_owned(),
        lost => format!("{} lost: see the report", human::count(lost, "record")),
    };
    format!(
        "{what}; recorded for {}, end: {}; {losses}",
        human::seconds(window.duration_s),
        window.end
    )
}
