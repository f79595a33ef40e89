//! The sites as text: a line each, and what stands behind it when it is opened.

use maud::{Markup, html};

use super::name::{Line, Name};
use super::sparkline::sparkline;
use crate::report::fold::{Folded, fold};
use crate::report::why::{KEPT_BY, kept_by};
use crate::report::{Frame, Report, SiteReport, human};
use crate::verdict::Verdict;

/// Sites that leak or grow and are open from the start.
const OPEN: usize = 3;
/// Sites in the list itself. The others are behind one line, as plain text that the script makes rows of
/// when they are asked for: a page of thousands is to open at once, and elements are what takes time.
const LISTED: usize = 40;

/// The list of all sites.
pub(super) fn list(report: &Report) -> Markup {
    let (listed, others) = report.sites.split_at(report.sites.len().min(LISTED));
    html! {
        div.row.labels aria-hidden="true" {
            span { "#" } span { "verdict" } span { "kind" } span { "where" }
            span { "over time" } span.number #live-label { "live" } span.number #growth-label { "growth" }
        }
        @for (index, site) in listed.iter().enumerate() {
            (detailed(site, index < OPEN && is_told(site)))
        }
        @if !others.is_empty() {
            details.more #more {
                summary { "and " (human::count(others.len() as u64, "more site")) span #more-count {} }
                div #others { @for site in others { (plain(site)) } }
            }
        }
        @if report.sites.is_empty() { p.none { "No site holds memory that was allocated in the window." } }
        p.none #no-match hidden { "No site passes the filters." }
    }
}

fn is_told(site: &SiteReport) -> bool {
    matches!(site.verdict, Verdict::Leak | Verdict::Growing)
}

fn detailed(site: &SiteReport, open: bool) -> Markup {
    html! {
        details.site #(format!("site-{}", site.rank)) open[open] {
            summary.row {
                span.rank { (site.rank) }
                (verdict(site.verdict))
                span.kind { (kind(site)) }
                span.where { (place(site)) }
                (sparkline(&site.series))
                span.number.live { (human::bytes(site.live_bytes as f64)) }
                span.number.growth { (growth(site.growth_bytes_per_s)) }
            }
            div.body {
                ul.evidence { @for reason in &site.evidence { li { (Name(reason)) } } }
                dl.figures { @for (term, value) in figures(site) { div { dt { (term) } dd { (value) } } } }
                @if let Some(folded) = folded(site) { p.aside { (folded) } }
                (frames(&site.stack))
                @for missing in missing(site) { p.aside { (missing) } }
                @if let Some(found) = &site.retention {
                    p.aside { (KEPT_BY) }
                    ul.kept { @for line in kept_by(found) { li { (Name(&line)) } } }
                }
            }
        }
    }
}

/// The same as lines, none of them empty but the last: the script parts them there.
fn plain(site: &SiteReport) -> Markup {
    html! {
        (site.rank) " " (site.verdict) " " (kind(site)) " "
        @match told_by(&site.stack) {
            Some(at) => { (Line(&site.stack[at]).function()) " " (Line(&site.stack[at]).place()) }
            None => (no_stack(site))
        }
        "\n"
        @for reason in &site.evidence { "- " (Name(reason)) "\n" }
        @for (term, value) in figures(site) { (term) ": " (value) "\n" }
        @if let Some(folded) = folded(site) { (folded) "\n" }
        @for frame in &site.stack {
            "    " (Line(frame).function()) "  " (Line(frame).place()) @if frame.inlined { " (inlined)" } "\n"
        }
        @for missing in missing(site) { (missing) "\n" }
        @if let Some(found) = &site.retention {
            (KEPT_BY) "\n"
            @for line in kept_by(found) { (Name(&line)) "\n" }
        }
        "\n"
    }
}

/// The verdict, coloured and in words.
pub(super) fn verdict(verdict: Verdict) -> Markup {
    html! { span class={ "verdict " (verdict) } { (verdict) } }
}

/// The kind; memory that the Go runtime maps for itself is not the program's.
fn kind(site: &SiteReport) -> String {
    match site.mapped_by_runtime {
        true => format!("{} of the Go runtime", site.kind),
        false => site.kind.to_string(),
    }
}

/// The frame that stands for a site, by its place in the stack: the innermost of the program's own that has a
/// name, or without such the innermost.
pub(super) fn told_by(stack: &[Frame]) -> Option<usize> {
    let Folded { inner, own, .. } = fold(stack);
    let named = own.iter().position(|frame| frame.function.is_some());
    (!stack.is_empty()).then(|| inner.len() + named.unwrap_or(0))
}

