//! What is one site, or one group of goroutines, on both sides; and what became of it.

use std::cmp::Ordering;

use super::schema::{Change, GroupDiff, Measure, Relation, SiteDiff};
use super::side::Pair;
use crate::live_heap::Estimate;
use crate::report::fold;
use crate::report::goroutines::GoroutineGroup;
use crate::report::schema::{Frame, SiteReport};

/// Parts of the two sides that belong together.
pub(super) struct Both<T> {
    pub(super) base: Vec<T>,
    pub(super) file: Vec<T>,
}

impl<T> Default for Both<T> {
    fn default() -> Self {
        Self {
            base: Vec::new(),
            file: Vec::new(),
        }
    }
}

/// What two stacks must have in common.
#[derive(Clone, Copy)]
pub(super) struct Key {
    lines: bool,
    own_only: bool,
}

/// A frame by its names: function, file, line; or module and offset of one without.
type Names = (String, String, u64);

impl Key {
    pub(super) fn new(pair: Pair, relation: Relation) -> Self {
        let is_one_runtime = pair.base.target.runtime == pair.file.target.runtime;
        Self {
            lines: relation == Relation::OneProcess || pair.is_one_build(),
            own_only: relation == Relation::TwoPrograms || !is_one_runtime,
        }
    }

    pub(super) fn of_stack(self, stack: &[Frame]) -> Vec<Names> {
        let is_kept = |frame: &&Frame| !self.own_only || fold::is_own(frame);
        let own: Vec<_> = stack.iter().filter(is_kept).collect();
        let frames = match own.is_empty() {
            true => stack.iter().collect(),
            false => own,
        };
        frames
            .into_iter()
            .map(|frame| self.of_frame(frame))
            .collect()
    }

    pub(super) fn of_goroutines(
        self,
        group: &GoroutineGroup,
    ) -> (String, Option<String>, Option<Names>, Option<Names>) {
        let names = |frame: &Option<Frame>| frame.as_ref().map(|frame| self.of_frame(frame));
        (
            group.state.clone(),
            group.wait_reason.clone(),
            names(&group.blocked_at),
            names(&group.created_by),
        )
    }

    fn of_frame(self, frame: &Frame) -> Names {
        // Where a tree of sources lies is not the program's.
        let last = |path: &Option<String>| {
            let path = path.as_deref().unwrap_or_default();
            path.rsplit('/').next().unwrap_or_default().to_owned()
        };
        let place = |place: Option<u64>| place.filter(|_| self.lines).unwrap_or(0);
        match &frame.function {
            Some(function) => (
                function.clone(),
                last(&frame.file),
                place(frame.line.map(u64::from)),
            ),
            None => (String::new(), last(&frame.module), place(frame.offset)),
        }
    }
}

/// The comparison of a site; none where there is nothing on either side.
pub(super) fn site(both: &Both<&SiteReport>, pair: Pair, relation: Relation) -> Option<SiteDiff> {
    let first = both.file.first().or(both.base.first())?;
    let (base, file) = (
        measure(&both.base, pair.base.window.duration_s),
        measure(&both.file, pair.file.window.duration_s),
    );
    // Of a side that has nothing of it, what may be there without a sample.
    let rate = first.estimate.rate_bytes;
    let nothing = |duration_s: f64| {
        let live = Estimate::of_nothing(rate);
        let growth = Estimate {
            high: live.high / duration_s.max(1.0),
            low: -live.high / duration_s.max(1.0),
            ..live
        };
        (live, Some(growth))
    };
    let figures = |measure: Option<Measure>, duration_s: f64| match measure {
        Some(measure) => (measure.live, measure.growth_per_s),
        None => nothing(duration_s),
    };
    let (base_live, base_growth) = figures(base, pair.base.window.duration_s);
    let (file_live, file_growth) = figures(file, pair.file.window.duration_s);
    let growth = file_growth.zip(base_growth);
    let (change, why) = match pair.has(first.kind) {
        true => outcome(
            base.is_some(),
            file.is_some(),
            file_live.against(base_live),
            growth.and_then(|(file, base)| file.against(base)),
            relation,
        ),
        false => (Change::NotCompared, "recorded on one side only".to_owned()),
    };
    let attach: u64 = both
        .file
        .iter()
        .map(|site| site.attach_bytes)
        .fold(0, u64::saturating_add);
    let between = (relation == Relation::OneProcess
        && pair.between_s().is_some_and(|between| between >= 0.0))
    .then(|| Estimate::sampled(attach as f64, rate).minus(base_live));
    let line = |sites: &[&SiteReport]| {
        let stack = &sites.first()?.stack;
        fold::fold(stack).own.first()?.line
    };
    Some(SiteDiff {
        change,
        why,
        kind: first.kind,
        base,
        file,
        live_difference: file_live.minus(base_live),
        growth_difference_per_s: growth.map(|(file, base)| file.minus(base)),
        between,
        stack: first.stack.clone(),
        base_line: line(&both.base)
            .filter(|_| !both.file.is_empty())
            .filter(|base| line(&both.file) != Some(*base)),
    })
}

