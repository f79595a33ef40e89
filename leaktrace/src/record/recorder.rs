//! Who takes a recording: the writer of a capture file, or the screen of `top`.

use anyhow::Result;

use super::Code;
use crate::{
    capture::schema, inventory::goroutines::LiveSample, loader::Runs, plan::Plan, target::Target,
    why::Watch,
};

/// Takes what is recorded, and is told what happens.
pub trait Recorder {
    /// The target is known and the kernel side loaded; nothing is attached yet.
    ///
    /// # Errors
    ///
    /// Nothing could be kept: there is no recording.
    fn open(&mut self, target: &Target) -> Result<()>;

    /// Probes are live. This is the capture's first block.
    ///
    /// # Errors
    ///
    /// It could not be kept; this ends the recording.
    fn header(&mut self, header: schema::Header) -> Result<()>;

    /// An interval is over; the first one, with index 0, is the state at the attach.
    ///
    /// # Errors
    ///
    /// It could not be kept; this ends the recording.
    fn interval(&mut self, interval: schema::Interval, now: &Now<'_>) -> Result<()>;

    /// The state at the attach has been taken in: from here on only intervals come.
    fn attached(&mut self, target: &Target, plan: &Plan);

    /// Something worth knowing for people.
    fn note(&mut self, text: &str);

    /// What keeps objects alive is being looked for.
    fn looking(&mut self, _watch: &Watch) {}

    /// The window is closed and nothing is attached any more.
    fn detached(&mut self);
}

/// Where a recording stands at the end of an interval.
pub struct Now<'a> {
    /// What is executable in the target, as of the interval.
    pub code: &'a Code,
    /// Records taken from the ring buffer since the attach.
    pub events: u64,
    /// Runs of the kernel side's programs since the attach, if they are counted.
    pub runs: Option<Runs>,
    /// What cannot be seen, beyond what the header tells.
    pub limits: &'a [schema::Limit],
}

/// What is left of a recording once it is over.
pub struct Ending {
    /// The target's code, with its files still open.
    pub code: Code,
    /// The last block of a capture.
    pub close: schema::Close,
    /// The live objects of a Go heap that leaktrace has sampled itself, if what keeps them is wanted.
    pub own_samples: Vec<LiveSample>,
    /// What still points to blocks of native allocators, if that is wanted.
    pub retention: Option<schema::Retention>,
}
