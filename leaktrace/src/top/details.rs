//! What is told in lines: memory, costs, losses, and all there is of one row.

#![forbid(unsafe_code)]

use ratatui::{
    style::{Modifier, Style},
    text::Line,
};

use super::{
    analyst::Snapshot,
    rows::{List, groups, line_of},
};
use crate::{
    loss,
    report::{Frame, Report, SiteReport, goroutines::GoroutineGroup, human, text::escape},
};

const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// The target's memory.
pub(super) fn memory(report: &Report) -> String {
    let memory = &report.memory;
    let bytes = |value: u64| human::bytes(value as f64);
    let Some(rss) = memory.rss_bytes else {
        return "memory: not known".to_owned();
    };
    let mut parts = vec![format!("memory: resident {}", bytes(rss))];
    if let Some(before) = memory.rss_attach_bytes {
        let growth = rss as f64 - before as f64;
        let per_s = growth / report.window.duration_s.max(1.0);
        parts.push(format!(
            "{} since the attach ({}/s)",
            human::change(growth),
            human::change(per_s)
        ));
    }
    let named = [
        ("heap in use", memory.heap_live_bytes),
        ("idle", memory.heap_idle_bytes),
        ("goroutine stacks", memory.stacks_bytes),
        ("swapped", memory.swap_bytes.filter(|bytes| *bytes > 0)),
    ];
    let named = named.into_iter();
    parts.extend(named.filter_map(|(name, value)| Some(format!("{name} {}", bytes(value?)))));
    parts.join(" · ")
}

/// What leaktrace costs.
pub(super) fn cost(snapshot: &Snapshot) -> String {
    let cost = &snapshot.cost;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let probes = match &cost.probes {
        Some(probes) => format!(
            "probes hit {}/s, {} of a CPU",
            human::thousands(probes.hits_per_s.round() as u64),
            percent(probes.cpu)
        ),
        None => "probes not counted".to_owned(),
    };
    format!(
        "leaktrace: {} of a CPU, {} · {probes} · {} events",
        percent(cost.cpu),
        human::bytes(cost.rss as f64),
        human::thousands(snapshot.events)
    )
}

/// Losses in a few words.
pub(super) fn losses_in_short(report: &Report) -> String {
    let causes = report.losses.iter();
    let causes = causes.filter(|(cause, _)| !loss::is_expected(cause));
    let causes: Vec<_> = causes
        .map(|(cause, count)| format!("{} {}", human::thousands(*count), escape(cause)))
        .collect();
    match causes.is_empty() {
        true => "losses: none".to_owned(),
        false => format!("losses: {}", causes.join(", ")),
    }
}

/// Everything that was lost or cannot be seen.
pub(super) fn losses(report: &Report) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if report.losses.is_empty() {
        lines.push(Line::from("losses: none"));
    }
    for (cause, count) in &report.losses {
        let meaning = loss::meaning(cause).unwrap_or("a cause this leaktrace does not know");
        let count = human::thousands(*count);
        lines.push(Line::from(format!("{count} {}: {meaning}", escape(cause))));
    }
    for limit in &report.limits {
        lines.push(Line::from(format!(
            "not seen: {}: {}",
            escape(&limit.what),
            escape(&limit.reason)
        )));
    }
    lines
}

/// Why a list has no rows.
pub(super) fn why_empty(report: &Report, list: List, filter: &str) -> String {
    match list {
        _ if list.len(report) > 0 => format!("nothing contains `{filter}`"),
        List::Sites => "nothing was allocated yet".to_owned(),
        List::Goroutines if report.target.go.is_none() => "not a Go program".to_owned(),
        List::Goroutines => "no goroutines could be read: see what is not seen".to_owned(),
    }
}

/// All there is of one row.
pub(super) fn row(report: &Report, list: List, row: usize) -> Vec<Line<'static>> {
    match list {
        List::Sites => report.sites.get(row).map(site).unwrap_or_default(),
        List::Goroutines => groups(report).get(row).map(group).unwrap_or_default(),
    }
}

fn site(site: &SiteReport) -> Vec<Line<'static>> {
    let bytes = |value: u64| human::bytes(value as f64);
    let mut figures = format!(
        "{} live in {} · allocated {}, freed {}",
        bytes(site.live_bytes),
        human::count(site.live_objects, "object"),
        bytes(site.alloc_bytes),
        bytes(site.freed_bytes)
    );
    if site.estimate.sampled {
        let estimate = &site.estimate;
        figures += &format!(
            " · estimated from {}: {} to {}",
            human::count(estimate.samples, "sample"),
            bytes(estimate.low_bytes),
            bytes(estimate.high_bytes)
        );
    }
    if let Some(survived) = site.gc_cycles_survived {
        figures += &format!(
            " · survived {}",
            human::count(survived.into(), "collection")
        );
    }
    let mut lines = vec![Line::from(figures)];
    if !site.allocator_frames.is_empty() {
        let folded = escape(&site.allocator_frames.join(" < "));
        lines.push(Line::styled(format!("  ({folded})"), DIM));
    }
    lines.extend(site.stack.iter().map(frame));
    if let Some(reason) = &site.stack_incomplete {
        let reason = escape(reason);
        lines.push(Line::styled(
            format!("  … outer frames are missing: {reason}"),
            DIM,
        ));
    }
    if site.stack_truncated {
        lines.push(Line::styled("  … deeper frames were cut", DIM));
    }
    lines.extend(evidence(&site.evidence));
    lines
}

fn group(group: &GoroutineGroup) -> Vec<Line<'static>> {
    let reason = group.wait_reason.as_ref().unwrap_or(&group.state);
    let mut figures = format!(
        "{}, {}",
        human::count(group.count, "goroutine"),
        escape(reason)
    );
    if let Some(median) = group.median_wait_s {
        figures += &format!(" · half of them for {} at least", human::seconds(median));
    }
    figures += &format!(" · stacks {}", human::bytes(group.stack_bytes as f64));
    let mut lines = vec![Line::from(figures)];
    if let Some(channel) = &group.channel {
        lines.push(Line::from(format!(
            "channel {:#x}: {}",
            channel.address,
            channel.in_words()
        )));
    }
    lines.extend(group.stack.iter().map(frame));
    if group.stack_truncated {
        lines.push(Line::styled("  … deeper frames were not read", DIM));
    }
    if let Some(frame) = &group.created_by {
        lines.push(Line::from(format!("made by {}", line_of(frame))));
    }
    lines.extend(evidence(&group.evidence));
    lines
}

fn frame(frame: &Frame) -> Line<'static> {
    let inlined = if frame.inlined { " (inlined)" } else { "" };
    Line::from(format!("  {}{inlined}", line_of(frame)))
}

fn evidence(reasons: &[String]) -> impl Iterator<Item = Line<'static>> + '_ {
    reasons
        .iter()
        .map(|reason| Line::from(format!("- {}", escape(reason))))
}
