//! Whether a group of goroutines leaks, and the evidence.
//!
//! A leaked goroutine waits for something that nobody will ever do: it came, stays, and never runs
//! again. So the verdict rests on the *settled* goroutines of a group, those that have been waiting
//! for two seconds and two intervals without having run: did they become more all through the
//! window, evenly, and did none of them leave? A pool's workers run in between, the clients of a slow
//! service leave in the end, a pool that falls idle does not have more goroutines than before.
//! docs/verdict.md has the rules and the thresholds with their reasons.
//!
//! Contract: pure; every verdict carries its evidence in words, with the numbers it rests on.

#![forbid(unsafe_code)]

use crate::{
    goroutine_history::GroupHistory,
    report::human,
    series::{self, Spread},
    verdict::Verdict,
};

/// Shorter windows, or fewer censuses, say nothing about growth.
const MIN_WINDOW_S: f64 = 3.0;
const MIN_CENSUSES: usize = 4;
/// Shorter windows do not make a leak: anything that is being set up grows for a few seconds.
const MIN_LEAK_WINDOW_S: f64 = 10.0;
/// Fewer more of them are not growth.
const MIN_GROWTH: f64 = 5.0;
/// Fewer settled ones do not make a leak.
const MIN_SETTLED: f64 = 6.0;
/// Of those that settled, the share that may leave in a leak.
const MAX_LEFT: f64 = 0.05;
/// Of the growth of a group, the share by which all goroutines of its go statement must have become
/// more: else others of them have only come to wait here too.
const MIN_CREATED: f64 = 0.5;
/// Parts into which the window is divided, and the least that must have grown.
const PARTS: usize = 6;
const MIN_FILLED: usize = 4;
/// How far before the middle the centre of the growth may lie, and by how many deviations.
const SLOWING_CENTRE: f64 = 0.07;
const SLOWING_Z: f64 = 2.5;
/// Last third against first that counts as having stopped, and the goroutines it takes: of fewer,
/// none may fall into a third by chance.
const STOPPED_THIRDS: f64 = 0.1;
const STOPPED_ARRIVALS: f64 = 9.0;

/// What the goroutines of a group do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing<'a> {
    /// They wait for another goroutine, for this reason in the runtime's words.
    Waiting(&'a str),
    /// They run, are about to, or are in a system call.
    Other,
}

/// What a judgement rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The group.
    pub group: &'a GroupHistory,
    /// Seconds after the attach of each of its moments.
    pub times: &'a [f64],
    /// All goroutines of the same go statement, whatever they do, at each moment.
    pub siblings: &'a [f64],
    /// What they do.
    pub doing: Doing<'a>,
    /// Whether the Go runtime made them for itself.
    pub is_runtimes_own: bool,
}

/// A verdict with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, one sentence each, the strongest first.
    pub evidence: Vec<String>,
    /// Robust slope of the count.
    pub growth_per_s: f64,
}

/// Judges one group.
pub fn judge(facts: &Facts) -> Judgement {
    let points: Vec<_> = facts
        .times
        .iter()
        .copied()
        .zip(facts.group.counts.iter().copied())
        .collect();
    let growth_per_s = series::slope(&points);
    let (verdict, evidence) = decide(facts, growth_per_s);
    Judgement {
        verdict,
        evidence,
        growth_per_s,
    }
}

/// What became of the settled goroutines.
struct Settled {
    /// More at the end than when those of the first census had settled.
    kept: f64,
    /// Left after having settled.
    left: f64,
    /// When they came.
    spread: Spread,
}

impl Settled {
    fn of(facts: &Facts) -> Self {
        let group = facts.group;
        // Those that were there at the first census settle in the beginning, whenever they came: what
        // counts is the time after that.
        let begin = first(facts.times) + settling_s(facts) + step_s(facts) / 2.0;
        let base = facts.times.partition_point(|time| *time < begin);
        let base = base.min(facts.times.len().saturating_sub(1));
        let since = |series: &[f64]| {
            let first = series.get(base).copied().unwrap_or(0.0);
            series.last().copied().unwrap_or(0.0) - first
        };
        let length_s = since(facts.times);
        let begin = facts.times.get(base).copied().unwrap_or(0.0);
        let steps = facts
            .times
            .windows(2)
            .zip(group.settled.windows(2))
            .skip(base);
        let arrivals = steps.filter(|(_, settled)| settled[1] > settled[0]);
        let arrivals = arrivals.map(|(times, settled)| {
            let more = settled[1] - settled[0];
            (
                times[0] - begin,
                times[1] - begin,
                more,
                more.round() as u64,
            )
        });
        Self {
            kept: since(&group.settled),
            left: since(&group.settled_left),
            spread: Spread::new(arrivals, length_s, PARTS),
        }
    }

    fn left_share(&self) -> f64 {
        self.left / (self.kept.max(0.0) + self.left).max(1.0)
    }

    fn stopped(&self) -> bool {
        let (first, last) = self.spread.outer_thirds();
        let middle = self.spread.total - first - last;
        self.spread.arrivals >= STOPPED_ARRIVALS && last <= STOPPED_THIRDS * first.max(middle)
    }

    fn slowing(&self) -> bool {
        0.5 - self.spread.centre >= SLOWING_CENTRE && self.spread.slowing() >= SLOWING_Z
    }
}

fn first(series: &[f64]) -> f64 {
    series.first().copied().unwrap_or(0.0)
}

fn window_s(facts: &Facts) -> f64 {
    facts.times.last().copied().unwrap_or(0.0) - first(facts.times)
}

/// Time between two censuses.
fn step_s(facts: &Facts) -> f64 {
    window_s(facts) / facts.times.len().saturating_sub(1).max(1) as f64
}

