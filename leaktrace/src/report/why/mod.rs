//! What keeps objects alive: what `leaktrace why` prints, and what `record --retention` keeps of it in a
//! capture.

mod dot;
mod text;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Frame, LimitReport, SiteReport, goroutines::GoroutineGroup};
use crate::capture::schema::Retention;

pub use dot::write_dot;
pub use text::{KEPT_BY, kept_by, write_text};

/// Version of what `--format json` prints.
pub const SCHEMA: u32 = 1;

/// Bytes of JSON that a capture keeps of it at most: each may become a hundred when it is read.
pub const MAX_JSON: usize = 1 << 20;

/// Why objects of some allocation sites are alive. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Why {
    /// Version of this form, [`SCHEMA`].
    pub schema: u32,
    /// The process.
    pub target: WhyTarget,
    /// What was gone through.
    pub pass: Pass,
    /// Allocation sites, the one with the most live bytes first; or the one object asked for.
    pub sites: Vec<WhySite>,
    /// Sites of the process's heap profile that have live samples, shown or not.
    pub sites_total: u64,
    /// What was not looked at.
    pub limits: Vec<LimitReport>,
}

impl Why {
    /// What a block of a capture has of it.
    ///
    /// # Errors
    ///
    /// It is not what this version can read, in words.
    pub fn of_capture(retention: &Retention) -> Result<Self, String> {
        let why = &retention.why;
        if why.len() > MAX_JSON {
            return Err(format!("it has {} bytes, {MAX_JSON} are read", why.len()));
        }
        let why: Self = serde_json::from_str(why).map_err(|error| error.to_string())?;
        match why.schema {
            SCHEMA => Ok(why),
            other => Err(format!(
                "it is of version {other}, this leaktrace reads {SCHEMA}"
            )),
        }
    }

    /// Gives each site of a report what keeps its objects.
    pub(super) fn told<'a>(
        self,
        sites: impl Iterator<Item = &'a mut SiteReport>,
    ) -> RetentionReport {
        let mut by_number = HashMap::new();
        for found in self.sites {
            if let Some(&number) = found.capture_sites.first() {
                by_number.insert(number, found);
            }
        }
        for site in sites {
            for number in &site.capture_sites {
                if let Some(found) = by_number.remove(number) {
                    site.retention.get_or_insert_default().merge(found);
                }
            }
        }
        RetentionReport {
            pass: self.pass,
            limits: self.limits,
        }
    }
}

impl WhySite {
    /// Takes in another part of the same site; its stack is left out.
    fn merge(&mut self, other: Self) {
        self.rank = other.rank;
        self.capture_sites.extend(other.capture_sites);
        for (amount, more) in [
            (&mut self.total, other.total),
            (&mut self.unreached, other.unreached),
            (&mut self.moved, other.moved),
            (&mut self.gone, other.gone),
            (&mut self.unchecked, other.unchecked),
            (&mut self.lost, other.lost),
            (&mut self.lost_behind, other.lost_behind),
        ] {
            amount.merge(more);
        }
        self.holders.extend(other.holders);
        self.holders_left_out += other.holders_left_out;
        self.merge_holders(usize::MAX);
    }

    /// Puts native holders together that are told alike, those of the most bytes first, and leaves out all
    /// but `most` of them.
    pub(crate) fn merge_holders(&mut self, most: usize) {
        let mut merged: Vec<Holder> = Vec::new();
        for holder in std::mem::take(&mut self.holders) {
            let same = merged.iter_mut().find(|other| other.is_told_as(&holder));
            match same {
                Some(same) => {
                    same.amount.merge(holder.amount);
                    same.offset = same.offset.filter(|offset| Some(*offset) == holder.offset);
                }
                None => merged.push(holder),
            }
        }
        merged.sort_by(|a, b| b.amount.bytes.total_cmp(&a.amount.bytes));
        self.holders_left_out += merged.len().saturating_sub(most) as u64;
        merged.truncate(most);
        self.holders = merged;
    }
}

