//! What the script of the page draws from: the series on common moments, and every frame once.
//!
//! A report of thousands of sites repeats itself: the same moments in each series, the same frames in
//! most stacks, the same file and module in most frames. Told once, it is a fifth as long and opens as
//! much faster.

use std::collections::HashMap;

use serde::Serialize;

use super::sites::told_by;
use crate::report::{Frame, Kind, Report, SiteReport, Summary};
use crate::verdict::Verdict;

/// A report as the script reads it.
#[derive(Serialize)]
pub(super) struct Data<'a> {
    /// Moments of all series, in seconds, rising; at least two.
    times: Vec<f64>,
    /// Resident bytes at these moments.
    rss: Option<Vec<u64>>,
    summary: Summary,
    strings: Vec<&'a str>,
    frames: Vec<FrameData>,
    sites: Vec<SiteData<'a>>,
}

/// A frame; texts are indexes into `strings`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
struct FrameData(
    Option<usize>, // function
    Option<usize>, // file
    Option<u32>,   // line
    Option<usize>, // module
    Option<usize>, // build id
    Option<u64>,   // offset
    u64,           // address
    u8,            // inlined
    Option<usize>, // reason
);

/// A site. Fields have the names and meanings of the report's.
#[derive(Serialize)]
struct SiteData<'a> {
    rank: usize,
    kind: Kind,
    mapped_by_runtime: bool,
    verdict: Verdict,
    live_bytes: u64,
    live_objects: u64,
    growth_bytes_per_s: f64,
    alloc_bytes: u64,
    preexisting_bytes: u64,
    oldest_s: f64,
    stack_truncated: bool,
    stack_incomplete: &'a Option<String>,
    /// The frame that stands for it, by its place in the stack.
    told_by: Option<usize>,
    /// Live bytes at the moments.
    live: Vec<u64>,
    /// Indexes into `frames`, innermost first.
    stack: Vec<usize>,
}

impl<'a> Data<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        let times = moments(report);
        let mut table = Table::default();
        let site = |site: &'a SiteReport| SiteData {
            rank: site.rank,
            kind: site.kind,
            mapped_by_runtime: site.mapped_by_runtime,
            verdict: site.verdict,
            live_bytes: site.live_bytes,
            live_objects: site.live_objects,
            growth_bytes_per_s: site.growth_bytes_per_s,
            alloc_bytes: site.alloc_bytes,
            preexisting_bytes: site.preexisting_bytes,
            oldest_s: site.oldest_s,
            stack_truncated: site.stack_truncated,
            stack_incomplete: &site.stack_incomplete,
            told_by: told_by(&site.stack),
            live: at_moments(&site.series, &times),
            stack: site.stack.iter().map(|frame| table.frame(frame)).collect(),
        };
        let sites = report.sites.iter().map(site).collect();
        let resident = &report.memory.series;
        Self {
            rss: (!resident.is_empty()).then(|| at_moments(resident, &times)),
            times,
            summary: report.summary,
            strings: table.strings.list,
            frames: table.frames.list,
            sites,
        }
    }
}

/// Things by number, each once.
struct Numbered<T> {
    list: Vec<T>,
    numbers: HashMap<T, usize>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Numbered<T> {
    fn number(&mut self, thing: T) -> usize {
        *self.numbers.entry(thing).or_insert_with(|| {
            self.list.push(thing);
            self.list.len() - 1
        })
    }
}

#[derive(Default)]
struct Table<'a> {
    strings: Numbered<&'a str>,
    frames: Numbered<FrameData>,
}

impl<'a> Table<'a> {
    fn frame(&mut self, frame: &'a Frame) -> usize {
        let mut text = |text: &'a Option<String>| Some(self.strings.number(text.as_deref()?));
        let data = FrameData(
            text(&frame.function),
            text(&frame.file),
            frame.line,
            text(&frame.module),
            text(&frame.build_id),
            frame.offset,
            frame.address,
            frame.inlined.into(),
            text(&frame.reason),
        );
        self.frames.number(data)
    }
}

/// The moments of the longest series.
fn moments(report: &Report) -> Vec<f64> {
    let of_sites = report.sites.iter().map(|site| &site.series);
    let longest = of_sites
        .chain([&report.memory.series])
        .max_by_key(|series| series.len());
    let times: Vec<_> = longest.into_iter().flatten().map(|point| point.0).collect();
    match times.len() {
        0 | 1 => vec![0.0, report.window.duration_s.max(1.0)],
        _ => times,
    }
}

/// A series at other moments: straight between its points, level before and after them.
fn at_moments(series: &[(f64, u64)], times: &[f64]) -> Vec<u64> {
    let mut next = 0;
    let value = |&t: &f64| {
        while series.get(next).is_some_and(|point| point.0 < t) {
            next += 1;
        }
        match (
            next.checked_sub(1).map(|before| series[before]),
            series.get(next),
        ) {
            (Some((t0, before)), Some(&(t1, after))) if t < t1 => {
                let share = (t - t0) / (t1 - t0);
                (before as f64 + (after as f64 - before as f64) * share).round() as u64
            }
            (_, Some(&(_, at))) => at,
            (Some((_, last)), None) => last,
            (None, None) => 0,
        }
    };
    times.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_straight_between_its_points_and_level_around_them() {
        let series = [(1.0, 10), (3.0, 30), (4.0, 0)];
        let times = [0.0, 1.0, 2.0, 3.0, 3.5, 4.0, 9.0];
        assert_eq!(at_moments(&series, &times), [10, 10, 20, 30, 15, 0, 0]);
        assert_eq!(at_moments(&[], &times), [0; 7]);
    }

    #[test]
    fn frames_and_names_are_told_once() {
        let mut table = Table::default();
        let frame = |line| Frame {
            function: Some("main.load".into()),
            file: Some("load.go".into()),
            line: Some(line),
            ..Frame::default()
        };
        let frames = [frame(1), frame(2), frame(1)];
        let numbers: Vec<_> = frames.iter().map(|frame| table.frame(frame)).collect();
        assert_eq!(numbers, [0, 1, 0]);
        assert_eq!(table.strings.list, ["main.load", "load.go"]);
    }
}
