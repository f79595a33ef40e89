//! How far a search through memory has come, and whether it is to end: for another thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A search under way.
#[derive(Debug, Default)]
pub struct Watch {
    done: AtomicU64,
    all: AtomicU64,
    is_stopped: AtomicBool,
}

impl Watch {
    /// Ends the search soon; what it has found stays.
    pub fn stop(&self) {
        self.is_stopped.store(true, Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Relaxed)
    }

    /// A pass begins, for which there are so many bytes at most.
    pub(super) fn begin(&self, all: u64) {
        self.all.store(all, Relaxed);
        self.done.store(0, Relaxed);
    }

    /// So many more have been looked at.
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Bytes looked at by the pass that is under way, and those that there are at most; zero before the first.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.all.load(Relaxed))
    }
}
