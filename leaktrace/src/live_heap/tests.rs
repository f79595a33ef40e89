use super::*;
use crate::capture::schema::SiteDelta;
use crate::capture::schema::{
    CohortFrees, GoBucket, GoClass, GoInfo, GoOwnSampling, Header, Interval, Sampling, Site, Target,
};

const RATE: u64 = 512 << 10;

fn capture(intervals: Vec<Interval>) -> Capture {
    let go = GoInfo {
        sample_rate: RATE,
        ..GoInfo::default()
    };
    let target = Target {
        go: Some(go),
        ..Target::default()
    };
    let header = Header {
        target: Some(target),
        ..Header::default()
    };
    Capture::of(header, intervals)
}

fn interval(index: u32, gc_cycles: u32) -> Interval {
    let t_ns = u64::from(index) * 1_000_000_000;
    Interval {
        index,
        t_ns,
        gc_cycles,
        go_sample_rate: RATE,
        ..Interval::default()
    }
}

fn site(id: u32, kind: Kind, object_size: u64) -> Site {
    Site {
        id,
        kind: kind.into(),
        object_size,
        ..Site::default()
    }
}

fn delta(site: u32, allocs: (u64, u64), freed: &[(u32, u64, u64)]) -> SiteDelta {
    SiteDelta {
        site,
        allocs: allocs.0,
        alloc_bytes: allocs.1,
        frees: freed.iter().map(|freed| freed.1).sum(),
        free_bytes: freed.iter().map(|freed| freed.2).sum(),
        freed: freed
            .iter()
            .map(|&(cohort, objects, bytes)| CohortFrees {
                cohort,
                objects,
                bytes,
            })
            .collect(),
        ..SiteDelta::default()
    }
}

fn bucket(site: u32, allocs: u64, frees: u64, proven: u64) -> GoBucket {
    GoBucket {
        site,
        allocs,
        frees,
        proven_allocs: proven,
        proven_frees: 0,
    }
}

#[test]
fn mappings_are_exact() {
    let intervals = vec![
        Interval {
            sites: vec![site(1, Kind::Mmap, 0), site(2, Kind::Mmap, 0)],
            deltas: vec![delta(1, (2, 8192), &[])],
            ..interval(0, 0)
        },
        Interval {
            deltas: vec![delta(2, (3, 12288), &[])],
            ..interval(1, 0)
        },
        Interval {
            deltas: vec![
                delta(1, (0, 0), &[(0, 1, 4096)]),
                delta(2, (1, 4096), &[(1, 1, 4096)]),
            ],
            ..interval(2, 0)
        },
    ];
    let heap = LiveHeap::from_capture(&capture(intervals));
    let sites = heap.merge(|part| part.site);
    let [before, after] = sites.as_slice() else {
        panic!("{sites:?}")
    };
    assert_eq!(before.live_series, [8192.0, 8192.0, 4096.0]);
    assert_eq!(
        (before.preexisting_bytes, before.preexisting_left_bytes),
        (8192.0, 4096.0)
    );
    assert_eq!(before.growth.value, -4096.0);
    assert_eq!(
        (before.oldest, before.oldest_s(&heap.timeline)),
        (Some(0), 2.0)
    );
    assert_eq!(
        after.live,
        Estimate {
            value: 12288.0,
            low: 12288.0,
            high: 12288.0
        }
    );
    assert_eq!(
        after.live_count,
        Count {
            objects: 3,
            bytes: 12288
        }
    );
    assert_eq!((after.alloc_bytes, after.freed_bytes), (16384.0, 4096.0));
    assert_eq!(
        (after.oldest, after.proven_bytes, after.sampled),
        (Some(1), None, false)
    );
    assert_eq!(
        after.cohorts().find(|cohort| cohort.0 == 1).unwrap().2,
        Count {
            objects: 1,
            bytes: 4096
        }
    );
}

