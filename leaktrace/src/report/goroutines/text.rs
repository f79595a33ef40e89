//! Goroutines as text.

use std::io::{self, Write};

use super::{GoroutineGroup, Goroutines};
use crate::{
    report::{human, schema::Frame},
    verdict::Verdict,
};

/// Go statements shown.
const CREATION_SITES: usize = 5;

/// Writes the groups as text, at most `top` of them.
///
/// # Errors
///
/// `out` fails.
pub fn write_text<W: Write>(goroutines: &Goroutines, top: usize, mut out: W) -> io::Result<()> {
    writeln!(out, "{}", headline(goroutines))?;
    for group in goroutines.groups.iter().take(top) {
        writeln!(out)?;
        for line in group_lines(group) {
            writeln!(out, "{line}")?;
        }
        for frame in &group.stack {
            writeln!(out, "     {}", line(frame))?;
        }
        if group.stack_truncated {
            writeln!(out, "     … deeper frames were cut")?;
        }
        for reason in &group.evidence {
            writeln!(out, "  - {}", reason.escape_debug())?;
        }
    }
    let hidden = goroutines.groups.len().saturating_sub(top);
    if hidden > 0 {
        writeln!(out, "\nand {hidden} groups not shown")?;
    }
    let creations = creation_lines(goroutines);
    if !creations.is_empty() {
        writeln!(out)?;
    }
    for line in creations {
        writeln!(out, "{line}")?;
    }
    for (count, what) in [
        (goroutines.unstable, "moved while they were read: no stack"),
        (goroutines.unreadable, "could not be read"),
    ] {
        if count > 0 {
            writeln!(out, "\n{} {what}", human::thousands(count))?;
        }
    }
    Ok(())
}

/// The part of a report on the goroutines: what leaks, grows or is not known, in few lines each. At
/// most `top` groups; a pair is where a line begins and its text, to be wrapped.
pub(in crate::report) fn part(goroutines: &Goroutines, top: usize) -> Vec<(&'static str, String)> {
    let mut lines = vec![("", headline(goroutines))];
    let is_told = |group: &&GoroutineGroup| group.verdict != Some(Verdict::Steady);
    let told = goroutines.groups.iter().filter(is_told);
    for group in told.clone().take(top) {
        let mut of_group = group_lines(group).into_iter();
        lines.extend(of_group.next().map(|head| ("", head)));
        lines.extend(of_group.map(|line| ("  ", line.trim_start().to_owned())));
        if group.verdict == Some(Verdict::Leak) || group.verdict == Some(Verdict::Growing) {
            let evidence = group.evidence.iter();
            lines.extend(evidence.map(|reason| ("   - ", reason.escape_debug().to_string())));
        }
    }
    let left_out = told.count().saturating_sub(top);
    if left_out > 0 {
        let groups = human::count(left_out as u64, "group");
        lines.push(("", format!("and {groups} of goroutines not shown")));
    }
    lines.extend(
        creation_lines(goroutines)
            .into_iter()
            .map(|line| ("", line)),
    );
    lines
}

/// How many, and what they are judged to be.
fn headline(goroutines: &Goroutines) -> String {
    let mut head = format!(
        "{} in {}",
        human::count(goroutines.total, "goroutine"),
        human::count(goroutines.groups.len() as u64, "group")
    );
    if let Some(growth) = goroutines.growth_per_s {
        head += &format!(", growth {}/s", rate(growth));
    }
    if let Some(summary) = goroutines.summary {
        let word = |count: usize, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {many}"),
        };
        head += &format!(
            "; {}, {}, {} unknown, {} steady",
            word(summary.leak, "leaks", "leak"),
            word(summary.growing, "grows", "grow"),
            summary.unknown,
            summary.steady
        );
    }
    head
}

fn group_lines(group: &GoroutineGroup) -> Vec<String> {
    let doing = match &group.wait_reason {
        Some(reason) => reason.escape_debug().to_string(),
        None => group.state.clone(),
    };
    let mut head = String::new();
    if let Some(verdict) = group.verdict {
        head += &format!("{} ", verdict.to_string().to_uppercase());
    }
    head += &format!("{} {doing}", human::thousands(group.count));
    if let Some(growth) = group.growth_per_s {
        head += &format!(" · growth {}/s", rate(growth));
    }
    head += &format!(" · {} of stacks", human::bytes(group.stack_bytes as f64));
    if let Some(pinned) = group.pinned_bytes.filter(|pinned| *pinned > 0) {
        let pinned = human::bytes(pinned as f64);
        head += &format!(" · their stacks point to about {pinned} of the heap");
    }
    let mut lines = vec![head];
    if let Some(frame) = &group.blocked_at {
        lines.push(format!("  at {}", line(frame)));
    }
    if let Some(channel) = &group.channel {
        lines.push(format!("  channel: {}", channel.in_words()));
        if channel.distinct > 1 {
            lines.push(format!(
                "    {} wait on it; in all the group waits on {} channels",
                human::thousands(channel.waiting),
                human::thousands(channel.distinct)
            ));
        }
    }
    if let Some(oldest) = group.oldest_wait_s {
        let half = match group.median_wait_s {
            Some(median) if group.count > 1 => {
                format!(", half of them for {}", human::seconds(median))
            }
            _ => String::new(),
        };
        let oldest = human::seconds(oldest);
        lines.push(format!("  waiting for at least {oldest}{half}"));
    }
    if let Some(frame) = &group.created_by {
        lines.push(format!("  created by {}", line(frame)));
    }
    if group.stacks > 1 {
        let stacks = human::thousands(group.stacks);
        lines.push(format!("  {stacks} different stacks; that of most:"));
    }
    lines
}

fn creation_lines(goroutines: &Goroutines) -> Vec<String> {
    let Some((created, exited)) = goroutines.created.zip(goroutines.exited) else {
        return Vec::new();
    };
    let counts = |created, exited| {
        let (created, exited) = (human::thousands(created), human::thousands(exited));
        format!("{created} goroutines created, {exited} ended")
    };
    let mut lines = vec![format!("{} since the attach", counts(created, exited))];
    for site in goroutines.creation_sites.iter().take(CREATION_SITES) {
        let by = match &site.created_by {
            Some(frame) => line(frame),
            None => "an unknown go statement".to_owned(),
        };
        lines.push(format!("  {} by {by}", counts(site.created, site.exited)));
    }
    lines
}

/// With as many digits as are worth reading.
pub(crate) fn rate(value: f64) -> String {
    let value = if value == 0.0 { 0.0 } else { value };
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        _ if value < 0.0 => format!("-{}", human::thousands((-value).round() as u64)),
        _ => human::thousands(value.round() as u64),
    }
}

fn line(frame: &Frame) -> String {
    let name = match (&frame.function, &frame.reason) {
        (Some(function), _) => function.escape_debug().to_string(),
        (None, reason) => format!(
            "{:#x} ({})",
            frame.address,
            reason.as_deref().unwrap_or("no name")
        ),
    };
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{name} {}:{line}", file.escape_debug()),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_well() {
        let rates = [0.0, -0.0, 0.25, 12.4, -1234.5, 79_399.0].map(rate);
        assert_eq!(rates, ["0.00", "0.00", "0.25", "12", "-1,235", "79,399"]);
    }
}
