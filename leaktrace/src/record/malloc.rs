//! How blocks of native allocators are taken: as the user says, or by how fast the process allocates.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{Options, overhead};
use crate::{
    capture::schema::{Limit, MallocCalls, MallocSampling},
    drain::{Coarsened, Kernel},
    loader::{LoadError, Loaded, ProbeSet},
    overhead::Family,
    plan::Uprobe,
    report::human,
    target::Target,
};

/// How densely leaktrace samples what it samples itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Every block of native allocators.
    All,
    /// One sample in so many bytes.
    Bytes(u64),
}

impl Sample {
    /// Bytes for each sample unless something else is asked for.
    const DEFAULT: u64 = 512 << 10;

    /// Bytes for each sample of a Go heap whose runtime does not sample.
    pub(super) fn of_go_heap(asked: Option<Self>) -> u64 {
        match asked {
            Some(Self::Bytes(bytes)) => bytes,
            Some(Self::All) | None => Self::DEFAULT,
        }
    }
}

/// For how long the calls are counted before leaktrace chooses, at most and at least.
const LOOK: Duration = Duration::from_millis(500);
const SHORT_LOOK: Duration = Duration::from_millis(50);

/// What a block's birth and its death cost the target where each is traced, in seconds.
const BIRTH_S: f64 = 2e-6;
const DEATH_S: f64 = 0.7e-6;

/// Allocations a second up to which every block is taken where there can be no windows: at two microseconds
/// for a block's birth and death that is four percent of a processor.
const SLOW: f64 = 20_000.0;

/// How blocks are taken.
pub(super) struct Begun {
    /// As the capture's header has it.
    pub(super) sampling: MallocSampling,
    /// The probes, where they are attached in windows.
    pub(super) windows: Option<ProbeSet>,
}

/// The most that tracing native allocators may cost, as a share; none if there is no bound.
pub(super) fn budget(options: &Options) -> Option<f64> {
    // Windows are of one process only.
    let is_alone = options.sample.is_none() && options.sizes.processes == 0;
    let is_bounded = is_alone || options.max_overhead.is_some();
    is_bounded.then(|| overhead::budget(options))
}

/// Chooses, attaches `probes` or has them attached in windows, and tells the kernel side, which takes no
/// blocks before.
///
/// # Errors
///
/// A probe cannot be attached, or a map not be read or written.
pub(super) fn begin(
    options: &Options,
    target: &Target,
    probes: &[Uprobe],
    loaded: &mut Loaded,
    kernel: &mut Kernel,
) -> Result<Begun, LoadError> {
    let mut counted = None;
    if let Some(budget) = budget(options) {
        let mut set = ProbeSet::default();
        let look = set
            .add(probes, loaded, target)
            .and_then(|()| kernel.while_looking(|kernel| look(&set, target, budget, kernel)));
        match look {
            Ok(look) if look.cost > budget * look.busy => {
                return Ok(Begun {
                    sampling: MallocSampling {
                        sample_bytes: 1,
                        asked_for: options.max_overhead.is_some(),
                        allocs_per_s: look.allocs_per_s,
                        max_overhead_percent: budget * 100.0,
                        in_windows: true,
                    },
                    windows: Some(set),
                });
            }
            Ok(look) => counted = Some(look),
            Err(error) if options.max_overhead.is_some() => {
                let remedy = "--max-overhead needs Linux 6.10; use --sample instead";
                return Err(error.without_probe_sets(remedy));
            }
            Err(LoadError::Other { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    loaded.attach_uprobes(probes, target)?;
    if options.sample.is_some() && !options.force {
        let remedy = "leave --sample out, then they are traced in short windows";
        overhead::refuse_flood(Family::Malloc, remedy, loaded, target)?;
    }
    let (sample_bytes, allocs_per_s) = match (options.sample, &counted) {
        (Some(Sample::All), _) => (1, 0.0),
        (Some(Sample::Bytes(bytes)), _) => (bytes, 0.0),
        (None, Some(look)) => (1, look.allocs_per_s),
        (None, None) => {
            let before = kernel.malloc_calls()?.allocs;
            thread::sleep(LOOK);
            let calls = kernel.malloc_calls()?.allocs - before;
            let rate = calls as f64 / LOOK.as_secs_f64();
            (if rate <= SLOW { 1 } else { Sample::DEFAULT }, rate)
        }
    };
    let sample_bytes = kernel.set_malloc_rate(sample_bytes)?;
    Ok(Begun {
        sampling: MallocSampling {
            sample_bytes,
            asked_for: options.sample.is_some(),
            allocs_per_s,
            max_overhead_percent: budget(options).unwrap_or(0.0) * 100.0,
            in_windows: false,
        },
        windows: None,
    })
}

/// What counting the calls has shown.
struct Look {
    allocs_per_s: f64,
    /// What tracing each of them would cost, in processors.
    cost: f64,
    /// Processors that the target keeps busy, at least one.
    busy: f64,
}

/// Counts calls for a while; not for longer than it takes to see that they are too many.
fn look(set: &ProbeSet, target: &Target, budget: f64, kernel: &Kernel) -> Result<Look, LoadError> {
    let cpu = target.cpu_time();
    let probes = set.open(target)?;
    let begin = Instant::now();
    let before = kernel.malloc_calls()?;
    let look = loop {
        thread::sleep(SHORT_LOOK);
        let seconds = begin.elapsed().as_secs_f64();
        let MallocCalls { allocs, frees, .. } = kernel.malloc_calls()?;
        let (allocs, frees) = (allocs - before.allocs, frees - before.frees);
        let spent = allocs as f64 * BIRTH_S + frees as f64 * DEATH_S;
        let busy = target.cpu_time().saturating_sub(cpu).as_secs_f64() / seconds;
        let look = Look {
            allocs_per_s: allocs as f64 / seconds,
            cost: spent / seconds,
            busy: busy.max(1.0),
        };
        if seconds >= LOOK.as_secs_f64() || spent >= budget * look.busy * LOOK.as_secs_f64() {
            break look;
        }
    };
    probes.close().wait();
    Ok(look)
}

/// What is not known of blocks since their sampling was made coarser.
pub(super) fn limit(steps: &[Coarsened]) -> Option<Limit> {
    let told = steps.iter().map(|step| {
        let bytes = human::bytes(step.sample_bytes as f64);
        let since = human::seconds(step.t_ns as f64 / 1e9);
        format!("one in {bytes} since {since}")
    });
    let told: Vec<_> = told.collect();
    (!steps.is_empty()).then(|| Limit {
        what: "blocks of native allocators one by one".to_owned(),
        reason: format!(
            "more live than there is room for (`--live-objects`), so that they are sampled: {}",
            told.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarser_sampling_is_told() {
        assert_eq!(limit(&[]), None);
        let steps = [(1_200_000_000, 16 << 10), (3_000_000_000, 128 << 10)];
        let steps = steps.map(|(t_ns, sample_bytes)| Coarsened { t_ns, sample_bytes });
        let reason = limit(&steps).unwrap().reason;
        let told = "sampled: one in 16.0 KiB since 1.2 s, one in 128.0 KiB since 3 s";
        assert!(reason.ends_with(told), "{reason}");
    }
}
