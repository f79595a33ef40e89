//! Simulated sites of known nature, sampled as the Go runtime samples, judged over many seeds.

use std::collections::BTreeMap;

use super::*;
use crate::capture::Capture;
use crate::capture::schema::{CohortFrees, GoBucket, Header, Interval, Site, SiteDelta};
use crate::live_heap::LiveHeap;
use crate::turnover::testing::{FOREVER, Random};

const RATE: f64 = 524_288.0;
const MIB: f64 = 1_048_576.0;
const SEEDS: u64 = 200;

/// A sampled object: when it was allocated and when the program dropped it, in seconds since the
/// attach.
type Object = (f64, f64);

/// A world in which sites live: its window, and when collections complete.
#[derive(Clone, Copy)]
struct World {
    window_s: f64,
    /// Seconds between collections.
    gc_s: f64,
    /// Factor from one such time to the next: a growing heap is collected less and less often.
    gc_growth: f64,
    interval_s: f64,
    go: bool,
}

const MINUTE: World = World {
    window_s: 60.0,
    gc_s: 1.5,
    gc_growth: 1.0,
    interval_s: 1.0,
    go: true,
};

impl World {
    fn collections(&self) -> Vec<f64> {
        let (mut times, mut t, mut step) = (Vec::new(), self.gc_s * 0.4, self.gc_s);
        while t < self.window_s {
            times.push(t);
            t += step;
            step *= self.gc_growth;
        }
        times
    }

    /// Records the objects as leaktrace would: sampled births as they happen, deaths when the
    /// collection after the drop has been swept.
    fn record(&self, objects: &[Object], bytes: u64) -> Capture {
        let collections = self.collections();
        let last = (self.window_s / self.interval_s).round() as usize;
        let interval_of = |t: f64| {
            if t <= 0.0 {
                0
            } else {
                1 + (t / self.interval_s) as usize
            }
        };
        let mut births = vec![0_u64; last + 1];
        let mut deaths: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for &(born, dropped) in objects {
            let freed = if self.go {
                // An object born or dropped while a cycle marks lives through it.
                let marking = 0.1;
                let collected = collections.iter().find(|&&done| done - marking > dropped);
                collected.map_or(FOREVER, |done| done + 0.2 * self.gc_s.min(2.0))
            } else {
                dropped
            };
            let (born, died) = (interval_of(born), interval_of(freed.min(1e9)));
            if freed <= 0.0 || born > last {
                continue;
            }
            births[born] += 1;
            if died <= last {
                *deaths.entry((died, born)).or_default() += 1;
            }
        }
        let kind = if self.go { Kind::GoHeap } else { Kind::Mmap };
        let site = Site {
            id: 1,
            kind: kind.into(),
            object_size: bytes,
            ..Site::default()
        };
        let mut totals = GoBucket {
            site: 1,
            ..GoBucket::default()
        };
        let mut intervals = Vec::new();
        for (index, &born) in births.iter().enumerate() {
            let t = index as f64 * self.interval_s;
            let freed: Vec<_> = deaths
                .range((index, 0)..(index + 1, 0))
                .map(|(&(_, born), &objects)| CohortFrees {
                    cohort: born as u32,
                    objects,
                    bytes: objects * bytes,
                })
                .collect();
            let frees = freed.iter().map(|freed| freed.objects).sum();
            totals.allocs += born;
            totals.frees += frees;
            let delta = SiteDelta {
                site: 1,
                allocs: born,
                alloc_bytes: born * bytes,
                frees,
                free_bytes: frees * bytes,
                freed,
                ..SiteDelta::default()
            };
            intervals.push(Interval {
                index: index as u32,
                t_ns: (t * 1e9) as u64,
                sites: if index == 0 {
                    vec![site.clone()]
                } else {
                    Vec::new()
                },
                deltas: if self.go && index == 0 {
                    Vec::new()
                } else {
                    vec![delta]
                },
                go_buckets: if self.go { vec![totals] } else { Vec::new() },
                go_sample_rate: if self.go { RATE as u64 } else { 0 },
                gc_cycles: collections.iter().filter(|&&done| done <= t).count() as u32,
                ..Interval::default()
            });
        }
        Capture::of(Header::default(), intervals)
    }

