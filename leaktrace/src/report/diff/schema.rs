//! What `leaktrace diff --format json` prints. docs/diff.md describes it.

use serde::{Deserialize, Serialize};

use crate::live_heap::Estimate;
use crate::report::schema::{Frame, Kind};
use crate::verdict::Verdict;

/// Value of [`Diff::schema`].
pub const SCHEMA: u32 = 1;

/// Two reports compared. Figures are bytes, or numbers of goroutines, and those in a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    /// Version of this schema, [`SCHEMA`].
    pub schema: u32,
    /// The earlier one, or the one to compare with.
    pub base: Side,
    /// The other.
    pub file: Side,
    /// What the two have to do with each other.
    pub relation: Relation,
    /// Seconds from the end of `base` to the beginning of `file`; one process only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between_s: Option<f64>,
    /// What stands in the way of a comparison.
    pub notes: Vec<String>,
    /// Sites by change.
    pub summary: Counts,
    /// The sites: new, grew, shrank, gone, then the others; within each by how much.
    pub sites: Vec<SiteDiff>,
    /// Groups of goroutines likewise; absent unless both have goroutines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goroutines: Option<Vec<GroupDiff>>,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Process id.
    pub pid: u32,
    /// Its short name.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// That file's build id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// `go1.27.3` or `native`.
    pub runtime: String,
    /// Wall clock at the beginning, nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// Length of the window.
    pub duration_s: f64,
}

/// What two captures have to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// They are of one process.
    OneProcess,
    /// Of two processes of one build.
    TwoInstances,
    /// Of two builds of one program.
    TwoBuilds,
    /// Of two programs.
    TwoPrograms,
}

/// What became of a site, as far as the widths show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// In the file only.
    New,
    /// Holds more, or grows faster.
    Grew,
    /// Holds less, or grows slower.
    Shrank,
    /// In the base only.
    Gone,
    /// No difference is shown.
    Same,
    /// One of the two did not record this kind of memory.
    NotCompared,
}

/// How many have which change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// In the file only.
    pub new: usize,
    /// Hold more, or grow faster.
    pub grew: usize,
    /// Hold less, or grow slower.
    pub shrank: usize,
    /// In the base only.
    pub gone: usize,
    /// No difference shown.
    pub same: usize,
    /// Not recorded on both sides.
    pub not_compared: usize,
}

impl Counts {
    pub(super) fn count(&mut self, change: Change) {
        *match change {
            Change::New => &mut self.new,
            Change::Grew => &mut self.grew,
            Change::Shrank => &mut self.shrank,
            Change::Gone => &mut self.gone,
            Change::Same => &mut self.same,
            Change::NotCompared => &mut self.not_compared,
        } += 1;
    }
}

/// One side's figures of a site, or of a group of goroutines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Sites of the report put together here.
    pub sites: usize,
    /// The gravest of their verdicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Live bytes, or goroutines, at the end; as wide as the last quarter of the window.
    pub live: Estimate,
    /// Growth a second, from the attach to the end; absent where too little is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth_per_s: Option<Estimate>,
    /// Bytes allocated a second: whether there was the same to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_per_s: Option<f64>,
}

/// A site on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteDiff {
    /// What became of it.
    pub change: Change,
    /// Why that is said, in words.
    pub why: String,
    /// Kind of memory.
    pub kind: Kind,
    /// In the base; absent if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Measure>,
    /// In the file; absent if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Measure>,
    /// Live bytes of the file less those of the base.
    pub live_difference: Estimate,
    /// The same of the growth a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth_difference_per_s: Option<Estimate>,
    /// One process: what it had at the attach of the file, less what it had at the end of the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between: Option<Estimate>,
    /// Innermost first; that of the file, or of the base where the file has none.
    pub stack: Vec<Frame>,
    /// The innermost own line in the base, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_line: Option<u32>,
}

/// A group of goroutines on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupDiff {
    /// What became of it.
    pub change: Change,
    /// Why that is said, in words.
    pub why: String,
    /// `waiting` and the like.
    pub state: String,
    /// Why they wait, in the runtime's words.
    pub wait_reason: Option<String>,
    /// In the base; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Measure>,
    /// In the file; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Measure>,
    /// Where they are blocked.
    pub blocked_at: Option<Frame>,
    /// The go statement that made them.
    pub created_by: Option<Frame>,
}
