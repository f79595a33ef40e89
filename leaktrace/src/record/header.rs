//! What a capture's header says of the recording.

use super::{Options, heap_profile::HeapProfile, overhead};
use crate::{capture::schema, plan::Plan, planning, target::Target};

/// The header of a capture whose window opens at these times of the wall clock and of
/// `CLOCK_MONOTONIC`.
pub(super) fn header(
    options: &Options,
    target: &Target,
    plan: &Plan,
    heap_profile: &HeapProfile,
    malloc: Option<schema::MallocSampling>,
    (start_unix_ns, start_monotonic_ns): (u64, u64),
) -> schema::Header {
    let limit = |limit: &crate::plan::Limit| schema::Limit {
        what: limit.what.clone(),
        reason: limit.reason.clone(),
    };
    let limits = plan.limits.iter().map(limit);
    let mut described = target.describe(heap_profile.rate_at_attach(plan));
    if let Some(go) = &mut described.go {
        go.sampler_switch = heap_profile.describe();
    }
    schema::Header {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        start_unix_ns,
        start_monotonic_ns,
        interval_ns: options.interval.as_nanos() as u64,
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        target: Some(described),
        probes: planning::probes(target, plan),
        limits: limits.chain(heap_profile.limits(target)).collect(),
        malloc,
        max_overhead_percent: overhead::bound(options, plan).unwrap_or(0.0) * 100.0,
    }
}
