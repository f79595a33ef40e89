//! The verdict on a site of which windows have shown what comes and goes.
//!
//! Nothing is known of single blocks but that some survived the window of their birth, and that blocks
//! from before a window died in it. A leak is where clearly more survive than can have died, all through
//! the recording and up to its end, and where the process has grown with it. docs/sampling.md has the
//! rules with their reasons.

use crate::live_heap::{Balance, Net};
use crate::report::human;
use crate::series::Spread;

use super::{
    Facts, GROWTH_Z, MAX_OLD_DEATHS, MAX_RECENT_DEATHS, MIN_GROWTH_EVENTS, MIN_LEAK_WINDOW_S,
    MIN_OLD_SAMPLES, MIN_SLOTS, MIN_WINDOW_S, OPEN_Z, Verdict, pace,
};

/// Of what the site must have grown by at the least, the share by which the process must have grown.
/// Less than a whole: free memory inside the allocator is used up first.
const GROWTH_OF_PROCESS: f64 = 0.3;

/// Of the process's growth, the share of a site for which the process's pace speaks: how fast it grew in the last third
/// of the time, against the first.
const MOST_OF_PROCESS: f64 = 0.5;
/// The pace from which such a site does not slow down: were it half as fast in the end, and the rest of the process as
/// fast as ever, it would be 0.71.
const GOES_ON: f64 = 0.8;
/// The share from which a process that slows down does so by this site, for all that the estimate is off.
const ALL_OF_PROCESS: f64 = 0.75;
/// The pace below which it does.
const SLOWS: f64 = 0.5;
/// So many survivors make a leak where the process goes on at its pace.
const MIN_SURVIVORS_WITH_PROCESS: f64 = 12.0;

/// What the balance comes to.
struct Sums<'a> {
    balance: &'a Balance,
    window_s: f64,
    /// With the most deaths: as it is, and where the time that probes took is made up for.
    kept: [Net; 2],
    /// With the least deaths.
    kept_at_most: Net,
    survived: f64,
    died: f64,
}

impl<'a> Sums<'a> {
    fn of(balance: &'a Balance, window_s: f64) -> Self {
        Self {
            balance,
            window_s,
            kept: [Net::of(&balance.kept), Net::of(&balance.kept_dense)],
            kept_at_most: Net::of(&balance.kept_at_most),
            survived: balance.survived.iter().sum(),
            died: balance.died.iter().sum(),
        }
    }

    /// How clearly more survive than can have died, whatever the probes did to the program's pace.
    fn z(&self) -> f64 {
        let [plain, dense] = self.kept;
        plain.z().min(dense.z())
    }

    /// Deaths for each survivor, the most there can be. Known blocks that died between windows are some
    /// of the survivors, and dead.
    fn death_share(&self) -> f64 {
        let seen = self.balance.seen;
        let known = (seen.died.seen + seen.reused) as f64 / seen.survived.seen.max(1) as f64;
        (self.died / self.survived.max(f64::MIN_POSITIVE)).max(known)
    }

    /// In the last `share` of the recording: deaths for each survivor, if there are enough of them.
    fn lately(&self, share: f64) -> f64 {
        let slots = self.balance.survived.len();
        let from = slots - ((slots as f64 * share).round() as usize).clamp(1, slots);
        let average = self.survived * (slots - from) as f64 / slots as f64;
        let died: f64 = self.balance.died[from..].iter().sum();
        // In blocks seen.
        let each = self.survived / self.balance.seen.survived.seen.max(1) as f64;
        match died >= MIN_GROWTH_EVENTS * each {
            true => died / average.max(f64::MIN_POSITIVE),
            false => 0.0,
        }
    }

    /// Seconds after which the same would be clear, from now on; none if chance alone explains it.
    fn needed_s(&self) -> Option<f64> {
        let z = self.z();
        if z <= 0.0 {
            return None;
        }
        let seen = self.balance.seen.survived.seen.max(1) as f64;
        let factor = (GROWTH_Z / z).powi(2).max(MIN_OLD_SAMPLES / seen);
        Some((self.window_s * factor).max(MIN_LEAK_WINDOW_S) - self.window_s)
    }

    fn survivors_in_words(&self) -> String {
        let seen = self.balance.seen;
        format!(
            "of {} seen in {} ({} of the time), {} outlived the window of birth; {} from before a \
             window that may be its own died in one",
            human::count(seen.born.seen, "allocation"),
            human::count(self.balance.windows, "window"),
            human::percent(self.balance.open_share),
            human::thousands(seen.survived.seen),
            human::thousands(seen.died.seen + self.balance.seen_unseen),
        )
    }
}

