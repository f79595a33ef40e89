//! The report, version 1: what `--format json` prints. docs/report-schema.md describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::allocators::AllocatorReport;
use super::goroutines::Goroutines;
use super::overhead::OverheadReport;
use super::why::{RetentionReport, WhySite};
use crate::capture::schema;
use crate::symbolize;
use crate::verdict::Verdict;

mod target;

pub(super) use target::SamplerSwitchReport;
pub use target::{GoReport, TargetReport};

/// Value of [`Report::schema`].
pub const SCHEMA: u32 = 1;

/// Everything a capture tells. Sizes are in bytes, times in seconds unless named otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this schema, [`SCHEMA`].
    pub schema: u32,
    /// Who was recorded.
    pub target: TargetReport,
    /// When, and how it ended.
    pub window: WindowReport,
    /// How native allocators were traced, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malloc: Option<MallocReport>,
    /// What being traced has cost the target, if that was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<OverheadReport>,
    /// All sites by verdict, before any filter.
    pub summary: Summary,
    /// The sites, by rank.
    pub sites: Vec<SiteReport>,
    /// Go targets whose goroutines were recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goroutines: Option<Goroutines>,
    /// How it was found out what keeps objects alive, if it was: those of a Go heap that leaks, and native
    /// blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<RetentionReport>,
    /// The target's memory at the end.
    pub memory: MemoryReport,
    /// What was lost, by cause, since the attach.
    pub losses: BTreeMap<String, u64>,
    /// What could not be seen.
    pub limits: Vec<LimitReport>,
    /// What the reader of the capture has to say about the file.
    pub notes: Vec<String>,
}

impl Report {
    /// What the sites that leak hold, in bytes, and how fast that grows, in bytes a second.
    pub fn leaking(&self) -> (f64, f64) {
        let leaking = self.sites.iter();
        let leaking = leaking.filter(|site| site.verdict == Verdict::Leak);
        leaking.fold((0.0, 0.0), |(bytes, rate), site| {
            (
                bytes + site.live_bytes as f64,
                rate + site.growth_bytes_per_s,
            )
        })
    }
}

/// The window of time that was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowReport {
    /// Wall clock at its beginning, nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// Its length.
    pub duration_s: f64,
    /// `duration`, `signal`, `target-exit`, `target-oom`, `lost` or `live`.
    pub end: String,
    /// The end in words.
    pub end_text: String,
    /// Intervals recorded.
    pub intervals: u64,
    /// Collections completed in it; Go targets only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gc_cycles: Option<u32>,
}

/// Number of sites by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Sites that leak.
    pub leak: usize,
    /// Sites that grow.
    pub growing: usize,
    /// Sites with too little data.
    pub unknown: usize,
    /// Sites that do not grow.
    pub steady: usize,
}

/// One allocation site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Place in the report before filters, from 1.
    pub rank: usize,
    /// Kind of memory.
    pub kind: Kind,
    /// A mapping that the Go runtime has made for itself: for its heap's arenas, in which the objects
    /// of `go_heap` lie, and for its tables.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mapped_by_runtime: bool,
    /// The mapping is a native allocator's: what it holds are `malloc` sites.
    #[serde(skip)]
    pub mapped_by_allocator: bool,
    /// The judgement.
    pub verdict: Verdict,
    /// Its reasons in words, strongest first.
    pub evidence: Vec<String>,
    /// Not known to be dead at the end.
    pub live_bytes: u64,
    /// The same in objects; for mmap and brk, calls of which something is left.
    pub live_objects: u64,
    /// Size of its objects, where they all have the same; Go heap only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_bytes: Option<u64>,
    /// Known to have survived a collection; Go heap only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_bytes: Option<u64>,
    /// The same in objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_objects: Option<u64>,
    /// Robust slope of the live bytes.
    pub growth_bytes_per_s: f64,
    /// Live bytes at the end minus those at the attach.
    pub growth_bytes: i64,
    /// 95 % interval of `growth_bytes`, low and high.
    pub growth_interval: [i64; 2],
    /// Allocated since the attach.
    pub alloc_bytes: u64,
    /// The same in objects.
    #[serde(default)]
    pub alloc_objects: u64,
    /// Freed since the attach.
    pub freed_bytes: u64,
    /// What is left of the memory that was live at the attach.
    pub preexisting_bytes: u64,
    /// Live at the attach.
    pub attach_bytes: u64,
    /// Age of the oldest live object, at least.
    pub oldest_s: f64,
    /// Collections that object has survived, at least; Go heap only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gc_cycles_survived: Option<u32>,
    /// Which share of its objects reaches an age.
    #[serde(default)]
    pub survival: SurvivalReport,
    /// How the figures came about.
    pub estimate: EstimateReport,
    /// Live bytes over time: `[t_s, bytes]`.
    pub series: Vec<(f64, u64)>,
    /// Innermost first, without the runtime's own allocator frames.
    pub stack: Vec<Frame>,
    /// Functions of the allocator frames left out at the innermost end.
    pub allocator_frames: Vec<String>,
    /// Outermost frames are missing because the stack was too deep.
    pub stack_truncated: bool,
    /// Why outermost frames are missing otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_incomplete: Option<String>,
    /// What keeps its objects alive, if that was looked for; the site's own stack is left out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Box<WhySite>>,
    /// Its numbers in the capture.
    #[serde(skip)]
    pub capture_sites: Vec<u32>,
}

