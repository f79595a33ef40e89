//! Tables for data tools, as Parquet: `sites`, `frames`, `series`, `objects` and `goroutines`.
//!
//! A capture is five files of one row group each. What is in no table (target, window, memory, losses,
//! limits) goes with each as JSON, under the key `leaktrace.report` of the file's metadata.
//! docs/export.md has every column.

mod table;

use std::collections::BTreeMap;

use serde_json::json;

pub use table::Table;

use super::escape;
use crate::{
    live_heap::{Count, SiteHistory, Timeline},
    report::{Detailed, Frame, Report, goroutines::GoroutineGroup},
};

/// The tables of a capture.
pub fn tables(detailed: &Detailed) -> [Table; 5] {
    let report = &detailed.report;
    [
        sites(report),
        frames(report),
        series(detailed),
        objects(detailed),
        goroutines(report),
    ]
}

/// The report without what the tables have, as JSON.
pub fn metadata(report: &Report) -> String {
    json!({
        "schema": report.schema,
        "target": report.target,
        "window": report.window,
        "summary": report.summary,
        "memory": report.memory,
        "losses": report.losses,
        "limits": report.limits,
        "notes": report.notes,
    })
    .to_string()
}

fn sites(report: &Report) -> Table {
    let sites = || report.sites.iter();
    Table::new("sites")
        .number("site", sites().map(|site| site.rank))
        .text("kind", sites().map(|site| site.kind.to_string()))
        .flag("mapped_by_runtime", sites().map(|s| s.mapped_by_runtime))
        .text("verdict", sites().map(|site| site.verdict.to_string()))
        .text("evidence", sites().map(|site| escaped(&site.evidence)))
        .number("live_bytes", sites().map(|site| site.live_bytes))
        .number("live_objects", sites().map(|site| site.live_objects))
        .number("low_bytes", sites().map(|site| site.estimate.low_bytes))
        .number("high_bytes", sites().map(|site| site.estimate.high_bytes))
        .flag("sampled", sites().map(|site| site.estimate.sampled))
        .number("rate_bytes", sites().map(|site| site.estimate.rate_bytes))
        .number("samples", sites().map(|site| site.estimate.samples))
        .number("object_bytes", sites().map(|site| site.object_bytes))
        .number("proven_bytes", sites().map(|site| site.proven_bytes))
        .number("proven_objects", sites().map(|site| site.proven_objects))
        .real("growth_bytes_per_s", sites().map(|s| s.growth_bytes_per_s))
        .number("growth_bytes", sites().map(|site| site.growth_bytes))
        .number("growth_low_bytes", sites().map(|s| s.growth_interval[0]))
        .number("growth_high_bytes", sites().map(|s| s.growth_interval[1]))
        .number("alloc_bytes", sites().map(|site| site.alloc_bytes))
        .number("alloc_objects", sites().map(|site| site.alloc_objects))
        .number("freed_bytes", sites().map(|site| site.freed_bytes))
        .number("preexisting_bytes", sites().map(|s| s.preexisting_bytes))
        .number("attach_bytes", sites().map(|site| site.attach_bytes))
        .real("oldest_s", sites().map(|site| site.oldest_s))
        .number("gc_cycles_survived", sites().map(|s| s.gc_cycles_survived))
        .flag("stack_truncated", sites().map(|site| site.stack_truncated))
        .text(
            "stack_incomplete",
            sites().map(|s| text(&s.stack_incomplete)),
        )
}

/// The frames of sites and of groups of goroutines; either number is null.
fn frames(report: &Report) -> Table {
    struct Row<'a> {
        site: Option<usize>,
        group: Option<usize>,
        depth: usize,
        frame: &'a Frame,
    }
    let of_sites = report.sites.iter().flat_map(|site| {
        let frames = site.stack.iter().enumerate();
        frames.map(|(depth, frame)| Row {
            site: Some(site.rank),
            group: None,
            depth,
            frame,
        })
    });
    let of_groups = groups(report).flat_map(|(number, group)| {
        let frames = group.stack.iter().enumerate();
        frames.map(move |(depth, frame)| Row {
            site: None,
            group: Some(number),
            depth,
            frame,
        })
    });
    let rows: Vec<_> = of_sites.chain(of_groups).collect();
    let rows = || rows.iter();
    let frames = || rows().map(|row| row.frame);
    Table::new("frames")
        .number("site", rows().map(|row| row.site))
        .number("goroutine_group", rows().map(|row| row.group))
        .number("depth", rows().map(|row| row.depth))
        .text("function", frames().map(|frame| text(&frame.function)))
        .text("file", frames().map(|frame| text(&frame.file)))
        .number("line", frames().map(|frame| frame.line))
        .text("module", frames().map(|frame| text(&frame.module)))
        .text("build_id", frames().map(|frame| text(&frame.build_id)))
        .unsigned("offset", frames().map(|frame| frame.offset))
        .unsigned("address", frames().map(|frame| frame.address))
        .flag("inlined", frames().map(|frame| frame.inlined))
        .text("reason", frames().map(|frame| text(&frame.reason)))
}

