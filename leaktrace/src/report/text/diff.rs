//! A comparison as text.

use std::io::{self, Write};

use jiff::Timestamp;

use super::site::{name_of, place_of};
use super::{BOLD, KEEP, Page, TextOptions, escape, glyphs};
use crate::live_heap::Estimate;
use crate::report::diff::{Change, Diff, GroupDiff, Measure, Relation, Side, SiteDiff};
use crate::report::human;

/// Writes a comparison; sites without a shown difference are counted only.
///
/// # Errors
///
/// `out` fails.
pub fn write_diff<W: Write>(diff: &Diff, options: TextOptions, mut out: W) -> io::Result<()> {
    let mut page = Page {
        text: String::new(),
        options,
    };
    page.sides(diff);
    let changed = || diff.sites.iter().filter(|site| is_told(site.change));
    for site in changed().take(options.top) {
        page.changed_site(site);
    }
    let hidden = changed().count().saturating_sub(options.top);
    if hidden > 0 {
        let sites = human::count(hidden as u64, "site");
        page.line(&format!("and {sites} more that changed"));
    }
    page.changed_goroutines(diff.goroutines.as_deref().unwrap_or_default());
    if !options.unicode {
        page.text = glyphs::in_ascii(&page.text);
    }
    out.write_all(page.text.as_bytes())
}

fn is_told(change: Change) -> bool {
    !matches!(change, Change::Same | Change::NotCompared)
}

impl Page {
    fn sides(&mut self, diff: &Diff) {
        for (name, side) in [("base: ", &diff.base), ("file: ", &diff.file)] {
            self.prose(name, &side_text(side));
        }
        let between = match diff.between_s {
            Some(between) if between >= 0.0 => format!(", {} apart", human::seconds(between)),
            _ => String::new(),
        };
        let relation = match diff.relation {
            Relation::OneProcess => "one process",
            Relation::TwoInstances => "two instances of one build",
            Relation::TwoBuilds => "two builds: matched by functions, lines may have moved",
            Relation::TwoPrograms => "two programs",
        };
        self.line(&format!("{relation}{between}"));
        let summary = diff.summary;
        let mut counts = format!(
            "{} new, {} grew, {} shrank, {} gone; {} with no difference shown",
            summary.new, summary.grew, summary.shrank, summary.gone, summary.same
        );
        if summary.not_compared > 0 {
            counts += &format!(", {} not compared", summary.not_compared);
        }
        self.line(&counts);
        for note in &diff.notes {
            self.prose("note: ", &escape(note));
        }
        self.line("");
    }

    fn changed_site(&mut self, site: &SiteDiff) {
        let change = self.change(site.change);
        let live = self.paint(BOLD, &bytes(site.live_difference.value, true));
        let growth = site.growth_difference_per_s.map(|growth| {
            let growth = between(growth, |value| format!("{}/s", bytes(value, true)));
            format!(", growth {growth}")
        });
        let growth = growth.unwrap_or_default();
        self.prose("", &format!("{change} {} {live} live{growth}", site.kind));
        for (name, measure) in [("base", site.base), ("file", site.file)] {
            let text = measure.map_or("nothing".to_owned(), |measure| {
                measured(&measure, |value| bytes(value, false))
            });
            self.prose(&format!("   {name}: "), &text);
        }
        if let Some(meanwhile) = site.between {
            let meanwhile = between(meanwhile, |value| bytes(value, true));
            self.prose("   between the two: ", &meanwhile);
        }
        self.folded_stack(&[], &site.stack);
        if let Some(line) = site.base_line {
            self.line(&format!("     in the base at line {line}"));
        }
        self.prose("   - ", &site.why);
        self.line("");
    }

    fn changed_goroutines(&mut self, groups: &[GroupDiff]) {
        let told: Vec<_> = groups
            .iter()
            .filter(|group| is_told(group.change))
            .collect();
        let same = groups.len() - told.len();
        if !groups.is_empty() {
            let same = human::count(same as u64, "group");
            self.line(&format!("goroutines: {same} with no difference shown"));
        }
        for group in told.iter().take(self.options.top) {
            let change = self.change(group.change);
            let doing = group.wait_reason.as_ref().unwrap_or(&group.state);
            self.prose("", &format!("{change} {}", escape(doing)));
            for (name, measure) in [("base", group.base), ("file", group.file)] {
                let text = measure.map_or("none".to_owned(), |measure| {
                    measured(&measure, |value| format!("{value:.1}"))
                });
                self.prose(&format!("   {name}: "), &text);
            }
            for (what, frame) in [("at", &group.blocked_at), ("created by", &group.created_by)] {
                if let Some(frame) = frame {
                    let (name, place) = (name_of(frame), place_of(frame));
                    self.prose("   ", &format!("{what} {name} {place}"));
                }
            }
            self.prose("   - ", &group.why);
        }
    }

    fn change(&self, change: Change) -> String {
        let (colour, word) = match change {
            Change::New => ("1;31", "NEW"),
            Change::Grew => ("33", "GREW"),
            Change::Shrank => ("32", "SHRANK"),
            Change::Gone => ("32", "GONE"),
            Change::Same => ("36", "SAME"),
            Change::NotCompared => ("36", "NOT COMPARED"),
        };
        self.paint(colour, word)
    }
}

fn side_text(side: &Side) -> String {
    let start = Timestamp::from_nanosecond(i128::from(side.start_unix_ns));
    let start = start.map(|start| format!("{start:.0}")).unwrap_or_default();
    format!(
        "{} (pid {}), {}, {}, {} from {start}",
        escape(&side.comm),
        side.pid,
        escape(&side.runtime),
        escape(&side.exe),
        human::seconds(side.duration_s)
    )
}

/// `LEAK, 40.0 MiB live (33.1 MiB to 48.4 MiB), growth 1.00 MiB/s (…), allocated 1.00 MiB/s`
fn measured(measure: &Measure, number: impl Fn(f64) -> String) -> String {
    let mut text = String::new();
    if let Some(verdict) = measure.verdict {
        text += &format!("{verdict}, ");
    }
    text += &format!("{} live", between(measure.live, &number));
    if let Some(growth) = measure.growth_per_s {
        let growth = between(growth, |value| format!("{}/s", number(value)));
        text += &format!(" · growth {growth}");
    }
    if let Some(allocated) = measure.alloc_per_s {
        text += &format!(" · allocated {}/s", number(allocated));
    }
    if measure.sites > 1 {
        text += &format!(" · {} sites together", measure.sites);
    }
    text
}

/// A figure with its interval, where it has one; on one line.
fn between(figure: Estimate, number: impl Fn(f64) -> String) -> String {
    let value = number(figure.value);
    let text = match (number(figure.low), number(figure.high)) {
        (low, high) if low == value && high == value => value,
        (low, high) => format!("{value} ({low} to {high})"),
    };
    text.replace(' ', KEEP)
}

fn bytes(value: f64, signed: bool) -> String {
    let plus = if signed && value > 0.0 { "+" } else { "" };
    format!("{plus}{}", human::bytes(value))
}
