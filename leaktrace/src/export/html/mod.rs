//! The report as one page that needs nothing.
//!
//! [`write()`] makes a file of HTML that loads nothing: style, script and `Data` are in it, and its
//! own policy forbids the rest. Text is written here and reads without JavaScript; the script
//! adds what is drawn: the timeline, the flame graph, the filters.
//!
//! Contract: pure. Names from the target are text: [`maud`] escapes what it is given, `Name` what
//! would fool a reader, and `<` does not occur in the JSON.

mod name;
mod sparkline;
mod sites;
mod goroutines;
mod memory;
mod data;

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use self::data::Data;
use self::name::Name;
use crate::loss;
use crate::report::text::is_obeyed;
use crate::report::{Report, human};

const STYLE: &str = include_str!("assets/page.css");
/// The controls and the places to draw in; hidden until the script runs.
const CHARTS: &str = include_str!("assets/charts.html");
/// The script, in reading order.
const SCRIPT: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("assets/format.js"),
    include_str!("assets/model.js"),
    include_str!("assets/timeline.js"),
    include_str!("assets/flame.js"),
    include_str!("assets/detail.js"),
    include_str!("assets/sites.js"),
    include_str!("assets/page.js"),
    "})();\n"
);

/// Writes the page.
///
/// # Errors
///
/// `out` fails.
pub fn write<W: Write>(report: &Report, mut out: W) -> io::Result<()> {
    let data = serde_json::to_string(&Data::new(report))?;
    out.write_all(page(report, &data).into_string().as_bytes())
}

fn page(report: &Report, data: &str) -> Markup {
    let target = &report.target;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { "leaktrace: " (Name(&target.comm)) " (" (target.pid) ")" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (head(report))
                main {
                    (PreEscaped(CHARTS))
                    section #sites {
                        h2 { "Sites" span.count #site-count {} }
                        (sites::list(report))
                    }
                    @if let Some(goroutines) = &report.goroutines {
                        section #goroutines { h2 { "Goroutines" } (goroutines::list(goroutines)) }
                    }
                    section #memory { h2 { "Memory" } (memory::table(&report.memory)) }
                    (losses(report))
                    (limits(report))
                }
                script #data type="application/json" { (PreEscaped(harmless(data))) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// JSON in which no text can end a script, or do what is not seen.
fn harmless(json: &str) -> String {
    let mut harmless = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '<' || is_obeyed(c) {
            let _ = write!(harmless, "\\u{:04x}", u32::from(c));
        } else {
            harmless.push(c);
        }
    }
    harmless
}

/// Nothing but this very style and script; nothing is loaded, sent or framed.
fn policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn head(report: &Report) -> Markup {
    let target = &report.target;
    html! {
        header {
            p.mark { "leaktrace" }
            button #theme type="button" hidden {}
            h1 { (Name(&target.comm)) " " small { "pid " (target.pid) } }
            p.exe { (Name(&target.exe)) }
            p.lead { (lead(report)) }
            dl.facts { @for (term, value) in facts(report) { div { dt { (term) } dd { (value) } } } }
            noscript {
                p.aside { "The timeline and the flame graph need JavaScript. What they are drawn from is below, as text." }
            }
        }
    }
}

/// What leaks, in a sentence.
fn lead(report: &Report) -> Markup {
    let word = |count: usize, one: &str, many: &str| match count {
        1 => format!("1 site {one}"),
        count => format!("{} sites {many}", human::thousands(count as u64)),
    };
    let summary = report.summary;
    let (bytes, rate) = report.leaking();
    html! {
        b class={ "verdict-text " @if summary.leak > 0 { "leak" } @else { "steady" } } {
            (word(summary.leak, "leaks", "leak"))
        }
        @if bytes > 0.0 {
            ": " (human::bytes(bytes)) " held, growing by " (human::bytes(rate)) " a second, "
            (human::bytes(rate * 3600.0)) " an hour"
        }
        ". "
        span.dim {
            (word(summary.growing, "grows", "grow")) ", " (summary.unknown) " unknown, " (summary.steady) " steady."
        }
    }
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let (target, window) = (&report.target, &report.window);
    let mut facts = vec![("runtime", Name(&target.runtime).to_string())];
    if let Some(go) = &target.go {
        let sampled = match go.sampling.as_str() {
            "runtime" => {
                let rate = go
                    .sampler_switch
                    .as_ref()
                    .map_or(go.sample_rate, |switch| switch.rate_written);
                format!("by the runtime, one in {}", human::bytes(rate as f64))
            }
            "leaktrace" => "by leaktrace, without the runtime".to_owned(),
            _ => "by nobody".to_owned(),
        };
        facts.push(("heap sampled", sampled));
        let build = [(go.stripped, "stripped"), (go.pie, "position independent")];
        let build: Vec<_> = build
            .into_iter()
            .filter_map(|(is, word)| is.then_some(word))
            .collect();
        if !build.is_empty() {
            facts.push(("build", build.join(", ")));
        }
    }
    let start = Timestamp::from_nanosecond(window.start_unix_ns.into());
    facts.push((
        "from",
        start.map(|start| format!("{start:.0}")).unwrap_or_default(),
    ));
    let collections = window
        .gc_cycles
        .map(|cycles| format!(", {}", human::count(cycles.into(), "collection")));
    let length = human::seconds(window.duration_s);
    facts.push((
        "recorded",
        format!("{length}{}", collections.unwrap_or_default()),
    ));
    facts.push(("ended because", Name(&window.end_text).to_string()));
    facts
}

fn losses(report: &Report) -> Markup {
    html! {
        section #losses {
            h2 { "Losses" }
            @if report.losses.is_empty() { p { "Nothing was lost." } }
            @else {
                table {
                    thead { tr { th.number { "count" } th { "cause" } th { "meaning" } } }
                    tbody { @for (cause, &count) in &report.losses { tr {
                        td.number { (human::thousands(count)) }
                        td { (Name(cause)) }
                        td { (loss::meaning(cause).unwrap_or("a cause that this leaktrace does not know")) }
                    } } }
                }
            }
        }
    }
}

fn limits(report: &Report) -> Markup {
    html! {
        section #limits {
            h2 { "Not seen" }
            @if report.limits.is_empty() { p { "No limit is known." } }
            dl.limits { @for limit in &report.limits { div { dt { (Name(&limit.what)) } dd { (Name(&limit.reason)) } } } }
            @for note in &report.notes { p.aside { "Note: " (Name(note)) } }
        }
    }
}
