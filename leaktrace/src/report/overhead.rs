//! What being traced has cost the target.

use serde::{Deserialize, Serialize};

use super::{build::milli, human, text::escape};
use crate::capture::Capture;

/// What probes took from the target's threads: an estimate, of the time that the kernel counted for their
/// programs and a constant for what leads to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverheadReport {
    /// On average, in percent of one processor.
    pub percent: f64,
    /// The most that it might be, in percent of a processor or of those that the target kept busy; absent if
    /// there was no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_percent: Option<f64>,
    /// The families of probes, as of `--probe`, that which cost most first.
    pub families: Vec<FamilyCost>,
}

/// What one family of probes has cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyCost {
    /// Its name.
    pub family: String,
    /// How often its probes were met.
    pub hits: u64,
    /// As of [`OverheadReport::percent`].
    pub percent: f64,
}

/// What probes have cost in so many seconds.
pub(super) fn overhead(capture: &Capture, seconds: f64) -> Option<OverheadReport> {
    let percent = |ns: u64| milli(ns as f64 / 1e9 / seconds.max(1e-3) * 100.0);
    let mut intervals = capture.intervals.iter().rev();
    let last = intervals.find(|interval| !interval.probe_costs.is_empty())?;
    let costs = last.probe_costs.iter().filter(|cost| cost.hits > 0);
    let mut families: Vec<_> = costs
        .map(|cost| FamilyCost {
            family: cost.family.clone(),
            hits: cost.hits,
            percent: percent(cost.ns),
        })
        .collect();
    let windows = capture.intervals.iter().filter_map(|i| i.windows.as_ref());
    let (hits, ns) = windows.fold((0, 0), |(hits, ns): (u64, u64), windows| {
        (
            hits.saturating_add(windows.events),
            ns.saturating_add(windows.probes_ns),
        )
    });
    if hits > 0 {
        families.push(FamilyCost {
            family: "malloc in windows".to_owned(),
            hits,
            percent: percent(ns),
        });
    }
    families.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    Some(OverheadReport {
        percent: milli(families.iter().map(|family| family.percent).sum()),
        max_percent: Some(capture.header.max_overhead_percent).filter(|&most| most > 0.0),
        families,
    })
}

/// What being traced has cost.
pub(super) fn in_words(overhead: &OverheadReport) -> String {
    let families = overhead.families.iter().map(|family| {
        format!(
            "{} {} %, {}",
            escape(&family.family),
            family.percent,
            human::count(family.hits, "hit")
        )
    });
    let families: Vec<_> = families.collect();
    let of = match families.is_empty() {
        true => String::new(),
        false => format!(" ({})", families.join("; ")),
    };
    format!("probes took some {} % of a processor{of}", overhead.percent)
}