/// Judges the site; `slope` is the estimate of its growth in bytes a second.
///
/// Gives the evidence in words, and how many seconds more it takes to be sure.
pub(super) fn decide(
    facts: &Facts,
    balance: &Balance,
    slope: f64,
) -> (Verdict, Vec<String>, Option<f64>) {
    let window_s = facts.timeline.duration_s();
    let sums = Sums::of(balance, window_s);
    let (verdict, reason) = verdict(facts, &sums);
    let growth = facts.site.growth;
    let interval = format!(
        "between {} and {}/s with 95 % certainty",
        human::bytes(growth.low / window_s.max(1e-9)),
        human::bytes(growth.high / window_s.max(1e-9)),
    );
    let grew = format!("grows by {}/s, {interval}", human::bytes(slope.max(0.0)));
    let mut evidence = match verdict {
        Verdict::Leak => vec![grew, reason],
        Verdict::Steady => vec![reason],
        _ => vec![reason, grew],
    };
    evidence.push(sums.survivors_in_words());
    let is_open = matches!(verdict, Verdict::Growing | Verdict::Unknown);
    let needed_s = sums.needed_s().filter(|&needed| is_open && needed >= 1.0);
    evidence.extend(needed_s.map(|needed| {
        let needed = human::seconds(needed.ceil());
        format!("if it goes on like this, {needed} more would show it")
    }));
    if verdict == Verdict::Leak {
        evidence.push(
            "what turns over in longer than the recording, or is freed in bursts that no window met, \
             looks the same"
                .into(),
        );
    }
    (verdict, evidence, needed_s)
}

fn verdict(facts: &Facts, sums: &Sums) -> (Verdict, String) {
    let seen = sums.balance.seen;
    let slots = sums.balance.survived.len();
    let z = sums.z();
    if sums.window_s < MIN_WINDOW_S || slots < MIN_SLOTS {
        let window = human::seconds(sums.window_s);
        return (Verdict::Unknown, format!("{window} are too short to tell"));
    }
    if seen.survived.is_empty() {
        let short = "short-lived: all that was seen to come went within the same window";
        return (Verdict::Steady, short.into());
    }
    let survivors = human::count(seen.survived.seen, "survivor");
    if (seen.survived.seen as f64) < MIN_GROWTH_EVENTS && sums.died < sums.survived / 2.0 {
        let few = format!("too few to tell: {survivors}");
        return (Verdict::Unknown, few);
    }
    // Few deaths are no evidence that it turns over, however much chance may have done.
    if sums.kept_at_most.z() < OPEN_Z && sums.died >= sums.survived / 2.0 {
        let turns_over = "it turns over: as much goes as comes, but for chance";
        return (Verdict::Steady, turns_over.into());
    }
    if z < GROWTH_Z {
        let why = match sums.balance.is_shared && sums.kept_at_most.z() >= GROWTH_Z {
            true => {
                "blocks of its size die that may be its own or another site's: windows have not \
                 shown whose"
            }
            false => "more comes than goes, but chance may do as much",
        };
        return (Verdict::Unknown, why.into());
    }
    match doubt(facts, sums, &survivors) {
        Some(Doubt::Grows(why)) => (Verdict::Growing, why),
        Some(Doubt::Open(why)) => (Verdict::Unknown, why),
        Some(Doubt::Stopped(why)) => (Verdict::Steady, why),
        None => {
            let spread = spread(sums);
            let leak = format!(
                "what outlives its window stays: at most {} of it can have been freed; it came in {} \
                 of {} parts of the recording",
                human::percent(sums.death_share()),
                spread.filled(),
                spread.parts.len(),
            );
            (Verdict::Leak, leak)
        }
    }
}

/// Why growth need not be a leak.
enum Doubt {
    Grows(String),
    Open(String),
    Stopped(String),
}

