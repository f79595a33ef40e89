//! Writes the capture of a large Go service through the real writer: what `cargo xtask bench` lets
//! `leaktrace report` read.
//!
//! An hour with many sites of a deep call tree. Which sites allocate in an interval follows Zipf's law,
//! as it does in services: a few always, most of them now and then. Every fiftieth site leaks, a third
//! are caches that evict their oldest, the others make garbage; every sixth is a mapping. The same
//! numbers make the same file.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use leaktrace::capture::CaptureWriter;
use leaktrace::capture::schema::{
    Address, Close, CohortFrees, End, Frame, GoBucket, GoInfo, Header, Interval, Kind, Mapping,
    Memory, Module, Site, SiteDelta, Symbols, Target,
};

/// The whole of it, in seconds.
const WINDOW_S: f64 = 3600.0;
const SAMPLE_RATE: u64 = 512 << 10;
/// Where the program's code lies, and the bytes of each of its functions.
const CODE: u64 = 0x40_0000;
const FUNCTION_BYTES: u64 = 0x100;
/// Places from which a function calls another.
const CALLS: u64 = 4;

/// Write the capture of a large Go service.
#[derive(Parser)]
struct Arguments {
    /// The file.
    file: PathBuf,
    /// Allocation sites.
    #[arg(long, default_value_t = 5000)]
    sites: u32,
    /// Intervals.
    #[arg(long, default_value_t = 1000)]
    intervals: u32,
    /// The n-th site allocates in an interval with a chance of this over n.
    #[arg(long, default_value_t = 150.0)]
    activity: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let name = arguments.file.display();
    let file =
        File::create(&arguments.file).with_context(|| format!("failed to create `{name}`"))?;
    let mut random = Random(42);
    let mut program = Program::default();
    let mut sites: Vec<_> = (1..=arguments.sites)
        .map(|id| LiveSite::new(id, &mut program, &mut random))
        .collect();

    let mut writer = CaptureWriter::new(BufWriter::new(file))?;
    writer.header(&header())?;
    let step_s = WINDOW_S / f64::from(arguments.intervals);
    for index in 0..=arguments.intervals {
        let t_s = step_s * f64::from(index);
        let mut interval = Interval {
            index,
            t_ns: (t_s * 1e9) as u64,
            go_sample_rate: SAMPLE_RATE,
            gc_cycles: (t_s / 2.0) as u32,
            memory: Some(memory(index)),
            ..Interval::default()
        };
        if index == 0 {
            interval.modules.push(module());
            interval.mappings.push(mapping());
        }
        for site in &mut sites {
            let chance = arguments.activity / f64::from(site.id);
            if index == 0 || random.unit() < chance {
                site.step(&mut interval, &mut random);
            }
        }
        writer.interval(&interval)?;
    }
    writer.symbols(&program.symbols())?;
    writer.close(&Close {
        end: End::Duration.into(),
        t_ns: (WINDOW_S * 1e9) as u64,
        intervals: arguments.intervals + 1,
        ..Close::default()
    })?;
    Ok(())
}

fn header() -> Header {
    let go = GoInfo {
        version: "go1.27.3".into(),
        heap_profiling: true,
        sample_rate: SAMPLE_RATE,
        ..GoInfo::default()
    };
    Header {
        tool_version: env!("CARGO_PKG_VERSION").into(),
        start_unix_ns: 1_790_000_000_000_000_000,
        target: Some(Target {
            pid: 4242,
            comm: "large".into(),
            exe: "/srv/large".into(),
            runtime: "go1.27.3".into(),
            go: Some(go),
            start_ticks: 1,
            ..Target::default()
        }),
        ..Header::default()
    }
}

fn module() -> Module {
    Module {
        id: 1,
        path: "/srv/large".into(),
        build_id: "c0ffee".into(),
    }
}

fn mapping() -> Mapping {
    Mapping {
        start: CODE,
        end: CODE + (64 << 20),
        file_offset: 0,
        module: 1,
    }
}

fn memory(index: u32) -> Memory {
    let grown = u64::from(index) << 20;
    Memory {
        rss: Some((600 << 20) + grown),
        anonymous: Some((500 << 20) + grown),
        go_heap_live: Some((400 << 20) + grown),
        ..Memory::default()
    }
}

/// What a site does with its objects.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    Leak,
    Cache,
    Garbage,
}

/// An allocation site and its live objects, by the interval of their birth.
struct LiveSite {
    id: u32,
    kind: Kind,
    habit: Habit,
    object_size: u64,
    live: VecDeque<(u32, u64)>,
    totals: GoBucket,
    /// To be declared with the first objects.
    declared: Option<Site>,
}

