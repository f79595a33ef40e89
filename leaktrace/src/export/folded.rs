//! Folded stacks: `outermost;…;innermost VALUE`, one a line, as `flamegraph.pl`, inferno and speedscope
//! read them.
//!
//! [`Value::Growth`] may be negative, which no reader of this form knows; it is written as
//! `difffolded.pl` does, with two figures: bytes at the attach and bytes at the end.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Value, path, sites};
use crate::report::Report;

/// Writes the stacks whose figures are not zero, in the order of their names.
///
/// # Errors
///
/// The writer's.
pub fn write<W: Write>(report: &Report, value: Value, mut out: W) -> io::Result<()> {
    for line in lines(report, value) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// One line for each stack by name: sites that differ in lines only are put together.
pub(super) fn lines(report: &Report, value: Value) -> Vec<String> {
    let mut stacks: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (_, site) in sites(report) {
        let (before, after) = match value {
            Value::Growth => {
                let live = Value::InuseSpace.of(site);
                ((live - site.growth_bytes).max(0), live)
            }
            _ => (0, value.of(site)),
        };
        let names: Vec<_> = path(site).iter().map(|step| field(&step.name)).collect();
        let sum = stacks.entry(names.join(";")).or_default();
        *sum = (sum.0.saturating_add(before), sum.1.saturating_add(after));
    }
    let shown = stacks.into_iter().filter(|(_, sum)| *sum != (0, 0));
    shown
        .map(|(stack, (before, after))| match value {
            Value::Growth => format!("{stack} {before} {after}"),
            _ => format!("{stack} {after}"),
        })
        .collect()
}

/// A name without what separates names, and stacks from figures: a name that ends in a number would be
/// taken for one with a figure.
fn field(name: &str) -> String {
    let name = name.replace(';', ":");
    match name.rsplit_once(char::is_whitespace) {
        Some((head, tail)) if tail.parse::<f64>().is_ok() => format!("{head}_{tail}"),
        _ => name,
    }
}
