//! What keeps objects alive, as a graph for Graphviz: an arrow from what holds to what is held.

use std::io::{self, Write};

use super::{
    Holder, Why, WhySite,
    text::{amount, hop_name, own_frame, root},
};
use crate::report::{Frame, goroutines::GoroutineGroup};

/// Writes it in the DOT language.
///
/// # Errors
///
/// `out` fails.
pub fn write_dot<W: Write>(why: &Why, mut out: W) -> io::Result<()> {
    writeln!(out, "digraph why {{")?;
    writeln!(out, "  rankdir=LR; node [shape=box];")?;
    for (number, site) in why.sites.iter().enumerate() {
        write_site(site, number, &mut out)?;
    }
    writeln!(out, "}}")
}

fn write_site<W: Write>(site: &WhySite, number: usize, out: &mut W) -> io::Result<()> {
    let mut lines = Vec::new();
    if let Some(frame) = own_frame(&site.stack) {
        lines.push(place(frame));
    }
    lines.push(amount(&site.total));
    let objects = format!("s{number}");
    writeln!(out, "  {objects} [style=filled, label={}];", label(&lines))?;
    for (index, holder) in site.holders.iter().enumerate() {
        let begin = format!("{objects}r{index}");
        let label = label(&root_lines(holder));
        writeln!(out, "  {begin} [shape=ellipse, label={label}];")?;
        for (shape, path) in holder.paths.iter().enumerate() {
            let style = if path.checked { "solid" } else { "dashed" };
            let mut before = begin.clone();
            // The last hop is the objects themselves.
            let between = path.hops.split_last().map_or(&[][..], |(_, rest)| rest);
            for (place, hop) in between.iter().enumerate() {
                let node = format!("{begin}p{shape}h{place}");
                writeln!(out, "  {node} [label={}];", self::label(&[hop_name(hop)]))?;
                writeln!(out, "  {before} -> {node} [style={style}];")?;
                before = node;
            }
            let held = self::label(&[amount(&path.amount)]);
            writeln!(
                out,
                "  {before} -> {objects} [style={style}, label={held}];"
            )?;
        }
    }
    Ok(())
}

fn root_lines(holder: &Holder) -> Vec<String> {
    let mut lines = vec![root(holder)];
    if let Some(group) = &holder.goroutines {
        let GoroutineGroup {
            blocked_at,
            created_by,
            channel,
            ..
        } = &**group;
        lines.extend(
            blocked_at
                .iter()
                .map(|frame| format!("at {}", place(frame))),
        );
        lines.extend(
            created_by
                .iter()
                .map(|frame| format!("created by {}", place(frame))),
        );
        lines.extend(
            channel
                .iter()
                .map(|channel| format!("channel: {}", channel.in_words())),
        );
    }
    lines
}

/// A function, and the line in the last part of the file's path.
fn place(frame: &Frame) -> String {
    let name = frame.function.clone();
    let name = name.unwrap_or_else(|| format!("{:#x}", frame.address));
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => {
            let file = file.rsplit('/').next().unwrap_or_default();
            format!("{name} {file}:{line}")
        }
        _ => name,
    }
}

/// A quoted string; what is quoted in DOT is only the quotation mark, and a backslash means a line.
fn label(lines: &[String]) -> String {
    let lines = lines.iter().map(|line| {
        let safe = line.replace('\\', "\\\\").replace('"', "\\\"");
        safe.replace(char::is_control, " ")
    });
    format!("\"{}\"", lines.collect::<Vec<_>>().join("\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::why::{HopReport, PathReport, RootKind};

    #[test]
    fn names_stay_within_their_quotes() {
        let hop = |name: &str| HopReport {
            name: name.to_owned(),
            times: (1, 1),
            ..HopReport::default()
        };
        let why = Why {
            sites: vec![WhySite {
                holders: vec![Holder {
                    kind: RootKind::Variable,
                    symbol: Some("main.\"odd\"\\".to_owned()),
                    paths: vec![PathReport {
                        hops: vec![hop("map[string]\"x\""), hop("main.Row")],
                        checked: true,
                        ..PathReport::default()
                    }],
                    ..Holder::default()
                }],
                ..WhySite::default()
            }],
            ..Why::default()
        };
        let mut out = Vec::new();
        write_dot(&why, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains(r#"s0r0 [shape=ellipse, label="variable main.\"odd\"\\"];"#),
            "{text}"
        );
        assert!(
            text.contains(r#"s0r0p0h0 [label="map[string]\"x\""];"#),
            "{text}"
        );
        assert!(text.contains("s0r0p0h0 -> s0 [style=solid"), "{text}");
    }
}