/// Where a site is: its telling frame, and the library call that it asked for memory through.
fn place(site: &SiteReport) -> Markup {
    let Some(at) = told_by(&site.stack) else {
        return html! { (no_stack(site)) };
    };
    html! {
        (Line(&site.stack[at]))
        @if at > 0 { " " span.place { "via " (Line(&site.stack[0]).function()) } }
    }
}

fn no_stack(site: &SiteReport) -> &'static str {
    match site.preexisting_bytes {
        0 => "no stack was kept",
        _ => "no stack: memory from before the attach",
    }
}

/// With its sign: growth is what the reader looks for.
fn growth(bytes_per_s: f64) -> String {
    let plus = if bytes_per_s >= 0.5 { "+" } else { "" };
    format!("{plus}{}/s", human::bytes(bytes_per_s))
}

fn figures(site: &SiteReport) -> Vec<(&'static str, String)> {
    let bytes = |value: u64| human::bytes(value as f64);
    let mut figures = Vec::new();
    let estimate = &site.estimate;
    let width = match estimate.sampled {
        true => format!(
            ", {} to {} with 95 % confidence, from {}",
            bytes(estimate.low_bytes),
            bytes(estimate.high_bytes),
            human::count(estimate.samples, "sample")
        ),
        false => String::new(),
    };
    figures.push(("live", format!("{}{width}", bytes(site.live_bytes))));
    if let Some(proven) = site.proven_bytes {
        figures.push(("proven by a collection", bytes(proven)));
    }
    figures.push(("objects", human::thousands(site.live_objects)));
    let [low, high] = site.growth_interval;
    let interval = match estimate.sampled {
        true => format!(
            ", {} to {}",
            human::bytes(low as f64),
            human::bytes(high as f64)
        ),
        false => String::new(),
    };
    figures.push((
        "growth",
        format!(
            "{}/h; {} since the attach{interval}",
            human::bytes(site.growth_bytes_per_s * 3600.0),
            human::bytes(site.growth_bytes as f64)
        ),
    ));
    figures.push((
        "since the attach",
        format!(
            "allocated {}, freed {}",
            bytes(site.alloc_bytes),
            bytes(site.freed_bytes)
        ),
    ));
    if site.attach_bytes > 0 {
        let left = format!(
            "{} of {} are left",
            bytes(site.preexisting_bytes),
            bytes(site.attach_bytes)
        );
        figures.push(("from before the attach", left));
    }
    if site.live_bytes > 0 {
        let survived = site
            .gc_cycles_survived
            .map(|cycles| format!(", survived {}", human::count(cycles.into(), "collection")));
        let oldest = human::seconds(site.oldest_s);
        figures.push((
            "oldest object",
            format!("at least {oldest}{}", survived.unwrap_or_default()),
        ));
    }
    figures
}

/// Frames as a list, each with what else is known of it.
pub(super) fn frames(stack: &[Frame]) -> Markup {
    html! {
        @if !stack.is_empty() {
            ol.stack { @for frame in stack {
                li { details.frame {
                    summary { (Line(frame)) @if frame.inlined { " " span.tag { "inlined" } } }
                    dl { @for (term, value) in frame_details(frame) { div { dt { (term) } dd { (value) } } } }
                } }
            } }
        }
    }
}

fn frame_details(frame: &Frame) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.as_deref().map(|text| Name(text).to_string());
    let file = text(&frame.file).map(|file| match frame.line {
        Some(line) => format!("{file}:{line}"),
        None => file,
    });
    let inlined = frame.inlined.then(|| "into its caller".to_owned());
    let known = [
        ("source", file),
        ("module", text(&frame.module)),
        ("build id", text(&frame.build_id)),
        ("offset", frame.offset.map(|offset| format!("{offset:#x}"))),
        ("address", Some(format!("{:#x}", frame.address))),
        ("inlined", inlined),
        ("no name because", text(&frame.reason)),
    ];
    known
        .into_iter()
        .filter_map(|(term, value)| Some((term, value?)))
        .collect()
}

/// The allocator's frames, which the stack leaves out.
fn folded(site: &SiteReport) -> Option<String> {
    let frames = site.allocator_frames.join(", called by ");
    (!frames.is_empty()).then(|| format!("through {}", Name(&frames)))
}

/// What the stack lacks.
fn missing(site: &SiteReport) -> Vec<String> {
    let mut missing = Vec::new();
    if site.stack.is_empty() {
        missing.push(no_stack(site).to_owned());
    }
    if site.stack_truncated {
        missing
            .push("outermost frames are missing: the stack is deeper than what is kept".to_owned());
    }
    if let Some(reason) = &site.stack_incomplete {
        missing.push(format!("outer frames are missing: {}", Name(reason)));
    }
    missing
}
