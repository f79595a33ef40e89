//! Keeps the probes that are attached for good within what they may cost.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use super::Options;
use crate::{
    capture::schema::{Kind, Limit, Loss, ProbeCost},
    loader::{Counted, LoadError, Loaded, RunCounter, Runs},
    loss,
    overhead::{Account, Cost, FLOOD, Family, TooDear, untraced_rate},
    plan::Plan,
    report::human,
    target::Target,
};

/// Most that probes may cost, in percent, unless something else is asked for.
const MAX_OVERHEAD: f64 = 3.0;

/// For how long hits are counted before a family that was asked for is let in.
const LOOK: Duration = Duration::from_millis(50);

/// Most that probes may cost, as a share of a processor, or of those that the target keeps busy.
pub(super) fn budget(options: &Options) -> f64 {
    options.max_overhead.unwrap_or(MAX_OVERHEAD) / 100.0
}

/// Families that were asked for in a way that has no bound.
fn unbounded(options: &Options) -> &'static [Family] {
    match (options.force, options.sample, options.max_overhead) {
        (true, ..) => &[Family::Vm, Family::Go, Family::Malloc, Family::Goroutine],
        (false, Some(_), None) => &[Family::Malloc],
        (false, ..) => &[],
    }
}

/// Most that all probes together may cost, as a share; none if a family of this plan has no bound.
pub(super) fn bound(options: &Options, plan: &Plan) -> Option<f64> {
    let has = |family: &Family| *family != Family::Malloc || plan.malloc;
    let is_bounded = !unbounded(options).iter().any(has);
    is_bounded.then(|| budget(options))
}

/// What probes have cost so far, and whether that is within the budget.
pub(super) struct Overhead<'a> {
    target: &'a Target,
    counter: RunCounter,
    account: Account,
    unbounded: &'static [Family],
    /// The last reading.
    counted: Counted,
    /// When the account was made up last, and what had been counted and used by then.
    before: BTreeMap<Family, Cost>,
    cpu: Duration,
    at: Instant,
}

impl<'a> Overhead<'a> {
    /// Begins to count; everything is attached.
    ///
    /// # Errors
    ///
    /// The kernel does not count.
    pub(super) fn start(
        options: &Options,
        target: &'a Target,
        loaded: &Loaded,
    ) -> Result<Self, LoadError> {
        let mut counter = loaded.count_runs()?;
        let counted = counter.read();
        Ok(Self {
            target,
            account: Account::new(budget(options)),
            unbounded: unbounded(options),
            before: counted.costs.clone(),
            counted,
            counter,
            cpu: target.cpu_time(),
            at: Instant::now(),
        })
    }

    /// Probes have been attached since.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub(super) fn include(&mut self, loaded: &Loaded) -> Result<(), LoadError> {
        self.counter.include(loaded)
    }

    /// Most that the recording may cost, as a share; none if a family has no bound.
    pub(super) fn bound(&self) -> Option<f64> {
        let is_bounded = self.unbounded.iter().all(|family| !self.has(*family));
        is_bounded.then(|| self.account.budget())
    }

    /// Runs of our programs up to the last reading.
    pub(super) fn runs(&self) -> Runs {
        self.counted.runs
    }

    /// What was lost by runs that the kernel left out, up to the last reading.
    pub(super) fn loss(&self) -> Option<Loss> {
        let count = self.counted.runs.skipped;
        (count > 0).then(|| Loss {
            cause: loss::PROGRAMS_SKIPPED.to_owned(),
            count,
        })
    }

    /// Whether a family's probes are still there.
    pub(super) fn has(&self, family: Family) -> bool {
        self.account.has(family)
    }

    /// Reads what each family has cost so far, as a capture has it, and what was lost, if that has changed.
    pub(super) fn read(&mut self) -> (Vec<ProbeCost>, Option<Loss>) {
        let before = self.loss();
        self.counted = self.counter.read();
        let costs = self.counted.costs.iter().map(|(family, cost)| ProbeCost {
            family: family.name().to_owned(),
            hits: cost.hits,
            ns: cost.time.as_nanos() as u64,
        });
        (
            costs.collect(),
            self.loss().filter(|now| Some(now) != before.as_ref()),
        )
    }

    /// What is left of the budget for probes that are attached in windows: half of it at least.
    pub(super) fn left(&self) -> f64 {
        let budget = self.account.budget();
        (budget - self.account.share()).max(budget / 2.0)
    }

    /// An interval is over, at whose end the costs were read. Gives the family that has to go, if one has to.
    pub(super) fn look(&mut self) -> Option<TooDear> {
        let (now, cpu) = (Instant::now(), self.target.cpu_time());
        let costs = self.counted.costs.clone();
        let bounded = costs
            .iter()
            .filter(|(family, _)| !self.unbounded.contains(family));
        let seen = bounded.map(|(&family, &cost)| {
            let before = self.before.get(&family).copied().unwrap_or_default();
            (family, cost.since(before))
        });
        let used = cpu.saturating_sub(self.cpu);
        let too_dear = self.account.observe(&seen.collect(), used, now - self.at);
        if too_dear.is_some() {
            self.counter.count_next();
        }
        (self.before, self.cpu, self.at) = (costs, cpu, now);
        too_dear
    }

    /// Says that a family's probes were taken away `t_ns` after the window opened.
    pub(super) fn limit(&self, gone: &TooDear, t_ns: u64) -> Limit {
        Limit {
            what: format!(
                "{} after {}",
                gone.family.what(),
                human::seconds(t_ns as f64 / 1e9)
            ),
            reason: format!(
                "probes on them were met {} times a second and took {} of the processor time (an \
                 estimate), where all together may take {} (`--max-overhead`): they were taken away",
                human::thousands(gone.hits_per_s.round() as u64),
                human::percent(gone.share),
                human::percent(self.account.budget()),
            ),
        }
    }
}

/// Kinds of memory that are not followed any more without a family's probes. A Go heap still is, by the
/// runtime's own profile; ages are unknown then.
pub(super) fn kinds(family: Family) -> &'static [Kind] {
    match family {
        Family::Vm => &[Kind::Mmap, Kind::Brk],
        Family::Malloc => &[Kind::Malloc],
        Family::Go | Family::Goroutine => &[],
    }
}

/// Refuses a family that was asked for, and is attached already, where it would be hit millions of times a
/// second.
///
/// # Errors
///
/// It would, or the kernel does not count.
pub(super) fn refuse_flood(
    family: Family,
    remedy: &'static str,
    loaded: &Loaded,
    target: &Target,
) -> Result<(), LoadError> {
    let mut counter = loaded.count_runs()?;
    let mut of_family = || {
        counter
            .read()
            .costs
            .get(&family)
            .copied()
            .unwrap_or_default()
    };
    let (at, cpu, before) = (Instant::now(), target.cpu_time(), of_family());
    thread::sleep(LOOK);
    let cost = of_family().since(before);
    let rate = untraced_rate(cost, target.cpu_time().saturating_sub(cpu), at.elapsed());
    if rate < FLOOD {
        return Ok(());
    }
    Err(LoadError::TooOften {
        what: family.what(),
        rate: human::thousands(rate.round() as u64),
        remedy,
    })
}