    fn judge(&self, objects: &[Object]) -> Judgement {
        let capture = self.record(objects, if self.go { 256 } else { 65_536 });
        let heap = LiveHeap::from_capture(&capture);
        let sites = heap.merge(|part| part.site);
        judge(&Facts {
            site: &sites[0],
            timeline: &heap.timeline,
            owner: Owner::Program,
            older_s: 30.0,
            lost_events: 0,
            process_growth: ProcessGrowth::default(),
        })
    }
}

/// Samples allocated at `rate(t)` bytes a second from `from` to `to`, each dropped after `life`.
fn allocate(
    random: &mut Random,
    (from, to): (f64, f64),
    peak: f64,
    rate: impl Fn(f64) -> f64,
    mut life: impl FnMut(&mut Random) -> f64,
) -> Vec<Object> {
    let mut objects = Vec::new();
    let mut t = from;
    loop {
        t += random.exponential(RATE / peak);
        if t >= to {
            return objects;
        }
        if random.unit() < rate(t) / peak {
            let life = life(random);
            objects.push((t, t + life));
        }
    }
}

fn leak(random: &mut Random, rate: f64, window_s: f64) -> Vec<Object> {
    allocate(random, (0.0, window_s), rate, |_| rate, |_| FOREVER)
}

/// A FIFO cache of `capacity` bytes into which `rate` bytes a second go, started at `from`.
fn cache(random: &mut Random, rate: f64, capacity: f64, from: f64, window_s: f64) -> Vec<Object> {
    allocate(
        random,
        (from, window_s),
        rate,
        |_| rate,
        |_| capacity / rate,
    )
}

fn garbage(random: &mut Random, rate: f64, window_s: f64) -> Vec<Object> {
    allocate(
        random,
        (-5.0, window_s),
        rate,
        |_| rate,
        |random| random.exponential(0.01),
    )
}

/// How often each verdict is given over the seeds.
struct Tally {
    name: &'static str,
    given: BTreeMap<Verdict, u64>,
}

fn tally(name: &'static str, world: World, site: impl Fn(&mut Random) -> Vec<Object>) -> Tally {
    let mut given = BTreeMap::new();
    for seed in 0..SEEDS {
        let judgement = world.judge(&site(&mut Random::new(seed)));
        assert!(
            !judgement.evidence.is_empty(),
            "{name}: a verdict without evidence"
        );
        *given.entry(judgement.verdict).or_default() += 1;
    }
    println!("{name}: {given:?}");
    Tally { name, given }
}

impl Tally {
    fn share(&self, verdicts: &[Verdict]) -> f64 {
        let given = |verdict| self.given.get(verdict).copied().unwrap_or(0);
        verdicts.iter().map(given).sum::<u64>() as f64 / SEEDS as f64
    }

    #[track_caller]
    fn at_least(self, share: f64, verdicts: &[Verdict]) -> Self {
        assert!(
            self.share(verdicts) >= share,
            "{}: {:?}",
            self.name,
            self.given
        );
        self
    }

    #[track_caller]
    fn at_most(self, share: f64, verdicts: &[Verdict]) -> Self {
        assert!(
            self.share(verdicts) <= share,
            "{}: {:?}",
            self.name,
            self.given
        );
        self
    }
}

use Verdict::{Growing, Leak, Steady, Unknown};

#[test]
fn leaks_are_leaks() {
    for rate in [0.5, 1.0, 2.0, 10.0] {
        tally("leak", MINUTE, |r| leak(r, rate * MIB, 60.0)).at_least(0.97, &[Leak]);
    }
    let short = World {
        window_s: 20.0,
        gc_s: 1.0,
        ..MINUTE
    };
    tally("64 MiB in 20 s", short, |r| leak(r, 3.2 * MIB, 20.0)).at_least(0.97, &[Leak]);
    tally("beside old memory", MINUTE, |r| {
        let mut objects = leak(r, MIB, 60.0);
        objects.extend((0..200).map(|_| (-1.0, FOREVER)));
        objects
    })
    .at_least(0.97, &[Leak]);
    tally("and garbage of the same line", MINUTE, |r| {
        let mut objects = leak(r, MIB, 60.0);
        objects.extend(garbage(r, 20.0 * MIB, 60.0));
        objects
    })
    .at_least(0.97, &[Leak]);
    // A reload every four seconds, 8 MiB each.
    tally("in steps", MINUTE, |r| {
        let reloading = |t: f64| {
            if t.rem_euclid(4.0) < 0.2 {
                40.0 * MIB
            } else {
                0.0
            }
        };
        allocate(r, (0.0, 60.0), 40.0 * MIB, reloading, |_| FOREVER)
    })
    .at_least(0.97, &[Leak]);
    // Load that comes and goes.
    tally("under uneven load", MINUTE, |r| {
        let load = |t: f64| (1.0 + 0.6 * (t / 5.0).sin()) * MIB;
        allocate(r, (0.0, 60.0), 1.6 * MIB, load, |_| FOREVER)
    })
    .at_least(0.95, &[Leak]);
}

