//! `--go-enable-heap-profile`: what it comes to for a target, and what is said of it.

use crate::{
    capture::schema,
    plan::Plan,
    target::{HeapSampler, PutBack, SAMPLER_RATE, SamplerSwitch, SwitchError, Target},
};

/// Go's heap sampler in this recording.
pub(super) enum HeapProfile {
    /// Left as it is.
    AsFound,
    /// Asked for, but it is on already.
    On(u64),
    /// To be switched on, and back at the end.
    Switched(SamplerSwitch),
}

impl HeapProfile {
    /// Looks at the target; nothing is written yet.
    pub(super) fn look(target: &Target, is_asked: bool) -> Result<Self, SwitchError> {
        if !is_asked {
            return Ok(Self::AsFound);
        }
        Ok(match target.heap_sampler()? {
            HeapSampler::On(rate) => Self::On(rate),
            HeapSampler::Off(switch) => Self::Switched(switch),
        })
    }

    /// The rate with which the plan is to be made, if it is not the one that is found.
    pub(super) fn planned_rate(&self) -> Option<u64> {
        matches!(self, Self::Switched(_)).then_some(SAMPLER_RATE)
    }

    /// Whether the plan reads what would be sampled.
    pub(super) fn suits(&self, plan: &Plan) -> Result<(), SwitchError> {
        let Self::Switched(switch) = self else {
            return Ok(());
        };
        if plan.go.is_some() {
            return Ok(());
        }
        let reasons = plan.limits.iter().map(|limit| limit.reason.as_str());
        Err(SwitchError::Unsupported {
            pid: switch.pid(),
            reason: format!(
                "its samples could not be read ({})",
                reasons.collect::<Vec<_>>().join("; ")
            ),
        })
    }

    /// Switches the sampler on: the probes are live, and no bucket has been read.
    pub(super) fn turn_on(&mut self) -> Result<(), SwitchError> {
        match self {
            Self::Switched(switch) => switch.turn_on(),
            Self::AsFound | Self::On(_) => Ok(()),
        }
    }

    /// Puts the sampler back. The error says what stays in the target.
    pub(super) fn put_back(&mut self) -> Result<schema::SamplerEnd, (schema::SamplerEnd, String)> {
        let Self::Switched(switch) = self else {
            return Ok(schema::SamplerEnd::Unspecified);
        };
        match switch.put_back() {
            PutBack::NotNeeded => Ok(schema::SamplerEnd::Unspecified),
            PutBack::Done => Ok(schema::SamplerEnd::PutBack),
            PutBack::TargetGone => Ok(schema::SamplerEnd::TargetGone),
            PutBack::Changed(value) => Err((
                schema::SamplerEnd::Changed,
                format!(
                    "runtime.MemProfileRate was {SAMPLER_RATE}, written by leaktrace, and is \
                     {value} now: left as it is"
                ),
            )),
            PutBack::Failed(error) => Err((
                schema::SamplerEnd::Failed,
                format!(
                    "failed to put runtime.MemProfileRate back to {}: {error}; it stays \
                     {SAMPLER_RATE}, one sample in 512 KiB, until a recording with \
                     --go-enable-heap-profile puts it back or the process ends",
                    switch.before()
                ),
            )),
        }
    }

    /// `runtime.MemProfileRate` at the attach, before anything was written.
    pub(super) fn rate_at_attach(&self, plan: &Plan) -> u64 {
        match self {
            Self::Switched(switch) => switch.found(),
            Self::AsFound | Self::On(_) => plan.sample_rate.unwrap_or(0),
        }
    }

    /// What a capture's header says of it.
    pub(super) fn describe(&self) -> Option<schema::SamplerSwitch> {
        let Self::Switched(switch) = self else {
            return None;
        };
        Some(schema::SamplerSwitch {
            rate_before: switch.before(),
            rate_written: SAMPLER_RATE,
            left_on: switch.found() != switch.before(),
        })
    }

    /// What is said of it to people, once the probes are live.
    pub(super) fn note(&self) -> Option<String> {
        Some(match self {
            Self::AsFound => return None,
            Self::On(rate) => format!(
                "--go-enable-heap-profile has nothing to do: the heap sampler is on, one sample \
                 in {rate} bytes"
            ),
            Self::Switched(switch) if switch.found() == 0 => format!(
                "heap sampler switched on: runtime.MemProfileRate is {SAMPLER_RATE} and will be \
                 put back to 0"
            ),
            Self::Switched(_) => "the heap sampler was left on by a recording that was killed; \
                 runtime.MemProfileRate will be put back to 0"
                .to_owned(),
        })
    }

    /// What cannot be seen because of it.
    pub(super) fn limits(&self, target: &Target) -> Vec<schema::Limit> {
        let (Self::Switched(switch), Some(Ok(go))) = (self, &target.go) else {
            return Vec::new();
        };
        let version = go.binary.version();
        let limit = |what: &str, reason: &str| schema::Limit {
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        let mut limits = vec![if switch.found() == 0 {
            limit(
                "Go heap allocations from before the attach",
                "the sampler was off and began with this recording (--go-enable-heap-profile), \
                 unless an earlier one had it on for a while",
            )
        } else {
            limit(
                "Go heap allocations from before the sampler began",
                "it was off until a recording with --go-enable-heap-profile that was killed",
            )
        }];
        if (version.major, version.minor) < (1, 24) && switch.found() == 0 {
            limits.push(limit(
                "the size of the first samples",
                "before Go 1.24 the first allocation on each processor (GOMAXPROCS) is sampled \
                 whatever its size once the sampler is switched on: a site may show one small \
                 object scaled up",
            ));
        }
        limits
    }
}
