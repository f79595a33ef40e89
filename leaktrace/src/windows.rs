//! Drives the windows in which native allocators are traced: opens and closes them, and has what each has
//! shown taken in. `duty_cycle` says when and for how long.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    drain::Drain,
    duty_cycle::{Spent, Windows},
    loader::{Closing, LoadError, Loaded, OpenSet, ProbeSet},
    plan::Uprobe,
    record::monotonic_ns,
    sampling::chance,
    target::Target,
    turnover::Window,
};

/// A call that was under way when the probes came is not seen. Such calls have ended after so long, and only
/// then the window begins.
const SETTLE_NS: u64 = 200_000;

/// How soon to look again whether probes are gone.
const AGAIN: Duration = Duration::from_millis(5);

/// The windows of one recording.
pub struct MallocWindows<'a> {
    target: &'a Target,
    /// `None`: there are no windows (any more).
    probes: Option<ProbeSet>,
    plan: Windows,
    open: Option<OpenSet>,
    closing: Closing,
    /// Windows opened so far.
    number: u64,
    next: Step,
    at: Instant,
    period: Period,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Close,
    NewPeriod,
}

/// The period so far.
struct Period {
    start: Instant,
    /// From when to when its window was open, once it is closed.
    window: (u64, u64),
    /// What the probes had been hit by at its beginning: allocations and frees.
    calls: [u64; 2],
    cpu: Duration,
    /// Processor time used in the window; while it is open, up to its beginning.
    window_cpu: Duration,
}

impl<'a> MallocWindows<'a> {
    /// Windows of these probes that cost at most the share `budget`; the first is due soon.
    ///
    /// # Errors
    ///
    /// The kernel's maps cannot be used.
    pub fn start(
        target: &'a Target,
        probes: Option<ProbeSet>,
        budget: f64,
        drain: &mut Drain,
    ) -> Result<Self, LoadError> {
        let now = Instant::now();
        let mut windows = Self {
            target,
            probes,
            plan: Windows::new(budget),
            open: None,
            closing: Closing::default(),
            number: 0,
            next: Step::NewPeriod,
            at: now,
            period: Period {
                start: now,
                window: (0, 0),
                calls: [0; 2],
                cpu: Duration::ZERO,
                window_cpu: Duration::ZERO,
            },
        };
        if windows.is_on() {
            windows.new_period(now, drain)?;
        }
        Ok(windows)
    }

    /// Whether there are windows.
    pub fn is_on(&self) -> bool {
        self.probes.is_some()
    }

    /// From now on they may cost that share of the target's processor time.
    pub fn may_cost(&mut self, budget: f64) {
        self.plan.may_cost(budget);
    }

    /// Whether one is open. Nothing else should be done then that takes a processor: on the target's, it would
    /// hold the target up in windows only, and put off their ends.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When [`MallocWindows::act`] is due.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Adds probes in code that was mapped meanwhile.
    ///
    /// # Errors
    ///
    /// They cannot be attached.
    pub fn add(&mut self, probes: &[Uprobe], loaded: &mut Loaded) -> Result<(), LoadError> {
        match &mut self.probes {
            Some(set) => set.add(probes, loaded, self.target),
            None => Ok(()),
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    ///
    /// The probes cannot be attached any more, or the kernel's maps cannot be used.
    pub fn act(&mut self, drain: &mut Drain) -> Result<(), LoadError> {
        if !matches!(self.next, Step::Close) && !self.closing.is_over() {
            self.at = Instant::now() + AGAIN;
            return Ok(());
        }
        match self.next {
            Step::Open => {
                if let Some(probes) = &self.probes {
                    self.open = Some(probes.open(self.target)?);
                    self.number += 1;
                    self.period.window.0 = monotonic_ns() + SETTLE_NS;
                    drain.kernel().set_malloc_window(self.number)?;
                    self.period.window_cpu = self.target.cpu_time();
                }
                (self.next, self.at) = (Step::Close, Instant::now() + self.plan.length());
            }
            Step::Close => {
                self.close(drain)?;
                (self.next, self.at) = (Step::NewPeriod, self.period.start + self.plan.period());
            }
            Step::NewPeriod => {
                let now = Instant::now();
                self.take_in(now, now - self.period.start, drain)?;
                self.new_period(now, drain)?;
            }
        }
        Ok(())
    }

    /// There is no window any more.
    ///
    /// # Errors
    ///
    /// As [`MallocWindows::act`].
    pub fn stop(&mut self, drain: &mut Drain) -> Result<(), LoadError> {
        if self.probes.take().is_none() {
            return Ok(());
        }
        let was_open = self.open.is_some();
        self.close(drain)?;
        std::mem::take(&mut self.closing).wait();
        // The window's place was drawn from the whole of the period, whatever of it there was. One that is cut
        // short is left out.
        let is_over = !was_open && matches!(self.next, Step::NewPeriod);
        match is_over {
            true => self.take_in(Instant::now(), self.plan.period(), drain),
            false => Ok(()),
        }
    }

    fn close(&mut self, drain: &mut Drain) -> Result<(), LoadError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.period.window.1 = monotonic_ns();
        self.period.window_cpu = self
            .target
            .cpu_time()
            .saturating_sub(self.period.window_cpu);
        // First the gate, then the probes: none of them may be missing while it is open.
        let closed = drain.kernel().set_malloc_window(0);
        self.closing.add(open);
        closed
    }

    /// The window of a period is over, whose place was drawn from a time of that length.
    fn take_in(
        &mut self,
        now: Instant,
        stands_for: Duration,
        drain: &mut Drain,
    ) -> Result<(), LoadError> {
        let (from_ns, to_ns) = self.period.window;
        if to_ns <= from_ns {
            return Ok(());
        }
        let whole = drain.window(Window {
            from_ns,
            to_ns,
            stands_for_ns: stands_for.as_nanos() as u64,
            cpu_ns: [
                self.period.window_cpu.as_nanos() as u64,
                self.target
                    .cpu_time()
                    .saturating_sub(self.period.cpu)
                    .as_nanos() as u64,
            ],
        })?;
        let calls = calls(drain)?;
        let costs = drain.costs_ns().unwrap_or_default();
        let ns: f64 = (0..2)
            .map(|kind| (calls[kind] - self.period.calls[kind]) as f64 * costs[kind])
            .sum();
        self.plan.observe(Spent {
            probes: Duration::from_nanos(ns as u64),
            cpu: self.target.cpu_time().saturating_sub(self.period.cpu),
            period: now - self.period.start,
            whole,
        });
        Ok(())
    }

    fn new_period(&mut self, now: Instant, drain: &mut Drain) -> Result<(), LoadError> {
        self.period = Period {
            start: now,
            window: (0, 0),
            calls: calls(drain)?,
            cpu: self.target.cpu_time(),
            window_cpu: Duration::ZERO,
        };
        (self.next, self.at) = (Step::Open, now + self.plan.place(chance()));
        Ok(())
    }
}

fn calls(drain: &mut Drain) -> Result<[u64; 2], LoadError> {
    let calls = drain.kernel().malloc_calls()?;
    Ok([calls.allocs, calls.frees])
}