/// How long it takes to settle: two seconds, or two intervals.
fn settling_s(facts: &Facts) -> f64 {
    (2.0 * step_s(facts)).max(2.0)
}

fn decide(facts: &Facts, slope: f64) -> (Verdict, Vec<String>) {
    let group = facts.group;
    let window = human::seconds(window_s(facts));
    let goroutines = |number: f64| human::count(number.max(0.0).round() as u64, "goroutine");
    let growth = group.growth();
    let grew = match growth.round() {
        0.0 => format!("as many as at the attach, after {window}"),
        fewer if fewer < 0.0 => format!("{} fewer in {window}", goroutines(-fewer)),
        more => format!("{} more in {window}, {slope:.1}/s", goroutines(more)),
    };
    if group.found_by_runtime > 0 {
        let found = format!(
            "the Go runtime itself has found {} to be blocked for ever",
            goroutines(group.found_by_runtime as f64)
        );
        return (Verdict::Leak, vec![found, grew]);
    }
    if facts.is_runtimes_own {
        let own = "the Go runtime's own";
        return (Verdict::Steady, vec![own.into(), grew]);
    }
    if window_s(facts) < MIN_WINDOW_S || facts.times.len() < MIN_CENSUSES {
        let short = format!(
            "too little to tell, {} censuses in {window}: record longer",
            facts.times.len()
        );
        return (Verdict::Unknown, vec![short, grew]);
    }
    let turnover = format!(
        "{} came to wait and {} left, as far as censuses show it",
        human::thousands(group.arrived),
        human::thousands(group.left)
    );
    let Doing::Waiting(reason) = facts.doing else {
        let verdict = match has_risen(&group.counts) {
            true => Verdict::Growing,
            false => Verdict::Steady,
        };
        let why = "they run, or are in a system call: not blocked for ever";
        return (verdict, vec![grew, why.into()]);
    };
    let settled = Settled::of(facts);
    let stay = format!(
        "{} settled (waiting for {} and more without having run), {} of those have left",
        human::thousands((settled.kept + settled.left).max(0.0).round() as u64),
        human::seconds(settling_s(facts)),
        human::thousands(settled.left.max(0.0).round() as u64),
    );
    if settled.kept < 1.0 && !has_risen(&group.counts) {
        return (Verdict::Steady, vec![grew, stay, turnover]);
    }
    if settled.kept < 1.0 {
        let short = "more of them wait, but none of the new ones for long yet";
        return (Verdict::Growing, vec![short.into(), grew, stay, turnover]);
    }
    let siblings = facts.siblings.last().copied().unwrap_or(0.0) - first(facts.siblings);
    if siblings < MIN_CREATED * settled.kept {
        let idle = format!(
            "a pool: of the same go statement there are {} more, so more of them only have nothing \
             to do",
            goroutines(siblings)
        );
        return (Verdict::Steady, vec![idle, grew, stay]);
    }
    if settled.left_share() >= 0.5 {
        let turns = "it turns over: as many leave as come";
        return (Verdict::Steady, vec![turns.into(), grew, stay, turnover]);
    }
    if settled.kept < MIN_GROWTH {
        let few = format!("too few to tell: {grew}");
        return (Verdict::Unknown, vec![few, stay]);
    }
    if settled.stopped() {
        let stopped = format!("grew at first and has stopped: {grew}");
        return (Verdict::Steady, vec![stopped, stay]);
    }
    let missing = not_proven(facts, &settled, reason);
    if let Some(missing) = missing {
        return (Verdict::Growing, vec![missing, grew, stay, turnover]);
    }
    let grew = format!(
        "{grew}, in {} of {PARTS} parts of the window, not slowing down",
        settled.spread.filled()
    );
    let mut evidence = vec![grew, stay];
    if let Some(for_ever) = waits_for_ever(reason) {
        evidence.push(for_ever.into());
    }
    evidence.push("waiting for one slow thing looks the same until that is done".into());
    (Verdict::Leak, evidence)
}

/// Whether there are clearly more at the end: always more in the last third than ever in the first.
fn has_risen(counts: &[f64]) -> bool {
    let third = counts.len() / 3;
    let most = counts.iter().take(third).copied().fold(0.0, f64::max);
    let least = counts
        .iter()
        .rev()
        .take(third)
        .copied()
        .fold(f64::INFINITY, f64::min);
    third > 0 && least >= most + MIN_GROWTH
}

/// Why growth is not yet a leak.
fn not_proven(facts: &Facts, settled: &Settled, reason: &str) -> Option<String> {
    let window_s = window_s(facts);
    if reason == "sleep" {
        Some("they sleep: time ends that".to_owned())
    } else if reason == "IO wait" {
        Some("they wait for the network or a pipe: idle peers look the same".to_owned())
    } else if settled.left_share() > MAX_LEFT {
        Some("some that had waited for long did leave".to_owned())
    } else if settled.spread.filled() < MIN_FILLED {
        Some(format!(
            "they came in bursts: growth in {} of {PARTS} parts of the window",
            settled.spread.filled()
        ))
    } else if settled.slowing() {
        Some("it is slowing down, as a pool does that is being filled".to_owned())
    } else if window_s < MIN_LEAK_WINDOW_S {
        Some(format!(
            "{} is too short to tell a leak from something that is being set up; {} is the least",
            human::seconds(window_s),
            human::seconds(MIN_LEAK_WINDOW_S)
        ))
    } else if settled.kept < MIN_SETTLED {
        Some("they are too few to be sure".to_owned())
    } else {
        None
    }
}

/// What makes waiting for this reason hopeless.
fn waits_for_ever(reason: &str) -> Option<&'static str> {
    if reason.contains("nil chan") {
        Some("nothing ever comes through a nil channel")
    } else if reason.contains("no cases") {
        Some("a select without cases never ends")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
