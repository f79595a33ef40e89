//! What an interval has done at each site.

use std::collections::BTreeMap;

use super::refill::Turnover;
use crate::capture::schema::{CohortFrees, SiteDelta};

/// The death of one of our own samples.
pub(super) fn died(deltas: &mut BTreeMap<u32, SiteDelta>, dead: Turnover) {
    let delta = delta_of(deltas, dead.site);
    delta.frees += 1;
    delta.free_bytes += dead.bytes;
    add_freed(&mut delta.freed, dead.cohort, 1, dead.bytes);
}

/// Adds frees of a cohort's objects.
pub(super) fn add_freed(freed: &mut Vec<CohortFrees>, cohort: u32, objects: u64, bytes: u64) {
    match freed.iter_mut().find(|freed| freed.cohort == cohort) {
        Some(freed) => {
            freed.objects += objects;
            freed.bytes += bytes;
        }
        None => freed.push(CohortFrees {
            cohort,
            objects,
            bytes,
        }),
    }
}

/// The site's delta.
pub(super) fn delta_of(deltas: &mut BTreeMap<u32, SiteDelta>, site: u32) -> &mut SiteDelta {
    deltas.entry(site).or_insert_with(|| SiteDelta {
        site,
        ..SiteDelta::default()
    })
}
