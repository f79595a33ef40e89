//! The groups of goroutines in words.

use maud::{Markup, html};

use super::name::{Line, Name};
use super::sites::{frames, verdict};
use super::sparkline::sparkline;
use crate::report::goroutines::{GoroutineGroup, Goroutines, rate};
use crate::report::human;
use crate::verdict::Verdict;

/// Groups that leak or grow and are open from the start.
const OPEN: usize = 3;
/// Groups in the list itself; the others are behind one line.
const LISTED: usize = 50;

/// All groups, and what the probes counted.
pub(super) fn list(goroutines: &Goroutines) -> Markup {
    let (listed, others) = goroutines
        .groups
        .split_at(goroutines.groups.len().min(LISTED));
    html! {
        p { (headline(goroutines)) }
        @for (index, group) in listed.iter().enumerate() { (one(group, index < OPEN)) }
        @if !others.is_empty() {
            details.more {
                summary { "and " (human::count(others.len() as u64, "more group")) }
                @for group in others { (one(group, false)) }
            }
        }
        (creations(goroutines))
        @for (count, what) in [
            (goroutines.unstable, "moved whenever it was read, and is counted without a stack"),
            (goroutines.unreadable, "could not be read, and is in no group"),
        ] {
            @if count > 0 { p.aside { (human::thousands(count)) " times in all censuses a goroutine " (what) "." } }
        }
    }
}

fn headline(goroutines: &Goroutines) -> String {
    let total = human::count(goroutines.total, "goroutine");
    let groups = human::count(goroutines.groups.len() as u64, "group");
    match goroutines.growth_per_s {
        Some(growth) => format!("{total} in {groups}, growing by {} a second.", rate(growth)),
        None => format!("{total} in {groups}."),
    }
}

fn one(group: &GoroutineGroup, may_open: bool) -> Markup {
    let is_told = matches!(group.verdict, Some(Verdict::Leak | Verdict::Growing));
    html! {
        details.group open[may_open && is_told] {
            summary.row {
                span.number { (human::thousands(group.count)) }
                @match group.verdict { Some(judged) => (verdict(judged)), None => span {} }
                span.kind { (doing(group)) }
                span.where { @if let Some(frame) = &group.blocked_at { (Line(frame)) } }
                (sparkline(&group.series))
                span.number { @if let Some(growth) = group.growth_per_s { (rate(growth)) "/s" } }
            }
            div.body {
                @for sentence in in_words(group) { p { (sentence) } }
                ul.evidence { @for reason in &group.evidence { li { (Name(reason)) } } }
                @if group.stacks > 1 {
                    p.aside { (human::thousands(group.stacks)) " different stacks; this is that of most:" }
                }
                (frames(&group.stack))
                @if group.stack_truncated { p.aside { "The outermost frames are missing: the stack is deeper than what is read." } }
            }
        }
    }
}

/// What they wait for, or their state.
fn doing(group: &GoroutineGroup) -> String {
    Name(group.wait_reason.as_deref().unwrap_or(&group.state)).to_string()
}

fn in_words(group: &GoroutineGroup) -> Vec<Markup> {
    let mut sentences = Vec::new();
    let count = human::count(group.count, "goroutine");
    sentences.push(html! {
        (count) ", " b { (doing(group)) }
        @if let Some(frame) = &group.blocked_at { ", at " (Line(frame)) }
        @if let Some(frame) = &group.created_by { ", created by " (Line(frame)) }
        "."
    });
    if let Some(channel) = &group.channel {
        sentences.push(html! {
            "The channel " @if channel.distinct > 1 { "that most of them wait on " } "has " (channel.in_words()) "."
            @if channel.distinct > 1 {
                " " (human::thousands(channel.waiting)) " wait on it; in all the group waits on "
                (human::count(channel.distinct, "channel")) "."
            }
        });
    }
    if let Some(oldest) = group.oldest_wait_s {
        sentences.push(html! {
            "One has been waiting for at least " (human::seconds(oldest))
            @if let Some(median) = group.median_wait_s { ", half of them for at least " (human::seconds(median)) }
            "."
        });
    }
    if let Some((arrived, left)) = group.arrived.zip(group.left) {
        sentences.push(html! {
            "Since the attach " (human::thousands(arrived)) " came to wait here and " (human::thousands(left)) " left."
        });
    }
    sentences.push(html! {
        "Their stacks take " (human::bytes(group.stack_bytes as f64))
        @if let Some(pinned) = group.pinned_bytes.filter(|pinned| *pinned > 0) {
            " and point to about " (human::bytes(pinned as f64)) " of the heap"
        }
        "."
    });
    sentences
}

fn creations(goroutines: &Goroutines) -> Markup {
    let Some((created, exited)) = goroutines.created.zip(goroutines.exited) else {
        return Markup::default();
    };
    html! {
        h3 { "Go statements" }
        p { "Since the attach " (human::count(created, "goroutine")) " created, " (human::thousands(exited)) " ended." }
        table {
            thead { tr { th.number { "created" } th.number { "ended" } th { "by" } } }
            tbody { @for site in &goroutines.creation_sites {
                tr {
                    td.number { (human::thousands(site.created)) }
                    td.number { (human::thousands(site.exited)) }
                    td { @match &site.created_by { Some(frame) => (Line(frame)), None => "an unknown go statement" } }
                }
            } }
        }
    }
}
