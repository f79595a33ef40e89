//! Drives our own sampling of a Go heap: opens and closes the windows of the probe behind refills, and
//! sets how densely samples are taken.

use std::{thread::JoinHandle, time::Duration};

use leaktrace_common::{GO_LARGE, GO_REFILL, GoSampling};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::Instant;

use crate::{
    drain::{Drain, GoHeap, RefillSampler, Sampler},
    duty_cycle::{DutyCycle, Observation, PERIOD},
    inventory::{Buckets, Spans},
    loader::{LoadError, Loaded, MapSizes, Window},
    plan::{Plan, Uprobe},
    target::Target,
};

/// Share of the target's processor time that the probe behind refills may cost. Half of the 2 % that the
/// documentation names: the kernel takes up to a tenth of a second to take a probe off again.
const BUDGET: f64 = 0.01;
/// Samples a second from which on they are taken half as densely, and below which as before.
const MANY: u64 = 2000;
const FEW: u64 = 500;

/// Who samples the Go heap, if the plan has it sampled; leaktrace with a sample in `bytes` bytes.
pub fn go_heap(target: &Target, plan: &Plan, bytes: u64, sizes: MapSizes) -> GoHeap {
    match (plan.go.clone(), plan.refill.clone()) {
        (Some(sampler), _) => GoHeap::Runtime(Sampler::new(Buckets::new(target.memory, sampler))),
        (None, Some(refill)) => {
            let spans = Spans::new(target.memory, refill);
            GoHeap::Refill(RefillSampler::new(
                spans,
                bytes,
                sizes.live_objects as usize,
            ))
        }
        (None, None) => GoHeap::Unsampled,
    }
}

/// Our own sampling of one process.
pub struct OwnSampling<'a> {
    target: &'a Target,
    /// The probe behind refills; `None`: there is nothing to do.
    probe: Option<&'a Uprobe>,
    /// Bytes for each sample: as asked for, and as it is now.
    wanted: u64,
    bytes: u64,
    cycle: DutyCycle,
    window: Option<(Window, Instant)>,
    closing: Option<JoinHandle<()>>,
    next: Step,
    at: Instant,
    period: Period,
}

/// What is due next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open(Duration),
    Close,
    NewPeriod,
}

/// The period so far.
struct Period {
    start: Instant,
    attached: Duration,
    hits: u64,
    samples: u64,
    cpu: Duration,
}

impl<'a> OwnSampling<'a> {
    /// Starts with a sample in `bytes` bytes, if the plan has the heap sampled so; the first window is
    /// due within a second.
    ///
    /// # Errors
    ///
    /// The kernel's maps cannot be used.
    pub fn start(
        target: &'a Target,
        plan: &'a Plan,
        bytes: u64,
        drain: &mut Drain,
    ) -> Result<Self, LoadError> {
        let now = Instant::now();
        let mut sampling = Self {
            target,
            probe: plan.uprobes.iter().find(|probe| probe.in_windows),
            wanted: bytes,
            bytes,
            cycle: DutyCycle::new(BUDGET),
            window: None,
            closing: None,
            next: Step::NewPeriod,
            at: now,
            period: Period {
                start: now,
                attached: Duration::ZERO,
                hits: 0,
                samples: 0,
                cpu: Duration::ZERO,
            },
        };
        if sampling.is_on() {
            sampling.new_period(now, drain)?;
        }
        Ok(sampling)
    }

    /// Whether there is anything to do.
    pub fn is_on(&self) -> bool {
        self.probe.is_some()
    }

    /// When [`OwnSampling::act`] is due.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Does what is due.
    ///
    /// # Errors
    ///
    /// The probe cannot be attached any more, or the kernel's maps cannot be used.
    pub fn act(&mut self, loaded: &mut Loaded, drain: &mut Drain) -> Result<(), LoadError> {
        let now = Instant::now();
        match self.next {
            Step::Open(length) => {
                if let (Some(probe), None) = (self.probe, &self.window) {
                    let window = loaded.open_window(probe, self.target)?;
                    self.window = Some((window, Instant::now()));
                }
                (self.next, self.at) = match length < PERIOD {
                    true => (Step::Close, Instant::now() + length),
                    false => (Step::NewPeriod, self.period.start + PERIOD),
                };
            }
            Step::Close => {
                self.close(now);
                (self.next, self.at) = (Step::NewPeriod, self.period.start + PERIOD);
            }
            Step::NewPeriod => {
                self.observe(now, drain)?;
                self.new_period(now, drain)?;
            }
        }
        Ok(())
    }

    /// Detaches the probe and does nothing any more; what was sampled is followed further.
    pub fn give_up(&mut self) {
        self.close(Instant::now());
        self.probe = None;
    }

    /// Detaches the probe for good.
    pub fn stop(mut self) {
        self.give_up();
        if let Some(closing) = self.closing.take() {
            // It can only have panicked, which it has said itself.
            let _ = closing.join();
        }
    }

    fn close(&mut self, now: Instant) {
        if let Some((window, opened)) = self.window.take() {
            self.period.attached += now - opened.max(self.period.start);
            if let Some(before) = self.closing.replace(window.close()) {
                let _ = before.join();
            }
        }
    }

    fn observe(&mut self, now: Instant, drain: &mut Drain) -> Result<(), LoadError> {
        if let Some((_, opened)) = self.window {
            self.period.attached += now - opened.max(self.period.start);
        }
        let hits = drain.kernel().go_hits(GO_REFILL)?;
        let length = now - self.period.start;
        self.cycle.observe(Observation {
            attached: self.period.attached,
            hits: hits - self.period.hits,
            cpu: self.target.cpu_time().saturating_sub(self.period.cpu),
            period: length,
        });
        let share =
            self.period.attached.as_secs_f64() / length.as_secs_f64().max(f64::MIN_POSITIVE);
        drain.own_sampling(hits - self.period.hits, share.min(1.0));
        let samples = drain.samples() - self.period.samples;
        let a_second = (samples as f64 / length.as_secs_f64().max(0.1)) as u64;
        if a_second > MANY {
            self.bytes *= 2;
        } else if a_second < FEW {
            self.bytes = (self.bytes / 2).max(self.wanted);
        }
        Ok(())
    }

    fn new_period(&mut self, now: Instant, drain: &mut Drain) -> Result<(), LoadError> {
        self.period = Period {
            start: now,
            attached: Duration::ZERO,
            hits: drain.kernel().go_hits(GO_REFILL)?,
            samples: drain.samples(),
            cpu: self.target.cpu_time(),
        };
        let share = self.cycle.share();
        let sampling = |share: f64| GoSampling {
            rate: ((self.bytes as f64 * share) as u64).max(1),
            share: (share * 1e6) as u32,
            reserved: 0,
        };
        drain.kernel().set_go_sampling(GO_REFILL, sampling(share))?;
        drain.kernel().set_go_sampling(GO_LARGE, sampling(1.0))?;
        let (wait, length) = self.cycle.window(chance());
        if length < PERIOD {
            self.close(now);
        }
        (self.next, self.at) = (Step::Open(length), now + wait);
        Ok(())
    }
}

/// A random number from 0 to 1.
pub(crate) fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the window stands at the beginning of its period.
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