/// Live bytes of every site at every moment that is known.
fn series(detailed: &Detailed) -> Table {
    let times = &detailed.heap.timeline.times;
    let rows: Vec<_> = of_sites(detailed)
        .flat_map(|(site, history)| {
            let live = times.iter().zip(&history.live_series);
            live.map(move |(&t_s, &bytes)| (site, t_s, bytes.round().max(0.0) as u64))
        })
        .collect();
    let rows = || rows.iter();
    Table::new("series")
        .number("site", rows().map(|&(site, ..)| site))
        .real("t_s", rows().map(|&(_, t_s, _)| t_s))
        .number("live_bytes", rows().map(|&(.., bytes)| bytes))
}

/// What is known of objects: how many were born at one moment and died at another. For the Go heap
/// these are samples, not scaled.
fn objects(detailed: &Detailed) -> Table {
    let timeline = &detailed.heap.timeline;
    let rows: Vec<_> = of_sites(detailed)
        .flat_map(|(site, history)| cohorts(site, history, timeline))
        .collect();
    let rows = || rows.iter();
    Table::new("objects")
        .number("site", rows().map(|row| row.site))
        .flag("preexisting", rows().map(|row| row.preexisting))
        .real("born_s", rows().map(|row| row.born_s))
        .real("died_s", rows().map(|row| row.died_s))
        .number("objects", rows().map(|row| row.count.objects))
        .number("bytes", rows().map(|row| row.count.bytes))
}

/// Objects of one site that were born together and, unless they live, died together.
struct Cohort {
    site: usize,
    /// Born before the attach: when is not known.
    preexisting: bool,
    born_s: Option<f64>,
    died_s: Option<f64>,
    count: Count,
}

fn cohorts(site: usize, history: &SiteHistory, timeline: &Timeline) -> Vec<Cohort> {
    let at = |slot: usize| timeline.times.get(slot).copied();
    let cohort = |born: usize, died: Option<usize>, count| Cohort {
        site,
        preexisting: born == 0,
        born_s: at(born).filter(|_| born > 0),
        died_s: died.and_then(at),
        count,
    };
    let mut cohorts = BTreeMap::new();
    for (born, count, died) in history.cohorts() {
        let alive = count.less(died);
        if alive != Count::default() {
            cohorts.insert((born, None), cohort(born, None, alive));
        }
    }
    for (&(born, died), &count) in &history.deaths {
        cohorts.insert((born, Some(died)), cohort(born, Some(died), count));
    }
    cohorts.into_values().collect()
}

fn goroutines(report: &Report) -> Table {
    let all = || groups(report).map(|(_, group)| group);
    let blocked = || all().map(|group| group.blocked_at.as_ref());
    let created = || all().map(|group| group.created_by.as_ref());
    let channel = || all().map(|group| group.channel.as_ref());
    let function = |frame: Option<&Frame>| frame.and_then(|frame| text(&frame.function));
    let file = |frame: Option<&Frame>| frame.and_then(|frame| text(&frame.file));
    let line = |frame: Option<&Frame>| frame.and_then(|frame| frame.line);
    Table::new("goroutines")
        .number("goroutine_group", groups(report).map(|(number, _)| number))
        .number("count", all().map(|group| group.count))
        .text("state", all().map(|group| group.state.clone()))
        .text("wait_reason", all().map(|group| text(&group.wait_reason)))
        .text("verdict", all().map(|g| g.verdict.map(|v| v.to_string())))
        .text("evidence", all().map(|group| escaped(&group.evidence)))
        .real("growth_per_s", all().map(|group| group.growth_per_s))
        .number("growth", all().map(|group| group.growth))
        .text("blocked_at_function", blocked().map(function))
        .text("blocked_at_file", blocked().map(file))
        .number("blocked_at_line", blocked().map(line))
        .text("created_by_function", created().map(function))
        .text("created_by_file", created().map(file))
        .number("created_by_line", created().map(line))
        .number("stack_bytes", all().map(|group| group.stack_bytes))
        .number("pinned_bytes", all().map(|group| group.pinned_bytes))
        .real("oldest_wait_s", all().map(|group| group.oldest_wait_s))
        .real("median_wait_s", all().map(|group| group.median_wait_s))
        .unsigned("channel_address", channel().map(|c| c.map(|c| c.address)))
        .number("channel_waiting", channel().map(|c| c.map(|c| c.waiting)))
        .text("channel", channel().map(|c| c.map(|c| c.in_words())))
}

/// The groups of goroutines with their numbers, from 1.
fn groups(report: &Report) -> impl Iterator<Item = (usize, &GoroutineGroup)> {
    let groups = report.goroutines.iter().flat_map(|part| &part.groups);
    groups.enumerate().map(|(index, group)| (index + 1, group))
}

/// The histories of the sites, with the sites' numbers.
fn of_sites<'a>(detailed: &'a Detailed) -> impl Iterator<Item = (usize, &'a SiteHistory)> {
    let sites = detailed.report.sites.iter().zip(&detailed.histories);
    sites.map(|(site, history)| (site.rank, history))
}

fn text(text: &Option<String>) -> Option<String> {
    text.as_deref().map(escape)
}

/// Sentences, one a line.
fn escaped(sentences: &[String]) -> String {
    let lines: Vec<_> = sentences.iter().map(|sentence| escape(sentence)).collect();
    lines.join("\n")
}
