//! What a pane lists: which rows, in which order, and what stands in them.

#![forbid(unsafe_code)]

use std::{
    cmp::Ordering,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    report::{
        Frame, Kind, Report, SiteReport, fold,
        goroutines::GoroutineGroup,
        human,
        text::{escape, name_of, place_of},
    },
    verdict::Verdict,
};

/// A list of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Sites,
    Goroutines,
}

/// A column, by which rows can be ordered if it has a key.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Characters; 0: what is left.
    pub(super) width: u16,
    pub(super) is_number: bool,
    key: Option<Key>,
}

#[derive(Clone, Copy)]
enum Key {
    Site(fn(&SiteReport) -> f64),
    Group(fn(&GoroutineGroup) -> f64),
    /// The report's own order: by verdict, and growth.
    Rank,
}

const fn number(title: &'static str, width: u16, key: Key) -> Column {
    Column {
        title,
        width,
        is_number: true,
        key: Some(key),
    }
}

const fn text(title: &'static str, width: u16) -> Column {
    Column {
        title,
        width,
        is_number: false,
        key: None,
    }
}

static SITES: [Column; 7] = [
    number("#", 4, Key::Rank),
    text("verdict", 7),
    text("kind", 7),
    number("live", 10, Key::Site(|site| site.live_bytes as f64)),
    number("growth", 12, Key::Site(|site| site.growth_bytes_per_s)),
    number("age", 10, Key::Site(|site| site.oldest_s)),
    text("allocated at", 0),
];
static GROUPS: [Column; 6] = [
    number("#", 4, Key::Rank),
    text("verdict", 7),
    number("count", 8, Key::Group(|group| group.count as f64)),
    number(
        "growth",
        9,
        Key::Group(|group| group.growth_per_s.unwrap_or_default()),
    ),
    number(
        "wait",
        10,
        Key::Group(|group| group.oldest_wait_s.unwrap_or_default()),
    ),
    text("what they do, where", 0),
];

