use super::*;

/// A service of `seconds` censuses a second apart: `waits(t)` gives (all, settled, settled that have
/// left) of the group, `siblings(t)` all goroutines of the same go statement.
struct Service {
    times: Vec<f64>,
    siblings: Vec<f64>,
    group: GroupHistory,
}

impl Service {
    fn new(seconds: u32, waits: impl Fn(f64) -> (f64, f64, f64)) -> Self {
        let times: Vec<f64> = (0..=seconds).map(f64::from).collect();
        let group = GroupHistory {
            counts: times.iter().map(|t| waits(*t).0.floor()).collect(),
            settled: times.iter().map(|t| waits(*t).1.floor()).collect(),
            settled_left: times.iter().map(|t| waits(*t).2.floor()).collect(),
            ..GroupHistory::default()
        };
        Self {
            siblings: group.counts.clone(),
            times,
            group,
        }
    }

    /// Goroutines come by `count(t)` and never leave.
    fn leaking(seconds: u32, count: impl Fn(f64) -> f64) -> Self {
        Self::new(seconds, |t| (count(t), count((t - 2.0).max(0.0)), 0.0))
    }

    fn judged(&self, reason: &str) -> Judgement {
        self.judged_as(Doing::Waiting(reason))
    }

    fn judged_as(&self, doing: Doing) -> Judgement {
        judge(&Facts {
            group: &self.group,
            times: &self.times,
            siblings: &self.siblings,
            doing,
            is_runtimes_own: false,
        })
    }

    fn verdict(&self) -> Verdict {
        self.judged("chan send").verdict
    }
}

/// Repeatable noise in 0..1.
fn noise(t: f64, seed: u64) -> f64 {
    let mut x = (t as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd129_42e6);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

#[test]
fn even_growth_of_blocked_goroutines_is_a_leak() {
    for (seconds, rate) in [(10, 1000.0), (20, 3.0), (60, 1.0), (60, 0.2), (600, 0.1)] {
        let service = Service::leaking(seconds, |t| 5.0 + rate * t);
        let judgement = service.judged("chan send");
        assert_eq!(
            judgement.verdict,
            Verdict::Leak,
            "{seconds} s: {judgement:?}"
        );
        assert!((judgement.growth_per_s - rate).abs() < rate * 0.2);
    }
    let swinging = Service::leaking(60, |t| 40.0 * t + 100.0 * (t / 8.0).sin());
    assert_eq!(swinging.verdict(), Verdict::Leak);
    // Beside a leak, others wait at the same line for a moment.
    let mut mixed = Service::leaking(60, |t| 2.0 * t);
    for (count, t) in mixed.group.counts.iter_mut().zip(0..) {
        *count += (30.0 * noise(f64::from(t), 3)).floor();
    }
    assert_eq!(mixed.verdict(), Verdict::Leak);
}

/// What was there before the attach settles in the first seconds: that is not a burst of new ones.
#[test]
fn a_leak_from_before_the_attach_is_not_slowing_down() {
    let count = |t: f64| 1200.0 + 1000.0 * t;
    let settled = |t: f64| if t < 2.0 { 0.0 } else { count(t - 2.0) };
    for seconds in [12, 20, 60] {
        let service = Service::new(seconds, |t| (count(t), settled(t), 0.0));
        assert_eq!(service.verdict(), Verdict::Leak, "{seconds} s");
    }
    let before = Service::new(12, |t| (10_000.0 + t / 6.0, settled(t).min(10_000.0), 0.0));
    assert_ne!(
        before.verdict(),
        Verdict::Leak,
        "two new ones beside ten thousand old ones"
    );
}

#[test]
fn pools_are_never_leaks() {
    let constant = Service::leaking(60, |_| 64.0);
    assert_eq!(constant.verdict(), Verdict::Steady);
    // Up and down with load; whoever waits for long leaves in the end.
    for seed in 0..50 {
        let level = |t: f64| 100.0 + 60.0 * noise(t, seed);
        let service = Service::new(60, |t| (level(t), level(t) * 0.2, t * 3.0));
        assert_eq!(service.verdict(), Verdict::Steady, "{seed}");
    }
    // Filled lazily and then full.
    for full in [8.0, 20.0] {
        let service = Service::leaking(60, |t| (t * 100.0 / full).min(100.0));
        assert_eq!(service.verdict(), Verdict::Steady, "full after {full} s");
    }
    let filling = Service::leaking(60, |t| 1000.0 * (1.0 - (-t / 30.0_f64).exp()));
    assert_eq!(filling.verdict(), Verdict::Growing);
    // Falls idle: ever more of its workers wait, but there are no more workers.
    let mut idle = Service::leaking(60, |t| 10.0 + t);
    idle.siblings = vec![100.0; 61];
    assert_eq!(idle.verdict(), Verdict::Steady);
}

#[test]
fn whoever_can_still_go_on_is_not_leaked() {
    let growing = Service::leaking(60, |t| 10.0 * t);
    assert_eq!(growing.judged_as(Doing::Other).verdict, Verdict::Growing);
    assert_eq!(growing.judged("sleep").verdict, Verdict::Growing);
    assert_eq!(growing.judged("IO wait").verdict, Verdict::Growing);
    // One in ten that had waited for long goes on.
    let slow = Service::new(60, |t| (10.0 * t, 9.0 * t, t));
    assert_eq!(slow.verdict(), Verdict::Growing);
    let busy = Service::new(60, |t| (100.0 * noise(t, 1), 0.0, 0.0));
    assert_eq!(busy.judged_as(Doing::Other).verdict, Verdict::Steady);
    // More and more wait, each for a moment.
    let rising = Service::new(60, |t| (10.0 * t, 0.0, 0.0));
    assert_eq!(rising.verdict(), Verdict::Growing);
}

#[test]
fn too_little_is_said_to_be_too_little() {
    let short = Service::leaking(2, |t| 100.0 * t);
    assert_eq!(short.verdict(), Verdict::Unknown);
    assert!(short.judged("select").evidence[0].contains("3 censuses"));
    let young = Service::leaking(8, |t| 100.0 * t);
    assert_eq!(young.verdict(), Verdict::Growing);
    let few = Service::leaking(60, |t| (t / 16.0).floor());
    assert_eq!(few.verdict(), Verdict::Unknown);
}

#[test]
fn the_runtimes_own_word_counts() {
    let mut found = Service::leaking(2, |_| 3.0);
    found.group.found_by_runtime = 3;
    assert_eq!(found.verdict(), Verdict::Leak);
    let nil = Service::leaking(60, |t| t).judged("chan send (nil chan)");
    assert!(nil.evidence.iter().any(|line| line.contains("nil channel")));
}

#[test]
fn steps_in_bursts_are_growth_only() {
    let bursts = Service::leaking(
        60,
        |t| if t < 30.0 { 0.0 } else { 500.0 } + (t / 30.0).floor(),
    );
    assert_ne!(bursts.verdict(), Verdict::Leak);
    let reloads = Service::leaking(60, |t| 50.0 * (t / 5.0).floor());
    assert_eq!(reloads.verdict(), Verdict::Leak);
}