/// The sites of one side, put together.
fn measure(sites: &[&SiteReport], duration_s: f64) -> Option<Measure> {
    let measures = sites.iter().map(|site| {
        let live = Estimate {
            value: site.live_bytes as f64,
            low: site.estimate.low_bytes as f64,
            high: site.estimate.high_bytes as f64,
        };
        let [low, high] = site.growth_interval;
        let growth = Estimate {
            value: site.growth_bytes as f64,
            low: low as f64,
            high: high as f64,
        };
        Measure {
            sites: 1,
            verdict: Some(site.verdict),
            live: Estimate::level(live, &site.series),
            growth_per_s: Estimate::growth(growth, &site.series),
            alloc_per_s: Some(site.alloc_bytes as f64 / duration_s.max(1.0)),
        }
    });
    measures.reduce(together)
}

fn together(a: Measure, b: Measure) -> Measure {
    Measure {
        sites: a.sites + b.sites,
        verdict: a.verdict.into_iter().chain(b.verdict).min(),
        live: a.live.plus(b.live),
        growth_per_s: a.growth_per_s.zip(b.growth_per_s).map(|(a, b)| a.plus(b)),
        alloc_per_s: a.alloc_per_s.zip(b.alloc_per_s).map(|(a, b)| a + b),
    }
}

/// The comparison of a group of goroutines; none where there is nothing on either side.
pub(super) fn goroutines(both: &Both<&GoroutineGroup>, relation: Relation) -> Option<GroupDiff> {
    let first = both.file.first().or(both.base.first())?;
    let measure = |groups: &[&GoroutineGroup]| {
        let measures = groups.iter().map(|group| {
            let exact = |value: f64| Estimate {
                value,
                low: value,
                high: value,
            };
            Measure {
                sites: 1,
                verdict: group.verdict,
                live: Estimate::level(exact(group.count as f64), &group.series),
                growth_per_s: Estimate::growth(
                    exact(group.growth.unwrap_or_default() as f64),
                    &group.series,
                ),
                alloc_per_s: None,
            }
        });
        measures.reduce(together)
    };
    let (base, file) = (measure(&both.base), measure(&both.file));
    let live = |measure: Option<Measure>| measure.map_or(Estimate::default(), |m| m.live);
    let growth = |measure: Option<Measure>| match measure {
        Some(measure) => measure.growth_per_s,
        None => Some(Estimate::default()),
    };
    let growth = growth(file).zip(growth(base));
    let (change, why) = outcome(
        base.is_some(),
        file.is_some(),
        live(file).against(live(base)),
        growth.and_then(|(file, base)| file.against(base)),
        relation,
    );
    Some(GroupDiff {
        change,
        why,
        state: first.state.clone(),
        wait_reason: first.wait_reason.clone(),
        base,
        file,
        blocked_at: first.blocked_at.clone(),
        created_by: first.created_by.clone(),
    })
}

/// What became of something, from where it is and how live bytes and growth compare. Where the two
/// contradict each other, live bytes decide for one process, and growth for two: what a process has
/// gathered depends on its age.
pub(super) fn outcome(
    in_base: bool,
    in_file: bool,
    live: Option<Ordering>,
    growth: Option<Ordering>,
    relation: Relation,
) -> (Change, String) {
    let decisive = match relation {
        Relation::OneProcess => live.or(growth),
        _ => growth.or(live),
    };
    let told = |what: &str, order: Option<Ordering>, more: &str, less: &str| match order {
        Some(Ordering::Greater) => Some(format!("{what} {more}")),
        Some(Ordering::Less) => Some(format!("{what} {less}")),
        _ => None,
    };
    let facts = [
        told("it holds", live, "more", "less"),
        told("it grows", growth, "faster", "slower"),
    ];
    let facts: Vec<_> = facts.into_iter().flatten().collect();
    let why = |absent: &str| match facts.is_empty() {
        true => format!("{absent}no difference shown: the intervals overlap"),
        false => format!("{absent}{}", facts.join(", ")),
    };
    match (in_base, in_file, decisive) {
        (false, _, Some(Ordering::Greater)) => (Change::New, why("not in the base; ")),
        (_, false, Some(Ordering::Less)) => (Change::Gone, why("not in the file; ")),
        (false, ..) => (Change::Same, why("not seen in the base, but ")),
        (_, false, _) => (Change::Same, why("not seen in the file, but ")),
        (_, _, Some(Ordering::Greater)) => (Change::Grew, why("")),
        (_, _, Some(Ordering::Less)) => (Change::Shrank, why("")),
        _ => (Change::Same, why("")),
    }
}
