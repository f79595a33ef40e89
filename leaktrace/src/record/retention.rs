//! `record --retention`: what keeps the objects of leaks, looked for when the window is over.
//!
//! The capture as it stands says which sites leak, and the process, which runs on, what keeps their
//! objects: as `leaktrace why` finds it, in the forms of a report.

use std::{collections::HashMap, fs::File, io::BufReader, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};

use super::limit;
use crate::{
    capture::schema,
    inventory::goroutines::LiveSample,
    reading::read_apart,
    report::{self, Kind, ReportOptions, why::Why},
    verdict::Verdict,
    why::{self, Choice, Wanted, Watch, why},
};

/// What a limit calls it.
pub(super) const WHAT: &str = "what keeps leaked objects alive";

/// Sites that are explained at most, the worst first.
const SITES: usize = 8;

/// The sites of the Go heap that leak by what is in the capture, the worst first.
///
/// # Errors
///
/// The capture cannot be read back, or no site leaks.
pub(super) fn wanted(
    file: &File,
    symbols: &schema::Symbols,
    own_samples: &[LiveSample],
) -> Result<Vec<Wanted>> {
    // It was opened for writing, and may have been given another name since.
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .context("failed to read the capture back")?;
    let (capture, heap) =
        read_apart(BufReader::new(file)).context("failed to read the capture back")?;
    let options = ReportOptions {
        kinds: vec![Kind::GoHeap],
        verdicts: vec![Verdict::Leak],
        stacks: 0,
        ..ReportOptions::default()
    };
    let report = report::build_from(&capture, heap, Some(symbols), &options);
    if report.sites.is_empty() {
        bail!("no allocation site of the Go heap was judged a leak");
    }
    let sites = capture
        .intervals
        .iter()
        .flat_map(|interval| &interval.sites);
    let recorded: HashMap<u32, &schema::Site> = sites.map(|site| (site.id, site)).collect();
    let wanted = report.sites.iter().map(|site| {
        let ids = &site.capture_sites;
        let buckets = ids.iter().filter_map(|id| recorded.get(id));
        let buckets = buckets.filter(|site| site.sampling() == schema::Sampling::Runtime);
        let own = own_samples.iter().filter(|sample| {
            let site = sample.own_site.as_ref();
            site.is_some_and(|site| ids.contains(site))
        });
        Wanted {
            capture_sites: ids.clone(),
            stacks: buckets.map(|site| site.pcs.clone()).collect(),
            objects: own
                .map(|sample| (sample.address, sample.weight_bytes))
                .collect(),
        }
    });
    Ok(wanted.collect())
}

/// Looks at the process for what keeps the objects of these sites. Gives the block of the capture, and what
/// could not be told.
///
/// # Errors
///
/// The process has ended, or cannot be looked at.
pub(super) fn look(
    header: &schema::Header,
    mut wanted: Vec<Wanted>,
    max_memory: u64,
    progress: impl FnMut(&Watch),
) -> Result<(schema::Retention, Vec<schema::Limit>)> {
    let target = header.target.clone().unwrap_or_default();
    let mut left_out = wanted.len().saturating_sub(SITES);
    wanted.truncate(SITES);
    let options = why::Options {
        pid: target.pid as i32,
        choice: Choice::Recorded(wanted),
        sites: SITES,
        max_memory,
        max_overhead: Some(header.max_overhead_percent / 100.0).filter(|&bound| bound > 0.0),
        start_ticks: Some(target.start_ticks),
        sample_rate: target.go.map(|go| go.sample_rate),
    };
    let mut why = why(&options, progress)?;
    let all = why.sites.len();
    let retention = block(&mut why)?;
    left_out += all - why.sites.len();
    let limits = (left_out > 0).then(|| {
        let reason = format!("looked for at the worst sites only, {left_out} leak beside them");
        limit(WHAT, &reason)
    });
    Ok((retention, limits.into_iter().collect()))
}

/// The block of the capture that says it, without the last sites if they do not fit.
pub(super) fn block(why: &mut Why) -> Result<schema::Retention> {
    loop {
        let json = serde_json::to_string(why).context("failed to write down what keeps objects")?;
        if json.len() <= report::why::MAX_JSON || why.sites.pop().is_none() {
            return Ok(schema::Retention { why: json });
        }
    }
}
