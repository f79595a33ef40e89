//! What the probes cost the target, and which of them it can no longer afford.
//!
//! A probe costs what its program takes, which the kernel counts, and what leads to the program: a breakpoint
//! or the slow entry of a system call, which nothing counts and which is taken as a constant. What comes of it
//! is held against a budget, family by family, and the family that costs most has to go when all of them
//! together cost more for a while.
//!
//! Contract: pure; time is the caller's. Probes that are attached in windows have a budget of their own
//! (`duty_cycle`) and are not in here.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What a breakpoint on an emulated instruction costs without a program, and what a return by uretprobe adds
/// (docs/overhead.md). On bare metal both are less.
const BREAKPOINT: Duration = Duration::from_nanos(1000);
const RETURN: Duration = Duration::from_nanos(500);
/// What a traced system call costs without a program.
const TRACEPOINT: Duration = Duration::from_nanos(100);

/// A budget is exceeded when the mean over about so many seconds is above it. At the beginning nothing has been
/// spent in them: a burst may take what they would have been allowed, 0.6 s of a processor at 3 %.
const MEMORY_S: f64 = 20.0;

/// Hits a second from which on a probe that was asked for is refused.
pub const FLOOD: f64 = 1e6;

/// Probes that are judged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// mmap, munmap, mremap and brk.
    Vm,
    /// Births and deaths of the objects that Go's heap sampler takes.
    Go,
    /// Native allocators, where they are not attached in windows.
    Malloc,
    /// Goroutines as they are made and end.
    Goroutine,
}

impl Family {
    /// Its name, as of `--probe`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Go => "go",
            Self::Malloc => "malloc",
            Self::Goroutine => "goroutine",
        }
    }

    /// What it traces.
    pub fn what(self) -> &'static str {
        match self {
            Self::Vm => "mmap, munmap, mremap and brk",
            Self::Go => "sampled objects of the Go heap, as they are born and die",
            Self::Malloc => "calls of native allocators",
            Self::Goroutine => "goroutines, as they are made and end",
        }
    }

    /// The family of a program of the kernel side, if it can be done without, and what leads to each of its
    /// runs costs.
    pub fn of(program: &str) -> Option<(Self, Duration)> {
        Some(match program {
            "go_sample" | "go_free" => (Self::Go, BREAKPOINT),
            "go_created" | "go_exited" => (Self::Goroutine, BREAKPOINT),
            // Of both ends of a call, most often of the first.
            "malloc_call" => (Self::Malloc, BREAKPOINT),
            "malloc_returned" => (Self::Malloc, RETURN),
            name if name.starts_with("malloc_") => (Self::Malloc, BREAKPOINT),
            "enter_call" | "exit_call" => (Self::Vm, TRACEPOINT),
            _ => return None,
        })
    }
}

/// How often the probes of a family were hit, and what that cost the target's threads, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Hits.
    pub hits: u64,
    /// Time: the programs' as the kernel counted it, and what leads to them.
    pub time: Duration,
}

impl Cost {
    /// What has come since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(before.hits),
            time: self.time.saturating_sub(before.time),
        }
    }
}

/// How often a second the probes would be hit if they cost nothing, by what was seen in a time in which the
/// target used `cpu` of processor time. A loop that does little else is slowed down many times by them.
pub fn untraced_rate(seen: Cost, cpu: Duration, period: Duration) -> f64 {
    let cpu = cpu.as_secs_f64().max(seen.time.as_secs_f64());
    let own = (cpu - seen.time.as_secs_f64()).max(cpu / 50.0);
    let slowed = if own > 0.0 { cpu / own } else { 1.0 };
    seen.hits as f64 / period.as_secs_f64().max(1e-3) * slowed
}

/// A family that has to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooDear {
    /// The family.
    pub family: Family,
    /// What it cost in the last interval, as a share of one processor or of those that the target keeps busy.
    pub share: f64,
    /// How often a second it was hit in the last interval.
    pub hits_per_s: f64,
}

/// Holds what probes cost against a budget.
#[derive(Clone, Debug)]
pub struct Account {
    budget: f64,
    /// What each family costs of late.
    shares: BTreeMap<Family, f64>,
    gone: BTreeSet<Family>,
}

