//! Building the report.

use std::collections::HashMap;
use std::time::Duration;
use std::{panic, thread};

use super::allocators::{AllocatorReport, Allocators};
use super::head::{limits, losses, malloc, target, window};
use super::schema::{
    EstimateReport, Frame, Kind, MemoryReport, Method, Report, SCHEMA, SiteReport, Summary,
    SurvivalReport, WindowsReport,
};
use super::stack::{go_runtime_purpose, is_go_allocator, is_go_runtime_mapping, is_thread_start};
use super::symbols::{FrameKey, FrameRef, SymbolTable};
use super::why::Why;
use super::{goroutines, memory};
use super::{human, overhead::overhead};
use crate::capture::Capture;
use crate::capture::schema::{self, Site};
use crate::live_heap::{Age, LiveHeap, SiteHistory, Survival};
use crate::loss;
use crate::series;
use crate::verdict::{Facts, Owner, Verdict, judge};

/// Points of a series in the report.
pub(super) const SERIES_POINTS: usize = 120;

/// What a reader wants to see.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// Age from which an object counts as old.
    pub older: Duration,
    /// Only these kinds; empty: all.
    pub kinds: Vec<Kind>,
    /// Only these verdicts; empty: all.
    pub verdicts: Vec<Verdict>,
    /// Sites, by rank, that get their stack; those behind them have none. Stacks are most of what a
    /// report takes.
    pub stacks: usize,
}

impl Default for ReportOptions {
    /// Everything; old is 30 s.
    fn default() -> Self {
        Self {
            older: Duration::from_secs(30),
            kinds: Vec::new(),
            verdicts: Vec::new(),
            stacks: usize::MAX,
        }
    }
}

/// A report, and what each of its sites was made from: for exports that tell more than it does.
#[derive(Debug)]
pub struct Detailed<'a> {
    /// The report.
    pub report: Report,
    /// The histories of its sites, in the same order.
    pub histories: Vec<SiteHistory>,
    /// Where they come from, still apart.
    pub heap: LiveHeap,
    stacks: Stacks<'a>,
}

impl Detailed<'_> {
    /// All frames of one of the capture's sites, innermost first: those that the report leaves out, too.
    pub fn whole_stack(&self, site: &Site) -> Vec<Frame> {
        let table = &self.stacks.table;
        let frames = table.stack(site).into_iter();
        frames.map(|frame| table.frame(frame)).collect()
    }

    /// One of the capture's sites by its number.
    pub fn site(&self, id: u32) -> Option<&Site> {
        self.stacks.sites.get(&id).copied()
    }
}

/// Builds the report of a capture. `symbols` are normally the capture's own
/// (`capture.symbols.as_ref()`), or better ones made offline.
pub fn build(
    capture: &Capture,
    symbols: Option<&schema::Symbols>,
    options: &ReportOptions,
) -> Report {
    build_from(capture, LiveHeap::from_capture(capture), symbols, options)
}

/// Builds the report of a capture whose deltas and buckets went into `heap` while it was read.
pub fn build_from(
    capture: &Capture,
    heap: LiveHeap,
    symbols: Option<&schema::Symbols>,
    options: &ReportOptions,
) -> Report {
    assemble(capture, heap, symbols, options, drop).report
}

/// The same with what the sites were made from.
pub fn build_detailed<'a>(
    capture: &'a Capture,
    symbols: Option<&'a schema::Symbols>,
    options: &ReportOptions,
) -> Detailed<'a> {
    let heap = LiveHeap::from_capture(capture);
    let assembled = assemble(capture, heap, symbols, options, |history| history);
    Detailed {
        report: assembled.report,
        histories: assembled.kept,
        heap: assembled.heap,
        stacks: assembled.stacks,
    }
}

/// A report, and what is kept of each site's history.
struct Assembled<'a, H> {
    report: Report,
    kept: Vec<H>,
    heap: LiveHeap,
    stacks: Stacks<'a>,
}

