//! Exports: what a capture tells, in the forms of other tools.
//!
//! One module a format, each with a `write` that takes a report and any writer. The formats made of
//! stacks ([`folded`] and its kin) show one [`Value`] of each site; what would be counted twice in them
//! is left out, and [`left_out`] says so. JSON is the report itself.
//!
//! Contract: pure. Sums are those of the report, to the byte. Names come from the target and may hold
//! anything: `escape` makes them harmless, and each format escapes what has a meaning in it besides.
//! docs/export.md describes every format.

#![forbid(unsafe_code)]

use std::fmt;

use crate::report::{Frame, Kind, Report, SiteReport, human};

pub mod folded;
pub mod flamegraph;
pub mod speedscope;
pub mod pprof;
pub mod parquet;
pub mod html;

pub use crate::report::json;
pub(crate) use crate::report::text::escape;

/// Which figure of a site is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Objects allocated since the attach.
    AllocObjects,
    /// Their bytes.
    AllocSpace,
    /// Objects not known to be dead at the end.
    InuseObjects,
    /// Their bytes.
    InuseSpace,
    /// Bytes at the end less those at the attach: negative where a site has shrunk.
    Growth,
}

impl Value {
    /// A site's figure; objects or bytes.
    pub fn of(self, site: &SiteReport) -> i64 {
        let value = match self {
            Self::AllocObjects => site.alloc_objects,
            Self::AllocSpace => site.alloc_bytes,
            Self::InuseObjects => site.live_objects,
            Self::InuseSpace => site.live_bytes,
            Self::Growth => return site.growth_bytes,
        };
        i64::try_from(value).unwrap_or(i64::MAX)
    }

    /// `bytes` or `objects`.
    pub fn unit(self) -> &'static str {
        match self {
            Self::AllocObjects | Self::InuseObjects => "objects",
            Self::AllocSpace | Self::InuseSpace | Self::Growth => "bytes",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AllocObjects => "alloc_objects",
            Self::AllocSpace => "alloc_space",
            Self::InuseObjects => "inuse_objects",
            Self::InuseSpace => "inuse_space",
            Self::Growth => "growth",
        })
    }
}

/// The sites that add up, with their index in the report. Where the Go heap is counted by its objects,
/// the mappings that the runtime made to keep them in do not.
pub fn sites(report: &Report) -> impl Iterator<Item = (usize, &SiteReport)> {
    let has_heap = report.sites.iter().any(|site| site.kind == Kind::GoHeap);
    let sites = report.sites.iter().enumerate();
    sites.filter(move |(_, site)| !(has_heap && site.mapped_by_runtime))
}

/// What [`sites`] leaves out, in words; none when that is nothing.
pub fn left_out(report: &Report) -> Option<String> {
    let sum = |(count, bytes), site: &SiteReport| (count + 1, bytes + site.live_bytes);
    let all = report.sites.iter().fold((0, 0), sum);
    let shown = sites(report).map(|(_, site)| site).fold((0, 0), sum);
    let (count, bytes) = (all.0 - shown.0, all.1 - shown.1);
    (count > 0).then(|| {
        format!(
            "{} of mappings that the Go runtime made for itself, {}: the heap lies in them and is \
             counted by its objects; `--kind mmap` exports them",
            human::count(count, "site"),
            human::bytes(bytes as f64)
        )
    })
}

/// A step of a stack as exports show it.
struct Step<'a> {
    name: String,
    /// The frame that is named; none where the name stands for something else.
    frame: Option<&'a Frame>,
}

/// A site's stack by names, outermost first. The first is its kind, in brackets, so that memory of one
/// layer is never added to another's by mistake; what is missing of the stack is said by a name, too.
fn path(site: &SiteReport) -> Vec<Step<'_>> {
    let word = |name: &str| Step {
        name: name.to_owned(),
        frame: None,
    };
    let mut path = vec![word(&format!("[{}]", site.kind))];
    if site.stack_truncated || site.stack_incomplete.is_some() {
        path.push(word("(outer frames are missing)"));
    }
    path.extend(site.stack.iter().rev().map(|frame| Step {
        name: name(frame),
        frame: Some(frame),
    }));
    if site.stack.is_empty() {
        path.push(word(match site.preexisting_bytes {
            0 => "(no stack was kept)",
            _ => "(from before the attach)",
        }));
    }
    path
}

/// A frame by its function, or `module+0xoffset` where that has no name.
fn name(frame: &Frame) -> String {
    match (&frame.function, &frame.module, frame.offset) {
        (Some(function), _, _) => escape(function),
        (None, Some(module), Some(offset)) => {
            let file = module.rsplit('/').next().unwrap_or(module);
            format!("{}+{offset:#x}", escape(file))
        }
        _ => format!("{:#x}", frame.address),
    }
}
