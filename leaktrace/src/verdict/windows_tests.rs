//! Simulated programs recorded in windows, judged over many seeds. `LEAKTRACE_SEEDS` says how many:
//! `cargo xtask simulate` takes two hundred.

use std::collections::BTreeMap;

use super::*;
use crate::capture::Capture;
use crate::capture::schema::{self, Header, Interval};
use crate::live_heap::LiveHeap;
use crate::turnover::testing::{Block, FOREVER, MINUTE, Random, World};

use Verdict::{Growing, Leak, Steady, Unknown};

fn seeds() -> u64 {
    let seeds = std::env::var("LEAKTRACE_SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(2)
}

/// Blocks allocated at so many a second, each dropped after `life`; from `from` on.
struct Site {
    id: u32,
    bytes: u64,
    per_s: f64,
    from: f64,
}

impl Site {
    fn new(id: u32, bytes: u64, per_s: f64) -> Self {
        Self {
            id,
            bytes,
            per_s,
            from: 0.0,
        }
    }

    /// Began so long before the attach.
    fn since(self, seconds: f64) -> Self {
        Self {
            from: -seconds,
            ..self
        }
    }

    /// A cache that warms up: it keeps what comes the less likely, the later, with that time constant.
    fn warming(&self, random: &mut Random, seconds: f64) -> Vec<Block> {
        self.blocks(random, |random, t| {
            match random.unit() < (-t / seconds).exp() {
                true => FOREVER,
                false => 1e-4,
            }
        })
    }

    fn blocks(
        &self,
        random: &mut Random,
        mut life: impl FnMut(&mut Random, f64) -> f64,
    ) -> Vec<Block> {
        let (mut blocks, mut t) = (Vec::new(), self.from);
        loop {
            t += random.exponential(1.0 / self.per_s);
            if t > 60.0 {
                return blocks;
            }
            let life = life(random, t);
            if t + life > 0.0 {
                blocks.push(Block {
                    site: self.id,
                    bytes: self.bytes,
                    thread: 1,
                    born: t,
                    dropped: t + life,
                });
            }
        }
    }
}

const LEAK: u32 = 1;

fn leak(random: &mut Random, per_s: f64) -> Vec<Block> {
    Site::new(LEAK, 4096, per_s).blocks(random, |_, _| FOREVER)
}

/// What became of the sites over the seeds: verdicts, and the estimate against the truth.
#[derive(Default)]
struct Tally {
    given: BTreeMap<u32, BTreeMap<Verdict, u64>>,
    estimates: BTreeMap<u32, Estimates>,
    runs: u64,
}

/// Of a site's growth in bytes: the sum of the estimates, of their squares and of the truth, and how often
/// the interval held the truth.
#[derive(Clone, Copy, Default)]
struct Estimates {
    sum: f64,
    squares: f64,
    truth: f64,
    held: u64,
}

fn simulate(world: World, seeds: u64, program: impl Fn(&mut Random) -> Vec<Block>) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let blocks = program(&mut random);
        let recorded = world.record(&mut random, &blocks);
        let heap = LiveHeap::from_capture(&recorded.capture);
        for site in heap.merge(|part| part.site) {
            let judgement = judge(&Facts {
                site: &site,
                timeline: &heap.timeline,
                owner: Owner::Program,
                older_s: 30.0,
                lost_events: 0,
                process_growth: heap.process_growth,
            });
            assert!(!judgement.evidence.is_empty());
            let id = site.sites[0];
            if seed == 0 {
                println!("{id}: {} {:?}", judgement.verdict, judgement.evidence);
            }
            *tally
                .given
                .entry(id)
                .or_default()
                .entry(judgement.verdict)
                .or_default() += 1;
            let truth = recorded.grown.get(&id).copied().unwrap_or_default();
            let estimates = tally.estimates.entry(id).or_default();
            estimates.sum += site.growth.value;
            estimates.squares += site.growth.value.powi(2);
            estimates.truth += truth;
            estimates.held += u64::from((site.growth.low..=site.growth.high).contains(&truth));
        }
        tally.runs += 1;
    }
    for (id, of) in &tally.estimates {
        println!(
            "{id}: {:?}, {:.0} of {:.0} bytes, in the interval {} of {}",
            tally.given[id], of.sum, of.truth, of.held, tally.runs
        );
    }
    tally
}