fn assemble<'a, H>(
    capture: &'a Capture,
    heap: LiveHeap,
    symbols: Option<&'a schema::Symbols>,
    options: &ReportOptions,
    keep: impl Fn(SiteHistory) -> H + Sync,
) -> Assembled<'a, H>
where
    H: Send,
{
    let table = SymbolTable::new(capture, symbols);
    let losses = losses(capture);
    let stacks = Stacks::new(capture, table);
    let lost = |causes: &[&str]| {
        let counts = causes.iter().filter_map(|&cause| losses.get(cause));
        counts.fold(0, |sum: u64, count| sum.saturating_add(*count))
    };
    let (lost_mappings, lost_blocks) = (lost(&loss::OF_MAPPINGS), lost(&loss::OF_BLOCKS));

    let groups = heap.groups(|part| stacks.key(part.site));
    let mut sites = on_threads(&groups, |parts| {
        let history = heap.history(parts);
        if !history.has_allocated() {
            return None;
        }
        let lost = match history.kind {
            schema::Kind::Malloc => lost_blocks,
            _ => lost_mappings,
        };
        let site = site(&history, &heap, &stacks, options.older, lost);
        let first = history.sites.first().copied().unwrap_or_default();
        Some((site, (first, keep(history))))
    });
    sites.sort_by(|(a, _), (b, _)| {
        let growth = b.growth_bytes_per_s.total_cmp(&a.growth_bytes_per_s);
        a.verdict
            .cmp(&b.verdict)
            .then(growth)
            .then(b.live_bytes.cmp(&a.live_bytes))
    });
    let kinds = [schema::Kind::Malloc, schema::Kind::Mmap, schema::Kind::Brk];
    let is_whole = kinds.iter().all(|kind| heap.has_all_of(*kind));
    let of_native = capture.header.malloc.as_ref().filter(|_| is_whole);
    let allocators = of_native.map(|_| {
        let of_allocators = sites.iter().filter(|(site, _)| site.mapped_by_allocator);
        let blocks = sites.iter().filter(|(site, _)| site.kind == Kind::Malloc);
        AllocatorReport::new(
            of_allocators
                .map(|(site, _)| site.growth_bytes)
                .fold(0, i64::saturating_add),
            blocks
                .map(|(site, _)| site.live_bytes)
                .fold(0, u64::saturating_add),
        )
    });
    let mut summary = Summary::default();
    for (index, (site, _)) in sites.iter_mut().enumerate() {
        site.rank = index + 1;
        *match site.verdict {
            Verdict::Leak => &mut summary.leak,
            Verdict::Growing => &mut summary.growing,
            Verdict::Unknown => &mut summary.unknown,
            Verdict::Steady => &mut summary.steady,
        } += 1;
    }
    sites.retain(|(site, _)| {
        (options.kinds.is_empty() || options.kinds.contains(&site.kind))
            && (options.verdicts.is_empty() || options.verdicts.contains(&site.verdict))
    });
    for (site, (first, _)) in sites.iter_mut().take(options.stacks) {
        stacks.fill(*first, site);
    }

    let goroutines = options
        .kinds
        .is_empty()
        .then(|| goroutines::build(capture, symbols));
    let mut goroutines = goroutines.flatten();
    if let Some(goroutines) = &mut goroutines {
        goroutines.groups.retain(|group| {
            let verdict = group.verdict.as_ref();
            options.verdicts.is_empty() || verdict.is_some_and(|v| options.verdicts.contains(v))
        });
    }
    let mut notes = capture.notes.clone();
    let mut retention = Vec::new();
    for block in &capture.retention {
        match Why::of_capture(block) {
            Ok(why) => retention.push(why.told(sites.iter_mut().map(|(site, _)| site))),
            Err(reason) => notes.push(format!("what keeps objects alive cannot be read: {reason}")),
        }
    }
    let target = target(capture);
    let (sites, kept): (Vec<_>, Vec<_>) = sites.into_iter().unzip();
    let report = Report {
        schema: SCHEMA,
        window: window(capture, &heap, target.go.is_some()),
        target,
        malloc: malloc(capture, &heap),
        overhead: overhead(capture, heap.timeline.duration_s()),
        summary,
        sites,
        goroutines,
        retention,
        memory: MemoryReport {
            allocators,
            ..memory::statement(capture)
        },
        losses,
        limits: limits(capture),
        notes,
    };
    Assembled {
        report,
        kept: kept.into_iter().map(|(_, kept)| kept).collect(),
        heap,
        stacks,
    }
}

