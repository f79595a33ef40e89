//! Simulated programs of known nature, recorded in windows as leaktrace records them: probes cost time
//! while they are attached, the allocator hands addresses out again, threads get on at their own pace.

use std::collections::{BTreeMap, HashMap};

use super::{Event, Turnover, What, Window};
use crate::capture::Capture;
use crate::capture::schema::{Header, Interval, Memory, Site};

/// xorshift64*: enough for a simulation, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub(crate) fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

pub(crate) const FOREVER: f64 = f64::INFINITY;

/// A block: times are seconds of the program's own course, the attach at 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) site: u32,
    pub(crate) bytes: u64,
    pub(crate) thread: u32,
    pub(crate) born: f64,
    pub(crate) dropped: f64,
}

/// How a program is recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) seconds: f64,
    pub(crate) window_s: f64,
    /// There is a window in each period, at a random place.
    pub(crate) period_s: f64,
    /// What a birth and a death cost.
    pub(crate) costs_s: [f64; 2],
    /// Besides the blocks, each thread allocates and frees at once so often a second.
    pub(crate) garbage_per_s: f64,
    /// The size class of a block that is freed can be told.
    pub(crate) knows_classes: bool,
    /// Blocks that are followed from window to window.
    pub(crate) limit: usize,
}

pub(crate) const MINUTE: World = World {
    seconds: 60.0,
    window_s: 0.005,
    period_s: 0.17,
    costs_s: [2e-6, 0.7e-6],
    garbage_per_s: 100_000.0,
    knows_classes: true,
    limit: 1 << 20,
};

/// The site of the garbage, and its size class.
const GARBAGE: (u32, u64) = (1000, 48);

/// A recording, and what is true.
pub(crate) struct Recorded {
    pub(crate) capture: Capture,
    /// By site, bytes alive at the end less bytes alive at the attach.
    pub(crate) grown: BTreeMap<u32, f64>,
}

struct Moment {
    at: f64,
    address: u64,
    block: Block,
    is_birth: bool,
}

/// A thread's blocks as they come and go, and how far probes have held it up.
struct Thread {
    moments: Vec<Moment>,
    next: usize,
    held_up: f64,
    id: u32,
}

impl Thread {
    fn new(id: u32, blocks: &[Block]) -> Self {
        let mut moments = Vec::new();
        for &block in blocks.iter().filter(|block| block.thread == id) {
            for (at, is_birth) in [(block.born, true), (block.dropped, false)] {
                if at < FOREVER {
                    moments.push(Moment {
                        at,
                        address: 0,
                        block,
                        is_birth,
                    });
                }
            }
        }
        moments.sort_by(|a, b| a.at.total_cmp(&b.at));
        // An address that was freed last is handed out first, within a size class.
        let mut free: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut of: HashMap<(u32, u64), u64> = HashMap::new();
        let mut fresh = (u64::from(id) + 1) << 40;
        for moment in &mut moments {
            let key = (moment.block.site, moment.block.born.to_bits());
            moment.address = if moment.is_birth {
                let address = free.entry(moment.block.bytes).or_default().pop();
                let address = address.unwrap_or_else(|| {
                    fresh += 16;
                    fresh
                });
                of.insert(key, address);
                address
            } else {
                let address = of.remove(&key).unwrap_or(16);
                free.entry(moment.block.bytes).or_default().push(address);
                address
            };
        }
        Self {
            moments,
            next: 0,
            held_up: 0.0,
            id,
        }
    }

    /// Runs up to a moment with nobody looking.
    fn run(&mut self, wall: f64) {
        let until = wall - self.held_up;
        while self.moments.get(self.next).is_some_and(|m| m.at < until) {
            self.next += 1;
        }
    }

    /// Runs from one moment to another under probes.
    fn watched(
        &mut self,
        world: &World,
        random: &mut Random,
        (from, to): (f64, f64),
        events: &mut Vec<Event>,
    ) {
        self.run(from);
        let (mut wall, mut own) = (from, from - self.held_up);
        let pause = |random: &mut Random| match world.garbage_per_s {
            rate if rate > 0.0 => random.exponential(1.0 / rate),
            _ => FOREVER,
        };
        let mut garbage = own + pause(random);
        loop {
            let moment = self.moments.get(self.next).filter(|m| m.at <= garbage);
            let at = moment.map_or(garbage, |moment| moment.at);
            if wall + (at - own) >= to {
                return;
            }
            wall += at - own;
            own = at;
            let mut happens = |address, what| {
                let kind = usize::from(matches!(what, What::Death { .. }));
                let cost = world.costs_s[kind] * (1.0 + random.exponential(0.05));
                wall += cost;
                self.held_up += cost;
                events.push(Event {
                    at_ns: (wall * 1e9) as u64,
                    thread: self.id,
                    address,
                    what,
                });
            };
            let class = |class| if world.knows_classes { class } else { 0 };
            match moment {
                Some(moment) => {
                    let Block { site, bytes, .. } = moment.block;
                    happens(
                        moment.address,
                        match moment.is_birth {
                            true => What::Birth { site, bytes },
                            false => What::Death {
                                class: class(bytes),
                            },
                        },
                    );
                    self.next += 1;
                }
                None => {
                    let (site, bytes) = GARBAGE;
                    let address = u64::from(self.id) + 1;
                    happens(address, What::Birth { site, bytes });
                    happens(
                        address,
                        What::Death {
                            class: class(bytes),
                        },
                    );
                    garbage = own + pause(random);
                }
            }
        }
    }
}

