//! Whether a site leaks, and the evidence.
//!
//! A leak is memory that keeps coming and, once old, does not go. So the verdict rests on the
//! objects born during the window that have proven old (several collections, or the `older` age):
//! did they come all through the window, evenly, and do old ones hardly ever die? Garbage has no
//! old objects, a full cache's old objects die as fast as new ones come, a warming cache slows down.
//! docs/verdict.md has the rules, the thresholds with their reasons, and what cannot be told apart.
//!
//! Contract: pure; every verdict carries its evidence in words, with the numbers it rests on.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::capture::schema::Kind;
use crate::live_heap::{ProcessGrowth, SiteHistory, Survival, Timeline};
use crate::report::human;
use crate::series::{self, Spread};

mod owner;
mod pace;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod windows_tests;
mod windows;

pub use owner::Owner;

/// Shorter windows say nothing about growth.
const MIN_WINDOW_S: f64 = 3.0;
/// Shorter windows do not make a leak: anything that is being set up grows for a few seconds. Nor do
/// they make a site that did not grow steady.
const MIN_LEAK_WINDOW_S: f64 = 10.0;
/// Moments at which the old objects' births must be known for a judgement about their spread.
const MIN_SLOTS: usize = 4;
/// Collections survived that make a Go object old.
const OLD_COLLECTIONS: u32 = 3;
/// Old sampled objects that make a leak: 8 MiB at Go's default rate; and old blocks of a native
/// allocator, sampled or not. With fewer, a cache that slows down cannot be told from a leak.
const MIN_OLD_SAMPLES: f64 = 16.0;
/// The same where every mapping is counted.
const MIN_OLD_MAPPINGS: f64 = 6.0;
/// Fewer events than this are not growth, whatever their sign.
const MIN_GROWTH_EVENTS: f64 = 5.0;
/// Fewer, of this many times as many births, are strays of garbage.
const MAX_STRAYS: f64 = 100.0;
/// Standard deviations that make growth more than turnover, and that leave it open.
const GROWTH_Z: f64 = 3.0;
const OPEN_Z: f64 = 2.0;
/// Of the objects that grew old, the share that may die in a leak.
const MAX_OLD_DEATHS: f64 = 0.15;
/// Deaths of old objects in the last sixth of the window, as a share of what an average sixth kept,
/// that show a cache which has filled up by now.
const MAX_RECENT_DEATHS: f64 = 0.3;
/// What a site is, by its behaviour in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It grew all through the window, and what grew old stays.
    Leak,
    /// It grew; that it will not stop is not shown.
    Growing,
    /// There is too little to tell.
    Unknown,
    /// It does not grow.
    Steady,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leak => "leak",
            Self::Growing => "growing",
            Self::Unknown => "unknown",
            Self::Steady => "steady",
        })
    }
}

impl std::str::FromStr for Verdict {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Leak, Self::Growing, Self::Unknown, Self::Steady]
            .into_iter()
            .find(|verdict| verdict.to_string() == name)
            .ok_or_else(|| format!("`{name}` is not one of leak, growing, unknown, steady"))
    }
}

/// What a judgement rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The site.
    pub site: &'a SiteHistory,
    /// Its time.
    pub timeline: &'a Timeline,
    /// Whose memory it is.
    pub owner: Owner,
    /// Age in seconds from which an object counts as old (`--older`).
    pub older_s: f64,
    /// Records lost on the way, any of which may have been a free of this site.
    pub lost_events: u64,
    /// What the process as a whole has grown by.
    pub process_growth: ProcessGrowth,
}

/// A verdict with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, one sentence each, the strongest first.
    pub evidence: Vec<String>,
    /// Robust slope of the live bytes.
    pub growth_bytes_per_s: f64,
    /// Which share of its objects reaches an age.
    pub survival: Survival,
    /// How much longer it takes to be sure, in seconds, where that can be told.
    pub needed_s: Option<f64>,
}

