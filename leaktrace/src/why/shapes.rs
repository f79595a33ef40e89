//! Paths put together by where they begin and by the kinds of their hops.

use std::collections::{HashMap, HashSet};

use super::{Amount, Groups, Hops, Root, WhySite};
use crate::{
    go::DataSymbols,
    inventory::heap::{Fate, Hop, Object, Path},
    report::{
        goroutines::GoroutineGroup,
        why::{Holder, HopReport, NamedBy, PathReport, RootKind},
    },
};

/// Shapes shown of each root, and roots shown of each site.
const SHAPES: usize = 4;
const HOLDERS: usize = 8;
/// Runs of hops that a shape has at most; what is deeper is left out in the middle.
const MAX_RUNS: usize = 24;

/// Where paths begin, as far as they are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Begin {
    /// The variable, or the address of one without a name.
    Variable(Result<String, u64>),
    Goroutines(Option<usize>),
    Finalizer,
    FinalizerQueue,
}

/// The paths of the samples of one site.
pub(super) struct Tally<'a> {
    groups: &'a Groups,
    forgotten: &'a HashSet<u64>,
    symbols: &'a DataSymbols,
    bias: u64,
    total: Amount,
    unreached: Amount,
    moved: Amount,
    gone: Amount,
    unchecked: Amount,
    begins: HashMap<Begin, Of>,
}

/// The paths from one root.
#[derive(Default)]
struct Of {
    holder: Holder,
    /// Places of the goroutines.
    places: HashSet<u32>,
    /// Objects that every path goes through, from the root on.
    common: Option<Vec<Hop>>,
    shapes: HashMap<Vec<(String, NamedBy, u64)>, PathReport>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(
        groups: &'a Groups,
        forgotten: &'a HashSet<u64>,
        symbols: &'a DataSymbols,
        bias: u64,
    ) -> Self {
        Self {
            groups,
            forgotten,
            symbols,
            bias,
            total: Amount::default(),
            unreached: Amount::default(),
            moved: Amount::default(),
            gone: Amount::default(),
            unchecked: Amount::default(),
            begins: HashMap::new(),
        }
    }

    /// Takes in a sample that stands for so many objects and bytes.
    pub(super) fn add(&mut self, fate: &Fate, hops: &Hops<'_>, (objects, bytes): (f64, f64)) {
        self.total.add(objects, bytes);
        match fate {
            Fate::Held(path) => self.held(path, hops, (objects, bytes)),
            Fate::Unreached => self.unreached.add(objects, bytes),
            Fate::Moved => self.moved.add(objects, bytes),
            Fate::Gone => self.gone.add(objects, bytes),
            Fate::TooMany => self.unchecked.add(objects, bytes),
        }
    }

    fn held(&mut self, path: &Path, hops: &Hops<'_>, (objects, bytes): (f64, f64)) {
        let (begin, holder) = self.begin(path.root);
        let of = self.begins.entry(begin).or_insert_with(|| Of {
            holder,
            ..Of::default()
        });
        of.holder.amount.add(objects, bytes);
        if let Root::Stack(place) | Root::Goroutine(place) = path.root {
            of.places.insert(place);
        }
        // The object itself is no bottleneck.
        let held_by = path.hops.split_last().map_or(&[][..], |(_, rest)| rest);
        match &mut of.common {
            None => of.common = Some(held_by.to_vec()),
            Some(common) => {
                let on_path: HashSet<Object> = held_by.iter().map(|hop| hop.object).collect();
                common.retain(|hop| on_path.contains(&hop.object));
            }
        }
        let mut named = hops.names(path);
        if let Some((before, left_out)) = path.gap {
            named.insert(before, between(left_out));
        }
        let runs = runs(named);
        let key = runs
            .iter()
            .map(|hop| (hop.name.clone(), hop.named_by, hop.size))
            .collect();
        let is_checked = path.hops.iter().all(|hop| hop.is_pointer == Some(true));
        let shape = of.shapes.entry(key).or_insert_with(|| PathReport {
            hops: runs.clone(),
            checked: true,
            ..PathReport::default()
        });
        shape.amount.add(objects, bytes);
        shape.checked &= is_checked;
        for (hop, run) in shape.hops.iter_mut().zip(&runs) {
            hop.allocated_by = hop.allocated_by.take().or(run.allocated_by.clone());
            // Where they are referred to by several there is no name for it.
            hop.via = hop.via.take().filter(|via| run.via.as_ref() == Some(via));
            hop.times = (hop.times.0.min(run.times.0), hop.times.1.max(run.times.1));
        }
    }

