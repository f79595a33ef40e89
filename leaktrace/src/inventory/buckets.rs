//! The Go runtime's own heap profile: every allocation since the process began, one sample in
//! `MemProfileRate` bytes.
//!
//! `runtime.mbuckets` is a list (linked by `allnext`) to which buckets are only ever added, at its
//! head, and which are never freed (runtime/mprof.go, Go 1.19 to 1.27; golang/go#69590). So each
//! reading walks the list only down to the first bucket it knows, and reads the counts of all
//! known ones in a few system calls.

use std::collections::HashSet;

use super::word;
use crate::{
    go::layout::Bucket as Layout,
    plan::GoSampler,
    target::{Memory, MemoryError},
};

/// More buckets than this are not followed: the list is being misread.
const MAX_BUCKETS: usize = 1 << 20;
/// So are more frames than this in all of them.
const MAX_FRAMES: usize = 1 << 23;

/// One allocation site of the Go heap profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its address in the target: the site's stack id.
    pub address: u64,
    /// Size of each object in bytes.
    pub object_size: u64,
    /// The runtime's logical frames, innermost first, as addresses in the process.
    pub pcs: Vec<u64>,
}

/// A bucket's counts of sampled objects since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// Allocated until now.
    pub allocs: u64,
    /// Freed until now.
    pub frees: u64,
    /// Allocated, as of the last completed collections: what pprof shows.
    pub proven_allocs: u64,
    /// Freed, as of the last completed collections.
    pub proven_frees: u64,
}

/// A reader of the profile of one process.
pub struct Buckets {
    memory: Memory,
    sampler: GoSampler,
    buckets: Vec<Bucket>,
    known: HashSet<u64>,
    /// Frames of all buckets.
    frames: usize,
}

/// Why the profile could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BucketsError {
    /// The target's memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What was read cannot be a bucket.
    #[error("the Go heap profile at {address:#x} makes no sense: {reason}")]
    Nonsense {
        /// Address of the bucket.
        address: u64,
        /// What is wrong with it.
        reason: String,
    },
}

impl Buckets {
    /// A reader that knows no bucket yet.
    pub fn new(memory: Memory, sampler: GoSampler) -> Self {
        Self {
            memory,
            sampler,
            buckets: Vec::new(),
            known: HashSet::new(),
            frames: 0,
        }
    }

    /// `runtime.MemProfileRate` now, in bytes.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read.
    pub fn sample_rate(&self) -> Result<u64, BucketsError> {
        Ok(self.memory.read_u64(self.sampler.rate)?)
    }

    /// The buckets known so far; indexes stay the same for the life of the reader.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Finds the buckets that are new since the last call and reads the counts of all: one for
    /// each of [`Buckets::buckets`], in the same order.
    ///
    /// # Errors
    ///
    /// The target's memory cannot be read, or what is there is not a Go heap profile.
    pub fn read(&mut self) -> Result<Vec<BucketCounts>, BucketsError> {
        self.find_new()?;
        let layout = self.sampler.layout.bucket;
        let addresses: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.address + layout.header_size + 8 * bucket.pcs.len() as u64)
            .collect();
        let cycle = layout.cycle_size as usize;
        let record = Layout::CYCLES as usize * cycle;
        // The runtime may move counts between the parts of a record while it is copied: take one
        // that reads the same twice.
        let mut blocks = self.memory.read_blocks(&addresses, record)?;
        for _ in 0..3 {
            let again = self.memory.read_blocks(&addresses, record)?;
            let stable = again == blocks;
            blocks = again;
            if stable {
                break;
            }
        }
        Ok(blocks
            .chunks(record)
            .map(|block| counts(block, cycle))
            .collect())
    }

    fn find_new(&mut self) -> Result<(), BucketsError> {
        let mut fresh = Vec::new();
        let mut window = Window::new(self.memory);
        let mut address = self.memory.read_u64(self.sampler.buckets)?;
        while address != 0 && !self.known.contains(&address) {
            if self.buckets.len() + fresh.len() >= MAX_BUCKETS || self.frames > MAX_FRAMES {
                return Err(nonsense(address, "the list does not end"));
            }
            let (bucket, next) = self.read_bucket(address, &mut window)?;
            self.frames += bucket.pcs.len();
            fresh.push(bucket);
            self.known.insert(address);
            address = next;
        }
        // Oldest first, so that the order is the order of their making.
        self.buckets.extend(fresh.into_iter().rev());
        Ok(())
    }

    fn read_bucket(
        &self,
        address: u64,
        window: &mut Window,
    ) -> Result<(Bucket, u64), BucketsError> {
        let layout = self.sampler.layout.bucket;
        let header = window.at(address, layout.header_size)?;
        let depth = word(header, layout.nstk);
        if depth > layout.max_stack {
            return Err(nonsense(address, &format!("a stack of {depth} frames")));
        }
        if word(header, layout.typ) != Layout::MEM_PROFILE {
            return Err(nonsense(address, "not a bucket of the heap profile"));
        }
        let (object_size, next) = (word(header, layout.size), word(header, layout.allnext));
        let stack = window.at(address.wrapping_add(layout.header_size), depth * 8)?;
        let bucket = Bucket {
            address,
            object_size,
            pcs: stack.chunks(8).map(|pc| word(pc, 0)).collect(),
        };
        Ok((bucket, next))
    }
}

/// A part of the target's memory. Buckets are never changed but for their counts, and each is made above those
/// before it, in chunks (runtime/malloc.go `persistentalloc`): where the newest is read, older ones lie below.
struct Window {
    memory: Memory,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    const BYTES: u64 = 1 << 16;
    /// So much is above the address that was asked for: the rest of its bucket.
    const ABOVE: u64 = 1 << 12;

    fn new(memory: Memory) -> Self {
        Self {
            memory,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// The `len` bytes at `address`.
    fn at(&mut self, address: u64, len: u64) -> Result<&[u8], MemoryError> {
        let read = self.bytes.len() as u64;
        let is_read = |from| read.checked_sub(from).is_some_and(|left| len <= left);
        if !address.checked_sub(self.start).is_some_and(is_read) {
            self.read(address, len)?;
        }
        let from = (address - self.start) as usize;
        Ok(&self.bytes[from..from + len as usize])
    }

    /// Reads around an address or, at the edge of what is mapped, there only.
    fn read(&mut self, address: u64, len: u64) -> Result<(), MemoryError> {
        let size = Self::BYTES.max(len);
        self.start = address
            .saturating_add(Self::ABOVE.max(len))
            .saturating_sub(size);
        self.bytes.resize(size as usize, 0);
        if self.memory.read(self.start, &mut self.bytes).is_err() {
            self.start = address;
            self.bytes.resize(len as usize, 0);
            self.memory.read(address, &mut self.bytes)?;
        }
        Ok(())
    }
}

/// Sums a `memRecord`: `active`, then the three `future` cycles.
fn counts(record: &[u8], cycle: usize) -> BucketCounts {
    let mut sums = BucketCounts::default();
    for (index, part) in record.chunks(cycle).enumerate() {
        let (allocs, frees) = (word(part, 0), word(part, 8));
        sums.allocs = sums.allocs.wrapping_add(allocs);
        sums.frees = sums.frees.wrapping_add(frees);
        if index == 0 {
            sums.proven_allocs = allocs;
            sums.proven_frees = frees;
        }
    }
    sums
}

fn nonsense(address: u64, reason: &str) -> BucketsError {
    BucketsError::Nonsense {
        address,
        reason: reason.to_owned(),
    }
}