/// Judges one site.
pub fn judge(facts: &Facts) -> Judgement {
    let Facts { site, timeline, .. } = *facts;
    let times = timeline.times.iter().copied();
    let points: Vec<_> = times.zip(site.live_series.iter().copied()).collect();
    let growth_bytes_per_s = series::slope(&points);
    if let Some(balance) = &site.balance {
        let (verdict, evidence, needed_s) = windows::decide(facts, balance, growth_bytes_per_s);
        return Judgement {
            verdict,
            evidence,
            growth_bytes_per_s,
            survival: site.survival(timeline),
            needed_s,
        };
    }
    let old = Old::of(facts);
    let (verdict, mut evidence) = decide(facts, &old, growth_bytes_per_s);
    let survival = site.survival(timeline);
    evidence.extend(survival.in_words());
    if site.preexisting_left_bytes > 0.0 {
        evidence.push(format!(
            "{} of it was there before the attach",
            human::bytes(site.preexisting_left_bytes)
        ));
    }
    Judgement {
        verdict,
        evidence,
        growth_bytes_per_s,
        survival,
        needed_s: None,
    }
}

/// What became of the objects that had the time to grow old.
struct Old {
    /// Last slot whose births are old by the end; 0: none.
    horizon: usize,
    /// Its end, seconds after the attach.
    horizon_s: f64,
    /// Born up to then (since the attach) and alive at the end.
    kept: f64,
    /// Born up to then.
    born: f64,
    /// Deaths of objects that had grown old, those from before the attach included.
    died: f64,
    /// Of these, in the last sixth of the window.
    died_lately: f64,
    /// When the kept ones were born.
    spread: Spread,
}

impl Old {
    fn of(facts: &Facts) -> Self {
        let Facts { site, timeline, .. } = *facts;
        let last = timeline.last();
        let horizon = (1..=last)
            .rev()
            .find(|&slot| facts.is_old(slot, last))
            .unwrap_or(0);
        let horizon_s = timeline.age_s(0, horizon);

        let in_time: Vec<_> = site
            .cohorts()
            .filter(|(slot, ..)| (1..=horizon).contains(slot))
            .map(|(slot, born, died)| (slot, born, born.less(died)))
            .collect();
        let arrivals = in_time.iter().map(|&(slot, _, kept)| {
            let weight = if site.sampled {
                kept.objects
            } else {
                kept.bytes
            };
            let at = |slot: usize| timeline.age_s(0, slot);
            (at(slot - 1), at(slot), weight as f64, kept.objects)
        });
        let spread = Spread::new(arrivals, horizon_s, horizon.clamp(MIN_SLOTS, 6));
        let sum = |counts: &mut dyn Iterator<Item = u64>| counts.map(|n| n as f64).sum::<f64>();
        let kept = sum(&mut in_time.iter().map(|(_, _, kept)| kept.objects));
        let born = sum(&mut in_time.iter().map(|(_, born, _)| born.objects));

        let lately_s = timeline.duration_s() * 5.0 / 6.0;
        let deaths = || {
            site.deaths
                .iter()
                .map(|(&(born, died), count)| (born, died, count.objects))
        };
        let old_deaths = || deaths().filter(|&(born, died, _)| facts.is_old(born, died));
        let mut died = sum(&mut old_deaths().map(|death| death.2));
        let died_lately = sum(&mut old_deaths()
            .filter(|death| timeline.age_s(0, death.1) > lately_s)
            .map(|death| death.2));
        // Deaths that no probe saw: as likely old as the seen ones are, all of them when none was.
        let unseen_old = site.unseen_deaths as f64 * (died + 1.0)
            / (sum(&mut deaths().map(|death| death.2)) + 1.0);
        died += unseen_old;
        // However many births and deaths were not seen: no more than live.
        let most = site.live_count.objects as f64;
        let kept = (kept - unseen_old).clamp(0.0, most);
        Self {
            horizon,
            horizon_s,
            kept,
            born,
            died,
            died_lately,
            spread,
        }
    }

    /// Kept objects minus old ones that died, in standard deviations of such a difference.
    fn growth_z(&self) -> f64 {
        (self.kept - self.died) / (self.kept + self.died).max(1.0).sqrt()
    }

    fn death_share(&self) -> f64 {
        self.died / (self.kept + self.died).max(1.0)
    }
}

