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
                .map(|(site, tally)| schema::SiteTurnover {
                    site,
                    born: some(tally.born),
                    survived: some(tally.survived),
                    died: some(tally.died),
                    reused: tally.reused,
                })
                .collect(),
            unseen: unseen
                .map(|(size_class, deaths)| schema::UnseenDeaths {
                    size_class,
                    deaths: some(deaths),
                })
                .collect(),
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