    fn begin(&self, root: Root) -> (Begin, Holder) {
        match root {
            Root::Data(at) => {
                let link = at.wrapping_sub(self.bias);
                let place = self.symbols.place(link);
                let begin = Begin::Variable(place.symbol.clone().ok_or(link));
                let holder = Holder {
                    kind: RootKind::Variable,
                    symbol: place.symbol,
                    offset: Some(if place.section.is_some() {
                        place.offset
                    } else {
                        link
                    }),
                    section: place.section,
                    ..Holder::default()
                };
                (begin, holder)
            }
            Root::Stack(place) | Root::Goroutine(place) => {
                let group = self.groups.of(place);
                let channel = group.and_then(|(_, group)| group.channel.as_ref());
                let holder = Holder {
                    kind: RootKind::Goroutines,
                    forgotten: channel.is_some_and(|at| self.forgotten.contains(&at.address)),
                    goroutines: group.map(|(_, group)| Box::<GoroutineGroup>::new(group.clone())),
                    ..Holder::default()
                };
                (Begin::Goroutines(group.map(|(index, _)| index)), holder)
            }
            Root::Special(_) => {
                let kind = RootKind::Finalizer;
                (
                    Begin::Finalizer,
                    Holder {
                        kind,
                        ..Holder::default()
                    },
                )
            }
            Root::FinalizerQueue(_) => {
                let kind = RootKind::FinalizerQueue;
                (
                    Begin::FinalizerQueue,
                    Holder {
                        kind,
                        ..Holder::default()
                    },
                )
            }
        }
    }

    /// What has come of it.
    pub(super) fn report(self, hops: &Hops<'_>) -> WhySite {
        let mut holders: Vec<Holder> = self
            .begins
            .into_values()
            .map(|of| of.report(hops))
            .collect();
        holders.sort_by(|a, b| b.amount.bytes.total_cmp(&a.amount.bytes));
        let holders_left_out = holders.len().saturating_sub(HOLDERS) as u64;
        holders.truncate(HOLDERS);
        WhySite {
            total: self.total,
            holders,
            holders_left_out,
            unreached: self.unreached,
            moved: self.moved,
            gone: self.gone,
            unchecked: self.unchecked,
            ..WhySite::default()
        }
    }
}

impl Of {
    fn report(self, hops: &Hops<'_>) -> Holder {
        let mut paths: Vec<PathReport> = self.shapes.into_values().collect();
        paths.sort_by(|a, b| b.amount.bytes.total_cmp(&a.amount.bytes));
        let paths_left_out = paths.len().saturating_sub(SHAPES) as u64;
        paths.truncate(SHAPES);
        let is_several = self.holder.amount.samples > 1;
        let bottleneck = self.common.and_then(|common| common.last().copied());
        Holder {
            holding: self.places.len() as u64,
            bottleneck: bottleneck.filter(|_| is_several).map(|hop| hops.name(&hop)),
            paths,
            paths_left_out,
            ..self.holder
        }
    }
}

/// Hops of one kind that follow one another, as one.
fn runs(hops: Vec<HopReport>) -> Vec<HopReport> {
    let mut runs: Vec<HopReport> = Vec::new();
    for hop in hops {
        let before = runs.last_mut().filter(|before| {
            before.name == hop.name && before.named_by == hop.named_by && before.size == hop.size
        });
        match before {
            Some(before) => {
                before.times.0 += hop.times.0;
                before.times.1 += hop.times.1;
                before.allocated_by = before.allocated_by.take().or(hop.allocated_by);
            }
            None => runs.push(hop),
        }
    }
    if runs.len() > MAX_RUNS {
        let cut = runs.len() - MAX_RUNS + 1;
        let from = MAX_RUNS / 2;
        let left_out: u64 = runs[from..from + cut].iter().map(|run| run.times.0).sum();
        runs.splice(from..from + cut, [between(left_out)]);
    }
    runs
}

/// So many hops that are not told.
fn between(left_out: u64) -> HopReport {
    HopReport {
        name: "…".to_owned(),
        times: (left_out, left_out),
        ..HopReport::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(name: &str) -> HopReport {
        HopReport {
            name: name.to_owned(),
            times: (1, 1),
            ..HopReport::default()
        }
    }

    #[test]
    fn hops_of_one_kind_are_one() {
        let found = runs(["map", "node", "node", "node", "row"].map(hop).to_vec());
        let found: Vec<_> = found
            .iter()
            .map(|run| (run.name.as_str(), run.times))
            .collect();
        assert_eq!(found, [("map", (1, 1)), ("node", (3, 3)), ("row", (1, 1))]);
    }

    #[test]
    fn a_long_path_loses_its_middle() {
        let hops: Vec<_> = (0..100).map(|n| hop(&n.to_string())).collect();
        let found = runs(hops);
        assert_eq!(found.len(), MAX_RUNS);
        assert_eq!(found.iter().map(|run| run.times.0).sum::<u64>(), 100);
        assert_eq!(found.last().map(|run| run.name.as_str()), Some("99"));
    }
}
