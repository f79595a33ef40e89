//! Two reports compared: what grew, what is new, what is gone.
//!
//! Sites are matched by their stacks: by functions, files and lines where both are of one build, by functions
//! and files between builds, and by the program's own of these where the runtimes differ, too. Code
//! addresses play no part. Live bytes and growth a second are set against each other with their widths; where
//! these overlap, no difference is said to be there.
//!
//! Contract: pure; two reports without filters in, a [`Diff`] out.

mod figure;
mod group;
mod schema;
mod side;

use std::collections::{BTreeMap, HashMap};

use super::schema::{Report, SiteReport};
use group::{Both, Key};
use side::{Pair, notes, relation};

pub use schema::{Change, Counts, Diff, GroupDiff, Measure, Relation, SCHEMA, Side, SiteDiff};

/// Compares two reports that have all their sites and stacks.
pub fn diff(base: &Report, file: &Report) -> Diff {
    let pair = Pair { base, file };
    let relation = relation(pair);
    let mut sites = sites(pair, relation);
    sites.sort_by(|a, b| {
        let by = |site: &SiteDiff| {
            let growth = site.growth_difference_per_s.unwrap_or_default().value;
            (growth.abs(), site.live_difference.value.abs())
        };
        let ((a_growth, a_live), (b_growth, b_live)) = (by(a), by(b));
        a.change
            .cmp(&b.change)
            .then(b_growth.total_cmp(&a_growth))
            .then(b_live.total_cmp(&a_live))
    });
    let mut summary = Counts::default();
    for site in &sites {
        summary.count(site.change);
    }
    Diff {
        schema: SCHEMA,
        base: side::of(base),
        file: side::of(file),
        relation,
        between_s: pair
            .between_s()
            .filter(|_| relation == Relation::OneProcess),
        notes: notes(pair, relation),
        summary,
        sites,
        goroutines: goroutines(pair, relation),
    }
}

fn sites(pair: Pair, relation: Relation) -> Vec<SiteDiff> {
    let key = Key::new(pair, relation);
    let mut groups: Vec<Both<&SiteReport>> = Vec::new();
    let mut places: HashMap<_, usize> = HashMap::new();
    let sides = [(false, &pair.file.sites), (true, &pair.base.sites)];
    for (is_base, sites) in sides {
        for site in sites {
            let place = *places
                .entry((site.kind, key.of_stack(&site.stack)))
                .or_insert(groups.len());
            if place == groups.len() {
                groups.push(Both::default());
            }
            match is_base {
                true => groups[place].base.push(site),
                false => groups[place].file.push(site),
            }
        }
    }
    groups
        .iter()
        .filter_map(|both| group::site(both, pair, relation))
        .collect()
}

fn goroutines(pair: Pair, relation: Relation) -> Option<Vec<GroupDiff>> {
    let (base, file) = (
        pair.base.goroutines.as_ref()?,
        pair.file.goroutines.as_ref()?,
    );
    let key = Key::new(pair, relation);
    let mut groups: BTreeMap<_, Both<_>> = BTreeMap::new();
    for group in &file.groups {
        groups
            .entry(key.of_goroutines(group))
            .or_default()
            .file
            .push(group);
    }
    for group in &base.groups {
        groups
            .entry(key.of_goroutines(group))
            .or_default()
            .base
            .push(group);
    }
    let mut diffs: Vec<_> = groups
        .values()
        .filter_map(|both| group::goroutines(both, relation))
        .collect();
    let change = |diff: &GroupDiff| {
        let count = |measure: Option<Measure>| measure.map_or(0.0, |measure| measure.live.value);
        (count(diff.file) - count(diff.base)).abs()
    };
    diffs.sort_by(|a, b| {
        a.change
            .cmp(&b.change)
            .then(change(b).total_cmp(&change(a)))
    });
    Some(diffs)
}