impl Tally {
    fn share(&self, site: u32, verdicts: &[Verdict]) -> f64 {
        let given = |verdict| {
            let given = self.given.get(&site).and_then(|given| given.get(verdict));
            given.copied().unwrap_or(0)
        };
        verdicts.iter().map(given).sum::<u64>() as f64 / self.runs as f64
    }

    #[track_caller]
    fn always(&self, site: u32, verdicts: &[Verdict]) {
        // One in forty may be another.
        assert!(
            self.share(site, verdicts) >= 0.975,
            "{site}: {:?}",
            self.given[&site]
        );
    }

    #[track_caller]
    fn never(&self, verdict: Verdict) {
        for (site, given) in &self.given {
            assert!(
                *site == LEAK || !given.contains_key(&verdict),
                "{site}: {given:?}"
            );
        }
    }

    /// The mean of the estimates is within 2 % of the truth, but for chance, and the intervals hold it.
    #[track_caller]
    fn is_right(&self, site: u32) {
        let Estimates {
            sum,
            squares,
            truth,
            held,
        } = self.estimates[&site];
        let n = self.runs as f64;
        let chance = ((squares - sum * sum / n) / (n - 1.0) / n).sqrt() / (truth / n);
        let off = (sum / truth - 1.0).abs();
        println!(
            "{site}: off by {:.2} %, chance {:.2} %, held in {held} of {n}",
            off * 100.0,
            chance * 100.0
        );
        assert!(off <= 0.02 + 2.0 * chance, "{site}: off by {off}");
        // In nine of ten, but for chance.
        let least = 0.9 * n - 2.0 * (0.09 * n).sqrt();
        assert!(held as f64 >= least, "{site}: held in {held} of {n}");
    }
}

/// A leak, and turnover of every age, sizes apart.
fn of_every_age(random: &mut Random) -> Vec<Block> {
    let mut blocks = leak(random, 500.0);
    let ages = [
        (10, 0.01),
        (11, 0.1),
        (12, 1.0),
        (13, 10.0),
        (14, 30.0),
        (15, 55.0),
    ];
    for (id, age) in ages {
        let site = Site::new(id, u64::from(id) * 16, 300.0).since(6.0 * age);
        blocks.extend(site.blocks(random, |random, _| random.exponential(age)));
        let fixed = Site::new(id + 10, u64::from(id) * 32 + 1024, 300.0).since(age + 1.0);
        blocks.extend(fixed.blocks(random, |_, _| age));
    }
    let both = Site::new(30, 8192, 300.0).since(60.0);
    blocks.extend(both.blocks(random, |random, _| match random.unit() < 0.5 {
        true => random.exponential(0.001),
        false => random.exponential(20.0),
    }));
    blocks
}

#[test]
fn a_leak_is_told_from_turnover_of_every_age() {
    for garbage_per_s in [20_000.0, 400_000.0] {
        let world = World {
            garbage_per_s,
            ..MINUTE
        };
        let tally = simulate(world, seeds(), of_every_age);
        tally.always(LEAK, &[Leak]);
        tally.never(Leak);
    }
}

#[test]
fn the_estimate_is_unbiased_and_its_interval_holds_the_truth() {
    for (garbage_per_s, period_s) in [(0.0, 0.17), (100_000.0, 0.17), (100_000.0, 0.05)] {
        let world = World {
            garbage_per_s,
            period_s,
            ..MINUTE
        };
        let tally = simulate(world, seeds() * 4, |random| {
            let mut blocks = leak(random, 300.0);
            let cache = Site::new(10, 256, 300.0).since(2.0);
            blocks.extend(cache.blocks(random, |_, _| 1.0));
            // A third of what comes stays.
            let mixed = Site::new(11, 512, 300.0).since(10.0);
            blocks.extend(mixed.blocks(random, |random, t| {
                match t < 0.0 || random.unit() < 0.67 {
                    true => random.exponential(0.5),
                    false => FOREVER,
                }
            }));
            blocks
        });
        tally.is_right(LEAK);
        tally.is_right(11);
        tally.always(11, &[Growing, Unknown]);
        tally.always(10, &[Steady, Unknown]);
    }
}