/// Too slow for the window: said to be unknown or growing, never steady, and a leak only where the
/// samples bear it.
#[test]
fn slow_leaks_are_not_steady() {
    tally("50 KiB/s", MINUTE, |r| leak(r, 0.05 * MIB, 60.0))
        .at_most(0.05, &[Steady])
        .at_most(0.05, &[Leak]);
    tally("200 KiB/s", MINUTE, |r| leak(r, 0.2 * MIB, 60.0)).at_most(0.01, &[Steady]);
    let hours = World {
        window_s: 3600.0,
        gc_s: 60.0,
        interval_s: 10.0,
        ..MINUTE
    };
    tally("50 KiB/s for an hour", hours, |r| {
        leak(r, 0.05 * MIB, 3600.0)
    })
    .at_least(0.97, &[Leak]);
}

#[test]
fn full_caches_are_steady() {
    for (rate, capacity) in [(2.0, 20.0), (2.0, 600.0), (0.5, 30.0), (10.0, 100.0)] {
        tally("full cache", MINUTE, |r| {
            cache(r, rate * MIB, capacity * MIB, -2.0 * capacity / rate, 60.0)
        })
        .at_most(0.005, &[Leak])
        .at_least(0.93, &[Steady]);
    }
    // Random eviction: lives are exponential.
    tally("full cache, random eviction", MINUTE, |r| {
        let life = |r: &mut Random| r.exponential(20.0);
        allocate(r, (-200.0, 60.0), 2.0 * MIB, |_| 2.0 * MIB, life)
    })
    .at_most(0.005, &[Leak])
    .at_least(0.93, &[Steady]);
}

/// A leak elsewhere makes the heap grow, so that collections become rare: what a cache has evicted
/// stays uncollected for long.
#[test]
fn rare_collections_do_not_make_leaks() {
    for gc_growth in [1.1, 1.2, 1.35, 1.6] {
        let growing = World {
            gc_s: 0.5,
            gc_growth,
            ..MINUTE
        };
        println!("{} collections", growing.collections().len());
        for (rate, capacity) in [(2.0, 20.0), (2.0, 60.0), (2.0, 600.0), (10.0, 100.0)] {
            tally("full cache in a growing heap", growing, |r| {
                cache(r, rate * MIB, capacity * MIB, -2.0 * capacity / rate, 60.0)
            })
            .at_most(0.01, &[Leak]);
        }
        tally("leak in a growing heap", growing, |r| {
            leak(r, 2.0 * MIB, 60.0)
        })
        .at_most(0.0, &[Steady]);
    }
}

/// A cache that fills while it is watched. Once it slows down, or has begun to evict, it is no leak;
/// a constant rate without an eviction is the case that cannot be told apart, and is `leak`'s own
/// last line of evidence.
#[test]
fn warming_caches_are_growing_then_steady() {
    for time_constant in [10.0, 20.0, 30.0] {
        tally("exponential warming", MINUTE, |r| {
            let rate = |t: f64| 4.0 * MIB * (-t / time_constant).exp();
            allocate(r, (0.0, 60.0), 4.0 * MIB, rate, |_| FOREVER)
        })
        .at_most(0.02, &[Leak])
        .at_least(0.95, &[Growing, Steady]);
    }
    for full_after in [20.0, 30.0, 45.0] {
        tally("linear warming, full within the window", MINUTE, |r| {
            cache(r, 2.0 * MIB, 2.0 * MIB * full_after, 0.0, 60.0)
        })
        .at_most(0.01, &[Leak]);
    }
    tally("linear warming, full and then read only", MINUTE, |r| {
        allocate(r, (0.0, 30.0), 2.0 * MIB, |_| 2.0 * MIB, |_| FOREVER)
    })
    .at_most(0.0, &[Leak])
    .at_least(0.97, &[Steady]);
    let short = World {
        window_s: 8.0,
        gc_s: 0.5,
        interval_s: 0.5,
        ..MINUTE
    };
    tally("linear warming, short window", short, |r| {
        leak(r, 10.0 * MIB, 8.0)
    })
    .at_least(0.99, &[Growing]);
}