impl Account {
    /// `budget` is the share of the processor time that the target uses, or of one processor if that is more,
    /// that the probes may cost.
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            shares: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }

    /// The budget.
    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// What the families cost together of late.
    pub fn share(&self) -> f64 {
        self.shares.values().sum()
    }

    /// Whether a family's probes were not given up.
    pub fn has(&self, family: Family) -> bool {
        !self.gone.contains(&family)
    }

    /// Takes an interval of that length into account, in which the target used `cpu` of processor time. Gives
    /// the family that costs most if all together are above the budget; it does not count any more then.
    pub fn observe(
        &mut self,
        seen: &BTreeMap<Family, Cost>,
        cpu: Duration,
        length: Duration,
    ) -> Option<TooDear> {
        let seconds = length.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let busy = (cpu.as_secs_f64() / seconds).max(1.0);
        let weight = 1.0 - (-seconds / MEMORY_S).exp();
        let share_of = |cost: &Cost| cost.time.as_secs_f64() / seconds / busy;
        for (&family, cost) in seen {
            // It takes a while until probes are gone.
            if self.has(family) {
                let share = self.shares.entry(family).or_default();
                *share += (share_of(cost) - *share) * weight;
            }
        }
        if self.share() <= self.budget {
            return None;
        }
        let dearest = self.shares.iter().max_by(|a, b| a.1.total_cmp(b.1));
        let (&family, _) = dearest?;
        self.shares.remove(&family);
        self.gone.insert(family);
        let last = seen.get(&family).copied().unwrap_or_default();
        Some(TooDear {
            family,
            share: share_of(&last),
            hits_per_s: last.hits as f64 / seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cost(hits: u64, ms: u64) -> Cost {
        Cost {
            hits,
            time: Duration::from_millis(ms),
        }
    }

    #[test]
    fn the_dearest_goes_when_all_cost_too_much_for_a_while() {
        let mut account = Account::new(0.03);
        // 2.5 %: within the budget for ever.
        let cheap = BTreeMap::from([(Family::Vm, cost(1000, 5)), (Family::Go, cost(9000, 20))]);
        assert!((0..200).all(|_| account.observe(&cheap, SECOND, SECOND).is_none()));
        assert!((account.share() - 0.025).abs() < 1e-5);
        // One bad second is not enough, some are.
        let dear = BTreeMap::from([(Family::Vm, cost(1000, 5)), (Family::Go, cost(20_000, 35))]);
        assert_eq!(account.observe(&dear, SECOND, SECOND), None);
        let dropped = (0..20).find_map(|_| account.observe(&dear, SECOND, SECOND));
        let dropped = dropped.expect("4 % for twenty seconds");
        assert_eq!(dropped.family, Family::Go);
        assert_eq!(dropped.hits_per_s, 20_000.0);
        assert!((dropped.share - 0.035).abs() < 1e-9);
        // The rest stays, and what is hit until the probes are gone does not count.
        assert!((0..100).all(|_| account.observe(&dear, SECOND, SECOND).is_none()));
    }

    #[test]
    fn what_costs_many_times_the_budget_goes_at_once() {
        let mut account = Account::new(0.03);
        let flood = BTreeMap::from([(Family::Goroutine, cost(600_000, 800))]);
        let dropped = account.observe(&flood, SECOND, SECOND);
        assert_eq!(dropped.map(|it| it.family), Some(Family::Goroutine));
    }

    #[test]
    fn a_burst_may_take_what_was_not_spent() {
        let mut account = Account::new(0.03);
        let burst = BTreeMap::from([(Family::Malloc, cost(600_000, 220))]);
        assert!((0..2).all(|_| account.observe(&burst, SECOND, SECOND).is_none()));
        let quiet = BTreeMap::from([(Family::Malloc, cost(1000, 1))]);
        assert!((0..100).all(|_| account.observe(&quiet, SECOND, SECOND).is_none()));
    }

    #[test]
    fn a_process_on_many_processors_bears_more() {
        let mut account = Account::new(0.03);
        let seen = BTreeMap::from([(Family::Go, cost(100_000, 100))]);
        assert!((0..100).all(|_| account.observe(&seen, SECOND * 4, SECOND).is_none()));
        assert!((0..100).any(|_| account.observe(&seen, SECOND, SECOND).is_some()));
    }

    #[test]
    fn a_loop_that_is_slowed_down_would_call_many_times_as_often() {
        let tenth = SECOND / 10;
        // A tenth of its time goes to the probes.
        let rate = untraced_rate(cost(10_000, 10), tenth, tenth);
        assert!((rate - 111_111.0).abs() < 1.0, "{rate}");
        // Nearly all does: fifty times, at the most.
        let rate = untraced_rate(cost(50_000, 100), tenth, tenth);
        assert!((rate - 25e6).abs() < 1.0, "{rate}");
        assert_eq!(untraced_rate(Cost::default(), Duration::ZERO, tenth), 0.0);
    }

    #[test]
    fn programs_have_their_families() {
        let of = |program| Family::of(program).map(|(family, _)| family);
        assert_eq!(of("enter_call"), Some(Family::Vm));
        assert_eq!(of("go_free"), Some(Family::Go));
        assert_eq!(of("malloc_returned"), Some(Family::Malloc));
        assert_eq!(of("go_exited"), Some(Family::Goroutine));
        // Without these nothing else is right.
        assert_eq!(of("go_gc"), None);
        assert_eq!(of("exec"), None);
    }
}