/// What `each` makes of the items, in their order: by several threads, since judging thousands of sites is
/// most of what a report takes once it is read.
fn on_threads<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> Option<R> + Sync) -> Vec<R> {
    const THREADS: usize = 4;
    let some = |items: &[T]| items.iter().filter_map(&each).collect::<Vec<_>>();
    thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(items.len().div_ceil(THREADS).max(1))
            .map(|items| scope.spawn(|| some(items)))
            .collect();
        let made = threads.into_iter().map(|thread| {
            let made = thread.join();
            made.unwrap_or_else(|panic| panic::resume_unwind(panic))
        });
        made.flatten().collect()
    })
}

/// The stacks of the capture's sites, and which frames count.
#[derive(Debug)]
struct Stacks<'a> {
    table: SymbolTable<'a>,
    sites: HashMap<u32, &'a Site>,
    go: bool,
    allocators: Allocators<'a>,
}

impl<'a> Stacks<'a> {
    fn new(capture: &'a Capture, table: SymbolTable<'a>) -> Self {
        let sites = capture
            .intervals
            .iter()
            .flat_map(|interval| &interval.sites);
        let target = capture.header.target.as_ref();
        Self {
            table,
            sites: sites.map(|site| (site.id, site)).collect(),
            go: target.is_some_and(|target| target.go.is_some()),
            allocators: Allocators::new(&capture.header),
        }
    }

    /// The frames of a site: those of the allocator, and the program's.
    fn frames(&self, site: u32) -> (Vec<FrameRef>, Vec<FrameRef>) {
        let Some(site) = self.sites.get(&site) else {
            return Default::default();
        };
        let mut frames = self.table.stack(site);
        let is_allocator = |(index, frame): &(usize, &FrameRef)| {
            let function = self.table.function(**frame);
            match site.kind() {
                schema::Kind::GoHeap => function.is_some_and(is_go_allocator),
                schema::Kind::Malloc => Allocators::asked(*index, function),
                _ => false,
            }
        };
        let allocator = frames.iter().enumerate().take_while(is_allocator);
        let allocator = allocator.count();
        // A stack of nothing else keeps its outermost frame.
        let allocator = allocator.min(frames.len().saturating_sub(1));
        let mut program = frames.split_off(allocator);
        if self.owner(site.kind(), &program) == Owner::GoRuntimeHeap {
            // What the runtime needed the memory for, not whose allocation came last.
            let functions = program.iter().map(|&frame| self.table.function(frame));
            program.truncate(go_runtime_purpose(functions));
        }
        (frames, program)
    }

    fn key(&self, site: u32) -> Vec<FrameKey> {
        self.frames(site)
            .1
            .into_iter()
            .map(|frame| self.table.key(frame))
            .collect()
    }

    /// Writes a site's frames into its report.
    fn fill(&self, site: u32, report: &mut SiteReport) {
        let (allocator, program) = self.frames(site);
        let name = |frame: &FrameRef| self.table.function(*frame).unwrap_or_default().to_owned();
        report.allocator_frames = allocator.iter().map(name).collect();
        let frames = program.into_iter();
        report.stack = frames.map(|frame| self.table.frame(frame)).collect();
    }

    /// Whether the outermost frame is where a thread begins: a walk that broke there lost nothing.
    fn is_whole(&self, program: &[FrameRef]) -> bool {
        let outermost = program.last().and_then(|&frame| self.table.function(frame));
        outermost.is_some_and(is_thread_start)
    }

    fn owner(&self, kind: schema::Kind, program: &[FrameRef]) -> Owner {
        let functions = program
            .iter()
            .filter_map(|&frame| self.table.function(frame));
        if self.go && kind == schema::Kind::Mmap && is_go_runtime_mapping(functions) {
            return Owner::GoRuntimeHeap;
        }
        let frames = program.iter().map(|&frame| {
            let Frame { module, .. } = self.table.frame(frame);
            (self.table.function(frame), module)
        });
        let is_mapping = matches!(kind, schema::Kind::Mmap | schema::Kind::Brk);
        if is_mapping && self.allocators.own(frames) {
            Owner::Allocator
        } else {
            Owner::Program
        }
    }
}