#[test]
fn garbage_is_steady_once_collected() {
    for rate in [2.0, 20.0, 200.0] {
        tally("garbage", MINUTE, |r| garbage(r, rate * MIB, 60.0))
            .at_most(0.0, &[Leak, Growing])
            .at_least(0.97, &[Steady]);
    }
    // The heap grows by a leak elsewhere: collections become rare and the saw-teeth tall.
    let growing = World {
        gc_s: 0.5,
        gc_growth: 1.35,
        ..MINUTE
    };
    tally("garbage in a growing heap", growing, |r| {
        garbage(r, 20.0 * MIB, 60.0)
    })
    .at_most(0.0, &[Leak, Growing]);
    let rare = World {
        gc_s: 40.0,
        ..MINUTE
    };
    tally("garbage, one collection", rare, |r| {
        garbage(r, 2.0 * MIB, 60.0)
    })
    .at_most(0.0, &[Leak, Growing, Steady]);
    let none = World {
        gc_s: 300.0,
        ..MINUTE
    };
    tally("garbage, no collection", none, |r| {
        garbage(r, 2.0 * MIB, 60.0)
    })
    .at_least(1.0, &[Unknown]);
}

/// A program keeps its last few requests, one of which happens to be a sample.
#[test]
fn garbage_with_a_stray_is_steady() {
    tally("garbage of 20 MiB/s and strays", MINUTE, |r| {
        let mut objects = garbage(r, 20.0 * MIB, 60.0);
        objects.extend([(4.0, FOREVER), (30.5, FOREVER), (47.0, FOREVER)]);
        objects
    })
    .at_least(1.0, &[Steady]);
}

#[test]
fn what_is_allocated_once_is_no_leak() {
    tally("at the start", MINUTE, |r| {
        allocate(r, (0.0, 2.0), 32.0 * MIB, |_| 32.0 * MIB, |_| FOREVER)
    })
    .at_least(1.0, &[Steady]);
    tally("in the middle", MINUTE, |r| {
        allocate(r, (30.0, 32.0), 32.0 * MIB, |_| 32.0 * MIB, |_| FOREVER)
    })
    .at_least(1.0, &[Steady]);
    tally("just now", MINUTE, |r| {
        allocate(r, (50.0, 52.0), 32.0 * MIB, |_| 32.0 * MIB, |_| FOREVER)
    })
    .at_least(1.0, &[Growing]);
    tally("a table replaced", MINUTE, |r| {
        let mut objects = allocate(r, (20.0, 22.0), 32.0 * MIB, |_| 32.0 * MIB, |_| FOREVER);
        objects.extend((0..128).map(|_| (-1.0, 22.5)));
        objects
    })
    .at_most(0.0, &[Leak, Growing]);
}

#[test]
fn memory_from_before_that_does_not_grow_is_said_to_be_so() {
    let old = |_: &mut Random| vec![(-1.0, FOREVER); 200];
    let short = World {
        window_s: 5.0,
        ..MINUTE
    };
    tally("5 s", short, old).at_least(1.0, &[Unknown]);
    tally("60 s", MINUTE, old).at_least(1.0, &[Steady]);
    let evidence = short.judge(&old(&mut Random::new(1))).evidence.join("; ");
    assert_eq!(
        evidence,
        "no growth seen in 5 s; 5 s are too short to call it steady; 100.0 MiB of it was there \
         before the attach"
    );
}

