//! What a report says around its sites: of whom, when, and what is missing.

use std::collections::BTreeMap;

use super::build::milli;
use super::human;
use super::schema::{
    GoReport, LimitReport, MallocReport, Method, SamplerSwitchReport, TargetReport, WindowReport,
};
use crate::capture::schema::{End, SamplerEnd};
use crate::capture::{Capture, Ended, Pauses};
use crate::live_heap::LiveHeap;

pub(super) fn target(capture: &Capture) -> TargetReport {
    let target = capture.header.target.clone().unwrap_or_default();
    let mut modules = capture.intervals.iter().flat_map(|i| &i.modules);
    let build_id = modules
        .find(|module| module.path == target.exe)
        .map(|module| module.build_id.clone());
    let header = &capture.header;
    let boot_ns = header
        .start_unix_ns
        .saturating_sub(header.start_monotonic_ns);
    TargetReport {
        build_id: build_id.filter(|id| !id.is_empty()),
        start_ticks: target.start_ticks,
        boot_unix_s: boot_ns / 1_000_000_000,
        pid: target.pid,
        comm: target.comm,
        exe: target.exe,
        cgroup: Some(target.cgroup).filter(|path| !path.is_empty()),
        container_id: Some(target.container_id).filter(|id| !id.is_empty()),
        ns_pids: target.ns_pids,
        runtime: target.runtime,
        go: target.go.map(|go| GoReport {
            version: go.version,
            stripped: go.stripped,
            pie: go.pie,
            heap_profiling: go.heap_profiling,
            sample_rate: go.sample_rate,
            sampling: sampling(capture, go.heap_profiling || go.sampler_switch.is_some())
                .to_owned(),
            sampler_switch: go.sampler_switch.map(|switch| SamplerSwitchReport {
                rate_before: switch.rate_before,
                rate_written: switch.rate_written,
                left_on: switch.left_on,
                end: sampler_end(capture).to_owned(),
            }),
        }),
    }
}

/// Who sampled the Go heap.
fn sampling(capture: &Capture, by_the_runtime: bool) -> &'static str {
    let mut intervals = capture.intervals.iter();
    match by_the_runtime {
        true => "runtime",
        false if intervals.any(|interval| interval.go_own_sampling.is_some()) => "leaktrace",
        false => "none",
    }
}

fn sampler_end(capture: &Capture) -> &'static str {
    let Ended::Closed(close) = &capture.how_it_ended else {
        return "unknown";
    };
    match close.sampler_end() {
        SamplerEnd::PutBack => "put-back",
        SamplerEnd::TargetGone => "target-gone",
        SamplerEnd::Changed => "changed",
        SamplerEnd::Failed => "failed",
        SamplerEnd::Unspecified => "unknown",
    }
}

pub(super) fn window(capture: &Capture, heap: &LiveHeap, go: bool) -> WindowReport {
    let recorded_s = heap.timeline.duration_s();
    let (end, end_text, duration_s) = match &capture.how_it_ended {
        Ended::Closed(close) => {
            let (end, text) = match close.end() {
                End::Duration => ("duration", "the time asked for was over"),
                End::Signal => ("signal", "leaktrace was told to stop"),
                End::TargetExit => ("target-exit", "the target exited"),
                End::TargetOom => (
                    "target-oom",
                    "the kernel killed the target for want of memory",
                ),
                End::Live => ("live", "a moment of it: the recording went on"),
                End::Lost | End::Unspecified => ("lost", "leaktrace itself failed; see the limits"),
            };
            (
                end,
                text.to_owned(),
                (close.t_ns as f64 / 1e9).max(recorded_s),
            )
        }
        Ended::Truncated { at } => {
            let text = format!(
                "the capture was not closed: leaktrace was killed, or could not write on; all {at} bytes of it are read"
            );
            ("lost", text, recorded_s)
        }
        Ended::Torn { at, reason } => {
            let text = format!("the capture is damaged at byte {at}: {reason}; all before is read");
            ("lost", text, recorded_s)
        }
    };
    WindowReport {
        start_unix_ns: capture.header.start_unix_ns,
        duration_s: milli(duration_s),
        end: end.to_owned(),
        end_text,
        intervals: capture.intervals_read,
        gc_cycles: go.then(|| {
            heap.timeline
                .collections
                .last()
                .copied()
                .unwrap_or_default()
        }),
    }
}

/// The last count of every cause.
pub(super) fn losses(capture: &Capture) -> BTreeMap<String, u64> {
    let close = match &capture.how_it_ended {
        Ended::Closed(close) => close.losses.as_slice(),
        _ => &[],
    };
    let recorded = capture
        .intervals
        .iter()
        .flat_map(|interval| &interval.losses)
        .chain(close);
    let mut losses: BTreeMap<_, _> = recorded
        .map(|loss| (loss.cause.clone(), loss.count))
        .collect();
    losses.retain(|_, count| *count > 0);
    losses
}

pub(super) fn limits(capture: &Capture) -> Vec<LimitReport> {
    let found = match &capture.how_it_ended {
        Ended::Closed(close) => close.limits.as_slice(),
        _ => &[],
    };
    let limits = capture.header.limits.iter().chain(found);
    let limits = limits.map(|limit| LimitReport {
        what: limit.what.clone(),
        reason: limit.reason.clone(),
    });
    limits.chain(pauses(&capture.pauses)).collect()
}

/// The times in which leaktrace did not run.
fn pauses(pauses: &Pauses) -> Option<LimitReport> {
    let seconds = |ns: u64| human::seconds(milli(ns as f64 / 1e9));
    let (from, to) = pauses.longest_ns;
    let between = format!("between {} and {}", seconds(from), seconds(to));
    let which = match pauses.count {
        0 => return None,
        1 => between,
        count => format!(
            "{count} times, for {} in all, the longest {between}",
            seconds(pauses.total_ns)
        ),
    };
    Some(LimitReport {
        what: "some of the time by itself".to_owned(),
        reason: format!(
            "leaktrace did not run {which}: it was stopped, or the machine had no time for it; what the kernel \
             counted meanwhile is in the interval behind it"
        ),
    })
}

/// How native allocators were traced.
pub(super) fn malloc(capture: &Capture, heap: &LiveHeap) -> Option<MallocReport> {
    let sampling = capture.header.malloc.as_ref()?;
    let intervals = capture.intervals.iter();
    let discarded = intervals.filter_map(|interval| Some(interval.windows.as_ref()?.discarded));
    let (open_share, windows) = heap.windows().unwrap_or_default();
    let in_windows = sampling.in_windows;
    Some(MallocReport {
        method: match (in_windows, sampling.sample_bytes) {
            (true, _) => Method::Windows,
            (false, 0 | 1) => Method::Count,
            (false, _) => Method::Samples,
        },
        sample_bytes: sampling.sample_bytes,
        allocs_per_s: Some(sampling.allocs_per_s.round()).filter(|&rate| rate > 0.0),
        max_overhead_percent: Some(sampling.max_overhead_percent).filter(|&most| most > 0.0),
        windows: in_windows.then(|| [windows, discarded.fold(0, u64::saturating_add)]),
        open_share: in_windows.then_some(open_share),
    })
}