fn site(
    history: &SiteHistory,
    heap: &LiveHeap,
    stacks: &Stacks,
    older: Duration,
    lost_events: u64,
) -> SiteReport {
    let kind = Kind::from(history.kind);
    let first = history.sites.first().copied().unwrap_or_default();
    let program = stacks.frames(first).1;
    let owner = stacks.owner(history.kind, &program);
    let is_whole = owner == Owner::GoRuntimeHeap || stacks.is_whole(&program);
    let timeline = heap.timeline_of(history.kind);
    let judgement = judge(&Facts {
        site: history,
        timeline: &timeline,
        owner,
        older_s: older.as_secs_f64(),
        lost_events,
        process_growth: heap.process_growth,
    });
    let mut evidence = judgement.evidence;
    if timeline.last() < heap.timeline.last() {
        let until = human::seconds(timeline.duration_s());
        evidence.push(format!("followed for the first {until} only"));
    }
    let record = stacks.sites.get(&first);
    let points = timeline.times.iter().zip(&history.live_series);
    let points: Vec<_> = points
        .map(|(&t, &live)| (milli(t), live.round() as u64))
        .collect();
    let whole = |value: f64| value.round().max(0.0) as u64;
    SiteReport {
        rank: 0,
        kind,
        mapped_by_runtime: owner == Owner::GoRuntimeHeap,
        mapped_by_allocator: owner == Owner::Allocator,
        verdict: judgement.verdict,
        evidence,
        live_bytes: whole(history.live.value),
        live_objects: whole(history.live_objects),
        object_bytes: history.object_size,
        proven_bytes: history.proven_bytes.map(whole),
        proven_objects: history.proven_objects.map(whole),
        growth_bytes_per_s: milli(judgement.growth_bytes_per_s),
        growth_bytes: history.growth.value.round() as i64,
        growth_interval: [
            history.growth.low.round() as i64,
            history.growth.high.round() as i64,
        ],
        alloc_bytes: whole(history.alloc_bytes),
        alloc_objects: whole(history.alloc_objects),
        freed_bytes: whole(history.freed_bytes),
        preexisting_bytes: whole(history.preexisting_left_bytes),
        attach_bytes: whole(history.preexisting_bytes),
        oldest_s: milli(history.oldest_s(&timeline)),
        gc_cycles_survived: history.collections_survived(&timeline),
        survival: survival(judgement.survival),
        estimate: EstimateReport {
            method: match (&history.balance, history.sampled) {
                (Some(_), _) => Method::Windows,
                (None, true) => Method::Samples,
                (None, false) => Method::Count,
            },
            windows: history.balance.as_ref().map(|balance| WindowsReport {
                born: balance.seen.born.seen,
                survived: balance.seen.survived.seen,
                died: balance.seen.died.seen,
                died_perhaps: balance.seen_unseen,
                needed_s: judgement.needed_s.map(milli),
            }),
            sampled: history.sampled,
            rate_bytes: history.rate,
            samples: history.live_count.objects,
            low_bytes: whole(history.live.low),
            high_bytes: whole(history.live.high),
        },
        series: series::thin(&points, SERIES_POINTS),
        stack: Vec::new(),
        allocator_frames: Vec::new(),
        stack_truncated: record.is_some_and(|site| site.truncated),
        stack_incomplete: record
            .map(|site| site.incomplete.clone())
            .filter(|reason| !reason.is_empty() && !is_whole),
        retention: None,
        capture_sites: history.sites.clone(),
    }
}

fn survival(survival: Survival) -> SurvivalReport {
    let points = |ages: Vec<Age>| {
        let points = ages.iter();
        let points = points.map(|age| (milli(age.age), milli(age.alive), age.followed));
        points.collect()
    };
    SurvivalReport {
        seconds: points(survival.seconds),
        collections: points(survival.collections),
    }
}

/// Rounded to thousandths: what lies below is noise.
pub(super) fn milli(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