fn doubt(facts: &Facts, sums: &Sums, survivors: &str) -> Option<Doubt> {
    let spread = spread(sums);
    if pace::stopped(&spread) {
        return Some(Doubt::Stopped("grew at first and has stopped".into()));
    }
    if sums.death_share() > MAX_OLD_DEATHS {
        let share = human::percent(sums.death_share());
        let whose = match sums.balance.is_shared {
            true => "blocks that may be its own",
            false => "its blocks",
        };
        return Some(Doubt::Grows(format!(
            "more comes than goes, but {whose} do die: {share} of what survives"
        )));
    }
    if sums.lately(1.0 / 6.0).max(sums.lately(1.0 / 12.0)) > MAX_RECENT_DEATHS {
        let filled = "its blocks have begun to die: a cache that has filled up by now";
        return Some(Doubt::Grows(filled.into()));
    }
    if !pace::sustained(&spread) {
        return Some(Doubt::Grows(format!(
            "it came in bursts: growth in {} of {} parts of the recording",
            spread.filled(),
            spread.parts.len()
        )));
    }
    let pace_of_process = facts.process_growth.pace.unwrap_or(f64::NAN);
    let share = share_of_process(facts, sums);
    let goes_on = pace_of_process >= GOES_ON && share >= MOST_OF_PROCESS;
    let slows = pace_of_process < SLOWS && share >= ALL_OF_PROCESS;
    if slows || !goes_on && pace::slowing(&spread) {
        let slowing = "it is slowing down, as a cache does that warms up";
        return Some(Doubt::Grows(slowing.into()));
    }
    if sums.window_s < MIN_LEAK_WINDOW_S {
        return Some(Doubt::Grows(format!(
            "{} is too short to tell a leak from something that is being set up; {} is the least",
            human::seconds(sums.window_s),
            human::seconds(MIN_LEAK_WINDOW_S)
        )));
    }
    let least = match goes_on {
        true => MIN_SURVIVORS_WITH_PROCESS,
        false => MIN_OLD_SAMPLES,
    };
    if (sums.balance.seen.survived.seen as f64) < least {
        return Some(Doubt::Grows(format!("{survivors} are too few to be sure")));
    }
    let least = sums.balance.least_bytes() / sums.window_s;
    let process = facts.process_growth.most_bytes_per_s()?;
    (process < least * GROWTH_OF_PROCESS).then(|| {
        Doubt::Open(format!(
            "the process grew by {}/s only, less than this site alone: it is freed in bursts that no \
             window met, or goes where memory lay free",
            human::bytes(process.max(0.0))
        ))
    })
}

/// Of the process's growth, the share that is this site's, by the estimate: of a few survivors too many may have come
/// early by chance, of the process's pages each is counted.
fn share_of_process(facts: &Facts, sums: &Sums) -> f64 {
    let process = facts.process_growth.held_bytes_per_s.unwrap_or(0.0) * sums.window_s;
    match process > 0.0 {
        true => facts.site.growth.value / process,
        false => 0.0,
    }
}

/// When the survivors were born. Windows stand for different lengths of time: a survivor of a long one weighs
/// more, but is one arrival.
fn spread(sums: &Sums) -> Spread {
    let slots = sums.balance.survived.len();
    let slot_s = sums.window_s / slots.max(1) as f64;
    let weights = sums.balance.survived.iter().zip(&sums.balance.arrivals);
    let arrivals = weights.enumerate().map(|(slot, (&weight, &seen))| {
        let at = slot as f64 * slot_s;
        (at, at + slot_s, weight, seen)
    });
    Spread::new(arrivals, sums.window_s, slots.clamp(MIN_SLOTS, 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At first each survivor stands for many blocks, later for few: two of the former are two arrivals, and
    /// thirty of the latter thirty.
    #[test]
    fn a_survivor_is_one_arrival_whatever_it_stands_for() {
        let mut balance = Balance::default();
        (balance.survived, balance.arrivals) = (vec![0.0; 60], vec![0; 60]);
        for slot in [8, 22].into_iter().chain(30..60) {
            balance.survived[slot] = if slot < 30 { 20.0 } else { 1.0 };
            balance.arrivals[slot] = 1;
        }
        balance.seen.survived.seen = 32;
        let spread = spread(&Sums::of(&balance, 60.0));
        // Nothing is missing, and the two heavy ones leave little that is certain.
        assert!((spread.total - 70.0).abs() < 1e-9, "{spread:?}");
        let arrivals = 70.0 * 70.0 / (2.0 * 400.0 + 30.0);
        assert!((spread.arrivals - arrivals).abs() < 1e-9, "{spread:?}");
        assert!(
            !pace::stopped(&spread) && !pace::slowing(&spread),
            "{spread:?}"
        );
    }
}