/// Sampled at refills: bytes are what samples stand for, corrected by the runtime's own count of the
/// size class; a large object that was taken for certain is exact.
#[test]
fn samples_of_our_own_are_corrected_by_the_runtimes_count() {
    const LARGE: u64 = 1 << 20;
    let refill = |id, size| Site {
        sampling: Sampling::Refill.into(),
        ..site(id, Kind::GoHeap, size)
    };
    let class = |object_size, alloc_bytes| GoClass {
        object_size,
        alloc_bytes,
    };
    let intervals = vec![
        Interval {
            sites: vec![refill(1, 64), refill(2, 64), refill(3, LARGE)],
            go_own_sampling: Some(GoOwnSampling {
                sample_bytes: RATE,
                ..GoOwnSampling::default()
            }),
            go_sample_rate: 0,
            ..interval(0, 0)
        },
        Interval {
            deltas: vec![
                delta(1, (30, 30 * RATE), &[(1, 10, 10 * RATE)]),
                delta(2, (10, 10 * RATE), &[(1, 10, 10 * RATE)]),
                delta(3, (3, 3 * LARGE), &[(1, 1, LARGE)]),
            ],
            // Half of what the samples stood for was ever allocated.
            go_classes: vec![class(64, 20 * RATE)],
            go_sample_rate: 0,
            ..interval(1, 0)
        },
        Interval {
            go_sample_rate: 0,
            ..interval(2, 4)
        },
    ];
    let mut capture = capture(intervals);
    capture.header.target = None;
    let heap = LiveHeap::from_capture(&capture);
    let sites = heap.merge(|part| part.site);
    let [leak, garbage, large] = sites.as_slice() else {
        panic!("{sites:?}")
    };
    let bytes = 10.0 * RATE as f64;
    assert_eq!((leak.live.value, leak.live_count.objects), (bytes, 20));
    assert_eq!(
        (leak.alloc_bytes, leak.freed_bytes),
        (1.5 * bytes, 0.5 * bytes)
    );
    assert_eq!(leak.live_objects, bytes / 64.0);
    assert!(leak.live.low < bytes * 0.75 && leak.live.high > bytes * 1.4);
    assert_eq!((leak.sampled, leak.rate), (true, RATE));
    assert_eq!(leak.proven_bytes, Some(bytes));
    assert_eq!((garbage.live.value, garbage.live.low), (0.0, 0.0));
    let exact = 2.0 * LARGE as f64;
    assert_eq!((large.live.low, large.live.high), (exact, exact));
}

/// The figures of `scaleHeapSample(count, count * size, 524288)`, Go 1.27.3.
#[test]
fn go_samples_are_scaled_as_pprof_does() {
    let sampler = Sampler::Runtime { rate: RATE };
    for (size, objects, bytes) in [
        (16, 32768.5, 524296.0),
        (4096, 128.5007, 526338.7),
        (1 << 20, 1.15652, 1212697.8),
    ] {
        let scaled = sampler.scale(size);
        assert!((scaled / objects - 1.0).abs() < 1e-4, "{size}: {scaled}");
        assert!((scaled * size as f64 / bytes - 1.0).abs() < 1e-4, "{size}");
    }
    assert_eq!(Sampler::Runtime { rate: 0 }.scale(16), 1.0);
    assert_eq!(Sampler::Runtime { rate: 1 }.scale(16), 1.0);
}

#[test]
fn go_buckets_are_the_truth_and_probes_give_the_ages() {
    let scale = Sampler::Runtime { rate: RATE }.scale(4096);
    let intervals = vec![
        Interval {
            sites: vec![site(1, Kind::GoHeap, 4096)],
            go_buckets: vec![bucket(1, 100, 60, 30)],
            ..interval(0, 0)
        },
        Interval {
            deltas: vec![delta(1, (10, 40960), &[])],
            go_buckets: vec![bucket(1, 110, 60, 30)],
            ..interval(1, 3)
        },
        Interval {
            deltas: vec![delta(1, (0, 0), &[(0, 5, 20480), (1, 2, 8192)])],
            go_buckets: vec![bucket(1, 112, 70, 38)],
            ..interval(2, 8)
        },
    ];
    let heap = LiveHeap::from_capture(&capture(intervals));
    let sites = heap.merge(|part| part.site);
    let [site] = sites.as_slice() else {
        panic!("{sites:?}")
    };
    let bytes = |samples: f64| samples * 4096.0 * scale;
    assert_eq!(site.live_series, [bytes(40.0), bytes(50.0), bytes(42.0)]);
    assert_eq!(site.live_count.objects, 42);
    assert!((site.growth.value - bytes(2.0)).abs() < 1.0);
    assert_eq!(site.proven_bytes, Some(bytes(38.0)));
    assert_eq!(site.preexisting_bytes, bytes(40.0));
    assert_eq!(site.preexisting_left_bytes, bytes(35.0));
    assert_eq!(site.unseen_deaths, 3);
    assert_eq!(site.births[&1].objects, 10);
    assert_eq!(
        site.collections_survived(&heap.timeline),
        Some(6),
        "8, less 2"
    );
    assert_eq!(heap.timeline.collections_survived(1, 2), 3, "5, less 2");
    assert_eq!(heap.timeline.collections_survived(2, 2), 0);
}