/// How native allocators were traced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MallocReport {
    /// How their blocks were taken.
    pub method: Method,
    /// One sample in so many bytes.
    pub sample_bytes: u64,
    /// Allocations a second, as counted before that was chosen; absent if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocs_per_s: Option<f64>,
    /// The most that tracing may cost, in percent; absent if there is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_overhead_percent: Option<f64>,
    /// Windows taken in, and those of which something was lost, so that they count for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<[u64; 2]>,
    /// Share of the time that they cover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_share: Option<f64>,
}

/// Where figures come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Everything was counted.
    #[default]
    Count,
    /// Some objects were followed, and stand for the others.
    Samples,
    /// All was seen for some of the time, which stands for the rest.
    Windows,
}

/// What a site's estimate by windows rests on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowsReport {
    /// Allocations seen.
    pub born: u64,
    /// Of these, blocks that outlived their window.
    pub survived: u64,
    /// Deaths in windows of blocks from before, known to be its own.
    pub died: u64,
    /// Those that may be its own besides, at most.
    pub died_perhaps: u64,
    /// How much longer it takes to be sure, in seconds, if it goes on like this; absent if it does not, or is
    /// sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_s: Option<f64>,
}

/// How a site's figures came about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimateReport {
    /// Where they come from.
    #[serde(default)]
    pub method: Method,
    /// What they rest on where they come from windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsReport>,
    /// True: estimated from samples. False: counted.
    pub sampled: bool,
    /// One sample in so many bytes.
    pub rate_bytes: u64,
    /// Live objects that were sampled.
    pub samples: u64,
    /// 95 % interval of `live_bytes`.
    pub low_bytes: u64,
    /// Its upper end.
    pub high_bytes: u64,
}

/// Kaplan-Meier curves of the objects born in the window: `[age, share that lives longer, objects
/// followed up to that age]`, ages rising. Empty where nothing was born.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SurvivalReport {
    /// By age in seconds.
    pub seconds: Vec<(f64, f64, u64)>,
    /// By collections completed since the birth; Go heap only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collections: Vec<(f64, f64, u64)>,
}

/// A frame of a stack. Absent values are null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// Its function.
    pub function: Option<String>,
    /// Its source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// The file of code it lies in.
    pub module: Option<String>,
    /// That file's build id.
    pub build_id: Option<String>,
    /// Offset of the instruction in that file.
    pub offset: Option<u64>,
    /// Code address in the target.
    pub address: u64,
    /// The call was inlined into the next frame.
    pub inlined: bool,
    /// Why there is no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Frame {
    /// The frame that was found at a code address.
    pub fn at(address: u64, frame: symbolize::Frame) -> Self {
        let is_known = !frame.module.is_empty();
        Self {
            function: frame.function,
            file: frame.file,
            line: frame.line,
            module: Some(frame.module).filter(|_| is_known),
            build_id: frame.build_id,
            offset: Some(frame.offset).filter(|_| is_known),
            address,
            inlined: frame.inlined,
            reason: frame.reason,
        }
    }
}

/// The target's memory at the end. Absent: not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// Native allocators, where their blocks were followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocators: Option<AllocatorReport>,
    /// Resident.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// When the end was read, in seconds since the window opened, if the target was gone in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_s: Option<f64>,
    /// Resident at the attach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_attach_bytes: Option<u64>,
    /// Of the resident memory, that without a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anonymous_bytes: Option<u64>,
    /// Swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// Address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_bytes: Option<u64>,
    /// Go heap in use, by its pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heap_live_bytes: Option<u64>,
    /// Of that, objects that are not swept away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heap_objects_bytes: Option<u64>,
    /// Go heap kept for later and not given back to the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heap_idle_bytes: Option<u64>,
    /// Go heap given back to the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heap_released_bytes: Option<u64>,
    /// Goroutine stacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stacks_bytes: Option<u64>,
    /// The Go runtime's own: tables outside the heap, and the collector's work buffers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_bytes: Option<u64>,
    /// Resident memory without a file that nothing explains; Go targets only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained_bytes: Option<u64>,
    /// What the resident memory consists of: their sum is `rss_bytes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<MemoryPart>,
    /// Resident bytes over time: `[t_s, bytes]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<(f64, u64)>,
}

/// A part of the resident memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// Its name.
    pub part: String,
    /// In words.
    pub text: String,
    /// At the end. Negative: what others have too much, since it is not resident.
    pub bytes: i64,
    /// At the attach, where it was found in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_bytes: Option<i64>,
}

/// Something that could not be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReport {
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Objects of the Go heap.
    GoHeap,
    /// Blocks of a native allocator.
    Malloc,
    /// Mappings.
    Mmap,
    /// The program break.
    Brk,
}

impl Kind {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::GoHeap, "go_heap"),
        (Self::Malloc, "malloc"),
        (Self::Mmap, "mmap"),
        (Self::Brk, "brk"),
    ];
}

impl From<schema::Kind> for Kind {
    fn from(kind: schema::Kind) -> Self {
        match kind {
            schema::Kind::GoHeap => Self::GoHeap,
            schema::Kind::Malloc => Self::Malloc,
            schema::Kind::Brk => Self::Brk,
            schema::Kind::Mmap | schema::Kind::Unspecified => Self::Mmap,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES
            .iter()
            .find(|(kind, _)| kind == self)
            .map_or("", |named| named.1);
        f.pad(name)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Self::NAMES.iter().find(|named| named.1 == name);
        named
            .map(|named| named.0)
            .ok_or_else(|| format!("`{name}` is not one of go_heap, malloc, mmap, brk"))
    }
}
