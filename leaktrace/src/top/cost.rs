//! What leaktrace itself costs.

use std::time::{Duration, Instant};

use procfs::process::Process;
use rustix::time::{ClockId, clock_gettime};

use crate::loader::Runs;

/// The tracer's own cost in the last interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// Share of one processor that this process took.
    pub(super) cpu: f64,
    /// Its resident memory, bytes.
    pub(super) rss: u64,
    /// What the probes cost the target, where the kernel counts it.
    pub(super) probes: Option<ProbeCost>,
}

/// Of the kernel side's programs, without the breakpoint that leads to them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProbeCost {
    /// Runs a second.
    pub(super) hits_per_s: f64,
    /// Share of one processor.
    pub(super) cpu: f64,
}

/// Measures from one interval to the next.
pub(super) struct Meter {
    at: Instant,
    cpu: Duration,
    runs: Option<Runs>,
}

impl Meter {
    pub(super) fn start() -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu_time(),
            runs: None,
        }
    }

    /// The cost since the last reading.
    pub(super) fn read(&mut self, runs: Option<Runs>) -> Cost {
        let (now, cpu) = (Instant::now(), cpu_time());
        let seconds = (now - self.at).as_secs_f64().max(1e-3);
        let probes = self.runs.zip(runs).map(|(before, runs)| ProbeCost {
            hits_per_s: runs.count.saturating_sub(before.count) as f64 / seconds,
            cpu: runs.time.saturating_sub(before.time).as_secs_f64() / seconds,
        });
        let cost = Cost {
            cpu: cpu.saturating_sub(self.cpu).as_secs_f64() / seconds,
            rss: rss(),
            probes,
        };
        (self.at, self.cpu, self.runs) = (now, cpu, runs);
        cost
    }
}

/// Processor time of this process, all threads together.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn rss() -> u64 {
    let memory = Process::myself().and_then(|process| process.statm());
    memory.map_or(0, |memory| {
        memory.resident * rustix::param::page_size() as u64
    })
}