/// Mappings are followed for two seconds of four, blocks to the end.
#[test]
fn a_kind_ends_where_it_was_not_followed_any_more() {
    let last = |kind: Kind| vec![i32::from(kind)];
    let intervals = (0..=4).map(|index| Interval {
        sites: match index {
            1 => vec![site(1, Kind::Mmap, 0), site(2, Kind::Malloc, 0)],
            _ => vec![],
        },
        deltas: match index {
            0 => vec![],
            // Whatever a capture has of it later.
            _ => vec![delta(1, (1, 4096), &[]), delta(2, (1, 64), &[])],
        },
        ended: match index {
            2 => last(Kind::Mmap),
            _ => vec![],
        },
        ..interval(index, 0)
    });
    let heap = LiveHeap::from_capture(&capture(intervals.collect()));
    let sites = heap.merge(|part| part.site);
    let [mapping, block] = sites.as_slice() else {
        panic!("{sites:?}")
    };
    assert_eq!(mapping.live_series, [0.0, 4096.0, 8192.0]);
    assert_eq!(block.live_series, [0.0, 64.0, 128.0, 192.0, 256.0]);
    assert_eq!(heap.timeline_of(Kind::Mmap).times, [0.0, 1.0, 2.0]);
    assert_eq!(heap.timeline_of(Kind::Malloc).duration_s(), 4.0);
    assert!(!heap.has_all_of(Kind::Mmap) && heap.has_all_of(Kind::Malloc));
}

/// Of ten objects whose deaths the runtime counted, the probes saw two: how long objects live is not known.
#[test]
fn survival_is_not_told_where_most_deaths_were_not_seen() {
    let heap = |frees: u64| {
        let intervals = vec![
            Interval {
                sites: vec![site(1, Kind::GoHeap, 64)],
                go_buckets: vec![bucket(1, 0, 0, 0)],
                ..interval(0, 0)
            },
            Interval {
                deltas: vec![delta(1, (20, 1280), &[])],
                go_buckets: vec![bucket(1, 20, 0, 0)],
                ..interval(1, 1)
            },
            Interval {
                deltas: vec![delta(1, (0, 0), &[(1, 2, 128)])],
                go_buckets: vec![bucket(1, 20, frees, 0)],
                ..interval(2, 2)
            },
        ];
        LiveHeap::from_capture(&capture(intervals))
    };
    let survival = |frees| {
        let heap = heap(frees);
        heap.merge(|part| part.site)[0].survival(&heap.timeline)
    };
    assert!(!survival(2).seconds.is_empty());
    assert_eq!(survival(10), Survival::default());
}

/// A bucket that no probe spoke of still has births by interval.
#[test]
fn buckets_alone_give_births() {
    let buckets = [(0, 10, 4), (1, 20, 4), (2, 26, 5)];
    let intervals = buckets.map(|(index, allocs, frees)| Interval {
        sites: if index == 0 {
            vec![site(1, Kind::GoHeap, 64)]
        } else {
            vec![]
        },
        go_buckets: vec![bucket(1, allocs, frees, 0)],
        ..interval(index, index)
    });
    let heap = LiveHeap::from_capture(&capture(intervals.to_vec()));
    let site = &heap.merge(|part| part.site)[0];
    let births: Vec<_> = site
        .births
        .iter()
        .map(|(&slot, born)| (slot, born.objects))
        .collect();
    assert_eq!(
        (births, site.unseen_deaths),
        (vec![(0, 6), (1, 10), (2, 6)], 1)
    );
}