impl Facts<'_> {
    /// Whether an object born in one slot was old at the end of another.
    fn is_old(&self, born: usize, now: usize) -> bool {
        let aged = self.timeline.age_s(born, now) >= self.older_s;
        match self.site.kind {
            Kind::GoHeap => {
                let survived = self.timeline.collections_survived(born, now);
                survived >= OLD_COLLECTIONS || aged && survived >= 1
            }
            _ => aged,
        }
    }

    fn is_go(&self) -> bool {
        self.site.kind == Kind::GoHeap
    }

    /// "sampled objects" or "mappings".
    fn objects(&self, number: f64) -> String {
        let what = owner::one_of(self.site.kind);
        let what = match self.site.sampled {
            true => format!("sampled {what}"),
            false => what.to_owned(),
        };
        human::count(number.round() as u64, &what)
    }

    fn old_means(&self) -> String {
        let older = human::seconds(self.older_s);
        if self.is_go() {
            format!("{OLD_COLLECTIONS} collections, or one and {older}")
        } else {
            older
        }
    }
}

fn decide(facts: &Facts, old: &Old, slope: f64) -> (Verdict, Vec<String>) {
    let Facts { site, timeline, .. } = *facts;
    let window_s = timeline.duration_s();
    let window = human::seconds(window_s);
    let growth = human::bytes(site.growth.value.abs());
    let grew = match site.growth.value.round() {
        0.0 => format!("as much live as at the attach, after {window}"),
        value if value < 0.0 => format!("shrank by {growth} in {window}"),
        _ => format!("grew by {growth} in {window}"),
    };
    if let Some(what) = facts.owner.not_judged() {
        let verdict = match site.growth.value > 0.0 {
            true => Verdict::Unknown,
            false => Verdict::Steady,
        };
        return (verdict, vec![what, grew]);
    }
    let none_came = site.births.range(1..).next().is_none() && site.growth.value <= 0.0;
    if none_came || window_s < MIN_WINDOW_S || timeline.last() < MIN_SLOTS {
        return no_growth_or_no_time(facts, none_came, &grew);
    }
    if facts.is_go() && old.horizon == 0 {
        return too_few_collections(facts, &grew);
    }
    if old.horizon == 0 {
        let missing = format!(
            "no {} of this window is {} old yet: record longer, or lower --older",
            owner::one_of(site.kind),
            human::seconds(facts.older_s)
        );
        let grown = site.growth.value > 0.0 && slope > 0.0;
        let verdict = match grown {
            true => Verdict::Growing,
            false => Verdict::Unknown,
        };
        return (verdict, vec![grew, missing]);
    }

    let survivors = format!(
        "of {} allocated in the first {}, {} alive and old ({})",
        facts.objects(old.born),
        human::seconds(old.horizon_s),
        match old.kept.round() as u64 {
            1 => "1 is".to_owned(),
            kept => format!("{} are", human::thousands(kept)),
        },
        facts.old_means(),
    );
    let deaths = format!("{} died after growing that old", facts.objects(old.died));
    if old.kept < MIN_GROWTH_EVENTS.min(min_old(facts))
        && old.kept > old.died
        && old.kept * 2.0 > old.born
    {
        let few = format!("too few to tell: {survivors}");
        return (Verdict::Unknown, vec![few, grew]);
    }
    let strays = old.kept < MIN_GROWTH_EVENTS && old.kept * MAX_STRAYS < old.born;
    if old.kept < 1.0 || strays || old.died > 0.0 && old.growth_z() < GROWTH_Z {
        let why = if old.born >= MIN_GROWTH_EVENTS && (old.kept + old.died) * 5.0 < old.born {
            "short-lived: most of it is dead soon after it is allocated"
        } else if old.growth_z() >= OPEN_Z {
            let open = "more comes than goes, but chance may do as much";
            return (Verdict::Unknown, vec![open.into(), survivors, deaths, grew]);
        } else {
            "it turns over: as much goes as comes, but for chance"
        };
        return (Verdict::Steady, vec![why.into(), survivors, deaths, grew]);
    }
    if pace::stopped(&old.spread) {
        let stopped = format!("grew at first and has stopped: {grew}");
        return (Verdict::Steady, vec![stopped, survivors, deaths]);
    }
    let lately = old.died_lately >= MIN_GROWTH_EVENTS
        && old.died_lately * 6.0 * old.horizon_s >= MAX_RECENT_DEATHS * old.kept * window_s;
    let not_proven = if old.death_share() > MAX_OLD_DEATHS {
        Some("objects that have grown old do die: a cache with some growth, or a mixture".into())
    } else if lately {
        Some("old objects have begun to die: a cache that has filled up by now".into())
    } else if !pace::sustained(&old.spread) {
        Some(format!(
            "it came in bursts: growth in {} of {} parts of the window",
            old.spread.filled(),
            old.spread.parts.len()
        ))
    } else if pace::slowing(&old.spread) {
        Some("it is slowing down, as a cache does that warms up".into())
    } else if window_s < MIN_LEAK_WINDOW_S {
        Some(format!(
            "{window} is too short to tell a leak from something that is being set up; {} is the \
             least",
            human::seconds(MIN_LEAK_WINDOW_S)
        ))
    } else if old.horizon < MIN_SLOTS {
        Some(format!(
            "only the first {} of the window are old enough to judge: record longer, or with a \
             shorter interval",
            human::seconds(old.horizon_s)
        ))
    } else if old.kept < min_old(facts) {
        Some(format!(
            "{} that grew old are too few to be sure",
            facts.objects(old.kept)
        ))
    } else if !facts.is_go() && facts.lost_events as f64 > old.kept * MAX_OLD_DEATHS {
        Some(format!(
            "{} were lost, and any of them may have been {}",
            human::count(facts.lost_events, "record"),
            owner::end_of(site.kind)
        ))
    } else if !facts.is_go() && site.growth.value <= 0.0 {
        Some("what was there before the attach has shrunk by as much".into())
    } else {
        None
    };
    match not_proven {
        Some(why) => (
            Verdict::Growing,
            vec![
                format!("{grew}, {}/s", human::bytes(slope)),
                why,
                survivors,
                deaths,
            ],
        ),
        None => {
            let evidence = vec![
                format!(
                    "{grew}, {}/s, in {} of {} parts of the window, not slowing down",
                    human::bytes(slope),
                    old.spread.filled(),
                    old.spread.parts.len()
                ),
                survivors,
                deaths,
                "a cache that fills at a constant rate and has not evicted anything yet looks the \
                 same"
                    .into(),
            ];
            (Verdict::Leak, evidence)
        }
    }
}

