//! What a Go runtime counts of its own memory: `runtime.memstats`.
//!
//! Everything that `runtime.ReadMemStats` tells of bytes can be had from this one variable: spans by
//! use (`heapStats`, three sets of counters of which the sum counts) and what is kept outside the
//! heap (`…_sys`). All are words that the runtime updates atomically as it goes, so that a copy of
//! them, a few kilobytes, stands for a moment without stopping anyone; going through all spans would
//! take a moment for each. (runtime/mstats.go `readmemstats_m`, `heapStatsDelta`; Go 1.19 to 1.27.)

use super::layout::{Layout, UnknownLayout};

/// Bytes of the objects of each small size class (runtime/sizeclasses.go `class_to_size`,
/// internal/runtime/gc/sizeclasses.go `SizeClassToSize`: the same in Go 1.19 to 1.27).
const CLASS_SIZES: [u64; 68] = [
    0, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320,
    352, 384, 416, 448, 480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792,
    2048, 2304, 2688, 3072, 3200, 3456, 4096, 4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728,
    10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264, 28672,
    32768,
];

/// Copies of `heapStatsDelta` in `consistentHeapStats`.
const COPIES: u64 = 3;

/// The memory of a Go runtime by its own count, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoMemory {
    /// Spans of the collected heap (`MemStats.HeapInuse`).
    pub heap_in_use: u64,
    /// Objects in them that have not been swept away (`MemStats.HeapAlloc`, without those that a
    /// processor has allocated from its current spans).
    pub heap_objects: u64,
    /// Pages of the heap kept for later (`HeapIdle` − `HeapReleased`).
    pub heap_idle: u64,
    /// Pages of the heap given back to the kernel (`HeapReleased`).
    pub heap_released: u64,
    /// Stacks of goroutines (`StackSys`).
    pub stacks: u64,
    /// Pages of the heap's arenas that the collector works in.
    pub work_buffers: u64,
    /// Tables outside the heap: spans, caches, profile buckets, bitmaps (`MSpanSys`, `MCacheSys`,
    /// `BuckHashSys`, `GCSys` without work buffers, `OtherSys`).
    pub tables: u64,
}

impl GoMemory {
    /// Pages of the heap's arenas that are ready for use.
    pub fn committed(&self) -> u64 {
        self.heap_in_use + self.heap_idle + self.stacks + self.work_buffers
    }
}

/// Where a release keeps these counters. Offsets in bytes from `runtime.memstats`.
#[derive(Clone, Debug)]
pub struct MemStatsLayout {
    copies: Vec<u64>,
    committed: u64,
    released: u64,
    in_heap: u64,
    in_stacks: u64,
    in_work_buffers: Vec<u64>,
    large: (u64, u64),
    small: (u64, u64),
    stacks_sys: u64,
    tables: Vec<u64>,
}

impl MemStatsLayout {
    /// As a runtime's types have it.
    ///
    /// # Errors
    ///
    /// One of the fields is not there.
    pub fn of(layout: &Layout) -> Result<Self, UnknownLayout> {
        let global = |field| layout.offset("runtime.mstats", field);
        let delta = |field| layout.offset("runtime.heapStatsDelta", field);
        let first = global("heapStats")? + layout.offset("runtime.consistentHeapStats", "stats")?;
        let size = layout.size_of("runtime.heapStatsDelta")?;
        for field in ["smallAllocCount", "smallFreeCount"] {
            if layout.field_size("runtime.heapStatsDelta", field)? != 8 * CLASS_SIZES.len() as u64 {
                return Err(UnknownLayout(format!(
                    "`runtime.heapStatsDelta.{field}` does not have a word for each size class"
                )));
            }
        }
        let tables = [
            "mspan_sys",
            "mcache_sys",
            "buckhash_sys",
            "gcMiscSys",
            "other_sys",
        ];
        Ok(Self {
            copies: (0..COPIES).map(|copy| first + copy * size).collect(),
            committed: delta("committed")?,
            released: delta("released")?,
            in_heap: delta("inHeap")?,
            in_stacks: delta("inStacks")?,
            // Unrolled pointer bitmaps have pages of their own before Go 1.25.
            in_work_buffers: [delta("inWorkBufs")?]
                .into_iter()
                .chain(delta("inPtrScalarBits").ok())
                .collect(),
            large: (delta("largeAlloc")?, delta("largeFree")?),
            small: (delta("smallAllocCount")?, delta("smallFreeCount")?),
            stacks_sys: global("stacks_sys")?,
            tables: tables.into_iter().map(global).collect::<Result<_, _>>()?,
        })
    }

    /// Bytes to read from the beginning of `runtime.memstats`.
    pub fn size(&self) -> usize {
        let last = self.tables.iter().chain(&self.copies).max();
        last.map_or(0, |last| *last as usize + 8)
    }

    /// The counters in a copy of [`MemStatsLayout::size`] bytes. `None`: they make no sense, as
    /// while the runtime moves counts from one set to another.
    pub fn parse(&self, bytes: &[u8]) -> Option<GoMemory> {
        let word = |offset: u64| {
            let rest = bytes.get(offset as usize..)?;
            Some(i64::from_le_bytes(*rest.first_chunk()?))
        };
        let sum = |offset: u64| {
            self.copies.iter().try_fold(0_i64, |sum, copy| {
                sum.checked_add(word(copy.checked_add(offset)?)?)
            })
        };
        let bytes_of = |offset: u64| u64::try_from(sum(offset)?).ok();
        let (heap_in_use, stacks) = (bytes_of(self.in_heap)?, bytes_of(self.in_stacks)?);
        let work_buffers = self
            .in_work_buffers
            .iter()
            .try_fold(0_u64, |all, part| all.checked_add(bytes_of(*part)?))?;
        let mut heap_objects = sum(self.large.0)?.checked_sub(sum(self.large.1)?)?;
        for (class, size) in CLASS_SIZES.into_iter().enumerate() {
            let at = |counts: u64| sum(counts + 8 * class as u64);
            let count = at(self.small.0)?.checked_sub(at(self.small.1)?)?;
            heap_objects = heap_objects.checked_add(count.checked_mul(size as i64)?)?;
        }
        let committed = bytes_of(self.committed)?;
        let used = heap_in_use.checked_add(stacks)?.checked_add(work_buffers)?;
        let tables = self.tables.iter().try_fold(0_u64, |all, part| {
            all.checked_add(u64::try_from(word(*part)?).ok()?)
        })?;
        Some(GoMemory {
            heap_in_use,
            // A large object is counted by its pages, like its span.
            heap_objects: u64::try_from(heap_objects).ok()?.min(heap_in_use),
            heap_idle: committed.checked_sub(used)?,
            heap_released: bytes_of(self.released)?,
            stacks: stacks.checked_add(u64::try_from(word(self.stacks_sys)?).ok()?)?,
            work_buffers,
            tables,
        })
    }
}