#[test]
fn merged_sites_add_up_and_kinds_stay_apart() {
    let intervals = vec![
        interval(0, 0),
        Interval {
            sites: vec![
                site(1, Kind::GoHeap, 64),
                site(2, Kind::GoHeap, 128),
                site(3, Kind::Mmap, 0),
            ],
            deltas: vec![
                delta(1, (4, 256), &[]),
                delta(2, (2, 256), &[]),
                delta(3, (1, 4096), &[]),
            ],
            ..interval(1, 1)
        },
    ];
    let heap = LiveHeap::from_capture(&capture(intervals));
    let apart = heap.merge(|part| part.site);
    let together = heap.merge(|_| ());
    assert_eq!(together.len(), 2);
    assert_eq!(
        (together[0].sites.as_slice(), together[1].sites.as_slice()),
        (&[1, 2][..], &[3][..])
    );
    let (one, other, live) = (apart[0].live, apart[1].live, together[0].live);
    assert_eq!(live.value, one.value + other.value);
    assert!(one.low + other.low < live.low && live.high < one.high + other.high);
}

/// The 95 % interval holds the truth in about 95 of 100 runs, for few samples too.
#[test]
fn intervals_hold_what_they_promise() {
    let sampler = Sampler::Runtime { rate: RATE };
    let mut random = Random(7);
    for (size, objects) in [(4096, 500), (4096, 5000), (65536, 100), (1 << 20, 50)] {
        let mut held = 0;
        for _ in 0..1000 {
            let p = sampler.probability(size);
            let sampled = (0..objects).filter(|_| random.unit() < p).count() as u64;
            let count = Count {
                objects: sampled,
                bytes: sampled * size,
            };
            let estimate = sampler.estimate(count, size);
            let truth = (objects * size) as f64;
            held += u32::from(estimate.low <= truth && truth <= estimate.high);
        }
        assert!(
            (920..=985).contains(&held),
            "{size} × {objects}: {held} of 1000"
        );
    }
}

#[test]
fn long_captures_take_bounded_slots() {
    let mut intervals = vec![Interval {
        sites: vec![site(1, Kind::Mmap, 0)],
        ..interval(0, 0)
    }];
    for index in 1..=5000 {
        let deltas = vec![delta(1, (1, 4096), &[(index.max(2) - 1, 1, 4096)])];
        intervals.push(Interval {
            deltas,
            ..interval(index, index)
        });
    }
    let heap = LiveHeap::from_capture(&capture(intervals));
    assert!(
        heap.timeline.times.len() <= MAX_SLOTS + 1,
        "{}",
        heap.timeline.times.len()
    );
    assert_eq!(heap.timeline.duration_s(), 5000.0);
    let mut steps = heap.timeline.times.windows(2).map(|pair| pair[1] - pair[0]);
    let first = steps.next();
    steps.next_back();
    assert!(
        steps.all(|step| Some(step) == first),
        "time is resolved evenly"
    );
    let site = &heap.merge(|_| ())[0];
    assert_eq!(site.live_count.objects, 0);
    assert_eq!(
        site.oldest.unwrap_or(heap.timeline.last()),
        heap.timeline.last()
    );
}

/// Deaths that were never born, cohorts from the future, sites nobody declared, counters at their
/// ends: taken as far as they go.
#[test]
fn senseless_records_are_survived() {
    let intervals = vec![
        Interval {
            t_ns: u64::MAX,
            deltas: vec![delta(
                9,
                (u64::MAX, u64::MAX),
                &[(u32::MAX, u64::MAX / 2, 7)],
            )],
            go_buckets: vec![bucket(4, u64::MAX, 3, u64::MAX), bucket(9, 1, 5, 0)],
            ..interval(7, u32::MAX)
        },
        Interval {
            sites: vec![
                site(4, Kind::Mmap, u64::MAX),
                site(5, Kind::GoHeap, u64::MAX),
            ],
            deltas: vec![delta(4, (u64::MAX, 1), &[]), delta(5, (1, 1), &[(3, 9, 9)])],
            go_buckets: vec![bucket(5, u64::MAX, 0, 0)],
            ..interval(9, 0)
        },
    ];
    let heap = LiveHeap::from_capture(&capture(intervals));
    for site in heap.merge(|part| part.site) {
        assert!(site.live.value >= 0.0);
        site.oldest_s(&heap.timeline);
    }
    assert!(
        LiveHeap::from_capture(&capture(Vec::new()))
            .merge(|_| ())
            .is_empty()
    );
}

/// xorshift64*: enough for a simulation, and the same everywhere.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
