//! How densely blocks of native allocators are taken: as the user says, or by how fast the process
//! allocates.

use std::{thread, time::Duration};

use crate::{
    capture::schema::{Limit, MallocSampling},
    drain::{Coarsened, Kernel},
    loader::LoadError,
    report::human,
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

/// For how long the calls are counted before leaktrace chooses.
const LOOK: Duration = Duration::from_millis(500);

/// Allocations a second up to which every block is taken: at two microseconds for a block's birth and
/// death that is four percent of a processor.
const SLOW: f64 = 20_000.0;

/// Says how densely blocks are taken, and tells the kernel side, which takes none before.
///
/// # Errors
///
/// A map cannot be read or written.
pub(super) fn begin(
    kernel: &mut Kernel,
    asked: Option<Sample>,
) -> Result<MallocSampling, LoadError> {
    let (sample_bytes, allocs_per_s) = match asked {
        Some(Sample::All) => (1, 0.0),
        Some(Sample::Bytes(bytes)) => (bytes, 0.0),
        None => {
            let before = kernel.malloc_calls()?.allocs;
            thread::sleep(LOOK);
            let calls = kernel.malloc_calls()?.allocs - before;
            let rate = calls as f64 / LOOK.as_secs_f64();
            (if rate <= SLOW { 1 } else { Sample::DEFAULT }, rate)
        }
    };
    let sample_bytes = kernel.set_malloc_rate(sample_bytes)?;
    Ok(MallocSampling {
        sample_bytes,
        asked_for: asked.is_some(),
        allocs_per_s,
    })
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