impl Holder {
    /// Whether both are the same variable or the same kind of other memory, without paths.
    fn is_told_as(&self, other: &Self) -> bool {
        let offset = |holder: &Self| holder.offset.filter(|_| holder.symbol.is_none());
        self.paths.is_empty()
            && other.paths.is_empty()
            && self.kind == other.kind
            && self.symbol == other.symbol
            && self.section == other.section
            && self.module == other.module
            && offset(self) == offset(other)
    }
}

/// The process that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WhyTarget {
    /// Its id.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// As in `go1.27.3`.
    pub runtime: String,
    /// Whether it has no symbol table.
    pub stripped: bool,
    /// Bytes for each sample of its heap sampler; zero: it is off.
    pub sample_rate: u64,
}

/// What was gone through, and at which cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pass {
    /// Spans of the heap.
    pub spans: u64,
    /// Their bytes.
    pub heap_bytes: u64,
    /// Bytes of objects that were looked at.
    pub scanned_bytes: u64,
    /// Bytes of objects that could not be read.
    pub unread_bytes: u64,
    /// Objects with pointers that a root leads to; of a backward search those that may lead to what was asked for.
    pub reached_objects: u64,
    /// Words of roots left out because there were too many.
    pub roots_dropped: u64,
    /// Bytes of memory that the tables took.
    pub table_bytes: u64,
    /// Scans of the heap, where the last search went from the objects back to the roots because memory did not
    /// suffice for the other way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backward_scans: Option<u64>,
    /// Searches made: one more each time that a path did not hold when it was read again.
    pub passes: u64,
    /// It was stopped before everything was looked at: what was not reached may have a path.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// How long the last pass took, in milliseconds.
    pub took_ms: f64,
}

/// The look at the process that found what keeps objects alive, after the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RetentionReport {
    /// What was gone through.
    pub pass: Pass,
    /// What was not looked at.
    pub limits: Vec<LimitReport>,
}

/// The objects of one allocation site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WhySite {
    /// Its number, from 1: by live bytes in the process's own heap profile. Zero for an object that was
    /// asked for by its address, and for the whole heap.
    pub rank: u64,
    /// In a capture: the numbers of its sites whose objects these are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capture_sites: Vec<u32>,
    /// The stack of the allocation, innermost first.
    pub stack: Vec<Frame>,
    /// Address of the object that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<u64>,
    /// All its live objects.
    pub total: Amount,
    /// What keeps them, by where the path begins, the most bytes first.
    pub holders: Vec<Holder>,
    /// Further ones.
    pub holders_left_out: u64,
    /// Those to which no root leads: they wait to be collected, or what holds them is not looked at.
    pub unreached: Amount,
    /// Those whose path did not hold when it was read again.
    pub moved: Amount,
    /// Those that died meanwhile.
    pub gone: Amount,
    /// Those whose path was not checked because there are too many, or because the search was stopped.
    pub unchecked: Amount,
    /// Native allocators: those to which nothing that was looked at points.
    #[serde(skip_serializing_if = "Amount::is_none")]
    pub lost: Amount,
    /// The same: those to which only lost ones point.
    #[serde(skip_serializing_if = "Amount::is_none")]
    pub lost_behind: Amount,
}

/// So many samples, and what they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amount {
    /// Sampled objects.
    pub samples: u64,
    /// Estimate of objects.
    pub objects: f64,
    /// Estimate of bytes.
    pub bytes: f64,
}

impl Amount {
    /// Whether it is nothing.
    pub fn is_none(&self) -> bool {
        self.samples == 0
    }

    fn merge(&mut self, more: Self) {
        self.samples += more.samples;
        self.objects += more.objects;
        self.bytes += more.bytes;
    }

    /// Adds a sample that stands for so many objects and bytes.
    pub fn add(&mut self, objects: f64, bytes: f64) {
        self.samples += 1;
        self.objects += objects;
        self.bytes += bytes;
    }
}