/// Requests of a tenth of a second: blocks come one by one and go all at once, or the other way round.
/// Probes hold the program up in one half more than in the other.
#[test]
fn bursts_on_one_side_only_are_not_growth() {
    let tally = simulate(MINUTE, seeds(), |random| {
        let mut blocks = leak(random, 500.0);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for request in -10..600 {
            let begin = f64::from(request) * 0.1;
            for n in 0..200 {
                let slow = begin + 0.09 * random.unit();
                let fast = f64::from(n) * 1e-7;
                let block = |site: u32, born, dropped| Block {
                    site,
                    bytes: u64::from(site) * 16,
                    thread: 1,
                    born,
                    dropped,
                };
                first.push(block(10, slow, begin + 0.095 + fast));
                second.push(block(11, begin + fast, slow.max(begin + 1e-3)));
            }
        }
        blocks.extend(first);
        blocks.extend(second);
        blocks
    });
    tally.always(LEAK, &[Leak]);
    tally.never(Leak);
}

/// A program whose period is about that of the windows, were these not placed at random.
#[test]
fn a_program_in_step_with_the_windows_is_judged_right() {
    let tally = simulate(MINUTE, seeds().max(10), |random| {
        let mut blocks = Vec::new();
        for round in -10..340 {
            let begin = f64::from(round) * 0.17;
            for n in 0..100 {
                let born = begin + f64::from(n) * 5e-5;
                let block = |site, dropped| Block {
                    site,
                    bytes: u64::from(site) * 4096,
                    thread: 1,
                    born,
                    dropped,
                };
                blocks.push(block(10, born + 0.085));
                if born > 0.0 {
                    blocks.push(block(LEAK, FOREVER));
                }
            }
        }
        let _ = random.unit();
        blocks
    });
    tally.always(LEAK, &[Leak, Growing, Unknown]);
    assert!(tally.share(LEAK, &[Leak]) > 0.3);
    tally.never(Leak);
}

/// Of one size: what dies may be anyone's, until enough blocks are known both from birth and death.
#[test]
fn sites_of_one_size_are_told_apart_or_left_open() {
    let program = |random: &mut Random| {
        let mut blocks = leak(random, 500.0);
        for (id, age) in [(10, 1.0), (11, 15.0)] {
            let cache = Site::new(id, 4096, 500.0).since(20.0);
            blocks.extend(cache.blocks(random, |_, _| age));
        }
        blocks
    };
    let tally = simulate(MINUTE, seeds(), program);
    tally.never(Leak);
    tally.always(LEAK, &[Leak, Growing, Unknown]);
    let often = World {
        period_s: 0.025,
        ..MINUTE
    };
    let tally = simulate(often, seeds(), program);
    tally.never(Leak);
    tally.always(LEAK, &[Leak]);
}

/// Where the size of a freed block cannot be told.
#[test]
fn without_size_classes_nothing_is_claimed_that_is_not_so() {
    let world = World {
        knows_classes: false,
        ..MINUTE
    };
    let alone = simulate(world, seeds(), |random| leak(random, 500.0));
    alone.always(LEAK, &[Leak]);
    simulate(world, seeds(), of_every_age).never(Leak);
}

#[test]
fn caches_that_begin_with_the_recording_are_no_leaks_once_they_evict() {
    let tally = simulate(MINUTE, seeds(), |random| {
        let mut blocks = Vec::new();
        for (id, age) in [(10, 5.0), (11, 20.0), (12, 40.0), (13, 50.0)] {
            let cache = Site::new(id, u64::from(id) * 64, 500.0);
            blocks.extend(cache.blocks(random, |_, _| age));
        }
        // Only in the first ten seconds; less and less.
        let first = Site::new(14, 2048, 500.0).blocks(random, |_, t| match t < 10.0 {
            true => FOREVER,
            false => 0.0,
        });
        blocks.extend(first);
        blocks.extend(Site::new(15, 3072, 500.0).warming(random, 20.0));
        blocks
    });
    tally.never(Leak);
    tally.always(14, &[Steady]);
}

/// All of it freed at one stroke every few seconds, which hardly a window meets. The process's own size
/// tells that it does not grow.
#[test]
fn what_is_cleared_at_one_stroke_is_no_leak() {
    let tally = simulate(MINUTE, seeds(), |random| {
        let mut blocks = Vec::new();
        let mut cleared = Site::new(10, 4096, 500.0)
            .since(10.0)
            .blocks(random, |_, t| {
                let clear = (t / 7.0).floor() * 7.0 + 7.0;
                clear - t + 1e-9
            });
        blocks.append(&mut cleared);
        blocks
    });
    tally.never(Leak);
}

