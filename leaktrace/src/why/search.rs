//! The search for what leads to the objects of some sites, until what it found holds.

use std::collections::HashSet;

use anyhow::Result;

use super::{
    Options, Watch,
    sites::{Site, Sites},
};
use crate::{
    inventory::heap::{
        Back, Fate, Figures, Heap, Holders, Mark, Object, Paths, Reference, Roots, Types,
    },
    symbolize::Symbolizer,
};

/// Searches at most: one more each time that of a site more than one path in a hundred does not hold.
const MAX_SEARCHES: u64 = 5;

/// Whose objects are looked for.
pub(super) enum Asked<'a> {
    /// These sites'.
    Known(Vec<Site>),
    /// Some of these, once it is known which of their objects are held.
    Ranked(Sites<'a>),
}

/// What was found.
pub(super) struct Found {
    pub(super) sites: Vec<Site>,
    /// Of each object of each site, in their order.
    pub(super) fates: Vec<Fate>,
    /// Channels that nobody can reach but those who wait there.
    pub(super) forgotten: HashSet<u64>,
    /// Of the last search.
    pub(super) figures: Figures,
    pub(super) searches: u64,
}

/// Searches a heap.
pub(super) struct Search<'a> {
    pub(super) heap: &'a Heap,
    pub(super) roots: &'a Roots<'a>,
    pub(super) types: Option<&'a Types<'a>>,
    pub(super) options: &'a Options,
    pub(super) symbolizer: &'a Symbolizer<'a>,
    pub(super) watch: &'a Watch,
}

impl Search<'_> {
    /// Finds out what leads to the objects.
    ///
    /// # Errors
    ///
    /// The memory allowed does not suffice, or there is no such site.
    pub(super) fn run(&self, mut asked: Asked<'_>) -> Result<Found> {
        let mut not = HashSet::new();
        let mut searches = 0;
        // By the first search, which follows every reference.
        let mut forgotten = None;
        loop {
            let wanted = match &asked {
                Asked::Known(sites) => objects(sites).collect(),
                Asked::Ranked(sites) => sites.objects().collect(),
            };
            let holders = self.once(wanted, &not)?;
            let sites = match asked {
                Asked::Known(sites) => sites,
                Asked::Ranked(ranked) => {
                    let is_held = |object| holders.holder(object).is_some();
                    ranked.choose(self.options, self.heap, self.symbolizer, is_held)?
                }
            };
            let mut figures = holders.figures();
            let forgotten = forgotten.get_or_insert_with(|| holders.forgotten());
            let memory = self.options.max_memory.saturating_sub(figures.memory_bytes);
            let mut paths = Paths::check(
                &*holders,
                (self.roots, self.types),
                objects(&sites),
                memory,
                self.watch,
            );
            figures.is_cut |= paths.is_cut();
            let fates: Vec<Fate> = objects(&sites).map(|object| paths.fate(object)).collect();
            let not_there: Vec<_> = paths.not_there().collect();
            searches += 1;
            let mut rest = &fates[..];
            let holds = |site: &Site| {
                let (of_site, others) = rest.split_at(site.samples.len());
                rest = others;
                let moved = of_site.iter().filter(|fate| **fate == Fate::Moved).count();
                moved * 100 <= of_site.len()
            };
            if searches == MAX_SEARCHES || self.watch.is_stopped() || sites.iter().all(holds) {
                return Ok(Found {
                    sites,
                    fates,
                    forgotten: std::mem::take(forgotten),
                    figures,
                    searches,
                });
            }
            drop(paths);
            drop(holders);
            // Another path may hold: it is looked for without the references that did not.
            not.extend(not_there);
            asked = Asked::Known(sites);
        }
    }

    /// Forward from the roots, which takes as long however many objects are asked for; back from the objects where
    /// the memory allowed does not suffice for that.
    fn once<'a>(
        &'a self,
        wanted: Vec<Object>,
        not: &'a HashSet<Reference>,
    ) -> Result<Box<dyn Holders + 'a>> {
        let (heap, memory) = (self.heap, self.options.max_memory);
        if Mark::may_fit(heap, memory) {
            let wanted = wanted.iter().copied();
            let mark = Mark::new(
                heap,
                (self.roots, self.types),
                wanted,
                not,
                memory,
                self.watch,
            );
            if let Some(marked) = mark.run() {
                return Ok(Box::new(marked));
            }
        }
        let back = Back::new((heap, self.types), wanted, not, memory, self.watch)?;
        Ok(Box::new(back.run(self.roots)))
    }
}

fn objects(sites: &[Site]) -> impl Iterator<Item = Object> + '_ {
    let samples = sites.iter().flat_map(|site| &site.samples);
    samples.map(|(object, _)| *object)
}