/// Where paths begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// A variable of the program.
    #[default]
    Variable,
    /// Stacks of goroutines that stand at the same place.
    Goroutines,
    /// A finalizer or cleanup whose object is still there.
    Finalizer,
    /// The queue of finalizers whose objects have died.
    FinalizerQueue,
    /// Stacks of native threads.
    Stack,
    /// Registers of native threads, and no memory.
    Registers,
    /// Memory that is neither a variable nor in a block that is followed.
    Memory,
}

/// What keeps objects: paths from one root, or from goroutines that cannot be told apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// What it is.
    pub kind: RootKind,
    /// The variable, as in `main.table`; null in a stripped program.
    pub symbol: Option<String>,
    /// The section of a variable, as in `.bss`.
    pub section: Option<String>,
    /// The file of a variable of a native program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Bytes from the beginning of the variable or, without one, of the section.
    pub offset: Option<u64>,
    /// The goroutines: all that stand there, with the channel that most of them wait on.
    pub goroutines: Option<Box<GoroutineGroup>>,
    /// Nothing that was looked at leads to that channel but goroutines that wait at it, or at another one of which
    /// the same is true: no variable of the program, no other goroutine, no timer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
    /// How many of them the paths begin at.
    pub holding: u64,
    /// What they keep.
    pub amount: Amount,
    /// The object nearest to the objects through which every path goes that was found from here.
    pub bottleneck: Option<HopReport>,
    /// Paths by their shape, the most bytes first.
    pub paths: Vec<PathReport>,
    /// Shapes that are left out.
    pub paths_left_out: u64,
}

/// Paths of one shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathReport {
    /// What they keep.
    pub amount: Amount,
    /// From the root to the object.
    pub hops: Vec<HopReport>,
    /// Every reference on the way is one that the collector follows, of all these paths. Otherwise a
    /// word on the way may be an address by chance, or of a variable that is dead.
    pub checked: bool,
}

/// How a hop got its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    /// Only its size is known.
    #[default]
    Size,
    /// The type that the runtime keeps of it or of the interface that refers to it.
    Type,
    /// The type that the program declares what refers to it with, by its debug information.
    Declaration,
    /// It is a function value.
    Closure,
    /// It is a channel on which goroutines wait.
    Channel,
    /// It is a goroutine.
    Goroutine,
}

/// Objects at one place of paths of one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HopReport {
    /// What it is called, as in `main.Row` or `48 B object`.
    pub name: String,
    /// How it got this name.
    pub named_by: NamedBy,
    /// The function that allocated it, or one of those that follow one another: known of objects that
    /// the heap sampler has taken.
    pub allocated_by: Option<String>,
    /// Its size in bytes, as the allocator rounds it.
    pub size: u64,
    /// Its address, of one of these paths.
    pub address: u64,
    /// How many of the kind follow one another, at least and at most.
    pub times: (u64, u64),
    /// What refers to it, by the program's debug information: the variable on a stack, the field of the hop before or of
    /// the variable that the path begins at, as in `cache` or `.m.root`. Of several that are put together the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(why: String) -> Result<Why, String> {
        Why::of_capture(&Retention { why })
    }

    #[test]
    fn a_capture_gives_back_what_was_found() {
        let why = Why {
            schema: SCHEMA,
            sites: vec![WhySite {
                capture_sites: vec![3, 7],
                holders: vec![Holder {
                    symbol: Some("main.\u{1b}[2Jtable".to_owned()),
                    ..Holder::default()
                }],
                ..WhySite::default()
            }],
            ..Why::default()
        };
        let json = serde_json::to_string(&why).unwrap();
        assert_eq!(of(json), Ok(why));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (json, words) in [
            ("[".to_owned(), "EOF"),
            ("{\"schema\":2}".to_owned(), "version 2"),
            ("[".repeat(MAX_JSON), "invalid type"),
            (" ".repeat(MAX_JSON + 1), "1048577 bytes"),
        ] {
            let reason = of(json).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