fn min_old(facts: &Facts) -> f64 {
    if facts.site.sampled || facts.site.kind == Kind::Malloc {
        MIN_OLD_SAMPLES
    } else {
        MIN_OLD_MAPPINGS
    }
}

/// Nothing came, or the window is too short to say anything.
fn no_growth_or_no_time(facts: &Facts, none_came: bool, grew: &str) -> (Verdict, Vec<String>) {
    let window_s = facts.timeline.duration_s();
    let window = human::seconds(window_s);
    if !none_came {
        let missing = format!(
            "{window} with {} are too short to tell",
            human::count(facts.timeline.last() as u64, "interval")
        );
        return (Verdict::Unknown, vec![missing, grew.into()]);
    }
    let none = if facts.site.growth.value < 0.0 {
        grew.to_owned()
    } else {
        format!("no growth seen in {window}")
    };
    if window_s < MIN_LEAK_WINDOW_S {
        let short = format!("{window} are too short to call it steady");
        return (Verdict::Unknown, vec![none, short]);
    }
    (Verdict::Steady, vec![none])
}

/// No Go object of the window has survived enough collections.
fn too_few_collections(facts: &Facts, grew: &str) -> (Verdict, Vec<String>) {
    let Facts { site, timeline, .. } = *facts;
    let collections = timeline.collections.last().copied().unwrap_or_default();
    let missing = if collections == 0 {
        "no collection completed in the window: what was allocated may be garbage".to_owned()
    } else {
        format!(
            "{} completed in the window: no object of it can have survived {}",
            human::count(collections.into(), "collection"),
            facts.old_means()
        )
    };
    // Objects that have survived one are not garbage, though they may die yet.
    let last = timeline.last();
    let survivors: u64 = site
        .cohorts()
        .filter(|&(slot, ..)| slot > 0 && timeline.collections_survived(slot, last) >= 1)
        .map(|(_, born, died)| born.less(died).objects)
        .sum();
    let survivors = survivors.saturating_sub(site.unseen_deaths) as f64;
    if survivors >= MIN_GROWTH_EVENTS && site.growth.low > 0.0 {
        let alive = format!("{} allocated since survived one", facts.objects(survivors));
        return (Verdict::Growing, vec![grew.into(), missing, alive]);
    }
    (Verdict::Unknown, vec![missing, grew.into()])
}
