//! How large the kernel's maps are.

use leaktrace_common::{BlockEvent, GoSample, UNWIND_CHUNK, VmEvent};

/// Sizes of the kernel's maps. They bound the kernel memory of a run: about 100 bytes a live
/// object, 1.1 KiB a stack, 50 bytes and 32 a CPU for each site, 512 KiB a chunk of the unwind tables
/// and about 80 bytes a page of code that has rows in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Objects live at one time.
    pub live_objects: u32,
    /// Distinct stacks.
    pub stacks: u32,
    /// Distinct sites.
    pub sites: u32,
    /// Bytes of the ring buffer, rounded up to a power of two of at least a page.
    pub ring_bytes: u32,
    /// Chunks of the unwind tables, of [`UNWIND_CHUNK`] rows each.
    pub unwind_chunks: u32,
    /// Pages of code that have such rows.
    pub unwind_pages: u32,
    /// Bytes of the ring buffer for our own samples of a Go heap, a power of two.
    pub sample_ring_bytes: u32,
    /// Bytes of the ring buffer for births and deaths of blocks in windows, a power of two.
    pub block_ring_bytes: u32,
    /// Threads of the target that call native allocators, or change the address space.
    pub threads: u32,
    /// Processes other than the target that are followed at one time; 0: none is.
    pub processes: u32,
    /// Probes at the beginning of native allocators' functions.
    pub allocator_calls: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            live_objects: 1 << 16,
            stacks: 1 << 13,
            sites: 1 << 13,
            ring_bytes: 1 << 22,
            unwind_chunks: 1 << 6,
            unwind_pages: 1 << 17,
            sample_ring_bytes: 1 << 22,
            block_ring_bytes: 1 << 22,
            threads: 1 << 12,
            processes: 0,
            allocator_calls: 1 << 10,
        }
    }
}

impl MapSizes {
    /// Processes other than the target that are followed at one time where any are. The kernel needs some tens
    /// of milliseconds to take the probes of each away.
    pub const PROCESSES: u32 = 1 << 8;

    /// Records that the ring buffer holds: each takes eight bytes more than itself, and one byte
    /// always stays free.
    pub fn ring_records(&self) -> u32 {
        (self.ring_bytes - 1) / (size_of::<VmEvent>() as u32 + 8)
    }

    /// Rows that the unwind tables hold.
    pub fn unwind_rows(&self) -> u32 {
        self.unwind_chunks * UNWIND_CHUNK
    }

    /// Births and deaths in windows that their ring buffer holds.
    pub fn ring_blocks(&self) -> u32 {
        (self.block_ring_bytes - 1) / (size_of::<BlockEvent>() as u32 + 8)
    }

    /// Our own samples that their ring buffer holds.
    pub fn ring_samples(&self) -> u32 {
        (self.sample_ring_bytes - 1) / (size_of::<GoSample>() as u32 + 8)
    }
}