impl World {
    /// Runs a program of these blocks and records it.
    pub(crate) fn record(&self, random: &mut Random, blocks: &[Block]) -> Recorded {
        let mut ids: Vec<u32> = blocks.iter().map(|block| block.thread).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut threads: Vec<_> = ids.iter().map(|&id| Thread::new(id, blocks)).collect();
        let mut turnover = Turnover::new(self.limit);
        let held = held(blocks, self.seconds);
        let mut intervals = vec![interval(0, held[0], &mut turnover)];
        intervals[0].sites = sites(blocks);
        let periods = (self.seconds / self.period_s) as u64;
        let mut second = 1;
        for period in 0..periods {
            let stratum = period as f64 * self.period_s;
            let from = stratum + random.unit() * (self.period_s - self.window_s);
            while from >= f64::from(second) {
                intervals.push(interval(second, held[second as usize], &mut turnover));
                second += 1;
            }
            let (from, to) = (from, from + self.window_s);
            let mut events = Vec::new();
            for thread in &mut threads {
                thread.watched(self, random, (from, to), &mut events);
            }
            let ns = |s: f64| (s * 1e9) as u64;
            let window = Window {
                from_ns: ns(from),
                to_ns: ns(to),
                stands_for_ns: ns(self.period_s),
                cpu_ns: [self.window_s, self.period_s].map(|s| ns(s) * threads.len() as u64),
            };
            turnover.window(window, &mut events);
        }
        while f64::from(second) <= self.seconds {
            intervals.push(interval(second, held[second as usize], &mut turnover));
            second += 1;
        }
        let mut grown: BTreeMap<u32, f64> = BTreeMap::new();
        for thread in &threads {
            let end = self.seconds - thread.held_up;
            for block in blocks.iter().filter(|block| block.thread == thread.id) {
                let alive = |t: f64| block.born <= t && block.dropped > t;
                let change = f64::from(u8::from(alive(end))) - f64::from(u8::from(alive(0.0)));
                *grown.entry(block.site).or_default() += change * block.bytes as f64;
            }
        }
        Recorded {
            capture: Capture::of(Header::default(), intervals),
            grown,
        }
    }
}

/// An interval that ends after so many seconds; the process has held so much.
fn interval(second: u32, held: u64, turnover: &mut Turnover) -> Interval {
    Interval {
        index: second,
        t_ns: u64::from(second) * 1_000_000_000,
        memory: Some(Memory {
            anonymous: Some((1 << 20) + held),
            ..Memory::default()
        }),
        windows: (second > 0).then(|| turnover.take().into()),
        ..Interval::default()
    }
}

/// What a process holds after each second if its allocator gives nothing back: as much as ever lived.
fn held(blocks: &[Block], seconds: f64) -> Vec<u64> {
    let mut changes: Vec<(f64, i64)> = Vec::new();
    for block in blocks {
        changes.push((block.born, block.bytes as i64));
        changes.push((block.dropped, -(block.bytes as i64)));
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut changes = changes.into_iter().peekable();
    let (mut live, mut most) = (0, 0);
    let seconds = 0..=seconds as u32;
    let after = seconds.map(|second| {
        while let Some((_, change)) = changes.next_if(|change| change.0 <= f64::from(second)) {
            live += change;
            most = most.max(live);
        }
        most as u64
    });
    after.collect()
}

/// All sites of the blocks, and the garbage's; each with its size class.
fn sites(blocks: &[Block]) -> Vec<Site> {
    let mut classes: BTreeMap<u32, u64> = BTreeMap::from([GARBAGE]);
    classes.extend(blocks.iter().map(|block| (block.site, block.bytes)));
    let sites = classes.into_iter().map(|(id, object_size)| Site {
        id,
        object_size,
        ..Site::default()
    });
    sites.collect()
}
