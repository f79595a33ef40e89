//! The memory statement as a table.

use maud::{Markup, html};

use super::name::Name;
use crate::report::{MemoryReport, human};

/// What the resident memory consists of, at the end and at the attach.
pub(super) fn table(memory: &MemoryReport) -> Markup {
    let Some(rss) = memory.rss_bytes else {
        return html! { p.none { "Not known." } };
    };
    let has_attach = memory.parts.iter().any(|part| part.attach_bytes.is_some());
    html! {
        table.memory {
            thead { tr {
                th { "resident memory" } th.number { "at the end" }
                @if has_attach { th.number.attach { "at the attach" } th.number { "change" } }
                th aria-hidden="true" {}
            } }
            tbody { @for part in &memory.parts {
                tr {
                    td { (Name(&part.text)) @if is_unexplained(memory, &part.part) { " " span.tag { "not explained" } } }
                    td.number { (human::bytes(part.bytes as f64)) }
                    @if has_attach { (columns(part.bytes, part.attach_bytes)) }
                    td.bar { (bar(part.bytes, rss)) }
                }
            } }
            tfoot { tr {
                th { "all that is resident" } td.number { (human::bytes(rss as f64)) }
                @if has_attach { (columns(signed(rss), memory.rss_attach_bytes.map(signed))) }
                td {}
            } }
        }
        @let beside = beside(memory);
        @if !beside.is_empty() { p.aside { "Not in it: " (beside.join(", ")) "." } }
    }
}

/// In a Go program what is left over has no explanation.
fn is_unexplained(memory: &MemoryReport, part: &str) -> bool {
    part == "other_anonymous" && memory.unexplained_bytes.is_some()
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn columns(bytes: i64, attach: Option<i64>) -> Markup {
    html! {
        @match attach {
            Some(attach) => {
                td.number.attach { (human::bytes(attach as f64)) }
                td.number { (change(bytes.saturating_sub(attach))) }
            }
            None => { td.attach {} td {} }
        }
    }
}

fn change(bytes: i64) -> String {
    match bytes {
        0 => "—".to_owned(),
        1.. => format!("+{}", human::bytes(bytes as f64)),
        _ => human::bytes(bytes as f64),
    }
}

fn bar(bytes: i64, rss: u64) -> Markup {
    let share = (bytes.unsigned_abs() as f64 / rss.max(1) as f64 * 100.0).min(100.0);
    html! {
        svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect class=[(bytes < 0).then_some("negative")] width=(format!("{share:.1}")) height="8" {}
        }
    }
}

fn beside(memory: &MemoryReport) -> Vec<String> {
    let figures = [
        (
            memory.heap_released_bytes,
            "Go heap given back to the kernel",
        ),
        (memory.swap_bytes, "swapped out"),
        (memory.mapped_bytes, "address space in all"),
    ];
    let known = figures
        .into_iter()
        .filter_map(|(bytes, what)| Some((bytes.filter(|b| *b > 0)?, what)));
    known
        .map(|(bytes, what)| format!("{} {what}", human::bytes(bytes as f64)))
        .collect()
}
