//! What windows have shown, to and from its form in a capture.

use super::schema;
use crate::turnover::{Shown, SiteTally, Tally};

impl From<Shown> for schema::Windows {
    fn from(shown: Shown) -> Self {
        let sites = shown.sites.into_iter();
        let unseen = shown.unseen.into_iter();
        Self {
            count: shown.windows,
            discarded: 0,
            open_ns: shown.open_ns,
            stand_for_ns: shown.stand_for_ns,
            events: shown.events,
            cpu_ns: shown.cpu_ns[0],
            stand_for_cpu_ns: shown.cpu_ns[1],
            probes_ns: shown.probes_ns,
            sites: sites
                .map(|(site, tally)| schema::SiteTurnover::new(site, tally))
                .collect(),
            unseen: unseen
                .map(|(size_class, deaths)| schema::UnseenDeaths::new(size_class, deaths))
                .collect(),
        }
    }
}

impl schema::Windows {
    /// Adds what is of all sites together.
    pub(crate) fn add_totals(&mut self, other: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.count, other.count);
        add(&mut self.discarded, other.discarded);
        add(&mut self.open_ns, other.open_ns);
        add(&mut self.stand_for_ns, other.stand_for_ns);
        add(&mut self.events, other.events);
        add(&mut self.cpu_ns, other.cpu_ns);
        add(&mut self.stand_for_cpu_ns, other.stand_for_cpu_ns);
        add(&mut self.probes_ns, other.probes_ns);
    }
}

impl schema::SiteTurnover {
    /// Of this site.
    pub(super) fn new(site: u32, tally: SiteTally) -> Self {
        Self {
            site,
            born: some(tally.born),
            survived: some(tally.survived),
            died: some(tally.died),
            reused: tally.reused,
        }
    }
}

impl schema::UnseenDeaths {
    /// Of this size class.
    pub(super) fn new(size_class: u64, deaths: Tally) -> Self {
        Self {
            size_class,
            deaths: some(deaths),
        }
    }
}

fn some(tally: Tally) -> Option<schema::Tally> {
    (!tally.is_empty()).then_some(schema::Tally {
        seen: tally.seen,
        bytes: tally.bytes,
        plain: tally.plain,
        corrected: tally.corrected,
        dense: tally.dense,
    })
}

impl From<&schema::SiteTurnover> for SiteTally {
    fn from(site: &schema::SiteTurnover) -> Self {
        Self {
            born: site.born.into(),
            survived: site.survived.into(),
            died: site.died.into(),
            reused: site.reused,
        }
    }
}

impl From<Option<schema::Tally>> for Tally {
    fn from(tally: Option<schema::Tally>) -> Self {
        let tally = tally.unwrap_or_default();
        // A capture may hold anything.
        let sane = |value: f64| {
            if value.is_finite() {
                value.max(0.0)
            } else {
                0.0
            }
        };
        Self {
            seen: tally.seen,
            bytes: tally.bytes,
            plain: sane(tally.plain),
            corrected: sane(tally.corrected),
            dense: sane(tally.dense),
        }
    }
}