impl List {
    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Sites => &SITES,
            Self::Goroutines => &GROUPS,
        }
    }

    /// How many rows there are without a filter.
    pub(super) fn len(self, report: &Report) -> usize {
        match self {
            Self::Sites => report.sites.len(),
            Self::Goroutines => groups(report).len(),
        }
    }

    /// The column after `column` by which rows can be ordered.
    pub(super) fn next_order(self, column: usize) -> usize {
        let columns = self.columns();
        let after = (column + 1..columns.len()).chain(0..=column);
        let mut orders = after.filter(|at| columns[*at].key.is_some());
        orders.next().unwrap_or_default()
    }

    /// Indexes of the rows that contain `filter`, whatever its case, by the column `order`: the report's
    /// own order, or the largest first.
    pub(super) fn rows(self, report: &Report, filter: &str, order: usize) -> Vec<usize> {
        let filter = filter.to_lowercase();
        let is_wanted =
            |row: &usize| filter.is_empty() || self.text(report, *row).contains(&filter);
        let mut rows: Vec<_> = (0..self.len(report)).filter(is_wanted).collect();
        let by = |value: &dyn Fn(usize) -> f64, a: usize, b: usize| -> Ordering {
            value(b).total_cmp(&value(a)).then(a.cmp(&b))
        };
        match self.columns().get(order).and_then(|column| column.key) {
            Some(Key::Site(key)) => {
                rows.sort_by(|&a, &b| by(&|row| key(&report.sites[row]), a, b));
            }
            Some(Key::Group(key)) => {
                let groups = groups(report);
                rows.sort_by(|&a, &b| by(&|row| key(&groups[row]), a, b));
            }
            Some(Key::Rank) | None => {}
        }
        rows
    }

    /// What a row is, from one report to the next.
    pub(super) fn identity(self, report: &Report, row: usize) -> u64 {
        let mut hash = DefaultHasher::new();
        let mut frame = |frame: &Frame| match &frame.function {
            Some(function) => (function, &frame.file, frame.line).hash(&mut hash),
            None => frame.address.hash(&mut hash),
        };
        match self {
            Self::Sites => {
                let site = &report.sites[row];
                site.stack.iter().for_each(frame);
                site.kind.hash(&mut hash);
            }
            Self::Goroutines => {
                let group = &groups(report)[row];
                let frames = group.blocked_at.iter().chain(&group.created_by);
                frames.for_each(&mut frame);
                (&group.state, &group.wait_reason).hash(&mut hash);
            }
        }
        hash.finish()
    }

    pub(super) fn verdict(self, report: &Report, row: usize) -> Option<Verdict> {
        match self {
            Self::Sites => Some(report.sites[row].verdict),
            Self::Goroutines => groups(report)[row].verdict,
        }
    }

    /// The cells of a row, one a column.
    pub(super) fn cells(self, report: &Report, row: usize) -> Vec<String> {
        let rate = |value: f64| format!("{}/s", human::bytes(value));
        let verdict = |verdict: Option<Verdict>| verdict.map(|v| v.to_string()).unwrap_or_default();
        match self {
            Self::Sites => {
                let site = &report.sites[row];
                vec![
                    site.rank.to_string(),
                    verdict(Some(site.verdict)),
                    site.kind.to_string(),
                    human::bytes(site.live_bytes as f64),
                    rate(site.growth_bytes_per_s),
                    human::seconds(site.oldest_s),
                    site_place(site),
                ]
            }
            Self::Goroutines => {
                let group = &groups(report)[row];
                let seconds = |wait: Option<f64>| wait.map(human::seconds).unwrap_or_default();
                let growth = group.growth_per_s.map(|growth| format!("{growth:+.1}/s"));
                vec![
                    (row + 1).to_string(),
                    verdict(group.verdict),
                    human::thousands(group.count),
                    growth.unwrap_or_default(),
                    seconds(group.oldest_wait_s),
                    group_place(group),
                ]
            }
        }
    }

    /// Everything of a row that a filter is held against, in lower case.
    fn text(self, report: &Report, row: usize) -> String {
        let mut words = self.cells(report, row);
        let stack = match self {
            Self::Sites => &report.sites[row].stack,
            Self::Goroutines => &groups(report)[row].stack,
        };
        words.extend(stack.iter().map(line_of));
        words.join("\n").to_lowercase()
    }
}

/// The groups of goroutines, if they were recorded.
pub(super) fn groups(report: &Report) -> &[GoroutineGroup] {
    let goroutines = report.goroutines.as_ref();
    goroutines.map_or(&[], |goroutines| &goroutines.groups)
}

/// A frame in one line.
pub(super) fn line_of(frame: &Frame) -> String {
    format!("{}  {}", name_of(frame), place_of(frame))
}

/// A frame in few characters: the file without its folders.
fn short_line_of(frame: &Frame) -> String {
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => {
            let file = file.rsplit('/').next().unwrap_or_default();
            format!("{}:{line}", escape(file))
        }
        _ => place_of(frame),
    };
    format!("{}  {place}", name_of(frame))
}

fn site_place(site: &SiteReport) -> String {
    // Of what a runtime maps for itself the outermost frame says what for.
    let other = match site.kind {
        Kind::GoHeap | Kind::Malloc => site.stack.first(),
        Kind::Mmap | Kind::Brk => site.stack.last(),
    };
    let own = site.stack.iter().find(|frame| fold::is_own(frame));
    match own.or(other) {
        Some(frame) => short_line_of(frame),
        None if site.preexisting_bytes > 0 => "no stack: from before the attach".to_owned(),
        None => "no stack was kept".to_owned(),
    }
}

fn group_place(group: &GoroutineGroup) -> String {
    let reason = group.wait_reason.as_ref().unwrap_or(&group.state);
    let mut place = escape(reason);
    if let Some(frame) = &group.blocked_at {
        place += &format!(" at {}", short_line_of(frame));
    }
    if let Some(frame) = &group.created_by {
        place += &format!(", made by {}", name_of(frame));
    }
    place
}