/// Hardly anything is seen, or the recording is short.
#[test]
fn little_evidence_is_no_leak() {
    let tally = simulate(MINUTE, seeds(), |random| leak(random, 2.0));
    tally.always(LEAK, &[Unknown, Growing, Steady]);
    let short = World {
        seconds: 6.0,
        ..MINUTE
    };
    simulate(short, seeds(), |random| leak(random, 500.0)).always(LEAK, &[Growing, Unknown]);
}

/// Two threads, each held up by its own events only.
#[test]
fn threads_are_held_up_by_their_own_events() {
    let tally = simulate(MINUTE, seeds(), |random| {
        let mut blocks = leak(random, 500.0);
        for thread in [1, 2] {
            let site = Site::new(10 + thread, 128 * u64::from(thread), 1000.0).since(5.0);
            let turnover = site.blocks(random, |random, _| random.exponential(1.0));
            blocks.extend(turnover.into_iter().map(|block| Block { thread, ..block }));
        }
        blocks
    });
    tally.always(LEAK, &[Leak]);
    tally.never(Leak);
}

/// A site that survived in these seconds: how many blocks, and how many each stands for. None of its size died.
fn of_survivors(seconds: u32, survived: impl Fn(u32) -> (u64, f64)) -> Judgement {
    let interval = |second: u32| {
        let (seen, stands_for) = survived(second);
        let blocks = seen as f64 * stands_for;
        let tally = Some(schema::Tally {
            seen,
            bytes: seen * 4096,
            plain: blocks,
            corrected: blocks,
            dense: blocks,
        });
        let site = schema::SiteTurnover {
            site: LEAK,
            born: tally,
            survived: tally,
            ..schema::SiteTurnover::default()
        };
        Interval {
            index: second,
            t_ns: u64::from(second) * 1_000_000_000,
            memory: Some(schema::Memory {
                anonymous: Some(u64::from(second) << 30),
                ..schema::Memory::default()
            }),
            sites: match second {
                0 => vec![schema::Site {
                    id: LEAK,
                    object_size: 4096,
                    ..schema::Site::default()
                }],
                _ => Vec::new(),
            },
            windows: Some(schema::Windows {
                count: 1,
                open_ns: 1_000_000,
                stand_for_ns: 100_000_000,
                sites: if seen > 0 { vec![site] } else { Vec::new() },
                ..schema::Windows::default()
            }),
            ..Interval::default()
        }
    };
    let capture = Capture::of(Header::default(), (0..=seconds).map(interval).collect());
    let heap = LiveHeap::from_capture(&capture);
    let sites = heap.merge(|part| part.site);
    judge(&Facts {
        site: &sites[0],
        timeline: &heap.timeline,
        owner: Owner::Program,
        older_s: 30.0,
        lost_events: 0,
        process_growth: heap.process_growth,
    })
}

/// Six survivors in three of sixty seconds: chance may do as much, but nothing shows that any of it goes.
#[test]
fn without_deaths_nothing_is_said_to_turn_over() {
    let judgement = of_survivors(60, |second| match second % 20 {
        10 => (2, 30.0),
        _ => (0, 0.0),
    });
    assert_eq!(judgement.verdict, Unknown, "{judgement:#?}");
}

/// So rare that some thirty blocks of it are seen, beside a cache: too few to tell by themselves that it does not slow
/// down, which the process's own size does.
#[test]
fn a_rare_leak_is_told_by_the_process_that_grows_with_it() {
    let tally = simulate(MINUTE, seeds().max(40), |random| {
        let mut blocks = leak(random, 23.0);
        let cache = Site::new(10, 256, 23.0).since(2.0);
        blocks.extend(cache.blocks(random, |_, _| 1.0));
        blocks
    });
    tally.always(LEAK, &[Leak]);
    tally.never(Leak);
}

/// A cache that warms up, of which as few are seen: one in seven came evenly enough, by chance.
#[test]
fn a_cache_that_warms_up_is_told_by_the_process_that_slows_down_with_it() {
    let tally = simulate(MINUTE, seeds().max(40), |random| {
        Site::new(10, 4096, 60.0).warming(random, 25.0)
    });
    tally.never(Leak);
}