impl LiveSite {
    fn new(id: u32, program: &mut Program, random: &mut Random) -> Self {
        let habit = match id {
            _ if id.is_multiple_of(50) => Habit::Leak,
            _ if id.is_multiple_of(3) => Habit::Cache,
            _ => Habit::Garbage,
        };
        let (kind, object_size) = match id.is_multiple_of(6) {
            true => (Kind::Mmap, 64 << 10),
            false => (Kind::GoHeap, 16 << random.below(9)),
        };
        let logical = kind == Kind::GoHeap;
        let depth = 12 + random.below(17);
        let site = Site {
            id,
            kind: kind.into(),
            pcs: program.stack(depth, logical, random),
            object_size: if logical { object_size } else { 0 },
            logical,
            ..Site::default()
        };
        Self {
            id,
            kind,
            habit,
            object_size,
            live: VecDeque::new(),
            totals: GoBucket {
                site: id,
                ..GoBucket::default()
            },
            declared: Some(site),
        }
    }

    /// Some objects come, and some go.
    fn step(&mut self, interval: &mut Interval, random: &mut Random) {
        interval.sites.extend(self.declared.take());
        let born = 1 + random.below(4);
        self.live.push_back((interval.index, born));
        let kept = match self.habit {
            Habit::Leak => usize::MAX,
            Habit::Cache => 20,
            Habit::Garbage => 1,
        };
        let mut freed = Vec::new();
        while self.live.len() > kept {
            let Some((cohort, objects)) = self.live.pop_front() else {
                break;
            };
            freed.push(CohortFrees {
                cohort,
                objects,
                bytes: objects * self.object_size,
            });
        }
        let died: u64 = freed.iter().map(|freed| freed.objects).sum();
        self.totals.allocs += born;
        self.totals.frees += died;
        if self.kind == Kind::GoHeap {
            self.totals.proven_allocs = self.totals.allocs - born;
            self.totals.proven_frees = self.totals.frees;
            interval.go_buckets.push(self.totals);
        }
        if interval.index > 0 || self.kind == Kind::Mmap {
            interval.deltas.push(SiteDelta {
                site: self.id,
                allocs: born,
                alloc_bytes: born * self.object_size,
                frees: died,
                free_bytes: died * self.object_size,
                freed,
                ..SiteDelta::default()
            });
        }
    }
}

/// The target's functions: a tree of calls, as deep as the deepest stack.
#[derive(Default)]
struct Program {
    /// Return addresses in use, and whether they are of logical frames or the instruction pointer.
    addresses: BTreeMap<(u64, bool, bool), u64>,
}

impl Program {
    /// Innermost first. Outer frames are few and shared, inner ones many.
    fn stack(&mut self, depth: u64, logical: bool, random: &mut Random) -> Vec<u64> {
        let mut pcs = Vec::new();
        for level in (0..depth).rev() {
            let width = (1 << level.min(8)).min(200);
            let function = level * 200 + random.below(width);
            let call = random.below(CALLS);
            let pc = CODE + function * FUNCTION_BYTES + call * 16;
            let exact = pcs.is_empty() && !logical;
            self.addresses.insert((pc, logical, exact), function);
            pcs.push(pc);
        }
        pcs
    }

    fn symbols(&self) -> Symbols {
        let mut strings = Strings::default();
        let mut symbols = Symbols::default();
        let module = strings.index("/srv/large");
        let build_id = strings.index("c0ffee");
        for (&(address, logical, exact), function) in &self.addresses {
            let package = function % 97;
            let name = format!("example.com/large/package{package}.(*Service{function}).handle");
            let file = format!("/go/src/example.com/large/package{package}/service{function}.go");
            let frame = u32::try_from(symbols.frames.len()).unwrap_or_default();
            symbols.frames.push(Frame {
                function: strings.index(&name),
                file: strings.index(&file),
                line: u32::try_from(address % FUNCTION_BYTES).unwrap_or_default() + 1,
                module,
                build_id,
                offset: address - CODE,
                inlined: false,
                reason: 0,
            });
            symbols.addresses.push(Address {
                address,
                logical,
                exact,
                frames: vec![frame],
            });
        }
        symbols.strings = strings.list;
        symbols
    }
}

/// The string table; index 0 is the empty string.
struct Strings {
    list: Vec<String>,
    indexes: HashMap<String, u32>,
}

impl Default for Strings {
    fn default() -> Self {
        Self {
            list: vec![String::new()],
            indexes: HashMap::from([(String::new(), 0)]),
        }
    }
}

impl Strings {
    fn index(&mut self, text: &str) -> u32 {
        if let Some(&index) = self.indexes.get(text) {
            return index;
        }
        let index = u32::try_from(self.list.len()).unwrap_or_default();
        self.list.push(text.to_owned());
        self.indexes.insert(text.to_owned(), index);
        index
    }
}

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 up to 1, without it.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.unit() * limit as f64) as u64
    }
}
