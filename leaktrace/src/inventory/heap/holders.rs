//! What refers to what: what a search through the heap finds out, whichever way it goes.

use std::{collections::HashSet, time::Duration};

use super::{Heap, Object, Root};

/// What an object was reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A root.
    Root(Root),
    /// Another object.
    Object(Object),
}

/// What refers to an object, and the object.
pub type Reference = (Holder, Object);

/// What a search has found.
pub trait Holders {
    /// The heap that was gone through.
    fn heap(&self) -> &Heap;

    /// What an object is reached from, on the way from a root; `None`: it was not reached.
    fn holder(&self, object: Object) -> Option<Holder>;

    /// Whether an object that was not reached may have a path all the same, because not all could be followed.
    fn is_unsure(&self) -> bool;

    /// Addresses of the channels at which goroutines wait and to which nothing leads but these, and others that wait
    /// so: no variable of the program, no other goroutine, no timer. None where that was not found out.
    fn forgotten(&self) -> HashSet<u64> {
        HashSet::new()
    }

    /// What it took.
    fn figures(&self) -> Figures;
}

/// What a search took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Scans of the heap, where it went from the objects back to the roots.
    pub backward_scans: Option<u64>,
    /// Objects with pointers that were reached, or that lead to those asked for.
    pub reached: u64,
    /// Bytes of objects that were looked at.
    pub scanned_bytes: u64,
    /// Bytes of objects that could not be read.
    pub unread_bytes: u64,
    /// Words of roots that were left out because there were too many.
    pub roots_dropped: u64,
    /// Bytes of memory that its tables took.
    pub memory_bytes: u64,
    /// It was told to end before everything was looked at.
    pub is_cut: bool,
    /// How long it took.
    pub took: Duration,
}