#[test]
fn mappings_are_judged_by_age() {
    let world = World {
        go: false,
        ..MINUTE
    };
    let every = |step: f64, life: f64| {
        move |_: &mut Random| {
            (0..)
                .map(|i| 0.1 + f64::from(i) * step)
                .take_while(|&t| t < 60.0)
                .map(|t| (t, t + life))
                .collect()
        }
    };
    tally("a mapping each second", world, every(1.0, FOREVER)).at_least(1.0, &[Leak]);
    tally("a mapping every four seconds", world, every(4.0, FOREVER)).at_least(1.0, &[Leak]);
    tally("unmapped after a second", world, every(0.25, 1.0)).at_least(1.0, &[Steady]);
    tally("unmapped after 20 s", world, every(0.25, 20.0)).at_least(1.0, &[Steady]);
    let short = World {
        window_s: 20.0,
        ..world
    };
    tally("not old yet", short, every(0.5, FOREVER)).at_least(1.0, &[Growing]);
    tally("one", world, |_| vec![(3.0, FOREVER)]).at_most(0.0, &[Leak, Growing]);
}

/// One leak, judged with something standing against it.
#[test]
fn losses_and_owners_keep_a_leak_from_being_called_one() {
    let world = World {
        go: false,
        ..MINUTE
    };
    let objects: Vec<_> = (0..60).map(|i| (f64::from(i) + 0.5, FOREVER)).collect();
    let heap = LiveHeap::from_capture(&world.record(&objects, 4096));
    let sites = heap.merge(|part| part.site);
    let facts = Facts {
        site: &sites[0],
        timeline: &heap.timeline,
        owner: Owner::Program,
        older_s: 30.0,
        lost_events: 0,
        process_growth: ProcessGrowth::default(),
    };
    assert_eq!(judge(&facts).verdict, Leak);
    let lossy = judge(&Facts {
        lost_events: 10,
        ..facts
    });
    assert_eq!(lossy.verdict, Growing);
    assert!(
        lossy.evidence[1].contains("10 records were lost"),
        "{:?}",
        lossy.evidence
    );
    let arena = judge(&Facts {
        owner: Owner::GoRuntimeHeap,
        ..facts
    });
    assert_eq!(arena.verdict, Unknown);
    assert!(
        arena.evidence[0].contains("Go runtime"),
        "{:?}",
        arena.evidence
    );
}

#[test]
fn a_leak_gives_its_numbers() {
    let judgement = MINUTE.judge(&leak(&mut Random::new(3), MIB, 60.0));
    let slope = judgement.growth_bytes_per_s / MIB;
    assert!((0.8..1.2).contains(&slope), "{slope}");
    let evidence = judgement.evidence.join("\n");
    for expected in [
        "MiB/s, in 6 of 6 parts",
        "alive and old (3 collections, or one and 30 s)",
        "0 sampled objects died",
    ] {
        assert!(evidence.contains(expected), "{evidence}");
    }
}

/// Garbage whose births and deaths no probe sees but for the first seconds': there are no more survivors than
/// there are live objects, and it is not accused.
#[test]
fn survivors_are_no_more_than_live() {
    let mut random = Random::new(5);
    let garbage = |random: &mut Random| 3.0 + random.unit();
    let objects = allocate(&mut random, (0.0, 60.0), 8.0 * MIB, |_| 8.0 * MIB, garbage);
    let mut capture = MINUTE.record(&objects, 256);
    for interval in &mut capture.intervals {
        if interval.t_ns > 8_000_000_000 {
            interval.deltas.clear();
        }
    }
    let heap = LiveHeap::from_capture(&capture);
    let sites = heap.merge(|part| part.site);
    let facts = Facts {
        site: &sites[0],
        timeline: &heap.timeline,
        owner: Owner::Program,
        older_s: 30.0,
        lost_events: 0,
        process_growth: ProcessGrowth::default(),
    };
    let live = sites[0].live_count.objects;
    let kept = Old::of(&facts).kept;
    assert!(live > 10 && kept <= live as f64, "{kept} of {live}");
    let judgement = judge(&facts);
    assert!(judgement.survival.seconds.is_empty());
    assert_ne!(judgement.verdict, Leak, "{:?}", judgement.evidence);
}

#[test]
fn nothing_at_all_is_unknown() {
    let capture = World {
        window_s: 0.0,
        ..MINUTE
    }
    .record(&[], 1);
    let heap = LiveHeap::from_capture(&capture);
    for site in heap.merge(|part| part.site) {
        let facts = Facts {
            site: &site,
            timeline: &heap.timeline,
            owner: Owner::Program,
            older_s: 0.0,
            lost_events: 0,
            process_growth: ProcessGrowth::default(),
        };
        assert_eq!(judge(&facts).verdict, Unknown);
    }
}
